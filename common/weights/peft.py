"""LoRA adapters as PEFT stores them: a folder with adapter_config.json and adapter_model.safetensors, both ways.

Adapters of a GPT-2 are written for transformers' GPT-2, whose c_attn makes queries, keys and values at once, those of
other models under the canonical names. Adapters on q, k and v become one on c_attn: their A's are stacked, their B's
stand on the diagonal of its B, and its alpha grows so that the scale stays. Where all A's are equal, as after reading
one from PEFT, the rank stays. Source of the format: peft, utils/save_and_load.py.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common import adapters, params
from common.adapters import PARTS, Adapter
from common.config import ModelConfig, dumps
from common.errors import UserError, unknown
from common.files import replacing_folder
from common.weights import low_rank, peft_config, peft_names, safetensors_io
from common.weights.damage import damaged
from common.weights.folders import ADAPTER, require_replaceable
from common.weights.low_rank import Low
from common.weights.peft_config import Settings
from common.weights.peft_names import PREFIX
from common.weights.stored import Stored, in_memory

CONFIG, TENSORS = peft_config.FILE, "adapter_model.safetensors"
OURS = "parallax"  # metadata: the adapter as it was, so that stacked ones are taken apart again
BASE = "parallax-base"  # metadata: the maps that it changes, and the checksum of their matrices
_TASKS = {False: "CAUSAL_LM", True: "SEQ_CLS"}


def save_adapter(
    folder: Path | str,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    name: str = "default",
    base: str | None = None,
) -> None:
    """Write an adapter of a model as a folder that PEFT loads; it replaces an older one only when complete.

    `base` is the name or path of the base model, where PEFT looks for it. The head of a classifier goes with it, whole:
    what the adapter adds to it has become part of it there. That of transformers' GPT-2 has no bias, so PEFT leaves
    ours out unless the base was given a head that has one.
    """
    folder = require_replaceable(folder, ADAPTER)
    scheme, linears = peft_names.usual(config), peft_names.linears(config)
    adapter, merged = _beside_the_head(config, weights, _named(config, name), linears)
    chosen, rows = adapters.targets(adapter, linears), {path: shape[0] for path, shape in linears.items()}
    tensors, ranks, alphas = {}, {}, {}
    for module, paths in peft_names.sites(scheme, config).items():
        own = {path: _own(weights, path, adapter) for path in paths if path in chosen}
        if own:
            low = low_rank.joined(own, paths, rows, functools.partial(_norms, weights))
            grown = len(low.a) / adapter.rank
            ranks[module] = len(low.a)
            alphas[module] = adapter.alpha * (math.sqrt(grown) if adapter.rslora else grown)
            tensors |= {f"{module}.{part}": array for part, array in low.tensors().items()}
    head = peft_names.head(scheme, config)
    tensors |= {theirs: np.asarray((merged if ours in merged else weights)[ours]) for theirs, ours in head.items()}
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    settings = Settings(
        rank,
        alpha,
        adapter.dropout,
        adapter.rslora,
        adapter.dora,
        peft_names.endings(ranks, scheme, config),
        tuple({theirs.rpartition(".")[0]: None for theirs in head}),
        {module: value for module, value in ranks.items() if value != rank},
        {module: value for module, value in alphas.items() if value != alpha},
    )
    transposed = scheme.layout == "in, out"
    values = peft_config.to_dict(settings, fan_in_fan_out=transposed, task=_TASKS[bool(head)], base=base)
    stored = {PREFIX + theirs: in_memory(np.ascontiguousarray(tensors[theirs])) for theirs in sorted(tensors)}
    base_of = {"maps": sorted(chosen), "sha256": _sum_of(weights, chosen)}
    told = {OURS: json.dumps(adapter.to_dict()), BASE: json.dumps(base_of)}
    with replacing_folder(folder) as temporary:
        (temporary / CONFIG).write_text(dumps(values), encoding="utf-8")
        safetensors_io.write_file(temporary / TENSORS, stored, told)


def _sum_of(weights: Mapping[str, np.ndarray], paths) -> str:
    """The checksum of the matrices at these paths."""
    makers = {path: functools.partial(weights.__getitem__, f"{path}.weight") for path in paths}
    return params.fingerprint(params.LazyWeights(makers))


def _named(config: ModelConfig, name: str) -> Adapter:
    if not config.adapters:
        raise UserError("The model has no adapters, so none can be written.")
    known = {one.name: one for one in config.adapters}
    if name not in known:
        raise unknown("adapter", name, known)
    return known[name]


def _beside_the_head(config: ModelConfig, weights: Mapping[str, np.ndarray], adapter: Adapter, linears):
    """(adapter, parameters): PEFT adapts no module that is saved whole, as a classifier's head is, so an adapter of it
    becomes part of its matrix."""
    chosen = adapters.targets(adapter, linears)
    if peft_names.SCORE not in chosen:
        return adapter, {}
    rest = [path for path in chosen if path != peft_names.SCORE]
    if not rest:
        raise UserError(
            f"Adapter {adapter.name!r} changes the classifier's head alone, which PEFT keeps whole; merge it"
            " (`parallax adapter merge`)."
        )
    others = tuple(one.name for one in config.adapters if one.name != adapter.name)
    _, merged = adapters.merge(*adapters.without(config, weights, others))
    name = f"{peft_names.SCORE}.weight"
    return adapter.with_(targets=peft_names.patterns(rest, config)), {name: merged[name]}


def _own(weights: Mapping[str, np.ndarray], path: str, adapter: Adapter) -> Low:
    parts = PARTS if adapter.dora else PARTS[:2]
    return Low(*(np.asarray(weights[f"{path}.{part}.{adapter.name}.weight"]) for part in parts))


def _norms(weights: Mapping[str, np.ndarray], path: str) -> np.ndarray:
    """DoRA's magnitudes that change nothing."""
    return np.linalg.norm(np.asarray(weights[f"{path}.weight"], np.float64), axis=-1)


def load_adapter(
    folder: Path | str,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    name: str = "default",
    any_base: bool = False,
) -> tuple[ModelConfig, params.LazyWeights]:
    """(config, weights) of a base model with the adapter in a folder, which is called `name` there.

    Modules may be called as transformers, the book or we do. Ranks and scales that differ between modules become one:
    what is missing of a rank is zero, and stays so in training; what differs in scale goes into B. Modules that were
    trained whole replace those of the base; a head called score makes it a classifier. Raises UserError for adapters
    of other kinds, and for those of another base: of other shapes or, where we wrote them and unless `any_base`, of
    other numbers.
    """
    folder = Path(folder)
    if name in (one.name for one in config.adapters):
        raise UserError(f"The model has an adapter {name!r} already; choose another name.")
    settings = peft_config.read(folder / CONFIG)
    where = folder / TENSORS
    lows, whole = _sorted(_open(folder), where)
    config, weights = peft_names.with_head(config, weights, whole, where)
    scheme = peft_names.scheme_of([*lows, *(key.rpartition(".")[0] for key in whole)], config)
    sites = peft_names.sites(scheme, config)
    for module in lows:
        if module not in sites:
            raise peft_names.unknown_module(scheme, config, module, where)
    peft_names.check_targets(settings, set(lows), sites, where)
    linears = peft_names.linears(config)
    found = {module: _checked(module, parts, settings, sites[module], linears, where) for module, parts in lows.items()}
    adapter, own = _as_it_was(found, settings, sites, linears, name, where) or _as_theirs(
        found, settings, sites, linears, name, config
    )
    if not any_base:
        _check_base(folder, weights, linears)
    grown = config.with_(adapters=(*config.adapters, adapter))
    table = params.table(grown)
    makers = {key: functools.partial(weights.__getitem__, key) for key in table if adapters.belongs(key) != name}
    for key, array in peft_names.whole(scheme, config, whole, where).items():
        makers[key] = lambda array=array: array
    for path, low in own.items():
        for part, array in zip(PARTS, (low.a, low.b, low.magnitude), strict=True):
            if array is not None:
                makers[f"{path}.{part}.{name}.weight"] = lambda array=array: array
    return grown, params.LazyWeights({key: makers[key] for key in table})


def _check_base(folder: Path, weights: Mapping[str, np.ndarray], linears) -> None:
    """Raise UserError where the folder says that the matrices of its base are others."""
    told = safetensors_io.metadata(folder / TENSORS).get(BASE)
    if told is None:  # PEFT's own
        return
    try:
        maps, sha256 = (json.loads(told)[key] for key in ("maps", "sha256"))
        same = set(maps) <= set(linears) and _sum_of(weights, maps) == sha256
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder / TENSORS, "adapter of PEFT", f"{BASE} in its header: {error}") from error
    if not same:
        raise UserError(
            f"{folder} was trained on another base, whose matrices are not these; name its own base, or take"
            " this one nevertheless (--any-base)."
        )


def _open(folder: Path) -> dict[str, Stored]:
    if not (folder / TENSORS).is_file() and (folder / "adapter_model.bin").exists():
        raise UserError(f"{folder} holds its adapter as a pickle, adapter_model.bin, which is not read; save it anew.")
    return safetensors_io.open_file(folder / TENSORS)


def _sorted(tensors: Mapping[str, Stored], where: object) -> tuple[dict[str, dict[str, Stored]], dict[str, Stored]]:
    """Matrices of adapters by module and part, and the tensors of modules that were trained whole, without prefix."""
    lows, whole = {}, {}
    for key, tensor in tensors.items():
        theirs = key.removeprefix(PREFIX)
        if theirs == key:
            raise damaged(where, "adapter of PEFT", f"{key} does not begin with {PREFIX}")
        found = re.fullmatch(r"(.+)\.(lora_[AB]\.weight|lora_magnitude_vector)(?:\.weight)?", theirs)
        if found:
            lows.setdefault(found[1], {})[found[2]] = tensor
        elif ".lora_" in theirs:
            raise UserError(f"{where} holds {key}, a kind of adapter that is not implemented; linear maps are.")
        else:
            whole[theirs.replace(".base_layer.", ".")] = tensor
    if not lows:
        raise damaged(where, "adapter of PEFT", "it holds no lora_A")
    return lows, whole


def _checked(module, parts: Mapping[str, Stored], settings: Settings, paths, linears, where: object) -> Low:
    """The matrices of a module, read once their shapes fit the base."""
    rank, width = settings.rank_of(module), linears[paths[0]][1]
    height = sum(linears[path][0] for path in paths)
    shapes = ((rank, width), (height, rank), (height,))
    want = dict(zip(low_rank.FILES, shapes, strict=True))
    if not settings.dora:
        del want[low_rank.FILES[2]]
    for part in parts:
        if part not in want:
            raise UserError(f"{where} holds {module}.{part}, but {CONFIG} says that use_dora is false.")
    for part, shape in want.items():
        if part not in parts:
            raise damaged(where, "adapter of PEFT", f"{module}.{part} is missing")
        if parts[part].shape != shape:
            raise UserError(
                f"{where} has {module}.{part} of shape {list(parts[part].shape)}, but with rank {rank} the base's"
                f" {height} x {width} needs {list(shape)}: this adapter is for another base."
            )
    return Low(*(parts[part].read() for part in want))


def _as_it_was(found: Mapping[str, Low], settings: Settings, sites, linears, name: str, where: Path):
    """(adapter, matrices by path) as `save_adapter` got them; None where the folder is not as it left it."""
    try:
        adapter = Adapter.from_dict(json.loads(safetensors_io.metadata(where)[OURS])).with_(name=name)
        chosen = adapters.targets(adapter, linears)
    except (KeyError, ValueError, AttributeError, UserError):
        return None
    same = (adapter.dropout, adapter.rslora, adapter.dora) == (settings.dropout, settings.rslora, settings.dora)
    rows, own = {path: shape[0] for path, shape in linears.items()}, {}
    for module, low in found.items():
        parts = low_rank.unstacked(low, sites[module], rows, chosen, adapter.rank)
        if parts is None or not same or not math.isclose(settings.scale_of(module), adapter.scale, rel_tol=1e-12):
            return None
        own |= parts
    return (adapter, own) if set(own) == set(chosen) else None


def _as_theirs(found: Mapping[str, Low], settings: Settings, sites, linears, name: str, config: ModelConfig):
    """(adapter, matrices by path): each map of a module has its rows of B, and an A of its own."""
    first = max(found, key=lambda module: len(found[module].a))
    paths = [path for module in found for path in sites[module]]
    adapter = Adapter(
        name,
        peft_names.patterns(paths, config),
        settings.rank_of(first),
        settings.alpha_of(first),
        settings.dropout,
        settings.rslora,
        settings.dora,
    )
    adapters.targets(adapter, linears)  # refuses a rank that a map cannot have
    rows, own = {path: shape[0] for path, shape in linears.items()}, {}
    for module, low in found.items():
        low = low_rank.fitted(low, adapter.rank, settings.scale_of(module) / adapter.scale)
        own |= low_rank.parted(low, sites[module], rows)
    return adapter, own
