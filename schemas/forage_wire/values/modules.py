"""Users' modules on a device: made from their text, under their own names, apart by content.

A worker is warm: it runs one function after another, and two of them may bring different
modules of one name. A module's identity here is (name, key), where the key is the SHA-256 over
the text of the module and of all users' modules that it imports. `Bundle` is the set of
modules that one function brings. While a bundle is active its modules, and no other version of
them, stand in `sys.modules`; modules that the device has itself under such a name stand aside
until it is inactive again. So `import helpers` finds the right one also where a function
executes it late, and classes that a task sees twice (in the function's code and in arguments)
are one class, because equal keys share one module.

Activation is for the whole process: a worker runs one call at a time.

Pickles name what lies in users' modules by `attribute_of(shipped_module(name, key, texts),
path)`. Both names are part of the wire form.
"""

import __future__

import importlib
import linecache
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from itertools import chain
from threading import RLock
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple

from forage_wire.errors import DecodeError, VersionMismatch

__all__ = [
    "Bundle",
    "ModuleText",
    "activate",
    "active_bundle",
    "attribute_of",
    "FUTURE_ANNOTATIONS",
    "key_of_loaded",
    "module_loaded_for",
    "module_text_of",
    "remember_own",
    "shipped_module",
    "unwrapped",
]

MODULES_KEPT_MAX: Final = 1_024
"""Modules kept for later functions; beyond, the ones used longest ago are made anew."""

FUTURE_ANNOTATIONS: Final = "from __future__ import annotations\n"


class ModuleText(NamedTuple):
    """One module as it travels: a row of six texts and bytes.

    Attributes:
        name: Its full name; `__main__` for text extracted from a script.
        path: The file's path at the client, for tracebacks.
        is_package: True of a package's `__init__` (or of a folder without one).
        text: The source, its lines where the file at the client has them.
        preamble: Statements to execute before (imports and constants of extracted text).
        key: SHA-256 over this module and all users' modules that it imports.
    """

    name: str
    path: str
    is_package: bool
    text: str
    preamble: str
    key: bytes


def module_text_of(row: Any) -> ModuleText:
    """The module in a row from the wire. Raises DecodeError."""
    kinds = (str, str, bool, str, str, bytes)
    if (
        type(row) not in (list, tuple, ModuleText)
        or tuple(map(type, row)) != kinds
        or not row[0]
        or len(row[5]) != 32
    ):
        raise DecodeError("a module is not [name, path, is_package, text, preamble, key]")
    return ModuleText(*row)


class Bundle:
    """The modules that one function brings.

    Attributes:
        texts: By full name.
    """

    __slots__ = ("_roots", "texts")

    def __init__(self, texts: Iterable[ModuleText]) -> None:
        self.texts = {text.name: text for text in texts}
        self._roots = frozenset(name.partition(".")[0] for name in self.texts)

    def extend(self, texts: Sequence[ModuleText]) -> bool:
        """Add modules; False (and nothing added) where one is here in another version."""
        for text in texts:
            known = self.texts.get(text.name)
            if known is not None and known.key != text.key:
                return False
        self.texts.update((text.name, text) for text in texts)
        self._roots = frozenset(name.partition(".")[0] for name in self.texts)
        return True

    def owns(self, name: str) -> bool:
        """Whether a module of this name is the bundle's to provide."""
        return name.partition(".")[0] in self._roots


class _State:
    """What is active, what stands aside, and every module made so far."""

    __slots__ = ("active", "aside", "loaded", "lock", "names", "own")

    def __init__(self) -> None:
        self.lock = RLock()
        self.active: Bundle | None = None
        self.aside: dict[str, ModuleType] = {}
        self.loaded: OrderedDict[tuple[str, bytes], ModuleType] = OrderedDict()
        self.names: set[str] = set()
        self.own: set[tuple[str, bytes]] = set()


_state: Final = _State()


def active_bundle() -> Bundle | None:
    """The bundle whose modules stand in `sys.modules` now."""
    return _state.active


def activate(bundle: Bundle | None) -> None:
    """Put a bundle's modules into `sys.modules`, in place of those of the one before."""
    with _state.lock:
        if bundle is _state.active:
            return
        _leave()
        if bundle is not None and bundle.texts:
            _enter(bundle)
        _state.active = bundle


def _leave() -> None:
    bundle = _state.active
    if bundle is None:
        return
    for name in [name for name in sys.modules if bundle.owns(name)]:
        del sys.modules[name]
    sys.modules.update(_state.aside)
    _state.aside = {}
    for text in bundle.texts.values():
        # Another version of the file, or the file itself, may be next.
        linecache.cache.pop(text.path, None)


def _enter(bundle: Bundle) -> None:
    _set_aside(bundle)
    for name in sorted(bundle.texts):
        _show(bundle.texts[name])


def _set_aside(bundle: Bundle) -> None:
    """Make room for a bundle's modules."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    for name in [name for name in sys.modules if bundle.owns(name)]:
        module = sys.modules[name]
        if key_of_loaded(module) is None:
            _state.aside[name] = module
            del sys.modules[name]


def _show(text: ModuleText) -> None:
    """Make one of a bundle's modules visible, where it has been made before."""
    # Tracebacks read a file's lines from here; None as time of change keeps them.
    linecache.cache[text.path] = (
        len(text.text),
        None,
        text.text.splitlines(keepends=True),
        text.path,
    )
    module = _state.loaded.get((text.name, text.key))
    if module is None:
        return
    _state.loaded.move_to_end((text.name, text.key))
    sys.modules[text.name] = module
    parent, _, child = text.name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


class _Loader:
    """Makes one module from its text."""

    def __init__(self, text: ModuleText) -> None:
        self.text = text

    def create_module(self, _spec: ModuleSpec) -> None:
        """None: the import system makes the module object."""

    def exec_module(self, module: ModuleType) -> None:
        text = self.text
        flags = 0
        if text.preamble.startswith(FUTURE_ANNOTATIONS):
            flags = __future__.annotations.compiler_flag
        for source, path in ((text.preamble, "<forage>"), (text.text, text.path)):
            exec(_compiled(source, path, text.name, flags), module.__dict__)
        _state.names.add(text.name)
        _state.loaded[(text.name, text.key)] = module
        while len(_state.loaded) > MODULES_KEPT_MAX:
            _state.loaded.popitem(last=False)

    def get_source(self, _name: str) -> str:
        return self.text.text

    def is_package(self, _name: str) -> bool:
        return self.text.is_package


def _compiled(source: str, path: str, name: str, flags: int) -> CodeType:
    try:
        code: CodeType = compile(source, path, "exec", flags, dont_inherit=True)
    except SyntaxError as error:
        here = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise VersionMismatch(
            f"the text of the module {name} is not valid for Python {here} "
            f"({path}, line {error.lineno}: {error.msg}); use a device with a newer Python"
        ) from error
    return code


class _Finder:
    """Finds the active bundle's modules, before anything that the device has itself."""

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        bundle = _state.active
        text = None if bundle is None else bundle.texts.get(fullname)
        if text is None:
            return None
        spec = ModuleSpec(fullname, _Loader(text), origin=text.path)  # type: ignore[arg-type]
        spec.has_location = True
        if text.is_package:
            spec.submodule_search_locations = []
        return spec


_FINDER: Final = _Finder()


def key_of_loaded(module: Any) -> bytes | None:
    """The key of a module that was made here from its text; None of any other module."""
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    return loader.text.key if type(loader) is _Loader else None


def module_loaded_for(name: str, path: str, wanted: object) -> ModuleType | None:
    """The module made from text whose attribute at `path` is `wanted`, active or not."""
    if name not in _state.names:
        return None
    made = (module for (other, _), module in _state.loaded.items() if other == name)
    for module in chain((sys.modules.get(name),), made):
        if module is not None and key_of_loaded(module) is not None:
            try:
                if attribute_of(module, path) is wanted:
                    return module
            except AttributeError:
                continue
    return None


def remember_own(name: str, key: bytes) -> None:
    """Note that this process has itself the module of this name and key, and has sent it."""
    _state.own.add((name, key))


def attribute_of(holder: Any, path: str) -> Any:
    """The attribute at a dotted path."""
    for part in path.split("."):
        holder = getattr(holder, part)
    return holder


def unwrapped(value: Any) -> Any:
    """The function inside decorators that name it as `__wrapped__`."""
    for _ in range(16):
        try:
            inner = getattr(value, "__wrapped__", None)
        # Any object may stand behind a global's name, and answer as it likes.
        except Exception:
            return value
        if inner is None or isinstance(value, ModuleType | type):
            return value
        value = inner
    return value


def shipped_module(
    name: str, key: bytes, texts: Sequence[Sequence[Any]] | None = None
) -> ModuleType:
    """A user's module as a pickle names it.

    Args:
        name: Its full name.
        key: Which version.
        texts: It and the users' modules that it imports; None where the receiver has them.
    """
    if (name, key) in _state.own:
        # A result comes home: its classes are the client's own.
        return importlib.import_module(name)
    with _state.lock:
        module = _state.loaded.get((name, key))
        if module is not None and texts is None:
            return module
        if texts is None:
            return _module_here(name, key)
        rows = [module_text_of(row) for row in texts]
        before = _state.active
        if before is not None and before.extend(rows):
            _set_aside(before)
            for row in rows:
                if row.name not in sys.modules:
                    _show(row)
            return importlib.import_module(name)
        # Nothing is active, or the function's bundle has another version: make it apart.
        try:
            activate(Bundle(rows))
            return importlib.import_module(name)
        finally:
            activate(before)


def _module_here(name: str, key: bytes) -> ModuleType:
    bundle = _state.active
    known = None if bundle is None else bundle.texts.get(name)
    if known is not None and known.key != key:
        raise DecodeError(
            f"the value needs another version of the module {name} than the function brings"
        )
    # The bundle's, or (at another process of the same user) the one that is installed.
    return importlib.import_module(name)
