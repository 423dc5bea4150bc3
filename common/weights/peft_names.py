"""Where the linear maps of a model lie in the files of PEFT, which are called as the modules of the base model are.

A module of theirs may hold several maps of ours: GPT-2's c_attn makes queries, keys and values. An adapter on it has
one A for all three, and the rows of its B are theirs in turn.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from common import adapters, heads, params
from common.config import ModelConfig
from common.errors import UserError, unknown
from common.weights import gpt2_names
from common.weights.gpt2_names import BOOK, CANONICAL, HF, HF_BARE, Entry, Scheme
from common.weights.peft_config import Settings, ends
from common.weights.stored import Stored

PREFIX = "base_model.model."
SCORE = "score"

Sites = dict[str, tuple[str, ...]]


def entries(scheme: Scheme, config: ModelConfig) -> dict[str, Entry]:
    """Every tensor of the base under the names of a scheme, those of a classifier's head too."""
    found, table = gpt2_names.entries(scheme, config.with_(adapters=())), params.table(config)
    return found | {
        theirs: Entry((ours,), "out, in", table[ours].shape) for theirs, ours in head(scheme, config).items()
    }


def sites(scheme: Scheme, config: ModelConfig) -> Sites:
    """Linear maps by the name of the module that holds them in a file: {theirs: (ours, …)}."""
    table = params.table(config.with_(adapters=()))
    return {
        theirs.removesuffix(".weight"): tuple(name.removesuffix(".weight") for name in entry.ours)
        for theirs, entry in entries(scheme, config).items()
        if all(adapters.is_linear(table[name]) for name in entry.ours)
    }


def usual(config: ModelConfig) -> Scheme:
    """The scheme in which adapters of a model are written: GPT-2 as transformers has it, or the canonical names."""
    return next(iter(_possible(config, (HF, CANONICAL))))


def _possible(config: ModelConfig, schemes: Iterable[Scheme]) -> dict[Scheme, Sites]:
    found = {}
    for scheme in schemes:
        try:
            found[scheme] = sites(scheme, config)
        except UserError:  # this model has no form under these names
            continue
    return found


def scheme_of(modules: Iterable[str], config: ModelConfig) -> Scheme:
    """The scheme under which most of the modules are known."""
    modules, possible = set(modules), _possible(config, (HF, CANONICAL, HF_BARE, BOOK))
    return max(possible, key=lambda scheme: len(modules & set(possible[scheme])))


def unknown_module(scheme: Scheme, config: ModelConfig, module: str, where: object) -> UserError:
    """The error for a module that the base has not, or that is no linear map of it."""
    layer = scheme.layer_of(f"{module}.")
    if layer is not None and layer >= config.num_layers:
        return UserError(
            f"{where} changes {module}, but the base has {config.num_layers} layers: this adapter is for another base."
        )
    if config.tied and f"{module}.weight" == scheme.head:
        return UserError(
            f"{where} changes {module}, but the base's is its embedding (tie_embeddings), which can have no adapter."
        )
    known = [name for name in sites(scheme, config) if scheme.layer_of(f"{name}.") in (layer, None)]
    return unknown("target of an adapter", module, known)


def patterns(paths: Iterable[str], config: ModelConfig) -> tuple[str, ...]:
    """Linear maps as few targets: "*.self_attn.q_proj" where all layers have theirs among them, else path by path."""
    return _short(paths, linears(config), CANONICAL, "*.")


def endings(modules: Iterable[str], scheme: Scheme, config: ModelConfig) -> tuple[str, ...]:
    """The same for modules of a file: PEFT knows a module by how its name ends."""
    return _short(modules, sites(scheme, config), scheme, "")


def linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear map of the base, by path."""
    table = params.table(config.with_(adapters=()))
    return {name.removesuffix(".weight"): one.shape for name, one in table.items() if adapters.is_linear(one)}


def _short(chosen: Iterable[str], every: Iterable[str], scheme: Scheme, before: str) -> tuple[str, ...]:
    chosen, kinds, dots = set(chosen), {}, scheme.layer.count(".")
    for name in every:
        inside = scheme.layer_of(f"{name}.") is not None
        kinds.setdefault(name.split(".", dots)[dots] if inside else None, []).append(name)
    found = []
    for kind, names in kinds.items():
        here = [name for name in names if name in chosen]
        found += [before + kind] if kind is not None and here == names else here
    return tuple(found)


def head(scheme: Scheme, config: ModelConfig) -> dict[str, str]:
    """The tensors of a classifier's head, {theirs: ours}. transformers names it anew, the book does not."""
    module = scheme.head.removesuffix(".weight") if scheme is BOOK else SCORE
    own = [name for name in params.table(config.with_(adapters=())) if name.startswith(f"{SCORE}.")]
    return {name.replace(SCORE, module, 1): name for name in own}


def with_head(config: ModelConfig, weights: Mapping[str, np.ndarray], whole: Mapping[str, Stored], where: object):
    """(config, weights) of the base as a classifier, if the file holds a head called score and the base has none."""
    shape = whole[f"{SCORE}.weight"].shape if f"{SCORE}.weight" in whole else None
    if shape is None or config.num_labels is not None:
        return config, weights
    if len(shape) != 2 or shape[0] < 2:
        raise UserError(
            f"{where} has {SCORE}.weight of shape {list(shape)}; a head needs a row for each of its labels."
        )
    return heads.classifier(config, weights, shape[0])


def whole(scheme: Scheme, config: ModelConfig, tensors: Mapping[str, Stored], where: object) -> dict[str, np.ndarray]:
    """The canonical parameters of modules that a file holds whole. A head without a bias gets zeros."""
    known, found = entries(scheme, config), {}
    if config.tied and scheme.head not in known:
        known[scheme.head] = known[scheme.embed]
    for theirs, tensor in tensors.items():
        if theirs not in known:
            raise unknown("parameter of the base", theirs, known)
        entry = known[theirs]
        if tensor.shape != entry.shape:
            raise UserError(
                f"{where} has {theirs} of shape {list(tensor.shape)}, but the base's is {list(entry.shape)}: this"
                " adapter is for another base."
            )
        for name, part in zip(entry.ours, np.split(tensor.read(), len(entry.ours), axis=-1), strict=True):
            array = np.ascontiguousarray(gpt2_names.LAYOUTS[entry.layout][0](part))
            if not np.array_equal(found.setdefault(name, array), array):
                raise UserError(f"{where} has two tensors for {name}, and they differ.")
    if f"{SCORE}.weight" in found:
        found.setdefault(f"{SCORE}.bias", np.zeros(config.num_labels, found[f"{SCORE}.weight"].dtype))
    return found


def check_targets(settings: Settings, modules: set[str], sites: Sites, where: object) -> None:
    """Targets by name and the modules that have matrices are the same. Others the base need not have, as in PEFT."""
    if settings.targets is None:
        return
    kinds = sorted({module.rpartition(".")[2] for module in sites})
    hit = {module for module in sites if any(ends(module, name) for name in settings.targets)}
    if modules - hit:
        for name in settings.targets:
            if not any(ends(module, name) for module in sites):
                raise unknown("target of an adapter", name, kinds)
        raise UserError(f"{where} holds {min(modules - hit)}, which its config does not target.")
    if hit - modules:
        raise UserError(f"{where} holds nothing for {min(hit - modules)}, which its config targets.")
