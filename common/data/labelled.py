"""Texts with a class each: read, balanced, split, and laid out so that a language model can learn the classes.

The class of a text is the target at the one position that is read; all other positions are IGNORED.
Source: Raschka, *Build a Large Language Model (From Scratch)*, chapter 6 and its bonus experiments.
Shape suffixes: B batch, T positions.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from common import rng
from common.backend import IGNORED
from common.data import sets
from common.data.corpora import lines, read_text
from common.data.examples import check_sizes, fingerprint, padded, rounded
from common.data.records import Placed, records, source_path, text_field
from common.errors import UserError, unknown
from common.tokenizers import Tokenizer

SMS, REVIEWS = "sms-spam", "movie-reviews"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
BALANCE, SPLIT = 2**32 - 1, 2**32 - 2  # in an address, where batches have the number of an epoch
REVIEW_BYTES = 1 << 20  # more than any review has

READ = {  # the position that is read, by name: of the last token, and of the last position of the padded row
    "last": lambda token, end: end,
    "first": lambda token, end: np.zeros_like(end),
    "flexible": lambda token, end: token,
}
PAD_TO = ("length", "batch")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Texts, the class of each as a whole number [n] in [0, C), and the names of the C classes."""

    texts: list[str]
    labels: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self):
        labels = np.asarray(self.labels, np.int64)
        object.__setattr__(self, "labels", labels)
        if labels.shape != (len(self.texts),):
            raise UserError(f"{len(self.texts)} texts need as many labels; those given are of shape {labels.shape}.")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.names)))
        if wrong.size:
            place, most = int(wrong[0]), len(self.names) - 1
            raise UserError(f"Text {place} has the label {labels[place]}; allowed are 0 to {most} {self.names}.")

    def __len__(self) -> int:
        return len(self.texts)

    def counts(self) -> dict[str, int]:
        """How many texts each class has."""
        return dict(zip(self.names, np.bincount(self.labels, minlength=len(self.names)).tolist(), strict=True))

    def take(self, indices: np.ndarray) -> Self:
        """Some of the texts, in that order."""
        return type(self)([self.texts[i] for i in indices], self.labels[indices], self.names)

    def describe(self) -> dict[str, Any]:
        """Sizes, classes and the SHA-256 of texts and labels, as plain data for provenance."""
        sha256 = hashlib.sha256(repr(self.names).encode())
        for text, label in zip(self.texts, self.labels.tolist(), strict=True):
            sha256.update(f"{label} {len(text)} {text}".encode("utf-8", "surrogatepass"))
        return {"texts": len(self), "classes": self.counts(), "sha256": sha256.hexdigest()}


class Parts(NamedTuple):
    """Three parts of one set of data."""

    train: Any
    validation: Any
    test: Any


def read_labelled(source: Path | str, names: Sequence[str] | None = None) -> Labelled:
    """Labelled texts: "sms-spam", "movie-reviews", or a .csv, .tsv, .jsonl or .json file with the fields `text` and
    `label`.

    `names` are the classes in the order of their numbers; without them, the labels that occur, sorted. Raises UserError
    naming the row for a field that is missing or empty and for a label that is not among the names, and if all texts
    are of one class.
    """
    path = source_path(source, (SMS, REVIEWS))
    if path.name == Path(sets.SETS[SMS].file).name:
        rows, names = _messages(path), names or ("ham", "spam")
    elif path.name == sets.SETS[REVIEWS].file:
        rows, names = _reviews(path), names or ("neg", "pos")
    else:
        rows = [_row(placed) for placed in records(path, SUFFIXES)]
    found = {label for _, _, label in rows}
    names = tuple(names) if names else tuple(sorted(found, key=lambda name: (_number(name), name)))
    if len(set(names)) != len(names):
        raise UserError(f"The names of the classes are {', '.join(names)}; each may stand there once.")
    for place, _, label in rows:
        if label not in names:
            raise UserError(f"{place}: {unknown('label', label, names)}")
    if len(found) < 2:
        raise UserError(f"All {len(rows)} texts of {path.name} have the label {found.pop()!r}; two classes are needed.")
    return Labelled([text for _, text, _ in rows], np.array([names.index(label) for *_, label in rows]), names)


def _number(name: str) -> float:
    """Numbers are sorted as numbers, and stand before words."""
    return int(name) if name.isascii() and name.isdigit() else float("inf")


def _row(placed: Placed) -> tuple[str, str, str]:
    """(place, text, label) of a record, whose fields may begin with capitals; whole numbers may be labels."""
    place, fields = placed
    for name in ("text", "label"):
        same = [str(key) for key in fields if str(key).lower() == name]
        if len(same) > 1:
            raise UserError(f"{place} has the fields {' and '.join(map(repr, same))}; rename one of them.")
    fields = {str(key).lower() if str(key).lower() in ("text", "label") else key: fields[key] for key in fields}
    label = fields.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        fields["label"] = str(label)
    return place, text_field((place, fields), "text"), text_field((place, fields), "label").strip()


def _messages(path: Path) -> list[tuple[str, str, str]]:
    """Lines of a label, a tab and a text. A quotation mark is one: read as CSV, two messages of 5,574 are lost."""
    rows = []
    for number, line in enumerate(lines(read_text(path)), 1):
        label, tab, text = line.partition("\t")
        place = f"Line {number} of {path.name}"
        if line and not (tab and text.strip()):
            raise UserError(f"{place} is no label, tab and text: {line[:40]!r}.")
        if line:
            rows.append((place, text, label))
    if not rows:
        raise UserError(f"{path.name} has no rows.")
    return rows


def _reviews(path: Path) -> list[tuple[str, str, str]]:
    """The texts in the archive's folders neg and pos, sorted by name."""
    rows = []
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                parts = entry.filename.split("/")
                if len(parts) != 3 or parts[1] not in ("neg", "pos") or not parts[2].endswith(".txt"):
                    continue
                place = f"{entry.filename} in {path.name}"
                if entry.file_size > REVIEW_BYTES:
                    raise UserError(f"{place} has {entry.file_size:,} bytes; a review has at most {REVIEW_BYTES:,}.")
                text = archive.read(entry).decode("utf-8")
                if not text.strip():
                    raise UserError(f"{place} is empty.")
                rows.append((place, text, parts[1]))
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a zip archive of UTF-8 texts ({error}).") from error
    if not rows:
        raise UserError(f"{path} holds no reviews; they belong into movie_reviews/neg and movie_reviews/pos.")
    return rows


def _shuffled(seed: int, purpose: int, count: int) -> np.ndarray:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise UserError(f"Seed is {seed!r}; allowed is a whole number in [0, 2^32).")
    return np.argsort(rng.bits(rng.address(int(seed), rng.DATA, purpose), (count,), 64), kind="stable")


def balance(data: Labelled, seed: int) -> Labelled:
    """As many texts of every class as the smallest one has, drawn at random, in the order in which they stood."""
    counts = data.counts()
    least = min(counts, key=counts.get)
    if not counts[least]:
        raise UserError(f"Class {least!r} has no texts; there is nothing to balance.")
    order = _shuffled(seed, BALANCE, len(data))
    kept = [order[data.labels[order] == label][: counts[least]] for label in range(len(data.names))]
    return data.take(np.sort(np.concatenate(kept)))


def split(data: Labelled, shares: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0) -> Parts:
    """(train, validation, test) of the shuffled texts: int(n * share) each, and the test part has the rest.

    Raises UserError if a part would be empty, or if only one class is left to learn from.
    """
    if len(shares) != 3 or any(not share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise UserError(f"The shares are {tuple(shares)}; allowed are three numbers above 0 whose sum is 1.")
    first, second = (int(len(data) * share) for share in shares[:2])
    sizes = (first, second, len(data) - first - second)
    if min(sizes) < 1:
        told = ", ".join(f"{name} {size}" for name, size in zip(Parts._fields, sizes, strict=True))
        raise UserError(f"{len(data)} texts cannot be split by {tuple(shares)}: a part is empty ({told}).")
    order = _shuffled(seed, SPLIT, len(data))
    parts = Parts(*(data.take(part) for part in np.split(order, [first, first + second])))
    if len(set(parts.train.labels.tolist())) < 2:
        name = data.names[parts.train.labels[0]]
        raise UserError(f"All {first} texts to train on have the label {name!r}; give more data, or another seed.")
    return parts


class TextExamples:
    """Tokenized texts [n rows] with labels [n], padded on the right; the target at the position read is the label.

    `length` is where texts are cut and what they are padded to (None: the longest text). pad_to="batch" pads to the
    longest of a batch only, none at all in batches of one, whatever other batches of the step need: their rows are
    filled up behind, where a causal model does not look. `read` names the position: "last" of the padded row, "first",
    or "flexible", the last token that is no padding. `truncated` counts the texts that were cut.
    """

    kind, source = "texts", "data set"

    def __init__(
        self,
        ids: Sequence[np.ndarray],
        labels: np.ndarray,
        *,
        length: int | None = None,
        pad_id: int,
        read: str = "last",
        pad_to: str = "length",
        multiple: int = 1,
    ):
        for kind, name, known in (("position to read", read, READ), ("padding", pad_to, PAD_TO)):
            if name not in known:
                raise unknown(kind, name, known)
        check_sizes(length=length, multiple=multiple)
        labels = np.asarray(labels, np.int64)
        if labels.shape != (len(ids),) or not len(ids):
            raise UserError(
                f"{len(ids)} texts with labels of shape {list(labels.shape)}; give as many, and one at least."
            )
        empty = [place for place, row in enumerate(ids) if not len(row)]
        if empty:
            raise UserError(f"Text {empty[0]} has no tokens; leave it out.")
        longest = max(map(len, ids))
        self.length = longest if length is None else int(length)
        self.truncated = sum(len(row) > self.length for row in ids)
        self.ids = [np.array(row[: self.length], np.int32) for row in ids]
        self.labels, self.pad_id, self.read, self.pad_to, self.multiple = labels, int(pad_id), read, pad_to, multiple
        self._lengths = np.array([len(row) for row in self.ids])

    @classmethod
    def of(cls, data: Labelled, tokenizer: Tokenizer, **settings: Any) -> Self:
        """The same of texts that are still to be tokenized."""
        return cls([tokenizer.encode(text) for text in data.texts], data.labels, **settings)

    def __len__(self) -> int:
        return len(self.ids)

    def gather(self, indices: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) int32, both [..., B, T], of indices [..., B]; of a single index, both [T]."""
        chosen = np.asarray(indices)
        if not chosen.ndim:
            return tuple(part[0] for part in self.gather(chosen[None]))
        lengths = self._lengths[chosen]
        end = np.broadcast_to(lengths.max(-1, keepdims=True), chosen.shape)  # of a batch's own padded rows
        width = rounded(int(end.max()), self.multiple, self.length)
        if self.pad_to == "length":
            end, width = np.full(chosen.shape, self.length), self.length
        inputs = padded([self.ids[i] for i in chosen.ravel()], width, self.pad_id).reshape(*chosen.shape, width)
        targets = np.full_like(inputs, IGNORED)
        place = READ[self.read](lengths - 1, end - 1)
        np.put_along_axis(targets, place[..., None], self.labels[chosen].astype(np.int32)[..., None], -1)
        return inputs, targets

    def describe(self) -> dict[str, Any]:
        """What identifies these examples: their number, the SHA-256 of tokens and labels, and all settings."""
        settings = {name: getattr(self, name) for name in ("length", "pad_id", "read", "pad_to", "multiple")}
        return {"texts": len(self), "sha256": fingerprint(self.ids, [self.labels]), **settings}
