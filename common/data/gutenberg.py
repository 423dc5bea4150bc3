"""From a folder of Project Gutenberg's books to shards for training: licence stripped, language and doubles filtered.

Source: Raschka, bonus material of chapter 5, "Pretraining GPT on the Project Gutenberg dataset".
"""

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import files
from common.data.corpora import MANIFEST
from common.errors import UserError
from common.tokenizers.bpe import END_OF_TEXT

START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK[^*]*\*\*\*[^\n]*\n", re.M | re.I)
SMALL_PRINT = re.compile(r"^\*END ?\*? ?THE SMALL PRINT![^\n]*\n", re.M | re.I)  # before 2002 it ends the header
HEADER = 40_000  # characters of the longest header with small print
END = re.compile(
    r"^(?:End of (?:the |this )?Project Gutenberg|\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG)", re.M | re.I
)
LANGUAGE = re.compile(r"^Language:\s*([^\n\r]+)", re.M)
CREDITS = re.compile(r"\s*(?:Produced|E-text prepared|Transcribed|This etext was)\b.*?\n\s*\n", re.I | re.S)
EMPTY_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")
SEPARATOR = END_OF_TEXT
CHUNK = 1 << 24  # bytes, or characters, that are read at a time

Report = Callable[[int, int, str], None]  # files looked at, of how many, and the one that is next


@dataclass(frozen=True)
class Book:
    """A book's own text, and the language that its header names, if it has one."""

    text: str
    language: str | None

    @property
    def ascii_share(self) -> float:
        """The share of its characters that are ASCII."""
        return sum(map(str.isascii, self.text)) / max(1, len(self.text))

    @property
    def identity(self) -> str:
        """The same for two copies of a book that differ in spaces, ends of lines and case."""
        return hashlib.sha256(" ".join(self.text.casefold().split()).encode()).hexdigest()


@dataclass(frozen=True)
class Rules:
    """What is kept: books of these languages (or whose header names none) with such a share of ASCII, in shards of at
    most so many bytes; a book that is larger has a shard for itself."""

    languages: tuple[str, ...] = ("English",)
    ascii_share: float = 0.9
    shard_bytes: int = 500 << 20

    def __post_init__(self):
        if not 0 <= self.ascii_share <= 1:
            raise UserError(f"The share of ASCII is {self.ascii_share}; allowed is a number in [0, 1].")
        if self.shard_bytes < 1:
            raise UserError(f"A shard of {self.shard_bytes} bytes holds nothing; give a number > 0.")

    def against(self, book: Book) -> str | None:
        """Why a book is left out; None if it is kept."""
        if not book.text:
            return "empty"
        known = {one.casefold() for one in self.languages}
        if book.language is not None and known and book.language.casefold() not in known:
            return f"language {book.language}"
        if book.ascii_share <= self.ascii_share:
            return f"{book.ascii_share:.0%} ASCII"
        return None


def book(text: str) -> Book:
    """A file's own text between Project Gutenberg's marks, without credits, with one empty line for several. A text
    without marks is taken as it is."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    begun = START.search(text)
    after = begun.end() if begun else 0
    ended = END.search(text, after)
    until = ended.start() if ended else len(text)
    # a newer mark may stand before an old header; what is printed behind a book, or at its end, begins none
    for mark in SMALL_PRINT.finditer(text, after, min(until, after + HEADER)):
        if text[mark.end() : until].strip():
            begun, after = mark, mark.end()
    found = LANGUAGE.search(text[: begun.start()] if begun else text[:2000])
    body = text[after:until]
    body = CREDITS.sub("", body, count=1) if begun and CREDITS.match(body) else body
    return Book(EMPTY_LINES.sub("\n\n", body).strip(), found.group(1).strip() if found else None)


def read(path: Path) -> str:
    """A text file in UTF-8, or in Latin-1 as old ones are."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def prepare(
    sources: Sequence[Path], out: Path | str, rules: Rules, report: Report = lambda done, of, name: None
) -> dict[str, Any]:
    """Write the shards shard-0000.txt, … of these files into a folder, books parted by `<|endoftext|>`; what was done
    with every file stands in its prepared.json, which is given back.

    A preparation that was stopped goes on behind its last whole shard. Raises UserError if the folder holds one of
    other files or rules, or if nothing is kept.
    """
    out = files.output_folder(out)
    told = _taken_up(out, sources, rules)
    done, seen = len(told["files"]), {one["identity"] for one in told["files"] if one["left_out"] is None}
    waiting: list[str] = []
    since: list[dict[str, Any]] = []

    def close() -> None:
        if waiting:
            name = f"shard-{len(told['shards']):04d}.txt"
            content = SEPARATOR.join(waiting)
            files.write_text(out / name, content)
            told["shards"].append({"name": name, "bytes": len(content.encode()), "books": len(waiting)})
        told["files"] += since
        files.write_text(out / MANIFEST, json.dumps(told, indent=1) + "\n")
        waiting.clear()
        since.clear()

    size = 0
    for number, path in enumerate(sources[done:], done):
        report(number, len(sources), path.name)
        found = book(read(path))
        identity = found.identity
        left_out = rules.against(found) or ("a double" if identity in seen else None)
        if left_out is None:
            seen.add(identity)
            own = len(found.text.encode())
            if waiting and size + len(SEPARATOR) + own > rules.shard_bytes:
                close()
                size = 0
            size += own + (len(SEPARATOR) if waiting else 0)
            waiting.append(found.text)
        since.append({"name": path.name, "bytes": path.stat().st_size, "identity": identity, "left_out": left_out})
    close()
    report(len(sources), len(sources), "")
    if not told["shards"]:
        reasons = sorted({one["left_out"] for one in told["files"]})
        raise UserError(f"Not one of {len(sources)} files is kept ({'; '.join(reasons[:3])}).")
    return told


def _taken_up(out: Path, sources: Sequence[Path], rules: Rules) -> dict[str, Any]:
    """What an earlier preparation of the same files by the same rules has left, or a new beginning."""
    settings = json.loads(json.dumps(asdict(rules)))
    if not (out / MANIFEST).exists():
        return {"settings": settings, "files": [], "shards": []}
    try:
        told = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        before = [(one["name"], one["bytes"]) for one in told["files"]]
        whole = all((out / one["name"]).stat().st_size == one["bytes"] for one in told["shards"])
        same = told["settings"] == settings
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"damaged ({type(error).__name__}: {error})"
        raise UserError(f"The preparation in {out} is {told}; give another folder.") from error
    if not same:
        raise UserError(f"{out} holds a preparation by other rules; give another folder.")
    if not whole or before != [(path.name, path.stat().st_size) for path in sources[: len(before)]]:
        raise UserError(f"{out} holds a preparation of other files, or its shards have changed; give another folder.")
    return told


def shards(folder: Path) -> list[Path] | None:
    """The shards that a preparation has written into that folder, None where there was none. Raises UserError for one
    that has none, and for shards that are not as long as they were then."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {folder / one["name"]: int(one["bytes"]) for one in told["shards"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The preparation in {folder} is damaged ({type(error).__name__}: {error}).") from error
    if not sizes:
        raise UserError(f"The preparation in {folder} has no shard yet; go on with it by parallax corpus prepare.")
    for path, size in sizes.items():
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            wrong = "is missing" if found is None else f"has {found:,} bytes where {size:,} belong"
            raise UserError(f"{path} {wrong}; prepare the books anew, into another folder.")
    return list(sizes)


def prepared(source: Path) -> Path | None:
    """The folder of a preparation, if that is what `source` is, or one of its shards; else None."""
    folder = source if source.is_dir() else source.parent
    own = source.is_dir() or (source.is_file() and source.match("shard-*.txt"))
    return folder if own and (folder / MANIFEST).is_file() else None


def documents(path: Path) -> Iterator[str]:
    """The books of a shard, or of any text file, of which one, and what is read at a time, are in memory. Raises
    UserError for a binary file."""
    waiting, rest = [], ""  # what a book has until now, and an end in which half of a separator may stand
    for chunk in _chunks(path):
        *whole, begun = (rest + chunk).split(SEPARATOR)
        for part in whole:
            waiting.append(part)
            if text := "".join(waiting):
                yield text
            waiting.clear()
        cut = max(0, len(begun) - len(SEPARATOR) + 1)
        waiting.append(begun[:cut])
        rest = begun[cut:]
    if text := "".join([*waiting, rest]):
        yield text


def _chunks(path: Path) -> Iterator[str]:
    """The text of a file piece by piece, read as `read` reads it."""
    try:
        encoding = _encoding(path)
        with path.open(encoding=encoding, newline="") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def _encoding(path: Path) -> str:
    """UTF-8, or Latin-1 where it is not that."""
    decoder, found, seen = codecs.getincrementaldecoder("utf-8")(), "utf-8", 0
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            if (zero := data.find(b"\0")) >= 0:
                raise UserError(f"{path} is binary (a NUL byte at offset {seen + zero}); give a text.")
            seen += len(data)
            try:
                decoder.decode(data, final=seen == path.stat().st_size)
            except UnicodeDecodeError:
                found = "latin-1"
                decoder.reset()
    return found
