"""The kinds of layers a model is made of, by name: an entry here, and a file of that name in every implementation."""

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from common.errors import UserError, unknown
from common.variants.gated_deltanet import GatedDeltaNet
from common.variants.gated_mlp import GatedMLP
from common.variants.grouped_query import GroupedQuery
from common.variants.latent import Latent
from common.variants.mixture_of_experts import MixtureOfExperts
from common.variants.mlp import PlainMLP
from common.variants.multi_head import MultiHead
from common.variants.part import Attention, FeedForward, Part
from common.variants.sparse import Sparse

ATTENTIONS: dict[str, type[Attention]] = {
    entry.kind: entry for entry in (MultiHead, GroupedQuery, Latent, GatedDeltaNet, Sparse)
}
FEED_FORWARDS: dict[str, type[FeedForward]] = {entry.kind: entry for entry in (PlainMLP, GatedMLP, MixtureOfExperts)}

PATTERNS: dict[str, dict[str, type[Part]]] = {"attention": ATTENTIONS, "feed_forward": FEED_FORWARDS}  # by field


def modules() -> list[ModuleType]:
    """The modules of all kinds, and of the records that their settings are made of."""
    return [module for name, module in sys.modules.items() if name.startswith(f"{__name__}.")]


def unknown_kind(what: str, name: str, table: Mapping[str, type[Part]]) -> UserError:
    """The error for a name that is no kind of the table: the kind that goes by that word, or those that are near."""
    word = name.lower().replace("-", "_")
    for kind, entry in table.items():
        for alias, space, settings in (one.partition(" ") for one in (kind, *entry.aliases)):
            if word == alias:
                return UserError(f"Unknown {what} {name!r}: did you mean {kind!r}{space}{settings}?")
    return unknown(what, name, table)


def pattern(what: str, given: Any, table: Mapping[str, type[Part]]) -> tuple[Part, ...]:
    """One entry, a name, a dictionary with a "kind", or a sequence of those, as the shortest tuple of entries that is
    the same when it is repeated."""
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not several:
        raise UserError(f"The pattern of {what} is empty; give one kind at least.")
    found = tuple(_entry(what, one, table) for one in several)
    periods = (size for size in range(1, len(found) + 1) if len(found) % size == 0)
    return next(found[:size] for size in periods if found[:size] * (len(found) // size) == found)


def _entry(what: str, given: Any, table: Mapping[str, type[Part]]) -> Part:
    if isinstance(given, str):
        given = {"kind": given}
    if isinstance(given, Mapping):
        values = dict(given)
        kind = values.pop("kind", None)
        if not isinstance(kind, str) or kind not in table:
            raise unknown_kind(f"kind of {what}", str(kind), table)
        return table[kind].from_dict(values)
    if not isinstance(given, tuple(table.values())):
        raise UserError(f"{given!r} is no kind of {what}; there are {', '.join(table)}.")
    return given
