"""The one table of every model's parameters: name, shape, how it is initialised, whether it decays.

Initialisation, conversion, FLOP and memory accounting and checkpoints all read this table. A torch `state_dict()`
and a flattened NNX state have exactly these names. Linear weights are `[out, in]`.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase

import ml_dtypes
import numpy as np

from common import adapters
from common.config import GPTConfig, ModelConfig, TrainConfig
from common.errors import UserError, unknown
from common.parameter import NORMS, Parameter, embedding, is_matrix, linear


def _gpt(config: GPTConfig) -> Iterator[Parameter]:
    norm, embed = NORMS[config.norm], config.embed_dim
    yield from embedding("model.embed_tokens", config.vocab_size, embed)
    if config.positions == "learned":
        yield from embedding("model.embed_positions", config.context_length, embed)
    for index in range(config.num_layers):
        layer = f"model.layers.{index}"
        yield from norm(f"{layer}.input_layernorm", embed)
        yield from config.attention_of(index).parameters(config, f"{layer}.self_attn")
        yield from norm(f"{layer}.post_attention_layernorm", embed)
        yield from config.feed_forward_of(index).parameters(config, f"{layer}.mlp")
    yield from norm("model.norm", embed)
    if config.num_labels is not None:
        yield from linear("score", config.num_labels, embed, bias=True)
    elif not config.tie_embeddings:
        yield from linear("lm_head", config.vocab_size, embed, bias=False)


EVERYTHING = TrainConfig()  # a run that trains whatever there is to train

TABLES: dict[str, Callable[[ModelConfig], Iterator[Parameter]]] = {"gpt": _gpt}


def table(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of the model by name, in the order in which the model uses them; those of adapters behind the
    linear maps that they change. A target that the model lacks is refused, and a rank that is none of a map."""
    return dict(_table(config, TABLES[config.family]))  # a caller's own


@functools.lru_cache(maxsize=64)
def _table(config: ModelConfig, base_of: Callable[[ModelConfig], Iterator[Parameter]]) -> dict[str, Parameter]:
    base = tuple(base_of(config))
    every = adapters.parameters(config.adapters, base) if config.adapters else base
    return {parameter.name: parameter for parameter in every}


def modules(config: ModelConfig) -> list[str]:
    """The paths of all modules that hold parameters, themselves or in modules below; "" is the whole model."""
    found = {"": None}
    for name in table(config):
        parts = name.split(".")[:-1]
        found.update({".".join(parts[:depth]): None for depth in range(1, len(parts) + 1)})
    return list(found)


def count(config: ModelConfig) -> int:
    """Number of parameters; a tied head counts once."""
    return sum(parameter.size for parameter in table(config).values())


def trained(config: ModelConfig, train: TrainConfig) -> dict[str, bool]:
    """Which parameters a run trains: those that its patterns name; without patterns the adapters alone if the model has
    any, and all else. A pattern that names nothing is refused, with near matches."""
    names = list(table(config))
    for pattern in train.trained:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown("parameter to be trained", pattern, names)
    if train.trained:
        return {name: any(fnmatchcase(name, pattern) for pattern in train.trained) for name in names}
    return {name: not config.adapters or adapters.belongs(name) is not None for name in names}


def turned(config: ModelConfig, optimizer: str) -> frozenset[str]:
    """The parameters that Muon moves, if it is the optimizer: linear maps inside layers, also those of experts and of
    adapters; not embeddings, heads, routers, vectors and convolutions. Source: Jordan et al. 2024."""
    inside = [one for one in table(config).values() if one.name.startswith("model.layers.")]
    kinds = "linear", "experts", "lora"
    linear = [one for one in inside if one.part in kinds and is_matrix(one.name, len(one.shape))]
    return frozenset(one.name for one in linear) if optimizer == "muon" else frozenset()


def slots(config: ModelConfig, train: TrainConfig = EVERYTHING) -> dict[str, tuple[int, ...]]:
    """Name and shape of everything that the optimizer of a run remembers of what it trains: a parameter's `.momentum`,
    or its `.exp_avg` and `.exp_avg_sq`."""
    moved, chosen = turned(config, train.optimizer), trained(config, train)
    return {
        f"{name}.{slot}": one.shape
        for name, one in table(config).items()
        if chosen[name]
        for slot in (("momentum",) if name in moved else ("exp_avg", "exp_avg_sq"))
    }


def check(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise one error that lists every missing, extra and misshapen tensor of `shapes` (name -> shape)."""
    want = table(config)
    faults = [f"{name} is missing" for name in want if name not in shapes]
    faults += [f"{name} is not part of the model" for name in shapes if name not in want]
    for name, parameter in want.items():
        if name in shapes and tuple(shapes[name]) != parameter.shape:
            faults.append(f"{name} has shape {list(shapes[name])}, expected {list(parameter.shape)}")
    if faults:
        raise UserError(f"{where} does not fit the model: {'; '.join(faults)}.")


def checked(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> "LazyWeights":
    """The weights by name, each read when it is asked for; wrong names are refused now, a wrong shape then."""
    want = table(config)
    check(config, {name: want[name].shape if name in want else () for name in weights}, "The set of weights")

    def read(name: str) -> np.ndarray:
        array, shape = weights[name], want[name].shape
        if array.shape != shape:
            raise UserError(f"{name} has shape {list(array.shape)}, expected {list(shape)}.")
        return array

    return LazyWeights({name: functools.partial(read, name) for name in want})


def draw(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 from Philox keyed by SHA-256 of (seed, name): independent of the order of creation."""
    return _generator(seed, name).standard_normal(shape)


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def initial(parameter: Parameter, seed: int) -> np.ndarray:
    """The initial value of one parameter, float32, the same in every wing."""
    if parameter.init == "ones":
        return np.ones(parameter.shape, np.float32)
    if parameter.init == "zeros":
        return np.zeros(parameter.shape, np.float32)
    if parameter.init == "uniform":
        unit = 2 * _generator(seed, parameter.name).random(parameter.shape) - 1
        return (parameter.std * unit).astype(np.float32)
    if parameter.init == "log_uniform":
        return np.log(16 * (1 - _generator(seed, parameter.name).random(parameter.shape))).astype(np.float32)
    return (parameter.std * draw(seed, parameter.name, parameter.shape)).astype(np.float32)


class LazyWeights(Mapping[str, np.ndarray]):
    """Weights by name, each made or read when it is asked for, so that no second full copy ever exists."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]):
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # what Mapping offers would make the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def initialise(config: ModelConfig, seed: int) -> LazyWeights:
    """Initial weights of a model, float32, keyed by (seed, parameter name)."""
    every = table(config)

    def make(parameter: Parameter) -> np.ndarray:
        if parameter.init == "norms":
            return adapters.row_norms(initial(every[f"{adapters.base_of(parameter.name)}.weight"], seed))
        return initial(parameter, seed)

    return LazyWeights({p.name: functools.partial(make, p) for p in every.values()})


def randomise(config: ModelConfig, seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Weights for tests: **every** parameter random, float32 values that bfloat16 represents exactly.

    Default initialisation hides bugs (unit norms, zero biases). Matrices are N(0, 1.5^2/fan_in), norm weights
    1 + N(0, 0.5^2), all other vectors N(0, 0.5^2).
    """
    out = {}
    for p in table(config).values():
        value = draw(seed, f"randomise/{p.name}", p.shape)
        if len(p.shape) > 1:
            value = value * 1.5 / math.sqrt(p.shape[-1])
        else:
            value = 0.5 * value + (1.0 if p.init == "ones" else 0.0)
        out[p.name] = (scale * value).astype(ml_dtypes.bfloat16).astype(np.float32)
    return out


def fingerprint(weights: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of names and numbers, these as float32."""
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        sha256.update(name.encode())
        sha256.update(np.ascontiguousarray(weights[name], np.float32).tobytes())
    return sha256.hexdigest()
