"""Rows of named fields from JSON, JSON lines, CSV and tab-separated files, each with its place for error messages."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.data import sets
from common.data.corpora import read_text
from common.errors import UserError
from common.tokenizers.base import utf8

Placed = tuple[str, dict[str, Any]]  # ("Line 3 of a.csv", the fields)


def _named(place: str, value: Any) -> Placed:
    if not isinstance(value, dict):
        raise UserError(f"{place} is {_kind(value)}; it must be an object with named fields.")
    return place, value


def _json(text: str, name: str) -> Iterator[Placed]:
    """A list of objects; rows count from 1."""
    rows = _parsed(text, name)
    if not isinstance(rows, list):
        raise UserError(f"{name} holds {_kind(rows)}; it must be a list of rows.")
    for number, row in enumerate(rows, 1):
        yield _named(f"Row {number} of {name}", row)


def _json_lines(text: str, name: str) -> Iterator[Placed]:
    """An object a line; empty lines are passed over."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"Line {number} of {name}"
            yield _named(place, _parsed(line, place))


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{place} is no JSON ({where}: {error.msg}).") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of too many digits
        raise UserError(f"{place} is JSON that cannot be read ({error}).") from error


def _separated(separator: str) -> Callable[[str, str], Iterator[Placed]]:
    """Rows under a header, with quotes as spreadsheets write them; a row is placed at the line where it begins."""

    def rows(text: str, name: str) -> Iterator[Placed]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        begin, header = 1, None
        try:
            for row in reader:
                place, begin = f"Line {begin} of {name}", reader.line_num + 1
                if not row:
                    continue
                if header is None:
                    header = [column.strip() for column in row]
                    twice = next((column for column in header if column and header.count(column) > 1), None)
                    if twice is not None:
                        raise UserError(f"{place} names the column {twice!r} twice; rename one of them.")
                elif len(row) != len(header):
                    raise UserError(f"{place} has {len(row)} fields where {len(header)} belong ({', '.join(header)}).")
                else:
                    yield place, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise UserError(f"Line {begin} of {name} cannot be read ({error}); mind its quotes.") from error

    return rows


READERS: dict[str, Callable[[str, str], Iterator[Placed]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
}


def records(path: Path, suffixes: Iterable[str] = tuple(READERS)) -> Iterator[Placed]:
    """(place, fields) of every row of a file, whose name says how it is written. Raises UserError for what cannot be
    read, and at the end if there was no row."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path.name} is of no known form; its name must end in {' or '.join(suffixes)}.")
    placed = None
    for placed in READERS[path.suffix.lower()](read_text(path), path.name):
        yield placed
    if placed is None:
        raise UserError(f"{path.name} has no rows.")


def text_field(placed: Placed, name: str, *, empty: bool = False) -> str:
    """The text in a field of that name; a field that is missing, no text or (unless `empty`) blank is told with the
    row's place."""
    place, fields = placed
    if name not in fields:
        near = get_close_matches(name, [key for key in fields if isinstance(key, str)], n=1, cutoff=0.75)
        hint = f"is {near[0]!r} meant?" if near else f"it has {', '.join(fields) or 'none at all'}."
        raise UserError(f"{place} lacks the field {name!r}: {hint}")
    value = fields[name]
    if not isinstance(value, str):
        raise UserError(f"{place} has {_kind(value)} in the field {name!r}; it must be a text.")
    if not empty and not value.strip():
        raise UserError(f"{place} has an empty field {name!r}; it must be a text.")
    try:
        utf8(value)
    except UserError as error:
        raise UserError(f"{place}, field {name!r}: {error}") from error
    return value


def source_path(source: Path | str, names: Iterable[str]) -> Path:
    """The file of a data set with one of these names, or the file at that path."""
    if str(source) in names:
        return sets.find(str(source))
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file of rows.")
    beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    near = get_close_matches(path.name, [*names, *beside], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"give a file, or {' or '.join(names)}."
    raise UserError(f"Data {str(source)!r} do not exist; {hint}")


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    words = {str: "a text", dict: "an object", list: "a list"}
    return next((word for kind, word in words.items() if isinstance(value, kind)), f"the number {value}")
