"""The feed-forward layer of GPT-2."""

from common.taps import NO_TAPS

from ..layers import ACTIVATIONS, Linear
from ..module import Module


class MLP(Module):
    """down(activation(up(x))): E -> F -> E, each position by itself."""

    def __init__(self, config, entry):
        self.activation = ACTIVATIONS[config.activation]
        self.up_proj = Linear(config.embed_dim, config.ff_dim, bias=True)
        self.down_proj = Linear(config.ff_dim, config.embed_dim, bias=True)

    def __call__(self, x_BTE, taps=NO_TAPS):
        # [1] widen and bend
        hidden_BTF = taps("hidden", self.activation(self.up_proj(x_BTE)))
        # [2] back to the width of the model
        return taps("output", self.down_proj(hidden_BTF))
