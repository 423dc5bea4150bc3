"""Bytes that PyTorch's eager training keeps from the forward pass to the backward pass, in closed form.

Of every operation autograd keeps what its derivative needs. A buffer that several operations keep lies in memory once,
so buffers have names here, and a name counts once. Parameters are not counted; their copies in a narrower compute
format are. JAX has no such account: XLA decides for itself (`Model.planned_bytes`).

For float32 without dropout a block keeps 18 B T E + H T^2 B + 2 B T numbers at F = 4 E, and its boolean masks.
Korthikanti et al. 2022, section 4, count the same way, for other kernels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.accounting.memory import ITEM_BYTES
from common.accounting.parts import rules_under
from common.backend import pick
from common.config import PRECISIONS, ModelConfig

NORMS, ATTENTION, FEED_FORWARD = "norms", "attention", "feed-forward"
DROPOUT, COPIES, ENDS, LOSS = "dropout", "weights in compute format", "token ids and head", "loss"
BOOL, INT32, INT64, SCALE = 1, 4, 8, 4  # the scale of a dropout is one float32


@dataclass(frozen=True)
class Pass:
    """One forward pass: its sizes, the bytes of a number in its formats, its kernel, whether dropout is on."""

    batch: int
    length: int
    compute: int
    reduce: int
    copies: bool
    kernel: Callable
    dropout: bool

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def dropped(self, name: str, rate: float, numbers: int) -> "Buffers":
        """A dropout keeps which numbers survive, and its scale."""
        if self.dropout and rate:
            yield DROPOUT, name, numbers * BOOL + SCALE


Buffers = Iterator[tuple[str, str, int]]  # (component, name, bytes)
INPUTS = {"q_proj": "x", "k_proj": "x", "v_proj": "x"}  # those that read one and the same tensor


def _nothing(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    yield from ()


def _norm(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """The centred input, the same divided by its deviation, and one reciprocal deviation a token."""
    width = own["weight"].size
    yield NORMS, f"{path} centred", at.tokens * width * at.reduce
    yield NORMS, f"{path} normed", at.tokens * width * at.reduce
    yield NORMS, f"{path} 1/deviation", at.tokens * at.reduce


def _linear(component: str) -> Callable:
    def rule(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
        """Its input, and its weight where that is not the parameter itself."""
        above, _, name = path.rpartition(".")
        weight = own["weight"]
        yield component, f"{above} {INPUTS.get(name, name)}", at.tokens * weight.shape[1] * at.compute
        if at.copies:
            yield COPIES, path, weight.size * at.compute

    return rule


def _attention(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """What the kernel keeps. The context is the output map's input."""
    yield from at.kernel(config, at, path, at.batch * config.num_heads * at.length * at.length)


def _plain_kernel(config: ModelConfig, at: Pass, path: str, scores: int) -> Buffers:
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


def _loop_kernel(config: ModelConfig, at: Pass, path: str, scores: int) -> Buffers:
    """As the plain one; the heads' weights are put together before they weigh v."""
    yield from _plain_kernel(config, at, path, scores)
    yield ATTENTION, f"{path} weights", scores * at.compute


def _blockwise_kernel(config: ModelConfig, at: Pass, path: str, scores: int) -> Buffers:
    """q (once a block), k, v as they are multiplied, all weights, what fades between blocks, and what is divided."""
    rows, blocks = at.tokens * config.num_heads, -(-at.length // BLOCK)
    yield ATTENTION, f"{path} q, k, v", (blocks + 2) * at.tokens * config.embed_dim * at.reduce
    yield ATTENTION, f"{path} mask", at.length * at.length * BOOL
    yield ATTENTION, f"{path} weights", scores * at.reduce
    yield ATTENTION, f"{path} fading", (blocks - 1) * rows * at.reduce
    yield ATTENTION, f"{path} sum", at.tokens * config.embed_dim * at.reduce
    yield ATTENTION, f"{path} normalisers", rows * (at.reduce + BOOL)


def _fused_kernel(config: ModelConfig, at: Pass, path: str, scores: int) -> Buffers:
    """q, k, v and the log of each row's normaliser; it needs no mask (`common.backend.places`)."""
    yield ATTENTION, f"{path} v", at.tokens * config.embed_dim * at.compute
    yield ATTENTION, f"{path} q, k", 2 * at.tokens * config.embed_dim * at.compute
    yield ATTENTION, f"{path} normalisers", at.tokens * config.num_heads * at.reduce


def _masked_kernel(config: ModelConfig, at: Pass, path: str, scores: int) -> Buffers:
    """The same with a mask, as numbers that are added."""
    yield from _fused_kernel(config, at, path, scores)
    yield ATTENTION, f"{path} mask", at.length * at.length * at.compute


KERNELS = {
    "plain": _plain_kernel,
    "loop": _loop_kernel,
    "blockwise": _blockwise_kernel,
    "fused": _fused_kernel,
    "masked": _masked_kernel,
}
BLOCK = 128  # keys of a block


def _mlp(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    yield FEED_FORWARD, f"{path} before the activation", at.tokens * config.ff_dim * at.compute


def _block(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    for branch in ("attention", "mlp"):
        yield from at.dropped(f"{path} {branch}", config.dropout_shortcut, at.tokens * config.embed_dim)


def _decoder(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """Token ids, positions (the same in all rows), the dropout of their sum."""
    yield ENDS, "ids", at.tokens * INT32
    yield ENDS, "positions", at.length * INT32
    yield from at.dropped("embedding", config.dropout_embed, at.tokens * config.embed_dim)


def _model(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """A tied head like any linear map; the loss: log-probabilities, where the targets are, and which of them count."""
    if config.tie_embeddings:
        yield ENDS, " lm_head", at.tokens * config.embed_dim * at.compute
        if at.copies:
            yield COPIES, "lm_head", config.vocab_size * config.embed_dim * at.compute
    yield LOSS, "log-probabilities", at.tokens * config.vocab_size * at.reduce
    yield LOSS, "targets", at.tokens * (INT64 + BOOL)


RULES: dict[str, dict[str, Callable]] = {
    "gpt": {
        "": _model,
        "model": _decoder,
        "embed_tokens": _nothing,
        "embed_positions": _nothing,
        "layers": _nothing,
        "layers.#": _block,
        "input_layernorm": _norm,
        "self_attn": _attention,
        "q_proj": _linear(ATTENTION),
        "k_proj": _linear(ATTENTION),
        "v_proj": _linear(ATTENTION),
        "o_proj": _linear(ATTENTION),
        "post_attention_layernorm": _norm,
        "mlp": _mlp,
        "up_proj": _linear(FEED_FORWARD),
        "down_proj": _linear(FEED_FORWARD),
        "norm": _norm,
        "lm_head": _linear(ENDS),
    }
}


def saved(
    config: ModelConfig,
    batch: int,
    length: int,
    dtype: str = "float32",
    attention: str = "plain",
    path: str = "",
    dropout: bool = False,
) -> dict[str, int]:
    """Bytes kept for the backward pass of one micro-batch, by component; the whole model ("") with its loss.

    `dtype` is the execution's. `dropout` is on in a training step, with the config's rates.
    """
    precision = PRECISIONS[dtype]
    kernel = pick("attention kernel", attention, KERNELS)
    copies = precision.param != precision.compute
    at = Pass(batch, length, ITEM_BYTES[precision.compute], ITEM_BYTES[precision.reduce], copies, kernel, dropout)
    buffers: dict[tuple[str, str], int] = {}
    for module, rule, own in rules_under(config, path, RULES, "common/accounting/activations.py"):
        for component, name, size in rule(config, at, module, own):
            buffers[component, name] = size
    found: dict[str, int] = {}
    for (component, _), size in buffers.items():
        found[component] = found.get(component, 0) + size
    return found
