"""Data sets by name: files that are here already, known by their SHA-256. Nothing is downloaded."""

import os
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.files import home, sha256_of


@dataclass(frozen=True)
class DataSet:
    """Its file below a data folder, the SHA-256 of its bytes, what it is, and where it comes from."""

    file: str
    sha256: str
    what: str
    origin: str


BOOK = "the repository of the book, LLMs-from-scratch"

SETS: dict[str, DataSet] = {
    "sms-spam": DataSet(
        "sms_spam/SMSSpamCollection",
        "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
        "5,574 text messages, ham or spam",
        "the UCI repository's SMS Spam Collection (CC BY 4.0)",
    ),
    "movie-reviews": DataSet(
        "movie_reviews.zip",
        "a41211ae685019137410268134db6a1a14428c89b671eb83056151a878539008",
        "2,000 film reviews, negative or positive",
        "NLTK's corpus movie_reviews (for research)",
    ),
    "instruction-data": DataSet(
        "instruction-data.json",
        "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
        "1,100 instructions with their answers",
        f"{BOOK}, chapter 7",
    ),
    "instruction-data-with-preference": DataSet(
        "instruction-data-with-preference.json",
        "305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e",
        "the same instructions with a chosen and a rejected answer each",
        f"{BOOK}, chapter 7, preference tuning with DPO",
    ),
}


def folders() -> tuple[Path, ...]:
    """Where data sets are looked for: $PARALLAX_DATA, `data` below $PARALLAX_HOME (or ~/.cache/parallax), and the
    folder of data that lies beside a checkout of this repository."""
    told = os.environ.get("PARALLAX_DATA")
    beside = Path(__file__).parents[3] / "shared" / "data"
    return (*((Path(told).expanduser(),) if told else ()), home() / "data", beside)


def find(name: str) -> Path:
    """The file of a data set in SETS. Raises UserError if it is not here, or has another SHA-256 than it should."""
    wanted = SETS[name]
    for folder in folders():
        path = folder / wanted.file
        if not path.is_file():
            continue
        try:
            found = sha256_of(path)
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from error
        if found != wanted.sha256:
            sums = f"its SHA-256 is {found[:16]}…, expected {wanted.sha256[:16]}…"
            raise UserError(
                f"{path} is not the data set {name!r} ({sums}); put the right file there, or give its path."
            )
        return path
    raise UserError(
        f"Data set {name!r} ({wanted.what}) is not here: get it from {wanted.origin} and put it at"
        f" {home() / 'data' / wanted.file}, or set PARALLAX_DATA to the folder that holds {wanted.file}."
    )
