"""Bytes that PyTorch's eager training keeps from the forward pass to the backward pass, in closed form.

Of every operation autograd keeps what its derivative needs. A buffer that several operations keep lies in memory once,
so buffers have names here, and a name counts once. Parameters are not counted; their copies in a narrower compute
format are. JAX has no such account: XLA decides for itself (`Model.planned_bytes`).

For float32 without dropout a block keeps 18 B T E + H T^2 B + 2 B T numbers at F = 4 E, and its boolean masks.
Korthikanti et al. 2022, section 4, count the same way, for other kernels.
"""

from collections.abc import Callable

from common.accounting.memory import ITEM_BYTES
from common.accounting.parts import HEADS, entry, holder, kind, low_rank, place, quiet, rules_under, shut, times
from common.accounting.work import ADAPTERS, ATTENTION, BOOL, FEED_FORWARD, NORMS, Buffers, Pass
from common.adapters import PARTS, belongs
from common.config import PRECISIONS, ModelConfig
from common.layout import splits
from common.params import table

COPIES, ENDS, LOSS = "weights in compute format", "token ids and head", "loss"
INT32, INT64 = 4, 8
WHOLE = ("x", "mask")  # what all heads and hidden units read


def _nothing(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    yield from ()


def _layer_norm(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """The centred input, the same divided by its deviation, and one reciprocal deviation a token."""
    if quiet(config, path):
        return
    width = own["weight"].size
    yield NORMS, f"{path} centred", at.tokens * width * at.reduce
    yield NORMS, f"{path} normed", at.tokens * width * at.reduce
    yield NORMS, f"{path} 1/deviation", at.tokens * at.reduce


def _rms_norm(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """The input, the same divided by the root of its mean square, and one reciprocal root for every norm taken."""
    rows, width = at.tokens * times(config, path), own["weight"].size
    yield NORMS, f"{path} wide", rows * width * at.reduce
    yield NORMS, f"{path} normed", rows * width * at.reduce
    yield NORMS, f"{path} 1/root", rows * at.reduce


def _read(config: ModelConfig, at: Pass, path: str, width: int) -> Buffers:
    """What a linear map is given: maps that are given the same keep it once."""
    above, _, name = path.rpartition(".")
    layer = holder(config, path)
    read = name if layer is None else layer.inputs.get(name, name)
    # of one row its mean stands for all positions; of several, and where it is rounded, it is copied to them
    alone = kind(path) == "score" and config.pooling == "mean" and at.batch == 1 and at.compute == at.reduce
    yield COMPONENTS[place(path)], f"{above} {read}", (1 if alone else at.tokens) * width * at.compute


def _linear(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """Its input, and, where that has a gradient, its weight if that is not the parameter itself."""
    if quiet(config, path):
        return
    weight = own["weight"]
    yield from _read(config, at, path, weight.shape[1])
    if at.copies and not shut(config, path):
        yield COPIES, path, weight.size * at.compute


def _low_rank(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """A keeps what the map is given, B what A gives. DoRA keeps how long rows are and shall be, what the map gives
    without its bias, and what B gives."""
    part, weight = kind(path.rpartition(".")[0]), own["weight"]
    changed, (out_dim, in_dim), adapter = low_rank(config, path)
    if part == PARTS[2]:
        biased = f"{changed}.bias" in table(config)
        for what in ("norms", "gain", "gain - 1"):
            yield ADAPTERS, f"{path} {what}", out_dim * at.reduce
        yield ADAPTERS, f"{path if biased else changed} without bias", at.tokens * out_dim * at.compute
        yield ADAPTERS, f"{path} change", at.tokens * out_dim * at.compute
        return
    if part == PARTS[0]:
        yield from _read(config, at, changed, in_dim)
    else:
        yield ADAPTERS, path, at.tokens * adapter.rank * at.compute
    if at.copies:
        yield COPIES, path, weight.size * at.compute


def _entry(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    yield from entry(config, path).kept(config, at, path)


def _block(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    for branch in ("attention", "mlp"):
        yield from at.dropped(f"{path} {branch}", config.dropout_shortcut, at.tokens * config.embed_dim)


def _decoder(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """Token ids, positions of which a table is learned (the same in all rows), the dropout of their sum; where a row is
    averaged, and not told to count by itself, which positions count and how many they are."""
    yield ENDS, "ids", at.tokens * INT32
    if config.positions == "learned":
        yield ENDS, "positions", at.length * INT32
    yield from at.dropped("embedding", config.dropout_embed, at.tokens * config.embed_dim)
    if config.pooling == "mean" and not (config.causal and at.kernel == "fused"):
        yield ENDS, "what is averaged", at.length * BOOL + INT64


def _model(config: ModelConfig, at: Pass, path: str, own: dict) -> Buffers:
    """A tied head like any linear map; the loss: log-probabilities, where the targets are, and which of them count."""
    if config.tied:
        yield ENDS, " lm_head", at.tokens * config.embed_dim * at.compute
        if at.copies:
            yield COPIES, "lm_head", config.vocab_size * config.embed_dim * at.compute
    yield LOSS, "log-probabilities", at.tokens * config.outputs * at.reduce
    yield LOSS, "targets", at.tokens * (INT64 + BOOL)


COMPONENTS = {"self_attn": ATTENTION, "mlp": FEED_FORWARD, **dict.fromkeys(HEADS, ENDS)}
RULES: dict[str, Callable] = {
    "": _model,
    "model": _decoder,
    **dict.fromkeys(("layers", "embedding", "experts", "shared_expert", "router", *PARTS), _nothing),
    "lora": _low_rank,
    "layers.#": _block,
    "self_attn": _entry,
    "mlp": _entry,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "linear": _linear,
}


def saved(
    config: ModelConfig,
    batch: int,
    length: int,
    dtype: str = "float32",
    attention: str = "plain",
    path: str = "",
    dropout: bool = False,
    tensor: int = 1,
) -> dict[str, int]:
    """Bytes kept for the backward pass of one micro-batch, by component; the whole model ("") with its loss.

    `dtype` is the execution's. `dropout` is on in a training step, with the config's rates. Of a model that `tensor`
    devices compute, what one of them keeps.
    """
    precision = PRECISIONS[dtype]
    copies = precision.param != precision.compute
    at = Pass(batch, length, ITEM_BYTES[precision.compute], ITEM_BYTES[precision.reduce], copies, attention, dropout)
    buffers: dict[tuple[str, str], int] = {}
    for module, rule, own in rules_under(config, path, RULES, "common/accounting/activations.py"):
        for component, name, size in rule(config, at, module, own):
            buffers[component, name] = size // (tensor if tensor > 1 and _dealt(config, component, name) else 1)
    found: dict[str, int] = {}
    for (component, _), size in buffers.items():
        found[component] = found.get(component, 0) + size
    return found


def _dealt(config: ModelConfig, component: str, buffer: str) -> bool:
    """Whether devices that compute a layer together each keep a part of a buffer: of all that its heads and hidden
    units are, but not of what they all read. Adapters' are like their matrices, but what A gives B is whole."""
    path, _, what = buffer.partition(" ")
    if belongs(f"{path}.weight") is not None:
        return f"{path}.weight" in splits(config) and (bool(what) or component == COPIES)
    layer = None if not path.startswith("model.layers.") else holder(config, path)
    return layer is not None and bool(layer.cut(config)) and what not in WHOLE
