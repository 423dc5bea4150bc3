"""What a model, its execution, a training run and sampling are: frozen dataclasses that refuse nonsense.

Every error names the field, the value it got and what is allowed. Dimension letters are the project's legend
(ARCHITECTURE.md): V vocabulary, E embedding, F feed-forward, H heads, D head size.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from common import adapter as low_rank
from common import variants
from common.errors import UserError, unknown
from common.layout import Layout
from common.record import Record, flag, number, positive_int, require, whole
from common.sampling import SamplingConfig as SamplingConfig
from common.training import TrainConfig as TrainConfig
from common.variants import Attention, FeedForward, MultiHead, PlainMLP

ACTIVATIONS = ("gelu_tanh", "gelu", "silu", "quick_gelu")
MODEL_NORMS = ("layer_norm", "rms_norm")
POSITIONS = ("learned", "sinusoidal", "none")
POOLINGS = ("none", "mean")
DTYPES = ("float32", "float64", "bfloat16")
COMPILED_KERNELS = ("flex", "cudnn", "pallas")  # each of one wing, and not on every device: attention/compiled.py
WITHOUT_CACHE = ("module", "module_weights")  # they make keys and values themselves
ATTENTION_KERNELS = ("plain", "loop", "blockwise", "fused", "masked", *WITHOUT_CACHE, *COMPILED_KERNELS)
PROJECTIONS = ("plain", "joined", "einsum")
EXPERTS = ("loop", "grouped", "gathered")
LATENTS = ("expanded", "absorbed")
RECURRENCES = ("recurrent", "chunked")
STACKS = ("loop", "scan", "checkpointed")
LOSSES = ("plain", "chunked")
NORMS = ("plain", "fused")
MASKS = ("plain", "stored")
GELUS = ("plain", "formula", "own")
OPTIMIZERS = ("plain", "fused")
PRODUCTS = ("plain", "wide", "tf32")
DECODES = ("plain", "streamed")
GENERATORS = ("shared", "native")
BASES = ("plain", "nf4", "nf4_double")
ALLOCATORS = ("plain", "kept")
GRAPHS = ("none", "cuda")
BUFFERS = ("donated", "kept")


@dataclass(frozen=True)
class GPTConfig(Record):
    """A GPT-2 style decoder: learned positions, pre-norm blocks, causal multi-head attention, GELU MLP.

    `attention` and `feed_forward` are patterns of the kinds in `common/variants`, repeated over the layers; `norm` and
    `positions` (added to the embeddings) are names. Source: Radford et al. 2019; Raschka 2024, chapter 4.

    With `num_labels` it classifies: a head of as many outputs, with a bias, at every position; the label of a text
    stands in its targets where it is read. `pooling="mean"` gives the head the mean of a text's hidden states, at every
    position the same; without `causal` a token sees later ones too. `adapters` change linear maps
    (`common/adapters.py`). Source: Raschka 2024, chapter 6.
    """

    family: ClassVar[str] = "gpt"
    LATER: ClassVar[tuple[str, ...]] = ("num_labels", "pooling", "causal", "adapters")

    vocab_size: int
    context_length: int
    embed_dim: int
    num_layers: int
    num_heads: int
    ff_dim: int | None = None
    qkv_bias: bool = True
    tie_embeddings: bool = True
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"
    dropout_embed: float = 0.0
    dropout_attn: float = 0.0
    dropout_shortcut: float = 0.0
    attention: tuple[Attention, ...] = (MultiHead(),)
    feed_forward: tuple[FeedForward, ...] = (PlainMLP(),)
    norm: str = "layer_norm"
    positions: str = "learned"
    num_labels: int | None = None
    pooling: str = "none"
    causal: bool = True
    adapters: tuple[low_rank.Adapter, ...] = ()

    def __post_init__(self):
        positive_int(self, "vocab_size", "context_length", "embed_dim", "num_layers", "num_heads")
        if self.ff_dim is None:
            object.__setattr__(self, "ff_dim", 4 * self.embed_dim)
        positive_int(self, "ff_dim")
        flag(self, "qkv_bias", "tie_embeddings")
        number(self, "norm_eps", 1e-12, 1.0, "a number in [1e-12, 1]")
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", str(self.activation), ACTIVATIONS)
        for name in ("dropout_embed", "dropout_attn", "dropout_shortcut"):
            number(self, name, 0.0, 0.999, "a rate in [0, 0.999]")
        if self.norm not in MODEL_NORMS:
            raise unknown("norm", str(self.norm), MODEL_NORMS)
        if self.positions not in POSITIONS:
            raise unknown("positions", str(self.positions), POSITIONS, "Rotary ones and ALiBi are set in attention.")
        for name, table in variants.PATTERNS.items():
            object.__setattr__(self, name, variants.pattern(name.replace("_", "-"), getattr(self, name), table))
            for entry in getattr(self, name):
                entry.check(self)
        if self.num_labels is not None:
            whole(self, "num_labels", 2, math.inf, "a whole number > 1, or none")
        if self.pooling not in POOLINGS:
            raise unknown("pooling", str(self.pooling), POOLINGS)
        flag(self, "causal")
        for entry in self.attention if not self.causal else ():
            if not entry.free_order:
                kinds = " and ".join(name for name, one in variants.ATTENTIONS.items() if one.free_order)
                raise UserError(f"Attention of the kind {entry.kind!r} is causal; causal=False is for {kinds}.")
        object.__setattr__(self, "adapters", low_rank.read(self.adapters))

    @property
    def head_dim(self) -> int:
        """D, the width of a head to which its kind gives none. Raises UserError where it is no whole number."""
        divides = f"a divisor of embed_dim ({self.embed_dim}), which heads without a size of their own share equally"
        require(self.embed_dim % self.num_heads == 0, self, "num_heads", divides)
        return self.embed_dim // self.num_heads

    @property
    def residual_std(self) -> float:
        """Of the initial weights that end a residual branch. Source: Radford et al. 2019, section 2.3."""
        return 0.02 / math.sqrt(2 * self.num_layers)

    def attention_of(self, layer: int) -> Attention:
        """The kind of attention of a layer."""
        return self.attention[layer % len(self.attention)]

    def feed_forward_of(self, layer: int) -> FeedForward:
        """The kind of feed-forward of a layer."""
        return self.feed_forward[layer % len(self.feed_forward)]

    @property
    def period(self) -> int:
        """After how many layers the kinds of blocks repeat."""
        return min(self.num_layers, math.lcm(len(self.attention), len(self.feed_forward)))

    @property
    def has_dropout(self) -> bool:
        rates = self.dropout_embed, self.dropout_attn, self.dropout_shortcut
        return max(*rates, *(adapter.dropout for adapter in self.adapters)) > 0

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a position: one for every token id, or for every label."""
        return self.num_labels or self.vocab_size

    @property
    def tied(self) -> bool:
        """Whether the head is the token embedding."""
        return self.tie_embeddings and self.num_labels is None

    @property
    def cacheable(self) -> bool:
        """Whether what a token gives depends on earlier ones alone, so that these can be kept."""
        return self.causal and self.pooling == "none"


ModelConfig = GPTConfig  # becomes a union as families are added
FAMILIES: dict[str, type[GPTConfig]] = {"gpt": GPTConfig}


def _gpt2(width: int, layers: int, heads: int) -> GPTConfig:
    return GPTConfig(50257, 1024, width, layers, heads)


def _book(width: int, layers: int, heads: int) -> GPTConfig:
    rates = {"dropout_embed": 0.1, "dropout_attn": 0.1, "dropout_shortcut": 0.1}
    return _gpt2(width, layers, heads).with_(qkv_bias=False, tie_embeddings=False, **rates)


PRESETS: dict[str, GPTConfig] = {
    "nano": GPTConfig(256, 128, 128, 4, 4),
    "gpt2-124m": _gpt2(768, 12, 12),
    "gpt2-355m": _gpt2(1024, 24, 16),
    "gpt2-774m": _gpt2(1280, 36, 20),
    "gpt2-1558m": _gpt2(1600, 48, 25),
    "book-124m": _book(768, 12, 12),
    "book-355m": _book(1024, 24, 16),
    "book-774m": _book(1280, 36, 20),
    "book-1558m": _book(1600, 48, 25),
}


def preset(name: str) -> GPTConfig:
    """The model config with that name; unknown names are answered with near matches."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def model_to_dict(config: ModelConfig) -> dict[str, Any]:
    """A model config as plain data, with its family's name."""
    return {"family": config.family, **config.to_dict()}


def model_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `model_to_dict`."""
    values = dict(values)
    family = values.pop("family", "gpt")
    if not isinstance(family, str) or family not in FAMILIES:
        raise unknown("model family", str(family), FAMILIES)
    return FAMILIES[family].from_dict(values)


@dataclass(frozen=True)
class Precision:
    """Where numbers are kept: parameters, compute (matmuls, activations), reductions (norms, softmax, loss)."""

    param: str
    compute: str
    reduce: str


PRECISIONS: dict[str, Precision] = {
    "float32": Precision("float32", "float32", "float32"),
    "float64": Precision("float64", "float64", "float64"),
    "bfloat16": Precision("float32", "bfloat16", "float32"),
}


STRATEGIES = {
    "loss": LOSSES,
    "norm": NORMS,
    "masks": MASKS,
    "gelu": GELUS,
    "optimizer": OPTIMIZERS,
    "products": PRODUCTS,
    "decode": DECODES,
    "projections": PROJECTIONS,
    "experts": EXPERTS,
    "latent": LATENTS,
    "recurrence": RECURRENCES,
    "rng": GENERATORS,
    "allocator": ALLOCATORS,
    "base": BASES,
    "graphs": GRAPHS,
    "buffers": BUFFERS,
}


@dataclass(frozen=True)
class Execution(Record):
    """How a model runs: nothing here changes what it computes, only where, how precisely and how fast.

    `attention="fused"` asks for the framework's own fused attention; it raises where that cannot compute the
    same function (dropout on the attention weights; float64 in JAX and on a GPU). "masked" always hands it the mask
    that "fused" leaves out where rows are causal. "loop" computes head by head, "blockwise" block by block of keys with
    a running softmax; "module" is the framework's own multi-head attention on the same parameters, "module_weights"
    the same with its weights returned: neither has a cache or draws dropout. `projections` says how q, k and v are
    made: by three products, by one ("joined"), or by contractions that give heads at once ("einsum").
    `latent="absorbed"` makes no keys and values from latents: queries and contexts are multiplied by what would make
    them. `recurrence="chunked"` computes a delta rule 64 tokens at once; a single token is always one recurrent step.
    `experts` run one by one ("loop"), sorted by expert in one product ("grouped"), or with their matrices taken for
    every token ("gathered"). `compile` None is the framework's own way: PyTorch runs eagerly, JAX compiles; True
    compiles PyTorch's blocks, False runs JAX operation by operation.
    `layers="scan"` compiles one block for all layers (JAX); "checkpointed" (in JAX a scan) keeps what the linear layers
    of a block give, and computes the rest again on the way back. `loss="chunked"` never holds all logits while
    training. `norm` and `optimizer` "fused" are PyTorch's own kernels, or NNX's own norms and optax's own AdamW, which
    XLA fuses like the plain ones. `masks="stored"` keeps the causal mask of calls whose positions only count, which is
    made anew for each otherwise. `gelu` is one operation in PyTorch, or written out ("formula"); in JAX it is written
    out, or JAX's own function ("own"). `products="wide"` multiplies the 16-bit numbers of linear layers in 32 bits
    (PyTorch, on a CPU without instructions for 16); "tf32" has a GPU cut float32 numbers to TF32's 11 significant bits
    before it multiplies matrices, and sum in float32. `decode="streamed"` multiplies a single row by a product of its
    own. `rng="native"` draws dropout and sampling noise from the framework's own generator: other numbers in every
    framework. `base="nf4"` keeps the matrices of linear maps inside layers, which are not trained then, in 4 bits
    (`common/nf4.py`); "nf4_double" keeps what these are multiplied by in 8. Only these change results: `rng` where
    numbers are drawn, `base` and "tf32" as rounding does. `allocator="kept"` is a process that keeps its memory, in
    large pages (`common/allocator.py`). `graphs="cuda"` launches at once what a call of PyTorch launches on a GPU:
    forward passes, losses, gradients, steps of decoding; prompts, the caller's own caches, taps and components run
    without. `buffers="kept"` has JAX's programs write results beside what they were given, whose memory they take over
    otherwise ("donated"). `layout` spreads training over devices, as in "data=2,tensor=4" (`common/layout.py`).
    """

    LATER: ClassVar[tuple[str, ...]] = ("buffers", "masks", "gelu")

    dtype: str = "float32"
    device: str = "cpu"
    attention: str = "plain"
    compile: bool | None = None
    threads: int | None = None
    layers: str = "loop"
    loss: str = "plain"
    norm: str = "plain"
    optimizer: str = "plain"
    products: str = "plain"
    decode: str = "plain"
    projections: str = "plain"
    experts: str = "loop"
    latent: str = "expanded"
    recurrence: str = "recurrent"
    rng: str = "shared"
    allocator: str = "plain"
    base: str = "plain"
    graphs: str = "none"
    buffers: str = "donated"
    masks: str = "plain"
    gelu: str = "plain"
    layout: str = ""

    def __post_init__(self):
        require(isinstance(self.layout, str), self, "layout", "a text such as 'data=2,tensor=4'")
        object.__setattr__(self, "layout", str(Layout.parse(self.layout)))
        if self.dtype not in DTYPES:
            raise unknown("dtype", str(self.dtype), DTYPES)
        if self.attention not in ATTENTION_KERNELS:
            raise unknown("attention kernel", str(self.attention), ATTENTION_KERNELS)
        require(isinstance(self.device, str), self, "device", "a name such as 'cpu' or 'cuda'")
        if self.layers not in STACKS:
            raise unknown("way to run the layers", str(self.layers), STACKS)
        for name, table in STRATEGIES.items():
            if getattr(self, name) not in table:
                raise unknown(f"{name} (of Execution)", str(getattr(self, name)), table)
        if self.products == "tf32" and (self.dtype != "float32" or self.device == "cpu"):
            told = f"{self.dtype} on {self.device}"
            raise UserError(f"products='tf32' is for float32 on a GPU, not for {told}: leave it out.")
        if self.compile is not None:
            flag(self, "compile")
        if self.threads is not None:
            positive_int(self, "threads")

    @property
    def precision(self) -> Precision:
        return PRECISIONS[self.dtype]

    @property
    def spread(self) -> Layout:
        """The layout as numbers."""
        return Layout.parse(self.layout)


_PLAIN = "*"  # every implementation that a mode does not name
# named executions, by implementation; all but "native rng", "tf32" and those in 4 bits compute the same
MODES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {_PLAIN: {}},
    "eager": {_PLAIN: {"compile": False}},
    "compiled": {_PLAIN: {"compile": True}},
    "scan": {_PLAIN: {"layers": "scan"}},
    "checkpointed": {_PLAIN: {"layers": "checkpointed"}},
    "fused": {_PLAIN: {"attention": "fused"}},
    "masked": {_PLAIN: {"attention": "masked"}},
    "module": {_PLAIN: {"attention": "module"}},
    "module weights": {_PLAIN: {"attention": "module_weights"}},
    "per head": {_PLAIN: {"attention": "loop"}},
    "blockwise": {_PLAIN: {"attention": "blockwise"}},
    **{name: {_PLAIN: {"attention": name}} for name in COMPILED_KERNELS},
    "joined": {_PLAIN: {"projections": "joined"}},
    "einsum": {_PLAIN: {"projections": "einsum"}},
    "grouped experts": {_PLAIN: {"experts": "grouped"}},
    "gathered experts": {_PLAIN: {"experts": "gathered"}},
    "absorbed": {_PLAIN: {"latent": "absorbed"}},
    "chunked rule": {_PLAIN: {"recurrence": "chunked"}},
    "fused norm": {_PLAIN: {"norm": "fused"}},
    "stored masks": {_PLAIN: {"masks": "stored"}},
    "formula gelu": {_PLAIN: {"gelu": "formula"}},
    "own gelu": {_PLAIN: {"gelu": "own"}},
    "fused optimizer": {_PLAIN: {"optimizer": "fused"}},
    "chunked loss": {_PLAIN: {"loss": "chunked"}},
    "streamed": {_PLAIN: {"decode": "streamed"}},
    "native rng": {_PLAIN: {"rng": "native"}},
    "kept": {_PLAIN: {"allocator": "kept"}},
    "nf4": {_PLAIN: {"base": "nf4"}},
    "nf4 double": {_PLAIN: {"base": "nf4_double"}},
    "graphs": {_PLAIN: {"graphs": "cuda"}},
    "undonated": {_PLAIN: {"buffers": "kept"}},
    "tf32": {_PLAIN: {"products": "tf32"}},
    "wide": {"torch": {"products": "wide"}, _PLAIN: {}},
    # what pays on a CPU in each wing and can be looked into: the ablation suite of `parallax bench` measures each entry
    "fast": {
        "torch": {"loss": "chunked", "norm": "fused", "optimizer": "fused", "decode": "streamed"},
        "jax": {"layers": "checkpointed", "loss": "chunked", "decode": "streamed"},
        _PLAIN: {},
    },
}


def mode(name: str, backend: str) -> dict[str, Any]:
    """The fields of Execution that a mode sets for an implementation; "scan+eager" sets those of both, in order."""
    chosen: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in MODES:
            raise unknown("mode", part, MODES)
        chosen |= MODES[part].get(backend, MODES[part].get(_PLAIN, {}))
    return chosen


def dumps(values: dict[str, Any]) -> str:
    """JSON as this project writes it: two spaces, a final newline."""
    return json.dumps(values, indent=2) + "\n"
