"""The narrow door to an implementation: what tests, benchmarks, reports and the command line may ask of it.

Backends are found by name in the entry-point group `parallax.backends`, so another one (MLX, say) can be added from
outside. Arrays cross the door as NumPy; token ids are checked here, because the frameworks disagree on wrong ones.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from common import adapters, params, rng
from common.config import COMPILED_KERNELS, Execution, ModelConfig, SamplingConfig, TrainConfig
from common.errors import UserError, unknown
from common.inputs import (  # part of the door
    IGNORED as IGNORED,
)
from common.inputs import (
    check_ids as check_ids,
)
from common.inputs import (
    check_length as check_length,
)
from common.inputs import (
    check_pairs as check_pairs,
)
from common.inputs import (
    check_targets as check_targets,
)
from common.inputs import (
    counted as counted,
)
from common.inputs import (
    loss_inputs as loss_inputs,
)
from common.inputs import (
    positions_of as positions_of,
)
from common.inputs import (
    step_inputs as step_inputs,
)
from common.points import entry_points
from common.preference import Pairs

SHOWN = ("model.norm.weight", "model.embed_tokens.weight")  # parameters of every model: see `Model.prepare`
ELEMENTWISE = ("exp", "log", "tanh", "erf", "rsqrt", "gelu_tanh", "gelu")
GROUP = "parallax.backends"
MASKED = ("plain", "loop", "blockwise", "masked")  # kernels that take a mask in every call


@dataclass(frozen=True)
class StepResult:
    """What one training step reports: mean loss in nats over the counted tokens, gradient norm before clipping."""

    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Reported:
    """A compiler's own figure of FLOPs, and those of products that it leaves out since a loop's body counts once."""

    flops: float
    missed: int


@dataclass(frozen=True)
class Gradients:
    """A scalar and its gradient by parameter name (and by input, for components, under "input")."""

    value: float
    grads: dict[str, np.ndarray]


@dataclass
class Forward:
    """Logits [B, T, V] in the reduction dtype, and the taps that were asked for."""

    logits: np.ndarray
    taps: dict[str, np.ndarray] = field(default_factory=dict)


class Cache:
    """What the layers of a model remember of the past (`layers`, an implementation's own), and what the host must know:
    the model's `config` and `maker`, room for `capacity` tokens of `batch` rows, `used` of them written, the `last`
    position of every row (-1: none).
    """

    def __init__(self, layers: list[Any], model: "Model", batch: int, capacity: int):
        self.config, self.maker, self.batch, self.capacity = model.config, maker(model), batch, capacity
        self.emptied(layers)

    def emptied(self, layers: list[Any]) -> None:
        """These layers hold nothing."""
        self.layers, self.used, self.last = layers, 0, np.full(self.batch, -1)

    def extended(self, layers: list[Any], positions: np.ndarray) -> None:
        """These layers hold tokens at positions [1 or B, T] more."""
        self.layers, self.used = layers, self.used + positions.shape[1]
        self.last = np.maximum(self.last, positions.max(1))

    @property
    def ring(self) -> bool:
        """Whether a layer keeps its latest positions only."""
        entries = map(self.config.attention_of, range(self.config.num_layers))
        return any(entry.held(self.capacity) < self.capacity for entry in entries)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, or what stands for them; positions and counters are not among them."""
        fields = (pair for layer in self.layers for pair in layer._asdict().items())
        return sum(value.nbytes for name, value in fields if name not in ("positions_BS", "used"))


class Model(Protocol):
    """One model with its weights in one implementation, whose `title` it has. Positions [B, T] int, -1 marks padding.

    Targets are an array, or `Pairs` where preferences are learned. `log_probs` of targets [B, T] are sums and counts by
    row [B], in nats. A run trains what its settings say (`params.trained`), and has slots for that; `gradients` are
    those of all parameters. `base` is the model without its adapters, which shares its numbers; ask for it anew after
    a step of training.

    A cache belongs to models of its config, implementation, precision and device. `reset` makes it as new, in the same
    memory where the framework can. `refill` writes other weights of the same config over its own, one at a time.

    `prepare` gives a function that does a task once on the device, waits until all of it is done, and returns its
    outputs there by name: what benchmarks time. Tasks: "forward", "loss", "gradients", "train" on a batch, "prefill" on
    prompts, "continue" after prompts whose cache is filled beforehand, "optimizer" with a batch's gradients, "dropout"
    on an activation [B, T, E], "sample" on logits [B, V], "component" on an input and a cotangent [B, T, E] (its output
    and gradients). "sample" and "continue" take `sampling`, "component" its `path`. "train" and "optimizer" need
    `start_training` first, and show the first average of the gradients of SHOWN (or of what else a run trains:
    `shown`), so that a judge sees more than sums.

    `about` tells what a framework chooses by itself for calls of that shape: the "kernel" of fused attention. The last
    four are accounts of one call of a task of `common.accounting.tasks`: `matmul_flops` counts what the framework would
    multiply (2 FLOPs a multiply-add), `reported_flops` is the compiler's own figure (`Reported`), `saved_bytes` are
    kept from forward to backward, without parameters, and `planned_bytes` is the compiler's plan of memory, or what
    lives at the peak where nothing is compiled (PLAN says which), of PLANNED tasks (of PyTorch's "train" up to the
    optimizer, which comes when activations are gone); None where a framework has no such number. They leave the model
    as it is. `path` is a submodule as in `component`; "prefill" and "decode" run on a cache of `slots`. The oracle has
    neither `prepare` nor `refill` nor accounts.
    """

    title: str
    PLAN: str
    config: ModelConfig
    execution: Execution

    def forward(self, ids: np.ndarray, positions: np.ndarray | None = None, taps: Sequence[str] = ()) -> Forward: ...
    def loss(self, ids: np.ndarray, targets: np.ndarray | Pairs) -> float: ...
    def log_probs(self, ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def gradients(
        self, ids: np.ndarray, targets: np.ndarray | Pairs, dropout: tuple[int, int] | None = None
    ) -> Gradients: ...
    def component(self, path: str, inputs: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, Gradients]: ...
    def new_cache(self, batch: int, capacity: int) -> Cache: ...
    def reset(self, cache: Cache) -> None: ...
    def extend(self, cache: Cache, ids: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray: ...
    def cache_contents(self, cache: Cache) -> dict[str, np.ndarray]: ...
    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[list[int]]: ...
    def stream(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> Iterator[list[int | None]]: ...
    def start_training(
        self, train: TrainConfig, slots: Mapping[str, np.ndarray] | None = None, step: int = 0
    ) -> None: ...
    def train_step(self, inputs: np.ndarray, targets: np.ndarray | Pairs) -> StepResult: ...
    def base(self) -> "Model": ...
    def refill(self, weights: Mapping[str, np.ndarray]) -> None: ...
    def weights(self) -> dict[str, np.ndarray]: ...
    def state_shapes(self) -> dict[str, tuple[int, ...]]: ...
    def optimizer_slots(self) -> dict[str, np.ndarray]: ...
    def prepare(
        self,
        task: str,
        inputs: np.ndarray,
        targets: np.ndarray | None = None,
        **more: SamplingConfig | str,
    ) -> Callable[[], dict[str, Any]]: ...
    def about(self, batch: int = 1, length: int | None = None, gradients: bool = True) -> dict[str, str]: ...
    def matmul_flops(self, what: str, batch: int, length: int, path: str = "", slots: int | None = None) -> int: ...
    def reported_flops(
        self, what: str, batch: int, length: int, path: str = "", slots: int | None = None
    ) -> Reported | None: ...
    def saved_bytes(self, batch: int, length: int, path: str = "", dropout: bool = False) -> int | None: ...
    def planned_bytes(
        self, what: str, batch: int, length: int, path: str = "", slots: int | None = None
    ) -> dict[str, int] | None: ...


class Backend(Protocol):
    """One implementation of every model.

    `draw` gives random numbers as the framework draws them at an address (seed, part, part, …): "bits" uint32,
    "uniform" float32, "bernoulli" bool, "split" uint32 [n, 2]. `elementwise` applies one of the ELEMENTWISE functions.
    `four_bits` gives what a base of that name keeps of a float32 matrix, by the names of `nf4.PARTS`, and as "weight"
    what this stands for.
    `flags` are the switches of the framework that decide how precisely it computes; "tf32" says whether a GPU may
    multiply float32 in short. `planned_bytes` is that of `Model` for a function of the framework which is none of ours
    (in JAX a compiled one, which takes all that it needs); tensors and modules that are `held` lie there already.
    """

    name: str
    title: str
    PLAN: str

    def versions(self) -> dict[str, str]: ...
    def flags(self) -> dict[str, Any]: ...
    def devices(self) -> list[str]: ...
    def threads(self) -> int: ...
    def planned_bytes(
        self, function: Callable[..., Any], *args: Any, held: Iterable[Any] = ()
    ) -> dict[str, int] | None: ...
    def draw(
        self, kind: str, address: Sequence[int], shape: tuple[int, ...], probability: float = 0.5
    ) -> np.ndarray: ...
    def elementwise(self, name: str, x: np.ndarray, dtype_name: str) -> np.ndarray: ...
    def four_bits(self, weight: np.ndarray, base: str) -> dict[str, np.ndarray]: ...
    def build(self, config: ModelConfig, weights: Mapping[str, np.ndarray], execution: Execution) -> Model: ...


def names() -> list[str]:
    """The names of all installed backends."""
    return sorted(point.name for point in entry_points(group=GROUP))


@functools.cache
def load(name: str) -> Backend:
    """The backend of that name; imports its framework now."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                return point.load()
            except ImportError as error:
                advice = "`pip install -e .` in the project's folder brings what it needs"
                raise UserError(f"Backend {name!r} is not usable: {error}; {advice}.") from error
    raise unknown("backend", name, names())


def pick(what: str, name: str, table: Mapping[str, Any]) -> Any:
    """The entry of a table; unknown names are answered with near matches."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def places(positions: np.ndarray, config: ModelConfig, execution: Execution) -> np.ndarray | None:
    """Positions for a call without a cache. For kernels that need no mask, or have a stored one, they are None where
    every row counts 0, 1, 2, …: then nothing is padding, and a query sees the keys up to itself.
    """
    maskless = execution.attention in ("fused", *COMPILED_KERNELS) or execution.masks == "stored"
    counting = config.causal and maskless and bool((positions == np.arange(positions.shape[1])).all())
    return None if counting else positions


def without_dropout(title: str, rate: float, key: Any) -> None:
    """Refuse dropout on the attention weights for a kernel that never holds all of them."""
    if key is not None and rate > 0:
        advice = "use attention='plain' or dropout_attn 0"
        raise UserError(f"{title} attention cannot draw the shared dropout mask: {advice}.")


def without_cache(title: str, cache: Any) -> None:
    """Refuse a cache for attention that makes its keys and values itself."""
    if cache is not None:
        raise UserError(f"{title} attention takes no cache of keys and values: use attention='plain' for decoding.")


def only_plain(title: str, execution: Execution) -> None:
    """Refuse executions that ask for another form of an attention than the one there is."""
    for name in ("attention", "projections", "masks"):
        if getattr(execution, name) != "plain":
            raise UserError(f"{title} attention has no {name}={getattr(execution, name)!r}: use {name}='plain'.")


def kernel_names(name_of: Callable[[bool], str]) -> dict[str, str]:
    """{"kernel"} of fused attention: its name without a mask, and with one (a cache, padding) if that is another."""
    names = []
    for masked in (False, True):
        try:
            names.append(name_of(masked))
        except UserError:
            names.append("none")
    kernel, masked = names
    return {"kernel": kernel if masked == kernel else f"{kernel}; with a mask {masked}"}


def maker(model: Model) -> str:
    """Who makes caches of which kind of numbers, and where: what other models cannot go on with."""
    device = "cuda:0" if model.execution.device == "cuda" else model.execution.device
    return f"{model.title} in {model.execution.dtype} on {device}"


def check_form(config: ModelConfig, execution: Execution) -> None:
    """Refuse ways to run that cannot compute this model: kernels and masks that are causal by themselves, kernels that
    multiply by a matrix which an adapter changes; and to store a mask for a kernel that takes none."""
    kernel = execution.attention
    if execution.masks == "stored" and (not config.causal or kernel not in MASKED):
        why = f"attention={kernel!r} takes none" if config.causal else "a model with causal=False has none"
        raise UserError(f"masks='stored' keeps causal masks, and {why}: use masks='plain'.")
    if not config.causal and kernel not in (*MASKED, "fused"):
        raise UserError(f"attention={kernel!r} hides later tokens by itself; a model with causal=False needs another.")
    adapters.check(config, execution)


def check_refill(execution: Execution) -> None:
    """Other weights are written over arrays that are whole, and all their bits."""
    if execution.layout or execution.base != "plain":
        raise UserError(
            "Models in 4 bits or on several devices take other weights when they are built, not afterwards."
        )


def check_size(batch: Any, capacity: Any, config: ModelConfig) -> None:
    """A cache has room for something, and the model can use one."""
    if not config.cacheable:
        why = "pooling" if config.causal else "causal=False"
        raise UserError(f"This model has no cache: with {why} what a token gives depends on later ones.")
    for name, size in (("batch", batch), ("capacity", capacity)):
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
            raise UserError(f"A cache cannot have {name} {size!r}: give a whole number > 0.")


def check_cache(cache: Cache, model: Model) -> None:
    """A cache of another model or execution would be read wrongly, or not at all."""
    if not isinstance(cache, Cache):
        raise UserError(f"A cache is what `new_cache` of a model gives, not {type(cache).__name__}.")
    if cache.config != model.config:
        names = (one.name for one in fields(model.config))
        differ = [name for name in names if getattr(cache.config, name) != getattr(model.config, name)]
        raise UserError(f"The cache is for a model of another config, which differs in {', '.join(differ)}.")
    if cache.maker != maker(model):
        raise UserError(f"The cache was made by {cache.maker}; {maker(model)} cannot go on with it.")


def check_room(cache: Cache, ids: np.ndarray, positions: np.ndarray, model: Model) -> None:
    """A write past the end of a static cache, of other rows than it has, by another model, or of positions that a ring
    no longer has a place for, must be refused on the host: inside jit it would overwrite silently.
    """
    check_cache(cache, model)
    rows, tokens = ids.shape
    if rows != cache.batch:
        raise UserError(f"The cache is for {cache.batch} rows; ids of {rows} rows do not fit.")
    if cache.used + tokens > cache.capacity:
        raise UserError(f"The cache holds {cache.used} of {cache.capacity} tokens; {tokens} more do not fit.")
    if cache.ring:
        check_rising(cache, positions)


def check_rising(cache: Cache, positions: np.ndarray) -> None:
    """A ring holds the latest positions: what comes after them must be later. Padding counts as nothing."""
    places = np.concatenate([cache.last[:, None], np.broadcast_to(positions, (cache.batch, positions.shape[1]))], 1)
    before = np.maximum.accumulate(places, 1)[:, :-1]
    wrong = (places[:, 1:] >= 0) & (places[:, 1:] <= before)
    if wrong.any():
        row, token = np.argwhere(wrong)[0]
        told = f"Position {places[row, token + 1]} of row {row} comes after position {before[row, token]}"
        raise UserError(f"{told}; this cache holds windows, the latest positions only: they must rise in every row.")


def step_key(config: ModelConfig, dropout: tuple[int, int] | None, address: Any) -> Any:
    """The key of all dropout masks of one step: `address(seed, DROPOUT, step)`, or None without dropout."""
    if dropout is None or not config.has_dropout:
        return None
    seed, step = dropout
    return address(seed, rng.DROPOUT, step)


def decays(config: ModelConfig, train: TrainConfig) -> dict[str, bool]:
    """Which parameters AdamW decays: those of the parameter table, or, if the run says so, all but what only chooses,
    which no gradient would ever bring back."""
    everything = train.decay == "all"
    return {name: p.decays or (everything and not p.chooses) for name, p in params.table(config).items()}


def shown(config: ModelConfig, train: TrainConfig) -> tuple[str, ...]:
    """The parameters whose averages a training step shows: SHOWN, or of a run that does not train these its first and
    its last one that have averages."""
    table, turned = params.table(config), params.turned(config, train.optimizer)
    own = [n for n, on in params.trained(config, train).items() if on and n not in turned and not table[n].dead]
    return SHOWN if set(SHOWN) <= set(own) else (own[0], own[-1]) if own else ()


def collect(steps: Iterator[list[int | None]], rows: int) -> list[list[int]]:
    """The new tokens of every row, from a stream of steps."""
    new: list[list[int]] = [[] for _ in range(rows)]
    for step in steps:
        for row, token in enumerate(step):
            if token is not None:
                new[row].append(token)
    return new


def call(module: Any, x: Any, positions: Any) -> Any:
    """The output of a component: modules that attend take positions and also return a cache, others take x alone."""
    if "positions_BT" in inspect.signature(module).parameters:
        return module(x, positions)[0]
    return module(x)
