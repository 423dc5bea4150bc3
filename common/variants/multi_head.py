"""Multi-head attention: every head has keys and values of its own. Source: Vaswani et al. 2017, section 3.2.2."""

from dataclasses import dataclass
from typing import ClassVar

from common.accounting.work import ATTENTION, BOOL
from common.errors import unknown
from common.parameter import linear
from common.variants.part import Attention


@dataclass(frozen=True)
class MultiHead(Attention):
    """Its widths are the model's: embed_dim, num_heads, qkv_bias."""

    kind = "multi_head"
    module = "MultiHeadAttention"
    aliases = ("mha",)
    free_order = True
    splits: ClassVar = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
    mapped: ClassVar[bool] = True

    def cut(self, config):
        return {"heads": config.num_heads}

    def values(self, config):
        return "v_proj"

    def parameters(self, config, path):
        embed = config.embed_dim
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from linear(f"{path}.{name}", embed, embed, bias=config.qkv_bias, dead_bias=name == "k_proj")
        yield from linear(f"{path}.o_proj", embed, embed, bias=True, std=config.residual_std)

    def kept(self, config, at, path):
        """What the kernel keeps. The context is the output map's input."""
        if at.kernel not in KERNELS:
            raise unknown("attention kernel", at.kernel, KERNELS)
        yield from KERNELS[at.kernel](config, at, path, at.batch * config.num_heads * at.length * at.length)


def _plain_kernel(config, at, path, scores):
    """q and k as they are multiplied, v, the weights out of the softmax, and those that weigh v, if they are others.

    Positions are the same in all rows, so there is one mask: [T, T], and [T] for rows that see nothing.
    """
    dropped = at.dropout and config.dropout_attn > 0
    yield ATTENTION, f"{path} v", at.tokens * config.embed_dim * at.compute
    yield ATTENTION, f"{path} q, k", 2 * at.tokens * config.embed_dim * at.reduce
    yield ATTENTION, f"{path} mask", (at.length * at.length + at.length) * BOOL
    yield ATTENTION, f"{path} softmax", scores * at.reduce
    if dropped or at.compute != at.reduce:
        yield ATTENTION, f"{path} weights", scores * at.compute
    yield from at.dropped(f"{path} weights", config.dropout_attn, scores)


def _loop_kernel(config, at, path, scores):
    """As the plain one; the heads' weights are put together before they weigh v."""
    yield from _plain_kernel(config, at, path, scores)
    yield ATTENTION, f"{path} weights", scores * at.compute


def _blockwise_kernel(config, at, path, scores):
    """q (once a block), k, v as they are multiplied, all weights, what fades between blocks, and what is divided."""
    rows, blocks = at.tokens * config.num_heads, -(-at.length // BLOCK)
    yield ATTENTION, f"{path} q, k, v", (blocks + 2) * at.tokens * config.embed_dim * at.reduce
    yield ATTENTION, f"{path} mask", at.length * at.length * BOOL
    yield ATTENTION, f"{path} weights", scores * at.reduce
    yield ATTENTION, f"{path} fading", (blocks - 1) * rows * at.reduce
    yield ATTENTION, f"{path} sum", at.tokens * config.embed_dim * at.reduce
    yield ATTENTION, f"{path} normalisers", rows * (at.reduce + BOOL)


def _fused_kernel(config, at, path, scores):
    """q, k, v and the log of each row's normaliser; where rows are causal it needs no mask (`common.backend.places`),
    which is kept as numbers that are added."""
    yield ATTENTION, f"{path} v", at.tokens * config.embed_dim * at.compute
    yield ATTENTION, f"{path} q, k", 2 * at.tokens * config.embed_dim * at.compute
    yield ATTENTION, f"{path} normalisers", at.tokens * config.num_heads * at.reduce
    if not config.causal or at.kernel == "masked":
        yield ATTENTION, f"{path} mask", at.length * at.length * at.compute


KERNELS = {
    "plain": _plain_kernel,
    "loop": _loop_kernel,
    "blockwise": _blockwise_kernel,
    "fused": _fused_kernel,
    "masked": _fused_kernel,
}
DROPPING = ("plain", "loop")  # the kernels that hold all weights of a head at once, and so can drop some
BLOCK = 128  # keys of a block
