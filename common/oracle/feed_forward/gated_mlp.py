"""Gated feed-forward layers (Shazeer 2020): SwiGLU, GeGLU."""

from common.taps import NO_TAPS

from ..layers import ACTIVATIONS, Linear
from ..module import Module


class GatedMLP(Module):
    """down(activation(gate(x)) * up(x)): E -> F -> E, each position by itself."""

    def __init__(self, config, entry):
        self.activation = ACTIVATIONS[config.activation]
        self.gate_proj = Linear(config.embed_dim, config.ff_dim, bias=entry.bias)
        self.up_proj = Linear(config.embed_dim, config.ff_dim, bias=entry.bias)
        self.down_proj = Linear(config.ff_dim, config.embed_dim, bias=entry.bias)

    def __call__(self, x_BTE, taps=NO_TAPS):
        # [1] widen twice, bend one, multiply
        gate_BTF = taps("gate", self.activation(self.gate_proj(x_BTE)))
        hidden_BTF = taps("hidden", gate_BTF * self.up_proj(x_BTE))
        # [2] back to the width of the model
        return taps("output", self.down_proj(hidden_BTF))
