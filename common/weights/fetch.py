"""GPT-2's released weights on request: pinned by revision and SHA-256, resumable; without network, put there by hand.

Files come from the Hugging Face hub (HF_ENDPOINT is honoured). A file whose sum is not pinned here is compared with the
sum that the hub states for the pinned revision.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, unknown
from common.files import home, output_folder, sha256_of, write_text
from common.weights.damage import one_line, read_json

RECORD = "fetched.json"


@dataclass(frozen=True)
class Download:
    """A repository at one revision, and the SHA-256 of its files where it is known."""

    repository: str
    revision: str
    files: Mapping[str, str | None]


_VOCABULARY = {
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
_UNPINNED = dict.fromkeys(_VOCABULARY)
REGISTRY: dict[str, Download] = {
    "gpt2-124m": Download(
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        {
            "config.json": "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4",
            **_VOCABULARY,
            "model.safetensors": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        },
    ),
    "gpt2-355m": Download(
        "openai-community/gpt2-medium",
        "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
        {"config.json": None, **_UNPINNED, "model.safetensors": None},
    ),
    "gpt2-774m": Download(
        "openai-community/gpt2-large",
        "32b71b12589c2f8d625668d2335a01cac3249519",
        {"config.json": None, **_UNPINNED, "model.safetensors": None},
    ),
    "gpt2-1558m": Download(
        "openai-community/gpt2-xl",
        "15ea56dee5df4983c59b2538573817e1667135e2",
        {
            "config.json": None,
            **_UNPINNED,
            "model.safetensors": "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
        },
    ),
}


def place_of(name: str) -> Path:
    """Where a download goes unless told otherwise: below $PARALLAX_HOME, or ~/.cache/parallax."""
    return home() / "weights" / name


def fetch(name: str, into: Path | str | None = None) -> Path:
    """The folder with the weights of that name, fetched and verified if it is not yet; `formats.load` reads it.

    What is there and verified needs no network. An interrupted download goes on where it stopped. A file with a wrong
    sum is removed and a UserError says so; without network, a UserError says which files to put where by hand.
    """
    if name not in REGISTRY:
        raise unknown("download", name, REGISTRY)
    download = REGISTRY[name]
    folder = output_folder(place_of(name) if into is None else into)
    record = _read_record(folder, download)
    if all(_is_verified(folder / file, record.get(file)) for file in download.files):
        return folder
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(folder / ".fetch.lock"):
        record = _read_record(folder, download)
        for file, pinned in download.files.items():
            if not _is_verified(folder / file, record.get(file)):
                record[file] = _obtain(download, folder, file, pinned)
                head = {"repository": download.repository, "revision": download.revision, "files": record}
                write_text(folder / RECORD, json.dumps(head, indent=2) + "\n")
    return folder


def _read_record(folder: Path, download: Download) -> dict[str, dict]:
    """What an earlier fetch of the same revision has verified: file -> its sum, size and time."""
    if not (folder / RECORD).is_file():
        return {}
    head = read_json(folder / RECORD, "record of a download")
    same = head.get("repository") == download.repository and head.get("revision") == download.revision
    files = head.get("files")
    return files if same and isinstance(files, dict) else {}


def _is_verified(path: Path, known: object) -> bool:
    """Whether the file is the one that was verified: by size and time, and by its sum if the time has changed."""
    if not isinstance(known, dict) or not path.is_file() or path.stat().st_size != known.get("bytes"):
        return False
    return path.stat().st_mtime_ns == known.get("modified_ns") or sha256_of(path) == known.get("sha256")


def _verified(path: Path, sha256: str) -> dict[str, object]:
    found = path.stat()
    return {"sha256": sha256, "bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def _git_sum(path: Path) -> str:
    """The sum by which git, and so the hub, knows a small file: SHA-1 over a header with its size and its bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def network_errors() -> tuple[type[Exception], ...]:
    """What a download may raise: errors of the system, and every error of the HTTP library in use."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, HfHubHTTPError.__mro__[1]


def _obtain(download: Download, folder: Path, file: str, pinned: str | None) -> dict[str, object]:
    """One file, taken as it lies there if it has the right sum, else downloaded."""
    path = folder / file
    if path.is_file() and pinned is not None and (found := sha256_of(path)) == pinned:
        return _verified(path, found)
    unreachable = network_errors()
    try:
        facts, headers = _ask(download, file)
    except unreachable as error:
        if path.is_file() and pinned is None:  # put there by hand, and no sum to compare with: the loader checks shapes
            return _verified(path, sha256_of(path))
        raise _unreachable(download, folder, error) from error
    wanted = pinned or facts.etag or "none"
    if path.is_file() and wanted in (found := sha256_of(path), _git_sum(path)):
        return _verified(path, found)
    partial = folder / f".{file}.{wanted[:16]}.partial"
    try:
        _download(facts, headers, partial)
    except unreachable as error:
        raise _unreachable(download, folder, error) from error
    found = sha256_of(partial)
    if wanted not in (found, _git_sum(partial)):
        partial.unlink()
        raise UserError(
            f"{file} of {download.repository} arrived with the SHA-256 {found} where {wanted} was expected, and was"
            " removed; try again, or put the right file there by hand."
        )
    os.replace(partial, path)
    return _verified(path, found)


def _ask(download: Download, file: str):
    """Size, sum and address of a file, as the hub states them, and the headers to use."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    url = hf_hub_url(download.repository, file, revision=download.revision, endpoint=endpoint)
    return get_hf_file_metadata(url, token=False), build_hf_headers(token=False)


def _download(facts, headers: dict[str, str], partial: Path) -> None:
    """Append what is missing to the partial file; the library shows progress and tries again on broken connections."""
    from huggingface_hub.file_download import http_get

    size = partial.stat().st_size if partial.exists() else 0
    if facts.size is not None and size > facts.size:
        partial.unlink()
        size = 0
    with partial.open("ab", buffering=0) as file:
        http_get(facts.location, file, resume_size=size, headers=headers, expected_size=facts.size)


def _unreachable(download: Download, folder: Path, error: Exception) -> UserError:
    missing = [file for file in download.files if not (folder / file).is_file()]
    return UserError(
        f"Cannot fetch {download.repository} ({one_line(error).split(' (Request ID')[0]}): try again with a network, or"
        f" put {', '.join(missing) or 'its files'} from the Hugging Face repository {download.repository} at revision"
        f" {download.revision} into {folder} by hand."
    )
