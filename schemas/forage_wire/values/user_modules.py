"""Which modules are the user's own, their text, and which others of them they import.

A user's module has a source file outside the standard library, outside site-packages and
outside forage itself: a device cannot be expected to have it, so it travels as its whole text.
Imports are found in the text, also those inside functions; nothing is imported to find out.
Texts are read anew when a file has changed.
"""

import os
import site
import sys
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from importlib.machinery import ModuleSpec
from types import CodeType
from typing import Any, Final, NamedTuple

import cbor2

from forage_wire.values.modules import ModuleText, key_of_loaded, remember_own

__all__ = [
    "UserFile",
    "absolute_name",
    "closure_of",
    "imports_in",
    "imports_in_code",
    "is_on_devices",
    "user_file",
]

_OURS: Final = frozenset(
    {
        "forage",
        "forage_wire",
        "forage_agent",
        "forage_controller",
        "forage_broker",
        "cbor2",
        "cloudpickle",
    }
)


class UserFile(NamedTuple):
    """A user's module on this machine.

    Attributes:
        path: Its source file; a folder's path where a package has no `__init__.py`.
        text: Its source, empty of such a folder.
        is_package: True of packages.
        imports: Every name that the text may import, as `imports_in` finds them.
    """

    path: str
    text: str
    is_package: bool
    imports: tuple[str, ...]


_MISSING: Final = object()
_KNOWN_MAX: Final = 4_096
# Imported modules found to be nobody's own, while they have this spec.
_installed_specs: dict[str, ModuleSpec | None] = {}
_files: dict[tuple[str, str], tuple[tuple[int, int], UserFile]] = {}


@lru_cache(maxsize=1)
def _installed_folders() -> tuple[str, ...]:
    import sysconfig

    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(site.getsitepackages(), (site.getusersitepackages(),))
    return tuple(sorted(os.path.realpath(folder) + os.sep for folder in folders))


@lru_cache(maxsize=4_096)
def _is_installed(path: str) -> bool:
    real = os.path.realpath(path)
    parts = real.split(os.sep)
    return (
        real.startswith(_installed_folders())
        or "site-packages" in parts
        or "dist-packages" in parts
    )


def _spec_of(name: str) -> ModuleSpec | None:
    """Where a module is, without importing it or its parents."""
    if name in sys.modules:
        known: ModuleSpec | None = getattr(sys.modules[name], "__spec__", None)
        return known
    parent = name.rpartition(".")[0]
    locations: Any = None
    if parent:
        spec = _spec_of(parent)
        if spec is None or spec.submodule_search_locations is None:
            return None
        locations = spec.submodule_search_locations
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        try:
            found: ModuleSpec | None = find_spec and find_spec(name, locations, None)
        except (ImportError, AttributeError, ValueError):
            found = None
        if found is not None:
            return found
    return None


def user_file(name: str) -> UserFile | None:
    """The file of a user's module, read if it changed; None of any other module."""
    module = sys.modules.get(name)
    if module is not None and _installed_specs.get(name) is getattr(module, "__spec__", _MISSING):
        return None
    found = _user_file(name)
    if found is None and module is not None and len(_installed_specs) < _KNOWN_MAX:
        _installed_specs[name] = getattr(module, "__spec__", None)
    return found


def _user_file(name: str) -> UserFile | None:
    if name.partition(".")[0] in _OURS or name == "__main__":
        return None
    spec = _spec_of(name)
    if spec is None or key_of_loaded(sys.modules.get(name)) is not None:
        return None
    is_package = spec.submodule_search_locations is not None
    path = spec.origin
    if is_package and (path is None or path == "namespace"):
        folders = list(spec.submodule_search_locations or ())
        if not folders or _is_installed(folders[0]):
            return None
        return UserFile(folders[0], "", True, ())
    if path is None or not spec.has_location or not path.endswith(".py") or _is_installed(path):
        return None
    return _read(path, name, is_package)


def _read(path: str, name: str, is_package: bool) -> UserFile | None:
    try:
        status = os.stat(path)
        stamp = (status.st_mtime_ns, status.st_size)
        known = _files.get((name, path))
        if known is not None and known[0] == stamp:
            return known[1]
        with open(path, "rb") as file:
            from importlib.util import decode_source

            text = decode_source(file.read())
        imports = imports_in(text, name if is_package else name.rpartition(".")[0])
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    found = UserFile(path, text, is_package, imports)
    _files[(name, path)] = (stamp, found)
    return found


def is_on_devices(name: str) -> bool:
    """Whether a device can be expected to have a module: installed, and not the user's own."""
    if name == "__main__":
        return False
    if name.partition(".")[0] in _OURS:
        return True
    spec = _spec_of(name)
    if spec is None:
        return False
    if spec.origin is None or not spec.has_location:
        folders = list(spec.submodule_search_locations or ())
        return not folders or _is_installed(folders[0])
    return _is_installed(spec.origin)


def imports_in(text: str, package: str) -> tuple[str, ...]:
    """Every module name that a text may import, parents first.

    `from a import b` counts as `a` and `a.b`, whichever it is. Raises SyntaxError.

    Args:
        text: Source.
        package: The package that relative imports in it start from; empty for none.
    """
    import ast

    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute_name(node.module or "", node.level, package)
            if base is not None:
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            found.update(dict.fromkeys(_with_parents(name)))
    return tuple(found)


def absolute_name(module: str, level: int, package: str) -> str | None:
    """The full name of what `from <level dots><module> import` imports from; None of nothing."""
    if level == 0:
        return module
    parts = package.split(".")
    if not package or level > len(parts):
        return None
    base = ".".join(parts[: len(parts) - level + 1])
    return f"{base}.{module}" if module else base


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


class _Walk:
    """One walk over users' modules; each file is looked at once."""

    def __init__(self) -> None:
        self.files: dict[str, UserFile | None] = {}
        self.direct: dict[str, list[str]] = {}

    def file(self, name: str) -> UserFile | None:
        if name not in self.files:
            self.files[name] = user_file(name)
        return self.files[name]

    def imports(self, name: str) -> list[str]:
        """The users' modules that one of them imports, and its parents."""
        if name not in self.direct:
            file = self.file(name)
            names = [*_with_parents(name), *(file.imports if file is not None else ())]
            self.direct[name] = [other for other in names if self.file(other) is not None]
        return self.direct[name]

    def reachable(self, names: list[str]) -> list[str]:
        found: dict[str, None] = {}
        waiting = [name for name in names if self.file(name) is not None]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = None
                waiting += self.imports(name)
        return sorted(found)

    def text(self, name: str) -> ModuleText:
        rows = []
        for other in self.reachable([name]):
            file = self.file(other)
            assert file is not None
            rows.append((other, file.path, file.is_package, file.text))
        own = self.file(name)
        assert own is not None
        key = _key(tuple(rows))
        remember_own(name, key)
        return ModuleText(name, own.path, own.is_package, own.text, "", key)


def closure_of(names: Sequence[str]) -> list[ModuleText]:
    """The users' modules among these names, and all that they import in turn, by name."""
    walk = _Walk()
    wanted: dict[str, None] = {}
    for name in names:
        wanted.update(dict.fromkeys(_with_parents(name)))
    return [walk.text(name) for name in walk.reachable(list(wanted))]


@lru_cache(maxsize=1_024)
def _key(rows: tuple[tuple[str, str, bool, str], ...]) -> bytes:
    return sha256(cbor2.dumps([list(row) for row in rows])).digest()


@lru_cache(maxsize=512)
def imports_in_code(code: CodeType, package: str) -> tuple[str, ...]:
    """Every module name that a function's code may import when it runs."""
    import dis

    found: dict[str, None] = {}
    level, names = 0, ()
    before: list[Any] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            before = [*before[-1:], instruction.argval]
        elif instruction.opname == "IMPORT_NAME":
            # Its two operands are constants: how many dots, and what is imported from it.
            level, names = before if len(before) == 2 else (0, ())
            base = absolute_name(instruction.argval, level, package)
            if base is not None:
                for name in (base, *(f"{base}.{item}" for item in names or ())):
                    found.update(dict.fromkeys(_with_parents(name)))
    for constant in code.co_consts:
        if type(constant) is CodeType:
            found.update(dict.fromkeys(imports_in_code(constant, package)))
    return tuple(found)
