"""Low-rank adapters of linear maps (Hu et al. 2021), with other scales (Kalajdzievski 2023) and magnitudes (Liu et al.
2024); see `common/adapters.py`."""

import numpy as np

from common.adapters import placed

from .layers import DRAWN, dropout, plain_product
from .module import Module, Slot


class LowRank(Module):
    """One tensor of an adapter: A [R, in], B [out, R], or the magnitudes [out]."""

    def __init__(self, *shape):
        self.weight = Slot(*shape)


def changed(linear, x, y):
    """[..., out]: what adapters make of y = W x + b. Each adds scale B A x; with DoRA the rows of W + scale B A get
    lengths that are learned. x [..., in]."""
    plain = y
    for adapter, site in linear.adapters:
        # [1] x on its way to A, where some numbers are dropped
        a_RI, b_OR = linear.lora_A[adapter.name].weight, linear.lora_B[adapter.name].weight
        dropped = dropout(x, adapter.dropout, DRAWN.key, site)
        # [2] scale B A x
        change = adapter.scale * plain_product(plain_product(dropped, a_RI, None), b_OR, None)
        # [3] DoRA: all of W + scale B A times m / |W + scale B A|
        if adapter.dora:
            gain_O = linear.lora_magnitude_vector[adapter.name].weight / row_norms(linear, adapter)
            if dropped is x:
                own = plain if linear.bias is None else plain - linear.bias
            else:
                own = plain_product(dropped, linear.weight, None)
            change = (gain_O - 1) * own + gain_O * change
        y = y + change
    return y


def row_norms(linear, adapter):
    """|W + scale B A| of every row [out], a constant for gradients. Source: Liu et al. 2024, section 4.3."""
    # [1] the matrix as if it were merged
    a_RI, b_OR = linear.lora_A[adapter.name].weight, linear.lora_B[adapter.name].weight
    moved_OI = (linear.weight + adapter.scale * (b_OR @ a_RI)).real
    # [2] the lengths of its rows
    return np.sqrt((moved_OI * moved_OI).sum(-1))


def adapt(model, config):
    """Give the linear maps of a model what the adapters of its config change them by. Returns the model."""
    for path, adapter, out_dim, in_dim, site in placed(config):
        # [1] places for A, B and magnitudes, by the adapter's name
        linear = model.at(path)
        if linear.change is None:
            linear.change, linear.adapters = changed, ()
            linear.lora_A, linear.lora_B, linear.lora_magnitude_vector = {}, {}, {}
        linear.lora_A[adapter.name] = LowRank(adapter.rank, in_dim)
        linear.lora_B[adapter.name] = LowRank(out_dim, adapter.rank)
        if adapter.dora:
            linear.lora_magnitude_vector[adapter.name] = LowRank(out_dim)
        # [2] one after the other
        linear.adapters += ((adapter, site),)
    return model
