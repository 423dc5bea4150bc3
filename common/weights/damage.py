"""How the readers say that a file is missing, damaged or foreign: always one sentence that names it."""

import json
from pathlib import Path
from typing import Any

from common.errors import UserError

JSON_LIMIT = 64 * 2**20  # bytes; the largest real one, the index of a model with 100,000 tensors, is a tenth of it


def one_line(reason: object) -> str:
    """A library's message as part of a sentence: no line breaks, no full stops."""
    return " ".join(str(reason).split()).rstrip(".").replace(". ", "; ")


def damaged(path: Path | str, what: str, reason: object) -> UserError:
    """The error for a file that is not what it should be."""
    return UserError(f"{path} is not a sound {what}: {one_line(reason)}.")


def require_file(path: Path | str, what: str) -> Path:
    """The path, if a file is there."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a {what}.")
    if not path.is_file():
        raise UserError(f"There is no {what} at {path}.")
    return path


def read_bytes(path: Path | str, what: str, limit: int) -> bytes:
    """The whole of a small file; UserError where it is missing, unreadable or larger than `limit` bytes."""
    path = require_file(path, what)
    try:
        if path.stat().st_size > limit:
            raise damaged(path, what, f"it is larger than {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {one_line(error.strerror or error)}.") from error


def read_json(path: Path | str, what: str) -> dict[str, Any]:
    """The JSON object in a small file."""
    data = read_bytes(path, what, JSON_LIMIT)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, what, f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise damaged(path, what, f"its JSON is a {type(value).__name__}, expected an object")
    return value
