"""Where text comes from: a corpus that every Python brings along, one that is downloaded, any text file or folder."""

import functools
import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from common.data import downloads
from common.errors import UserError

SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".css", ".json", ".toml", ".yaml", ".yml")
SUFFIXES += (".py", ".sh", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts")
DEFAULT = "pydoc"
MANIFEST = "prepared.json"  # of a folder that books were prepared into

Sliceable = TypeVar("Sliceable", bound=Sequence[Any])


@dataclass(frozen=True)
class Corpus:
    """A text with its name, the SHA-256 of its UTF-8 bytes and its origin in words."""

    name: str
    text: str
    sha256: str
    source: str

    def describe(self) -> dict[str, Any]:
        """Everything but the text, as plain data for provenance."""
        length = len(self.text)
        return {"name": self.name, "characters": length, "sha256": self.sha256, "source": self.source}


def _made(name: str, text: str, source: str) -> Corpus:
    if not text or text.isspace():
        raise UserError(f"Corpus {name!r} is empty; a corpus needs text.")
    return Corpus(name, text, hashlib.sha256(text.encode()).hexdigest(), source)


def _pydoc() -> Corpus:
    """The language reference's help topics, part of every CPython: no file and no download needed."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some systems pack it separately
        raise UserError("This Python comes without pydoc_data; give a text file or folder as the corpus.") from error
    text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    return _made("pydoc", text, f"pydoc_data.topics of Python {platform.python_version()}")


def _downloaded(name: str) -> Corpus:
    known = downloads.TEXTS[name]
    return _made(name, read_text(downloads.obtain(name)), f"{known.what}, from {known.url}")


EMBEDDED: dict[str, Callable[[], Corpus]] = {"pydoc": _pydoc}
NAMED = EMBEDDED | {name: functools.partial(_downloaded, name) for name in downloads.TEXTS}


def read_text(path: Path) -> str:
    """A UTF-8 text file without its byte order mark; bytes that are no text are named with their place."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    return decoded(data, path)


def decoded(data: bytes, where: Path | str) -> str:
    """UTF-8 text without its byte order mark, from a file or another place; see `read_text`."""
    zero = data.find(b"\0")
    if zero >= 0:
        raise UserError(f"{where} is binary (a NUL byte at offset {zero}); give UTF-8 text.")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise UserError(f"{where} is not UTF-8 text ({wrong}); convert it to UTF-8 first.") from error


def lines(text: str) -> list[str]:
    """The lines of a text, whether they end as on Unix or as on Windows."""
    return text.replace("\r\n", "\n").split("\n")


def _file(path: Path) -> Corpus:
    return _made(path.name, read_text(path), f"file {path.name}")


def text_files(folder: Path, out: Path | None = None) -> list[Path]:
    """All text files below a folder, sorted by path; what is hidden (a leading dot), prepared books, and what lies
    below `out`, where results go, are left out."""
    if out is not None and out.resolve() == folder.resolve():
        raise UserError(f"{folder} is where the texts are; give another folder for the result (--out).")

    def refuse(error: OSError) -> None:
        raise UserError(f"Cannot read {error.filename}: {error.strerror}.") from error

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if MANIFEST in files or (out is not None and Path(parent).resolve() == out.resolve()):
            folders.clear()
            continue
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        suffixes = ", ".join(SUFFIXES)
        raise UserError(f"Folder {folder} has no text files; looked for names ending in {suffixes}.")
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _folder(path: Path) -> Corpus:
    files = text_files(path)
    texts = [text.rstrip("\n") for text in map(read_text, files)]
    text = "\n\n".join(text for text in texts if text) + "\n"
    return _made(path.resolve().name, text, f"{len(files)} files of folder {path.resolve().name}")


def _missing(path: Path) -> UserError:
    parent = path.parent
    names = [*NAMED, *sorted(entry.name for entry in parent.iterdir())] if parent.is_dir() else list(NAMED)
    near = get_close_matches(path.name, names, n=3, cutoff=0.6)
    if near:
        return UserError(f"Corpus {str(path)!r} does not exist; did you mean {' or '.join(map(repr, near))}?")
    return UserError(f"Corpus {str(path)!r} does not exist; give a text file, a folder of text files, or {DEFAULT!r}.")


def corpus(name: str | Path = DEFAULT) -> Corpus:
    """The corpus of that name ("pydoc", or one that is downloaded: `downloads.TEXTS`), or the text of a file or folder
    at that path.

    A folder gives all its text files, sorted by path, joined by an empty line. A path that has a corpus's name is
    reached as `./pydoc`. Raises UserError for what is missing, empty, binary, not UTF-8 or unreadable.
    """
    if str(name) in NAMED:
        return NAMED[str(name)]()
    if not str(name):
        raise UserError(f"The corpus has no name; give a text file, a folder of text files, or {DEFAULT!r}.")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _file(path)
        if path.exists():
            raise UserError(f"Corpus {str(path)!r} is neither a file nor a folder.")
        raise _missing(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of ~name is not known
        raise UserError(f"Cannot read {name}: {getattr(error, 'strerror', None) or error}.") from error


def split(whole: Sliceable, held_out: float = 0.1) -> tuple[Sliceable, Sliceable]:
    """(training part, held-out part): the last `held_out` of a text or of ids is kept back, in order.

    The cut is at floor((1 - held_out) * length), as in Raschka, chapter 5; both parts must have something in them.
    """
    if not 0 < held_out < 1:
        raise UserError(f"held_out is {held_out!r}; allowed is a share above 0 and below 1.")
    cut = int((1 - held_out) * len(whole))
    if not 0 < cut < len(whole):
        raise UserError(f"{len(whole)} elements cannot be split with {held_out} held out; one part would be empty.")
    return whole[:cut], whole[cut:]
