"""Low-rank adapters of linear maps (Hu et al. 2021), with other scales (Kalajdzievski 2023) and magnitudes (Liu et al.
2024); see `common/adapters.py`."""

import jax
import jax.numpy as jnp
from flax import nnx

from common.adapters import placed
from common.keyed import DRAWN

from .layers import dropout
from .precision import at_least, dtype


class LowRank(nnx.Module):
    """One tensor of an adapter: A [R, in], B [out, R], or the magnitudes [out]."""

    def __init__(self, *shape, execution):
        self.weight = nnx.Param(jnp.zeros(shape, dtype(execution.precision.param)))


def changed(linear, x, y):
    """[..., out]: what adapters make of y = W x + b. Each adds scale B A x; with DoRA the rows of W + scale B A get
    lengths that are learned. x [..., in]."""
    plain = y
    for adapter, site in linear.adapters:
        # [1] x on its way to A, where some numbers are dropped
        a_RI, b_OR = linear.lora_A[adapter.name].weight[...], linear.lora_B[adapter.name].weight[...]
        dropped = dropout(x, adapter.dropout, DRAWN.key, site)
        # [2] scale B A x
        change = adapter.scale * _product(linear, _product(linear, dropped, a_RI), b_OR)
        # [3] DoRA: all of W + scale B A times m / |W + scale B A|
        if adapter.dora:
            gain_O = linear.lora_magnitude_vector[adapter.name].weight[...] / row_norms(linear, adapter)
            if dropped is x:
                own = plain if linear.bias is None else plain - linear.bias[...].astype(plain.dtype)
            else:
                own = _product(linear, dropped, linear.weight[...])
            change = ((gain_O - 1) * own + gain_O * change).astype(plain.dtype)
        y = y + change
    return y


def widened(linear, x):
    """Pairs of an input [..., I] and a matrix [out, I], whose products add up to what a linear map gives with its bias
    and its adapters: for what multiplies by matrices itself. x [..., in]."""
    # [1] the bias, a product with ones
    gains_O1, pairs = 1.0, []
    if linear.bias is not None:
        pairs.append((jnp.ones_like(x[..., :1]), linear.bias[...][:, None]))
    for adapter, site in linear.adapters:
        # [2] A x, some of whose numbers are dropped on the way, beside scale B
        entering = dropout(x, adapter.dropout, DRAWN.key, site=site)
        a_RI = linear.lora_A[adapter.name].weight[...]
        b_OR = adapter.scale * linear.lora_B[adapter.name].weight[...]
        # [3] DoRA: the rows of both get longer; where x is whole that is one matrix for all
        if adapter.dora:
            lengths_O = linear.lora_magnitude_vector[adapter.name].weight[...]
            gain_O1 = (lengths_O / row_norms(linear, adapter))[:, None]
            b_OR = gain_O1 * b_OR
            if entering is x:
                gains_O1 = gains_O1 + (gain_O1 - 1)
            else:
                pairs.append((entering, (gain_O1 - 1) * linear.weight[...]))
        pairs.append((_product(linear, entering, a_RI), b_OR))
    # [4] W x
    own_OI = linear.weight[...] if isinstance(gains_O1, float) else gains_O1 * linear.weight[...]
    return [(x, own_OI), *pairs]


def row_norms(linear, adapter):
    """|W + scale B A| of every row [out], a constant for gradients. Source: Liu et al. 2024, section 4.3."""
    # [1] the matrix as if it were merged
    a_RI, b_OR = linear.lora_A[adapter.name].weight[...], linear.lora_B[adapter.name].weight[...]
    weight_OI, b_OR, a_RI = (at_least(part, linear.reduce) for part in (linear.weight[...], b_OR, a_RI))
    moved_OI = jax.lax.stop_gradient(weight_OI + adapter.scale * (b_OR @ a_RI))
    # [2] the lengths of its rows
    return jnp.sqrt(jnp.square(moved_OI).sum(-1))


def adapt(model, config, execution):
    """Give the linear maps of a model what the adapters of its config change them by. Returns the model."""
    for path, adapter, out_dim, in_dim, site in placed(config):
        # [1] places for A, B and magnitudes, by the adapter's name
        linear = _at(model, path)
        if linear.change is None:
            linear.change, linear.adapters = changed, ()
            linear.lora_A, linear.lora_B, linear.lora_magnitude_vector = (nnx.Dict() for _ in range(3))
        linear.lora_A[adapter.name] = LowRank(adapter.rank, in_dim, execution=execution)
        linear.lora_B[adapter.name] = LowRank(out_dim, adapter.rank, execution=execution)
        if adapter.dora:
            linear.lora_magnitude_vector[adapter.name] = LowRank(out_dim, execution=execution)
        # [2] one after the other
        linear.adapters += ((adapter, site),)
    return model


def _product(linear, x, weight):
    return linear.product(x, weight, None, linear.reduce).astype(x.dtype)


def _at(module, path):
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module
