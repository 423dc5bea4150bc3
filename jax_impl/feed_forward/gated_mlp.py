"""Gated feed-forward layers (Shazeer 2020): SwiGLU, GeGLU."""

from flax import nnx

from common.taps import NO_TAPS

from ..layers import GELUS, Linear


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)): E -> F -> E, each position by itself."""

    def __init__(self, config, entry, execution):
        self.activation = GELUS[execution.gelu][config.activation]
        self.gate_proj = Linear(config.embed_dim, config.ff_dim, entry.bias, execution)
        self.up_proj = Linear(config.embed_dim, config.ff_dim, entry.bias, execution)
        self.down_proj = Linear(config.ff_dim, config.embed_dim, entry.bias, execution)

    def __call__(self, x_BTE, taps=NO_TAPS):
        # [1] widen twice, bend one, multiply
        gate_BTF = taps("gate", self.activation(self.gate_proj(x_BTE)))
        hidden_BTF = taps("hidden", gate_BTF * self.up_proj(x_BTE))
        # [2] back to the width of the model
        return taps("output", self.down_proj(hidden_BTF))
