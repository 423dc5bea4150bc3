"""Settings of a command in a TOML file: its keys are the command's long options; the command line goes before it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from common.errors import UserError, unknown
from common.files import read_toml

FILE = "settings.toml"
NONE_OF_THESE = ("settings_file", "resume", "help")  # they say where settings are
FROM_FILE = "DEFAULT_MAP"


def of_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make what a file says the defaults of this call; for an option that is read before all others."""
    if path is not None:
        context.default_map = {**(context.default_map or {}), **read(context, path)}
    return path


def read(context: typer.Context, path: Path, names: set[str] | None = None) -> dict[str, Any]:
    """{parameter: value} of a file, or of these parameters alone; unknown keys and values of another kind are refused
    in one sentence."""
    found = read_toml(path)
    known = _options(context)
    values = {}
    for key, value in found.items():
        name = key.replace("_", "-")
        if names is not None and (name not in known or known[name].name not in names):
            continue
        if name not in known:
            raise unknown(f"setting in {path}", key, known)
        one, several = known[name], isinstance(value, list)
        is_flag = getattr(one, "is_flag", False)
        if isinstance(value, dict) or several is not one.multiple or isinstance(value, bool) is not is_flag:
            allowed = "a list" if one.multiple else "true or false" if is_flag else "a number or a text"
            raise UserError(f"Setting {key!r} in {path} is {value!r}; allowed is {allowed}.")
        if one.name in values:
            raise UserError(f"{path} sets {name!r} twice, once with - and once with _; leave one out.")
        values[one.name] = value
    return values


def text(context: typer.Context, **resolved: Any) -> str:
    """All that this call was told or took for granted, as a file that says the same; `resolved` goes before it."""
    own = {key: {**context.params, **resolved}[one.name] for key, one in _options(context).items()}
    return "".join(f"{key} = {_plain(value)}\n" for key, value in own.items() if value not in (None, [], ()))


def moved(stored: Path, out: Path) -> str:
    """The settings that are stored, for the same run in another folder."""
    return "".join(f"{key} = {_plain(value)}\n" for key, value in {**read_toml(stored), "out": out}.items())


def _options(context: typer.Context) -> dict[str, Any]:
    """The command's options that a file may set, by the names that they have on the command line."""
    return {one.opts[0].lstrip("-"): one for one in context.command.params if one.name not in NONE_OF_THESE}


def _plain(value: Any) -> str:
    """A value as TOML has it: JSON's strings, numbers and lists are TOML's."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _was(before: dict[str, Any], option: Any) -> Any:
    """What a run had: its file leaves out what was None, the preset of a model that is none, and options that came
    since, which were as they are by default."""
    without = option.name == "preset" and {"config", "weights"} & set(before)
    return before.get(option.name, None if without else option.default)


def otherwise(
    context: typer.Context, before: dict[str, Any], names: set[str], meant: Mapping[str, Any] | None = None
) -> str:
    """The words that make options of a call that finds `before` what they are in this one; " --dtype float64". What
    was not said in this one is what it `meant`."""
    found = []
    for option in _options(context).values():
        value = _is(context.params[option.name]) if option.name in names else None
        if value is None and option.name in names and option.name in before:
            value = (meant or {}).get(option.name)
        if value not in (None, before.get(option.name, option.default)):
            found += words(option, value)
    return "".join(f" {one}" for one in found)


def words(option: Any, value: Any) -> list[str]:
    """What a command line says for an option to have a value."""
    if isinstance(value, bool):
        return [option.opts[0] if value else option.secondary_opts[0]]
    return [f"{option.opts[0]} {shlex.quote(str(one))}" for one in (value if isinstance(value, list) else [value])]


def changed(context: typer.Context, stored: Path, free: set[str], **resolved: Any) -> list[str]:
    """What this call was told, or takes for granted, otherwise than the settings that are stored, for all but what is
    `free` to change; `resolved` goes before what it was told."""
    before, found = read(context, stored), []
    for key, option in _options(context).items():
        if option.name in free:
            continue
        old, new = _was(before, option), _is({**context.params, **resolved}[option.name])
        if old != new:
            found.append(f"--{key} is {new}, and was {old}")
    return found


def others(context: typer.Context, stored: Path, free: set[str], source: str) -> list[str]:
    """What this call's file, or its command line, says otherwise than the settings that are stored, for all but what is
    `free` to change; where nothing is stored, all that it says."""
    before = read(context, stored) if stored.is_file() else None
    found = []
    for key, option in _options(context).items():
        if option.name in free or context.get_parameter_source(option.name).name != source:
            continue
        key, new = key if source == FROM_FILE else f"--{key}", _is(context.params[option.name])
        if before is None:
            found.append(key)
        elif new != (old := _was(before, option)):
            found.append(f"{key} {new} (it was {old})")
    return found


def _is(value: Any) -> Any:
    """A value as a file has it."""
    return str(value) if isinstance(value, Path) else list(value) or None if isinstance(value, (list, tuple)) else value
