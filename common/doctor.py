"""What this machine offers and what stands in the way, as plain data; the command line prints it.

Nothing here raises for a machine in disorder: every fault becomes a `Check` that says what to do.
"""

import os
import platform
import re
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from common import backend, files
from common.cores import usable_cores
from common.data.corpora import corpus
from common.errors import UserError
from common.tokenizers import gpt2

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 11), (3, 12))
REINSTALL = "Run `pip install -c constraints.txt -e .`."
LITTLE_MEMORY, LITTLE_DISK = 2e9, 2e9  # bytes; training the smallest preset in both wings needs about half


@dataclass(frozen=True)
class Check:
    """One finding. `status` is "ok", "warn" or "fail"; `advice` says what to do and is empty if all is well."""

    status: str
    what: str
    found: str
    advice: str = ""


def examine(root: Path = ROOT) -> list[Check]:
    """Every check of this machine and this Python; `root` is the folder with pyproject.toml and constraints.txt."""
    checks = [_python(), *_packages(root), *_pair()]
    return [*checks, *_backends(), *_machine(), _compiler(), *_data(root), _hub()]


def _python() -> Check:
    version = sys.version_info[:2]
    if version in PYTHONS:
        return Check("ok", "Python", platform.python_version())
    return Check("fail", "Python", platform.python_version(), "Use Python 3.11 or 3.12.")


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version ("2.13.0+cpu" gives (2, 13, 0)), for comparisons."""
    return tuple(int(number) for number in re.match(r"\d*(?:\.\d+)*", version).group().split(".") if number)


_LINE = re.compile(r'([\w.-]+)==([^\s;]+)(?:\s*;\s*python_version\s*(<|>=)\s*"(\d+)\.(\d+)")?')


def pinned_versions(constraints: str, python: tuple[int, int] | None = None) -> dict[str, str]:
    """The pins of a constraints file that hold for a Python (this one): normalised name -> version.

    Lines are `name==version`, optionally with `; python_version < "3.12"` (or >=); any other raises UserError.
    """
    python = python or sys.version_info[:2]
    pins = {}
    for number, line in enumerate(constraints.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"Line {number} of constraints.txt is {line!r}; expected is name==version.")
        name, version, relation, major, minor = match.groups()
        below = relation is not None and python < (int(major), int(minor))
        if relation is None or below == (relation == "<"):
            pins[_normal(name)] = version
    return pins


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(root: Path) -> dict[str, tuple[str, bool]]:
    """Direct dependencies: normalised name -> (lowest version, whether it is optional)."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    found: dict[str, tuple[str, bool]] = {}
    for line, optional in [(line, False) for line in project["dependencies"]] + [(line, True) for line in extras]:
        requirement, _, marker = line.partition(";")
        holds = re.search(r"python_version\s*(<|>=)\s*['\"](\d+)\.(\d+)", marker)
        below = holds is not None and sys.version_info[:2] < (int(holds[2]), int(holds[3]))
        if holds is not None and below != (holds[1] == "<"):
            continue
        lowest = re.search(r">=\s*([\w.]+)", requirement)
        found[_normal(re.match(r"[\w.-]+", requirement).group())] = (lowest.group(1) if lowest else "0", optional)
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages(root: Path) -> Iterator[Check]:
    """Each direct dependency against the lowest version that works and the one that is tested."""
    if not (root / "pyproject.toml").is_file():
        yield Check(
            "warn", "packages", f"no pyproject.toml in {root}", "Run from a copy of the repository to check them."
        )
        return
    try:
        path = root / "constraints.txt"
        tested = pinned_versions(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except UserError as error:
        tested = {}
        yield Check("warn", "constraints.txt", str(error), "Restore the file from the repository.")
    for name, (lowest, optional) in _requirements(root).items():
        version, pin = _version(name), tested.get(name)
        if version is None:
            if not optional:
                yield Check("fail", name, "not installed", REINSTALL)
        elif release(version) < release(lowest):
            yield Check("fail", name, f"{version}, older than {lowest}", REINSTALL)
        elif pin is not None and version.partition("+")[0] != pin:
            yield Check("warn", name, f"{version}, tested is {pin}", f"If anything fails: {REINSTALL}")
        else:
            yield Check("ok", name, version)


def _pair() -> Iterator[Check]:
    """flax 0.12.8 and 0.12.9 fail at import on jax 0.11 (google/flax#5596), and pip allows the pair."""
    jax, flax = _version("jax"), _version("flax")
    if jax is None or flax is None:
        return
    if release(jax) >= (0, 11) and release(flax) < (0, 12, 10):
        advice = f"jax 0.11 needs flax 0.12.10 or newer, flax {flax} needs jax 0.10. {REINSTALL}"
        yield Check("fail", "jax and flax", f"jax {jax} with flax {flax}", advice)
    else:
        yield Check("ok", "jax and flax", f"jax {jax} with flax {flax}")


def _backends() -> Iterator[Check]:
    """Each backend with its devices; a framework may fail in any way while it looks for a driver."""
    names, accelerated = backend.names(), {}
    if not names:
        yield Check(
            "fail", "backends", "none registered", "Install the project itself: `pip install -c constraints.txt -e .`."
        )
    for name in names:
        try:
            loaded = backend.load(name)
            devices = loaded.devices()
            versions = ", ".join(f"{package} {version}" for package, version in loaded.versions().items())
        except Exception as error:  # whatever it is, it is the finding
            reason = str(error).strip().partition("\n")[0]
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            yield Check("fail", f"backend {name}", kind + reason, REINSTALL)
            continue
        accelerated[name] = any(not device.lower().startswith("cpu") for device in devices)
        yield Check("ok", f"backend {name}", f"{', '.join(devices)} ({versions})")
    accelerated.pop("numpy", None)  # has none by its nature
    without = [name for name, has in accelerated.items() if not has]
    if without and any(accelerated.values()):
        seeing = " and ".join(name for name, has in accelerated.items() if has)
        advice = (
            "Install the build with accelerator support (for JAX: `pip install -U 'jax[cuda13]'`), or compare on CPU."
        )
        yield Check("warn", "accelerator", f"{seeing} sees one, {' and '.join(without)} does not", advice)


def _machine() -> Iterator[Check]:
    cores = os.cpu_count() or 1
    usable = len(usable_cores())
    threads = os.environ.get("OMP_NUM_THREADS")
    found = f"{usable} of {cores} cores usable, OMP_NUM_THREADS {threads or 'not set'}"
    if threads and not (threads.isascii() and threads.isdigit() and 0 < int(threads) <= usable):
        advice = f"Unset OMP_NUM_THREADS, or set it to a whole number from 1 to {usable}."
        yield Check("warn", "cores and threads", found, advice)
    else:
        yield Check("ok", "cores and threads", found)
    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available"
    low = memory.available < LITTLE_MEMORY
    yield Check(
        "warn" if low else "ok", "memory", found, "Close other programs or choose a small model." if low else ""
    )
    free = shutil.disk_usage(Path.cwd()).free
    low = free < LITTLE_DISK
    advice = "Make room, or work in a folder on another disk." if low else ""
    yield Check("warn" if low else "ok", "disk", f"{free / 1e9:.1f} GB free in {Path.cwd()}", advice)


def _compiler() -> Check:
    """torch.compile writes C++ for the CPU and needs a compiler and Python's headers; all else works without."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    found = next((name for name in names if name and shutil.which(name)), None)
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    if found and headers:
        return Check("ok", "C++ compiler", found)
    lack, package = ("Python.h not found", "Python's development files") if found else ("none found", "g++ or clang")
    return Check("warn", "C++ compiler", lack, f"Install {package} if you want torch.compile; all else works without.")


def _data(root: Path) -> Iterator[Check]:
    """Corpora, vocabularies and weights that are already here."""
    try:
        yield Check("ok", "corpus pydoc", f"{len(corpus('pydoc').text)} characters")
    except UserError as error:
        yield Check("warn", "corpus pydoc", str(error), "Give a text file or folder as the corpus.")
    folder = Path(os.environ.get("PARALLAX_DATA") or root.parent / "shared" / "data")
    if folder.is_dir():
        yield Check("ok", "data for tests", str(folder))
    else:
        yield Check(
            "warn", "data for tests", f"no folder {folder}", "Set PARALLAX_DATA; tests that need it are skipped."
        )
    try:
        vocabulary = gpt2.find()
        vocabulary.verify()
        yield Check("ok", "GPT-2 vocabulary", f"{vocabulary.encoder.parent} ({vocabulary.source})")
    except UserError as error:
        yield Check("warn", "GPT-2 vocabulary", "not usable", str(error))
    home = files.home()
    weights = sorted({path.parent.name for path in home.rglob("*.safetensors")}) if home.is_dir() else []
    found = f"{', '.join(weights)} in {home}" if weights else f"none in {home}; `parallax fetch` brings them"
    yield Check("ok", "fetched weights", found)


def _hub() -> Check:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline:
        return Check("warn", "HF_HUB_OFFLINE", "set: nothing can be fetched", "Unset it before `parallax fetch`.")
    return Check("ok", "HF_HUB_OFFLINE", "not set")
