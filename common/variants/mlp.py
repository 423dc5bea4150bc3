"""The feed-forward layer of GPT-2: widen, bend, narrow."""

from dataclasses import dataclass
from typing import ClassVar

from common.parameter import linear
from common.variants.part import FeedForward


@dataclass(frozen=True)
class PlainMLP(FeedForward):
    """Its width and activation are the model's: ff_dim, activation."""

    kind = "mlp"
    module = "MLP"
    aliases = ("ffn",)
    splits: ClassVar = {"up_proj": 0, "down_proj": 1}
    mapped: ClassVar[bool] = True

    def cut(self, config):
        return {"hidden units": config.ff_dim}

    def parameters(self, config, path):
        yield from linear(f"{path}.up_proj", config.ff_dim, config.embed_dim, bias=True)
        yield from linear(f"{path}.down_proj", config.embed_dim, config.ff_dim, bias=True, std=config.residual_std)

    def kept(self, config, at, path):
        yield from self.bent(config, at, path, at.tokens * config.ff_dim)
