"""Packages loaded a second time under another name, with one file altered on the way: in this process, nothing on disk.

An alias lives below a root of its own (`planted_3.torch_impl.layers`). Relative imports stay inside it by themselves;
absolute imports of what is aliased are redirected when a file is compiled. The honest modules are never touched.
"""

import ast
import functools
import importlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType

from common.errors import UserError

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Edit:
    """Replace `find`, which must occur exactly once in the source of `module`, by `replace`."""

    module: str
    find: str
    replace: str

    def apply(self, text: str) -> str:
        """The altered source; an edit that no longer fits, or does not change anything, is stale."""
        found = text.count(self.find)
        if found != 1:
            raise UserError(f"This edit of {self.module} is stale: {self.find!r} occurs {found} times, not once.")
        if self.find == self.replace:
            raise UserError(f"This edit of {self.module} replaces {self.find!r} by itself.")
        return text.replace(self.find, self.replace)


class Alias(MetaPathFinder, Loader):
    """Finds and loads the aliased modules: those under one of `prefixes`, but not under one of `shared`."""

    def __init__(self, prefixes: Sequence[str], shared: Sequence[str] = (), edit: Edit | None = None):
        self.root = f"planted_{next(_NUMBERS)}"
        self.prefixes, self.shared, self.edit = tuple(prefixes), tuple(shared), edit

    def covers(self, name: str) -> bool:
        """Whether the module of that (honest) name has a copy here."""
        return _under(name, self.prefixes) and not _under(name, self.shared)

    def module(self, name: str) -> ModuleType:
        """The copy of a module where there is one, otherwise the honest module."""
        return importlib.import_module(f"{self.root}.{name}" if self.covers(name) else name)

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.root:
            return ModuleSpec(fullname, None, is_package=True)
        if not fullname.startswith(f"{self.root}."):
            return None
        name = fullname.removeprefix(f"{self.root}.")
        if not self.covers(name):  # the way to an alias, as `common` is to `common.oracle`; otherwise not here
            return ModuleSpec(fullname, None, is_package=True) if self._leads_on(name) else None
        honest = find_spec(name)
        if honest is None or honest.origin is None:
            return None
        spec = ModuleSpec(
            fullname, self, origin=honest.origin, is_package=honest.submodule_search_locations is not None
        )
        spec.has_location = True
        return spec

    def exec_module(self, module):
        name, path = module.__name__.removeprefix(f"{self.root}."), Path(module.__spec__.origin)
        if self.edit is not None and name == self.edit.module:
            tree = ast.parse(self.edit.apply(path.read_text(encoding="utf-8")), str(path))
            code = self._compiled(tree, path)
        else:
            code = self._code(path)
        exec(code, vars(module))

    def _leads_on(self, name: str) -> bool:
        return any(prefix.startswith(f"{name}.") for prefix in self.prefixes)

    def _code(self, path: Path) -> CodeType:
        text = path.read_text(encoding="utf-8")
        names, code = _plain(text, str(path))
        return self._compiled(ast.parse(text, str(path)), path) if any(map(self.covers, names)) else code

    def _compiled(self, tree: ast.Module, path: Path) -> CodeType:
        tree = ast.fix_missing_locations(_Redirect(self).visit(tree))
        return compile(tree, str(path), "exec", dont_inherit=True)


class _Redirect(ast.NodeTransformer):
    """Absolute imports of what is aliased become imports of the alias."""

    def __init__(self, alias: Alias):
        self.alias = alias

    def visit_Import(self, node):
        for name in node.names:
            if self.alias.covers(name.name):
                if name.asname is None:
                    raise UserError(f"`import {name.name}` cannot be redirected: write `import {name.name} as …`.")
                name.name = f"{self.alias.root}.{name.name}"
        return node

    def visit_ImportFrom(self, node):
        if node.level:
            return node
        moved = [name for name in node.names if self.alias.covers(f"{node.module}.{name.name}")]
        kept = [name for name in node.names if name not in moved]
        parts = ((node.module, kept), (f"{self.alias.root}.{node.module}", moved))
        return [ast.copy_location(ast.ImportFrom(module, own, 0), node) for module, own in parts if own]


@contextmanager
def aliased(prefixes: Sequence[str], shared: Sequence[str] = (), edit: Edit | None = None) -> Iterator[Alias]:
    """An alias for as long as the context lasts; afterwards `sys.modules` and the import system are as before."""
    alias = Alias(prefixes, shared, edit)
    if edit is not None:
        edit.apply(source(edit.module))
    sys.meta_path.insert(0, alias)
    try:
        yield alias
    finally:
        sys.meta_path.remove(alias)
        for name in [name for name in sys.modules if _under(name, (alias.root,))]:
            del sys.modules[name]


def source(module: str) -> str:
    """The source of an honest module."""
    spec = find_spec(module)
    if spec is None or not spec.has_location:
        raise UserError(f"There is no source of a module {module!r}.")
    return Path(spec.origin).read_text(encoding="utf-8")


def _under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@functools.cache
def _plain(text: str, path: str) -> tuple[list[str], CodeType]:
    """The modules and attributes that a file imports absolutely, and its code if nothing is redirected."""
    tree, names = ast.parse(text, path), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [f"{node.module}.{name.name}" for name in node.names]
    return names, compile(tree, path, "exec", dont_inherit=True)
