"""Gated feed-forward layers: SwiGLU, GeGLU. Source: Shazeer 2020, equation 6."""

from dataclasses import dataclass
from typing import ClassVar

from common.accounting.work import ACTIVATION, FEED_FORWARD
from common.parameter import linear
from common.record import flag
from common.variants.part import FeedForward


@dataclass(frozen=True)
class GatedMLP(FeedForward):
    """down(activation(gate(x)) * up(x)): SwiGLU with the model's activation "silu", GeGLU with a GELU."""

    kind = "gated_mlp"
    module = "GatedMLP"
    aliases = ("glu", "swiglu with the model's activation=silu", "geglu with the model's activation=gelu")
    splits: ClassVar = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    mapped: ClassVar[bool] = True

    bias: bool = False

    def __post_init__(self):
        flag(self, "bias")

    def cut(self, config):
        return {"hidden units": config.ff_dim}

    def parameters(self, config, path):
        for name in ("gate_proj", "up_proj"):
            yield from linear(f"{path}.{name}", config.ff_dim, config.embed_dim, bias=self.bias)
        yield from linear(f"{path}.down_proj", config.embed_dim, config.ff_dim, bias=self.bias, std=config.residual_std)

    def elements(self, config, work):
        """The activation, and the product of the two halves."""
        (bent,) = super().elements(config, work).values()
        return {ACTIVATION: bent + work.tokens * config.ff_dim}

    def kept(self, config, at, path):
        """What is bent, before and after, and what it is multiplied by."""
        yield from self.bent(config, at, path, at.tokens * config.ff_dim)
        for what in ("gate", "up"):
            yield FEED_FORWARD, f"{path} {what}", at.tokens * config.ff_dim * at.compute
