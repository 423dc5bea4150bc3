"""What may stand at either side: an installed backend, a reference, a folder with a port or a model, an attribute."""

import contextlib
import importlib
import importlib.util
import itertools
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from common import backend as door
from common.config import Execution
from common.errors import UserError, unknown
from common.points import entry_points
from common.weights import formats

REFERENCES = "parallax.references"  # models of other libraries that offer the same named values as a backend does
_numbers = itertools.count()


@dataclass(frozen=True)
class Side:
    """One implementation: a backend, or a reference that opens the folder `weights` by itself.

    `own` says whether it is a user's code, whose failures are told in a sentence instead of a traceback.
    """

    label: str
    title: str
    backend: Any
    weights: Path | None = None
    own: bool = False

    def execution(self, dtype: str, device: str) -> Execution:
        """How this side runs; the oracle always computes in float64 on the cpu."""
        if getattr(self.backend, "name", "") == "numpy":
            return Execution(dtype="float64")
        return Execution(dtype=dtype, device=device)

    def build(self, config, weights, execution: Execution):
        """The model with these weights, or the one that the side's folder holds."""
        with self.asked("build"):
            if self.weights is not None:
                return self.backend.open(self.weights, execution)
            return self.backend.build(config, weights, execution)

    @contextlib.contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Say in one sentence where a user's port raised, and what."""
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:
            if not self.own:
                raise
            raise _failure(f"{self.label} failed in {what}", error) from error


def resolve(spec: str) -> Side:
    """The side that is meant by a name, a folder, or package.module:attribute."""
    references = {point.name: point for point in entry_points(group=REFERENCES)}
    if spec in door.names():
        return _side(spec, door.load(spec))
    if spec in references:
        return _side(spec, reference(spec))
    path = Path(spec).expanduser()
    if path.is_dir():
        return _folder(spec, path)
    if path.exists():
        raise UserError(f"{spec} is a file; give weights with --weights, and a port as the folder that holds it.")
    module, colon, attribute = spec.partition(":")
    if colon and "/" not in spec:
        return _side(spec, _attribute(spec, module, attribute), own=True)
    if "/" in spec or spec.startswith((".", "~")):
        raise UserError(f"There is nothing at {spec}; give a backend's name, or a folder with a port or a model.")
    raise unknown("implementation", spec, [*door.names(), *references])


def reference(name: str) -> Any:
    """The reference of that name; imports its library now."""
    for point in entry_points(group=REFERENCES):
        if point.name == name:
            try:
                return point.load()
            except ImportError as error:
                raise UserError(
                    f"The reference {name!r} is not usable ({error}); install it with `pip install 'parallax[test]'`."
                ) from error
    raise unknown("reference", name, [point.name for point in entry_points(group=REFERENCES)])


def _folder(spec: str, path: Path) -> Side:
    label = path.resolve().name
    if (path / "backend.py").is_file():
        return _side(label, _package(path, label), own=True)
    if (path / "config.json").is_file() or (path / "hparams.json").is_file():
        kind = formats.detect(path)
        if kind == "hf":
            return _side(label, reference("transformers"), weights=path)
        raise UserError(f"{spec} holds weights ({formats.KINDS[kind].title}) and no code; give it with --weights.")
    raise UserError(
        f"{spec} is no model: it has neither a backend.py (a port) nor a Hugging Face config.json (a GPT-2 folder)."
    )


def _package(path: Path, label: str) -> Any:
    """`backend` of a package folder, imported under a private name, so that copies of a wing do not meet."""
    name, start = f"_parallax_port_{next(_numbers)}", path / "__init__.py"
    if start.is_file():
        spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=[str(path)])
    else:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations.append(str(path))
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    try:
        if spec.loader is not None:
            spec.loader.exec_module(package)
        module = importlib.import_module(f"{name}.backend")
    except Exception as error:
        raise _failure(f"{label} cannot be imported", error) from error
    if not hasattr(module, "backend"):
        raise UserError(f"{label}/backend.py has no `backend`; it must offer one, as common/backend.py describes.")
    return module.backend


def _attribute(spec: str, module: str, attribute: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # what lies in the working folder can be named, as with `python -m`
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise _failure(f"{spec} cannot be imported", error) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise unknown(f"attribute of {module}", part, [name for name in vars(found) if not name.startswith("_")])
        found = getattr(found, part)
    return found


def _side(label: str, backend: Any, weights: Path | None = None, own: bool = False) -> Side:
    if not callable(getattr(backend, "build", None)):
        raise UserError(f"{label} has no build(config, weights, execution); a backend must offer it.")
    versions = backend.versions() if hasattr(backend, "versions") else {}
    title = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Side(label, title or getattr(backend, "title", label), backend, weights, own)


def _failure(what: str, error: Exception) -> UserError:
    """One sentence: what was done, what was raised, and the last line of the port (or of what it called)."""
    frames = traceback.extract_tb(error.__traceback__)
    house = str(Path(__file__).parent)
    others = ("<frozen", house, str(Path(importlib.__file__).parent))
    ports = [f for f in frames if not f.filename.startswith(others) and "site-packages" not in f.filename]
    said = " ".join(str(error).split())[:300].rstrip(".")
    place = f" ({Path(ports[-1].filename).name}, line {ports[-1].lineno})" if ports else ""
    return UserError(f"{what}: {type(error).__name__}: {said}{place}.")
