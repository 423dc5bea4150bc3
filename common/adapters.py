"""Low-rank adapters (LoRA) as a part of a model's config, and what can be done to weights that hold them.

An adapter adds to every linear map y = W x + b that it targets what two thin matrices give: y += scale B A x, with
A [R, in] and B [out, R]; B starts at zero, so nothing changes at first. Its parameters stand in the parameter table,
under the names that PEFT has for them in memory: `<map>.lora_A.<adapter>.weight` and so on. Source: Hu et al. 2021;
Kalajdzievski 2023 (rsLoRA); Liu et al. 2024 (DoRA).
"""

import functools
import math
import zlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from common.adapter import Adapter as Adapter
from common.errors import UserError, unknown
from common.parameter import Parameter

if TYPE_CHECKING:  # configs hold adapters
    from common.config import GPTConfig

PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")
SITES = 1 << 20  # dropout of adapters is drawn above this address, that of blocks below


def targets(adapter: Adapter, linears: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear maps that an adapter targets, by path. A pattern that hits none is refused with near
    matches, and a rank that no such map can have; of a head with few labels only its input limits that, as in the
    book, whose head of 2 labels gets rank 16."""
    for pattern in adapter.targets:
        if not any(fnmatchcase(path, pattern) for path in linears):
            known = sorted({path.rpartition(".")[2] for path in linears})
            word = pattern.rpartition(".")[2]
            raise unknown("target of an adapter", word, known, "Targets are linear maps, by path or pattern.")
    found = {path: shape for path, shape in linears.items() if adapter.hits(path)}
    for path, shape in found.items():
        most = shape[1] if path == "score" else min(shape)
        if adapter.rank > most:
            raise UserError(
                f"Adapter {adapter.name!r} has rank {adapter.rank}, but {path} is {shape[0]} x {shape[1]}:"
                f" its rank is at most {most}."
            )
    return found


def parameters(adapters: tuple[Adapter, ...], base: tuple[Parameter, ...]) -> Iterator[Parameter]:
    """The entries of the parameter table with those of adapters behind each linear map that they target."""
    linears = {one.name.removesuffix(".weight"): one.shape for one in base if is_linear(one)}
    hit = [targets(adapter, linears) for adapter in adapters]
    for one in base:
        yield one
        if is_linear(one):
            path = one.name.removesuffix(".weight")
            for adapter, chosen in zip(adapters, hit, strict=True):
                if path in chosen:
                    yield from _parts(adapter, path, *one.shape)


def is_linear(parameter: Parameter) -> bool:
    """Whether it is the matrix of a linear map by itself: those of experts lie in one array, and are none."""
    return parameter.part == "linear" and parameter.name.endswith(".weight") and len(parameter.shape) == 2


def _parts(adapter: Adapter, path: str, out_dim: int, in_dim: int) -> Iterator[Parameter]:
    a, b, magnitude = (f"{path}.{part}.{adapter.name}.weight" for part in PARTS)
    yield Parameter(a, (adapter.rank, in_dim), "uniform", 1 / math.sqrt(in_dim), part="lora")
    yield Parameter(b, (out_dim, adapter.rank), "zeros", part="lora")
    if adapter.dora:
        yield Parameter(magnitude, (out_dim,), "norms", decays=False, part="lora")


def belongs(name: str) -> str | None:
    """The adapter that a parameter is of, or None."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 2 and parts[-3] in PARTS else None


def base_of(name: str) -> str:
    """The path of the linear map that an adapter's parameter changes."""
    return ".".join(name.split(".")[:-3])


def site(path: str, adapter: str) -> int:
    """The address of the dropout before A, below the key of the block: the same for all blocks of a kind."""
    parts = path.split(".")
    inside = ".".join(parts[3:]) if parts[:2] == ["model", "layers"] else path
    return SITES + zlib.crc32(f"{inside}/{adapter}".encode()) % SITES


def check(config: "GPTConfig", execution) -> None:
    """Refuse ways to run that multiply by a matrix itself, where an adapter changes it."""
    for path, field in unseen(config, execution.to_dict()):
        chosen = f"{field}={getattr(execution, field)!r}"
        raise UserError(
            f"An adapter changes {path}, whose matrix {chosen} multiplies by itself; merge it, or leave it out."
        )


def unseen(config: "GPTConfig", ways: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(path, field) of the linear maps whose adapters ways to run, fields of an execution, would not see: they multiply
    by the matrix itself."""
    if not config.adapters:
        return
    from common.accounting import parts

    for path in sorted({base_of(name) for name in names(config)}):
        layer, inside = parts.holder(config, path), path.rpartition(".")[2]
        for field, known in ({} if layer is None else layer.bare).items():
            if any(fnmatchcase(inside, pattern) for pattern in known.get(ways.get(field), ())):
                yield path, field


def names(config: "GPTConfig", adapter: str | None = None) -> list[str]:
    """The names of the parameters of all adapters, or of one, in the order of the table."""
    from common.params import table

    found = [name for name in table(config) if belongs(name) is not None]
    return found if adapter is None else [name for name in found if belongs(name) == adapter]


def placed(config: "GPTConfig") -> Iterator[tuple[str, Adapter, int, int, int]]:
    """(path, adapter, out, in, site of its dropout) of every linear map that an adapter changes, adapter by adapter."""
    from common.params import table

    every = table(config) if config.adapters else {}
    for adapter in config.adapters:
        for name, parameter in every.items():
            path = name.removesuffix(".weight")
            if f"{path}.{PARTS[0]}.{adapter.name}.weight" in every:
                yield path, adapter, *parameter.shape, site(path, adapter.name)


def add(config: "GPTConfig", weights: Mapping[str, np.ndarray], adapter: Adapter, seed: int = 0):
    """(config, weights) with one more adapter, which changes nothing yet: B is zero, DoRA's magnitudes are the norms
    that rows have. What is added is made when it is asked for, keyed by (seed, name)."""
    from common import params

    if adapter.name in (one.name for one in config.adapters):
        raise UserError(f"The model has an adapter {adapter.name!r} already; choose another name.")
    grown = config.with_(adapters=(*config.adapters, adapter))
    table, old = params.table(grown), set(params.table(config))
    makers = {name: functools.partial(weights.__getitem__, name) for name in old}

    def fresh(parameter: Parameter) -> np.ndarray:
        if parameter.init == "norms":
            return row_norms(weights[f"{base_of(parameter.name)}.weight"])
        return params.initial(parameter, seed)

    makers |= {name: functools.partial(fresh, one) for name, one in table.items() if name not in old}
    return grown, params.LazyWeights({name: makers[name] for name in table})


def row_norms(weight: np.ndarray) -> np.ndarray:
    """The length of every row, float32, summed in float64."""
    return np.sqrt(np.square(np.asarray(weight, np.float64)).sum(-1)).astype(np.float32)


def without(config: "GPTConfig", weights: Mapping[str, np.ndarray], chosen: tuple[str, ...] | None = None):
    """(config, weights) without these adapters (None: without any)."""
    from common import params

    gone = _chosen(config, chosen)
    kept = config.with_(adapters=tuple(one for one in config.adapters if one.name not in gone))
    return kept, params.LazyWeights({n: functools.partial(weights.__getitem__, n) for n in params.table(kept)})


def merge(config: "GPTConfig", weights: Mapping[str, np.ndarray], chosen: tuple[str, ...] | None = None):
    """(config, weights) in which these adapters (None: all) have become part of the matrices that they change.

    Each adds its change from the base's matrix, those with DoRA too. Where one of several has DoRA, all of that matrix
    are merged at once or none: what is left would turn another matrix.
    """
    return _moved(config, weights, _chosen(config, chosen), 1)


def unmerge(config: "GPTConfig", weights: Mapping[str, np.ndarray], merged: Mapping[str, np.ndarray]):
    """(config, weights) of `config`, which has adapters, from matrices that they were merged into and the parameters of
    the adapters in `weights`: the inverse of `merge`, to within rounding."""
    from common import params

    own = set(names(config))
    makers = {n: functools.partial((weights if n in own else merged).__getitem__, n) for n in params.table(config)}
    _, back = _moved(config, params.LazyWeights(makers), _chosen(config, None), -1)
    makers |= {name: functools.partial(back.__getitem__, name) for name in makers if name not in own}
    return config, params.LazyWeights(makers)


def _chosen(config: "GPTConfig", chosen: tuple[str, ...] | None) -> tuple[str, ...]:
    have = tuple(one.name for one in config.adapters)
    for name in chosen or ():
        if name not in have:
            raise unknown("adapter", name, have)
    return have if chosen is None else tuple(chosen)


def _moved(config: "GPTConfig", weights: Mapping[str, np.ndarray], gone: tuple[str, ...], sign: int):
    from common import params

    kept, every = config.with_(adapters=tuple(one for one in config.adapters if one.name not in gone)), names(config)
    moving = [one for one in config.adapters if one.name in gone]

    def merged(path: str) -> np.ndarray:
        own = [one for one in config.adapters if f"{path}.lora_A.{one.name}.weight" in every]
        chosen = [one for one in moving if one in own]
        if len(chosen) < len(own) and any(one.dora for one in own):
            raise UserError(
                f"{path} has {len(own)} adapters, one of them with DoRA: merging {len(chosen)} would change the others;"
                " merge all at once."
            )
        stored = weights[f"{path}.weight"]
        base = weight = np.asarray(stored, np.float64)
        for one in chosen:
            a, b = (np.asarray(weights[f"{path}.{part}.{one.name}.weight"], np.float64) for part in PARTS[:2])
            change = one.scale * b @ a
            if one.dora:
                magnitude = np.asarray(weights[f"{path}.{PARTS[2]}.{one.name}.weight"], np.float64)
                change = _turned(base, change, magnitude, sign, path) - base
            weight = weight + sign * change
        return weight.astype(np.float32 if stored.dtype.name == "bfloat16" else stored.dtype)

    paths = {base_of(name) for name in every if belongs(name) in gone}
    makers = {name: functools.partial(weights.__getitem__, name) for name in params.table(kept)}
    makers |= {f"{path}.weight": functools.partial(merged, path) for path in paths}
    return kept, params.LazyWeights({name: makers[name] for name in params.table(kept)})


def _turned(weight, change, magnitude, sign, path):
    """DoRA's matrix from the base's, m (W + C) / |W + C| row by row; or (sign -1) the base's from it."""
    if sign > 0:
        moved = weight + change
        return (magnitude / np.linalg.norm(moved, axis=-1))[:, None] * moved
    raise UserError(f"{path} was merged with DoRA, which forgets how long rows were: take the base's weights again.")
