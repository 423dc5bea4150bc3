"""The feed-forward layer of GPT-2."""

from flax import nnx

from common.taps import NO_TAPS

from ..layers import GELUS, Linear


class MLP(nnx.Module):
    """down(activation(up(x))): E -> F -> E, each position by itself."""

    def __init__(self, config, entry, execution):
        self.activation = GELUS[execution.gelu][config.activation]
        self.up_proj = Linear(config.embed_dim, config.ff_dim, True, execution)
        self.down_proj = Linear(config.ff_dim, config.embed_dim, True, execution)

    def __call__(self, x_BTE, taps=NO_TAPS):
        # [1] widen and bend
        hidden_BTF = taps("hidden", self.activation(self.up_proj(x_BTE)))
        # [2] back to the width of the model
        return taps("output", self.down_proj(hidden_BTF))
