"""Models on the command line: a preset or a file, fields changed one by one, and variants with other layers."""

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from common.accounting.estimate import match_dense
from common.config import ModelConfig, model_from_dict, model_to_dict, preset
from common.errors import UserError, unknown
from common.record import Record
from common.variants import FEED_FORWARDS, PATTERNS, unknown_kind
from common.weights.damage import read_json

NAMED = re.compile(r"\s*([^=:]*[^=:\s])\s*:\s+(.*)", re.DOTALL)  # "NAME: …"; colons of settings follow an "="
LAYERS = 1024  # times that a kind may be repeated
NONE = "none"  # no value where a field may have none, and elsewhere a name like any other
MATCH = "match_dense"  # as an expert_dim: experts and router then have the parameters of one gated layer of ff_dim


def chosen(name: str | None, file: Path | None) -> tuple[str, ModelConfig]:
    """(its name, the model): a preset, or what a JSON file describes."""
    if name is not None and file is not None:
        raise UserError(f"The preset {name} and --config {file} each name a model; give one of them.")
    if file is not None:
        return file.stem, read(file)
    if name is None:
        raise UserError("Name a model: a preset such as gpt2-124m, or a JSON file with --config.")
    return name, preset(name)


def read(file: Path) -> ModelConfig:
    """The model of a JSON file: fields of a config by name, or the config.json of a Parallax checkpoint."""
    values = read_json(file, "model config")
    values = values["model"] if isinstance(values.get("model"), dict) else values
    try:
        return _built(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def changed(config: ModelConfig, texts: Iterable[str]) -> ModelConfig:
    """The model with fields set by texts such as "embed_dim=4096" or "attention.num_kv_heads=4", which sets a field of
    every kind of attention in the model's pattern.
    """
    values, given = model_to_dict(config), set()
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text} gives no value; write NAME=VALUE, as in embed_dim=4096.")
        _set(values, name.strip(), _value(value))
        given.add(name.strip())
    return _built(_emptied(_following(values, config, given), config))


def varied(config: ModelConfig, text: str) -> tuple[str, ModelConfig]:
    """(its name, the variant) of a text such as "GQA: num_layers=24 5*grouped_query window=1024 + grouped_query".

    Kinds of attention, and of feed-forward, make the patterns of these; N*KIND is N of a kind. NAME=VALUE is a setting
    of the kind before it, and before all kinds a field of the model. expert_dim=match_dense makes experts that match a
    dense layer. The name is the text itself where none is given.
    """
    named = NAMED.fullmatch(text)
    name, words = (named[1], named[2].split()) if named else (text, text.split())
    name, words = " ".join(name.split()), [word for word in words if word != "+"]
    if not words:
        raise UserError("A variant says nothing; write it as in --variant 'GQA: grouped_query num_kv_heads=4'.")
    try:
        return name, _varied(config, words)
    except UserError as error:
        raise UserError(f"Variant {name!r}: {error}") from error


def _varied(config: ModelConfig, words: list[str]) -> ModelConfig:
    values, given = model_to_dict(config), set()
    patterns: dict[str, list[dict[str, Any]]] = {}
    entry: dict[str, Any] | None = None
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            field, kind, times = _kind(word)
            entry = {"kind": kind}
            patterns.setdefault(field, []).extend([entry] * times)  # one and the same, so settings reach all of them
        elif entry is None:
            _set(values, name, _value(value))
            given.add(name)
        elif name == "kind":
            raise UserError(f"{word} would make another kind of {entry['kind']!r}; write {value} in its place.")
        else:
            _put(entry, name, _value(value))
    for field in patterns:
        if said := [name for name in sorted(given) if name.partition(".")[0] == field]:
            kinds = " + ".join(dict.fromkeys(one["kind"] for one in patterns[field]))
            raise UserError(f"{said[0]}=… and {kinds} both say what {_spoken(field)} is; leave one of them out.")
    found = _built(_emptied(_following(values | patterns, config, given), config))
    for field, entries in patterns.items():
        if len(entries) > found.num_layers:
            raise UserError(f"{len(entries)} layers of {_spoken(field)} do not fit in a model of {found.num_layers}.")
    return found


def _kind(word: str) -> tuple[str, str, int]:
    """(the field whose pattern it belongs to, the kind, how often) of a word such as "grouped_query" or "5*latent"."""
    times, star, kind = word.rpartition("*")
    if star and not (times.isdecimal() and len(times) < 9 and 1 <= int(times) <= LAYERS):
        raise UserError(f"{word!r} repeats a kind {times!r} times; allowed is a whole number from 1 to {LAYERS}.")
    for field, table in PATTERNS.items():
        if kind in table:
            return field, kind, int(times) if star else 1
    raise unknown_kind(
        "kind of attention or feed-forward", kind, {k: v for t in PATTERNS.values() for k, v in t.items()}
    )


def _value(text: str) -> Any:
    """JSON where it is some (numbers, true, false, null), or else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a field of the model, or, as "attention.NAME", one of every entry of a pattern."""
    first, dot, rest = name.partition(".")
    if not dot:
        values[name] = value
    elif first not in PATTERNS:
        raise unknown("field with settings of its own", first, PATTERNS)
    else:
        values[first] = [_as_entry(one) for one in _several(values[first])]
        for entry in values[first]:
            if isinstance(entry, dict):
                _put(entry, rest, value)


def _put(owner: dict[str, Any], name: str, value: Any) -> None:
    """Set a setting, or one of a setting that has some itself, as in "rotary.base"."""
    *above, last = name.split(".")
    for step in above:
        owner[step] = owner[step] if isinstance(owner.get(step), dict) else {}
        owner = owner[step]
    owner[last] = value


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _as_entry(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _following(values: dict[str, Any], config: ModelConfig, given: set[str]) -> dict[str, Any]:
    """A feed-forward four times as wide as the model follows its width."""
    follows = "embed_dim" in given and "ff_dim" not in given and config.ff_dim == 4 * config.embed_dim
    return values | ({"ff_dim": None} if follows else {})


def _emptied(values: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The values with None for "none" wherever a field may be none: of the model, its kinds, and records in those."""
    for field, table in PATTERNS.items():
        for entry in _several(values.get(field)):
            kind = entry.get("kind") if isinstance(entry, dict) else None
            if isinstance(kind, str) and kind in table:
                _empty(entry, table[kind])
    return _empty(values, type(config))


def _empty(values: dict[str, Any], owner: type[Record]) -> dict[str, Any]:
    for field in fields(owner):
        value, types = values.get(field.name), get_args(field.type)
        if value == NONE and type(None) in types:
            values[field.name] = None
        elif isinstance(value, dict):
            for record in (one for one in types if isinstance(one, type) and issubclass(one, Record)):
                _empty(value, record)
    return values


def _built(values: dict[str, Any]) -> ModelConfig:
    """The config of these values, in which experts may be told to match a dense layer."""
    return model_from_dict(_matched(values))


def _matched(values: dict[str, Any]) -> dict[str, Any]:
    """The values with a number wherever experts are to match a dense layer."""
    entries = [entry for entry in _several(values.get("feed_forward")) if isinstance(entry, dict)]
    matching = [entry for entry in entries if entry.get("expert_dim") == MATCH]
    if matching:
        for entry in matching:
            entry["expert_dim"] = None
        config = model_from_dict(values)  # all else is as it may be
        for entry in matching:
            experts = entry.get("num_experts", FEED_FORWARDS[entry["kind"]].num_experts)
            entry["expert_dim"] = match_dense(config.embed_dim, config.ff_dim, experts)
    return values


def _spoken(field: str) -> str:
    return field.replace("_", "-")
