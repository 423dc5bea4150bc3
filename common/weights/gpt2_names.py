"""The names that others give to a GPT's tensors, as data: each scheme is a bijection with the canonical table.

A scheme says how the tensors of one module are called, how its linear weights lie, and which of its buffers carry no
weights. Fused projections split along their last axis, in the order query, key, value.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from common import params
from common.config import GPTConfig
from common.errors import UserError
from common.weights.stored import Stored, StoredWeights, in_memory, stored

LAYER = "model.layers.{i}."
SCORE, SCORE_BIAS = "score.weight", "score.bias"
EMBED, POSITIONS, HEAD = "model.embed_tokens.weight", "model.embed_positions.weight", "lm_head.weight"
QUERY, KEY, VALUE, OUT = (f"self_attn.{name}_proj" for name in "qkvo")
UP, DOWN, NORM1, NORM2 = "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"

# How a linear weight lies in a file: (to [out, in], from [out, in]).
LAYOUTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "out, in": (lambda a: a, lambda a: a),
    "in, out": (lambda a: a.T, lambda a: a.T),
    "1, in, out": (lambda a: a[0].T, lambda a: a.T[None]),
}


@dataclass(frozen=True)
class Scheme:
    """Names of one kind of checkpoint. `modules` lists a layer's modules in file order: (theirs, ours, …)."""

    name: str
    title: str
    embed: str
    positions: str
    layer: str
    modules: tuple[tuple[str, ...], ...]
    norm: str
    head: str
    linear_leaves: tuple[str, str] = (".weight", ".bias")
    norm_leaves: tuple[str, str] = (".weight", ".bias")
    layout: str = "out, in"
    writes_tied_head: bool = False
    score: str | None = None  # the head of a classifier, which has no bias there
    buffers: str | None = None

    @property
    def fused(self) -> bool:
        return any(len(module) > 2 for module in self.modules)

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of that name is a mask that some versions save, not a weight."""
        return self.buffers is not None and re.fullmatch(self.buffers, name) is not None

    def layer_of(self, name: str) -> int | None:
        """The number of the layer that a tensor's name speaks of."""
        match = re.match(re.escape(self.layer).replace(r"\{i\}", r"(\d{1,9})"), name)
        return int(match[1]) if match else None


HF = Scheme(
    "hf",
    "Hugging Face GPT-2",
    embed="transformer.wte.weight",
    positions="transformer.wpe.weight",
    layer="transformer.h.{i}.",
    modules=(
        ("ln_1", NORM1),
        ("attn.c_attn", QUERY, KEY, VALUE),
        ("attn.c_proj", OUT),
        ("ln_2", NORM2),
        ("mlp.c_fc", UP),
        ("mlp.c_proj", DOWN),
    ),
    norm="transformer.ln_f",
    head="lm_head.weight",
    layout="in, out",
    score=SCORE,
    buffers=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
)
HF_BARE = replace(
    HF,
    name="hf_bare",
    title="Hugging Face GPT-2 without the prefix transformer.",
    embed="wte.weight",
    positions="wpe.weight",
    layer="h.{i}.",
    norm="ln_f",
    buffers=r"h\.\d+\.attn\.(masked_)?bias",
)
BOOK = Scheme(
    "book",
    "the book's GPTModel",
    embed="tok_emb.weight",
    positions="pos_emb.weight",
    layer="trf_blocks.{i}.",
    modules=(
        ("att.W_query", QUERY),
        ("att.W_key", KEY),
        ("att.W_value", VALUE),
        ("att.out_proj", OUT),
        ("ff.layers.0", UP),
        ("ff.layers.2", DOWN),
        ("norm1", NORM1),
        ("norm2", NORM2),
    ),
    norm="final_norm",
    head="out_head.weight",
    norm_leaves=(".scale", ".shift"),
    writes_tied_head=True,
    buffers=r"trf_blocks\.\d+\.att\.mask",
)
OPENAI = Scheme(
    "openai",
    "OpenAI's TensorFlow GPT-2",
    embed="model/wte",
    positions="model/wpe",
    layer="model/h{i}/",
    modules=(
        ("attn/c_attn", QUERY, KEY, VALUE),
        ("attn/c_proj", OUT),
        ("ln_1", NORM1),
        ("ln_2", NORM2),
        ("mlp/c_fc", UP),
        ("mlp/c_proj", DOWN),
    ),
    norm="model/ln_f",
    head="model/head",
    linear_leaves=("/w", "/b"),
    norm_leaves=("/g", "/b"),
    layout="1, in, out",
)
CANONICAL = Scheme(
    "canonical",
    "Parallax",
    embed=EMBED,
    positions=POSITIONS,
    layer=LAYER,
    modules=tuple((name, name) for name in (NORM1, QUERY, KEY, VALUE, OUT, NORM2, UP, DOWN)),
    norm="model.norm",
    head=HEAD,
)
SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (CANONICAL, HF, HF_BARE, BOOK, OPENAI)}


@dataclass(frozen=True)
class Entry:
    """One tensor of a scheme: the canonical parameters it holds, its layout and its shape in the file."""

    ours: tuple[str, ...]
    layout: str
    shape: tuple[int, ...]


def _usual(name: str) -> object:
    return next(field.default for field in fields(GPTConfig) if field.name == name)


PLAIN = {name: _usual(name) for name in ("attention", "feed_forward", "norm", "positions")}


def entries(scheme: Scheme, config: GPTConfig) -> dict[str, Entry]:
    """Every tensor of a model in this scheme by its name there; with a tied head, some schemes hold it twice."""
    if scheme is CANONICAL:  # has a form for every model
        return {name: Entry((name,), "out, in", p.shape) for name, p in params.table(config).items()}
    if other := [name for name, usual in PLAIN.items() if getattr(config, name) != usual]:
        raise UserError(
            f"{scheme.title} has no form for a model whose {' and '.join(other)} are not those of GPT-2; save it as a"
            " Parallax checkpoint."
        )
    if scheme.fused and not config.qkv_bias:
        raise UserError(
            f"{scheme.title} has no form for a model without query, key and value biases (qkv_bias is false);"
            " save it as a Parallax checkpoint, or in a file under the names 'book' or 'canonical'."
        )
    table = params.table(config)
    found: dict[str, Entry] = {}

    def add(theirs: str, ours: tuple[str, ...], layout: str = "out, in") -> None:
        if ours[0] in table:
            flat = [np.broadcast_to(np.int8(0), table[name].shape) for name in ours]  # shapes without memory
            shape = LAYOUTS[layout][1](flat[0]).shape
            found[theirs] = Entry(ours, layout, (*shape[:-1], shape[-1] * len(ours)))

    def add_module(theirs: str, ours: tuple[str, ...]) -> None:
        is_norm = len(table[f"{ours[0]}.weight"].shape) == 1
        leaves = scheme.norm_leaves if is_norm else scheme.linear_leaves
        layout = "out, in" if is_norm else scheme.layout
        add(theirs + leaves[0], tuple(f"{name}.weight" for name in ours), layout)
        add(theirs + leaves[1], tuple(f"{name}.bias" for name in ours))

    add(scheme.embed, (EMBED,))
    add(scheme.positions, (POSITIONS,))
    for i in range(config.num_layers):
        for theirs, *ours in scheme.modules:
            add_module(scheme.layer.format(i=i) + theirs, tuple(LAYER.format(i=i) + name for name in ours))
    add_module(scheme.norm, ("model.norm",))
    add(scheme.head, (HEAD,))
    if scheme.score is not None:
        add(scheme.score, (SCORE,))
    if config.tie_embeddings and scheme.writes_tied_head:
        add(scheme.head, (EMBED,))
    return found


def recognise(names: Mapping[str, object]) -> Scheme | None:
    """The scheme whose token embedding is among the names."""
    return next((scheme for scheme in SCHEMES.values() if scheme.embed in names), None)


def faults(want: Mapping[str, Entry], tensors: Mapping[str, Stored]) -> list[str]:
    """Every missing, extra and misshapen tensor, in the file's own names."""
    found = [f"{name} is missing" for name in want if name not in tensors]
    found += [f"{name} is not part of the model" for name in tensors if name not in want]
    for name, entry in want.items():
        if name in tensors and tensors[name].shape != entry.shape:
            found.append(f"{name} has shape {list(tensors[name].shape)}, expected {list(entry.shape)}")
    return found


def without_buffers(scheme: Scheme, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors that are weights."""
    return {name: tensor for name, tensor in tensors.items() if not scheme.is_buffer(name)}


def expected(scheme: Scheme, config: GPTConfig, tensors: Mapping[str, Stored]) -> dict[str, Entry]:
    """The entries that a file must have; where the head is tied, a copy of the embedding may be there as well."""
    wanted = entries(scheme, config)
    if config.tie_embeddings:
        wanted.pop(scheme.head, None)
        if scheme.head in tensors:
            wanted[scheme.head] = wanted[scheme.embed]
    return wanted


def to_canonical(scheme: Scheme, config: GPTConfig, tensors: Mapping[str, Stored], where: object) -> StoredWeights:
    """The canonical weights of a file, each read from it (or from a slice of it) when asked for.

    Raises one UserError that lists every missing, extra and misshapen tensor. A tied model may come with a copy of
    its embedding as head; the two must be equal.
    """
    if config.num_layers > len(tensors):
        raise UserError(f"{where} has {len(tensors)} tensors, too few for its config of {config.num_layers} layers.")
    kept = without_buffers(scheme, tensors)
    wanted = expected(scheme, config, kept)
    if wrong := faults(wanted, kept):
        raise UserError(f"{where} does not fit the model: {'; '.join(wrong)}.")
    if config.tie_embeddings and scheme.head in kept and not _equal(kept[scheme.head], kept[scheme.embed]):
        raise UserError(f"{where} is to be tied, but its {scheme.head} differs from {scheme.embed}.")
    found = {}
    for theirs, entry in wanted.items():
        for part, name in enumerate(entry.ours):
            found.setdefault(name, _part(kept[theirs], part, len(entry.ours), entry.layout))
    if scheme.score in wanted:
        found[SCORE_BIAS] = in_memory(np.zeros(config.num_labels, kept[scheme.score].dtype))
    weights = StoredWeights({name: found[name] for name in params.table(config) if name in found})
    params.check(config, weights.shapes, str(where))
    return weights


def from_canonical(scheme: Scheme, config: GPTConfig, weights: Mapping[str, np.ndarray]) -> dict[str, Stored]:
    """The tensors of a scheme, in its order, each made from canonical weights when it is read."""
    usual = {name: _usual(name) for name in config.LATER if scheme.score is None or name != "num_labels"}
    if scheme is not CANONICAL and (more := [name for name in usual if getattr(config, name) != usual[name]]):
        raise UserError(
            f"{scheme.title} has no form for a model with {' and '.join(more)}; save it as a Parallax checkpoint"
            " (adapters can be merged)."
        )
    wanted = entries(scheme, config)
    sources = stored(weights)
    params.check(config, {name: source.shape for name, source in sources.items()}, "The set of weights to be written")
    if scheme.score in wanted and np.any(sources[SCORE_BIAS].read()):
        raise UserError(
            f"{scheme.title} has no form for a classifier whose head has a bias, as this one has; save it as a Parallax"
            " checkpoint."
        )
    return {theirs: _joined([sources[name] for name in entry.ours], entry) for theirs, entry in wanted.items()}


def _part(tensor: Stored, part: int, parts: int, layout: str) -> Stored:
    to_ours = LAYOUTS[layout][0]
    width = tensor.shape[-1] // parts
    index = (*(slice(0, size) for size in tensor.shape[:-1]), slice(part * width, (part + 1) * width))
    whole = to_ours(np.broadcast_to(np.int8(0), (*tensor.shape[:-1], width)))

    def read(want: object = ...) -> np.ndarray:
        array = tensor.read() if parts == 1 else tensor.read(index)
        return np.ascontiguousarray(to_ours(array)[want])

    return Stored(whole.shape, tensor.dtype, read)


def _joined(sources: list[Stored], entry: Entry) -> Stored:
    to_theirs = LAYOUTS[entry.layout][1]
    dtype = np.result_type(*(source.dtype for source in sources))

    def read(want: object = ...) -> np.ndarray:
        if len(sources) == 1:
            return to_theirs(sources[0].read())[want]
        return np.concatenate([to_theirs(source.read()) for source in sources], axis=-1, dtype=dtype)[want]

    return Stored(entry.shape, dtype, read)


def _equal(one: Stored, other: Stored, rows: int = 4096) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    width = slice(0, one.shape[1])
    blocks = [(slice(start, min(start + rows, one.shape[0])), width) for start in range(0, one.shape[0], rows)]
    return all(np.array_equal(one.read(block), other.read(block)) for block in blocks)
