"""Values as pickles: what CBOR cannot hold exactly.

Functions and classes of users' modules are named, not copied: the pickle brings the text of
their module (see `modules`), so it holds no code objects and any Python of protocol 5 reads
it; and a class is the same class as the one in a function that was shipped as source. What
has no such name (anything of `__main__`, lambdas, closures) cloudpickle copies by value: the
pickle then *holds code* and is tied to the Python minor.
"""

import io
import pickle
import sys
from collections.abc import Collection
from threading import Lock
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final
from weakref import WeakSet

from forage_wire.errors import DecodeError, NotSerializable, VersionMismatch
from forage_wire.values.modules import (
    ModuleText,
    attribute_of,
    key_of_loaded,
    module_loaded_for,
    shipped_module,
)

__all__ = ["PYTHON", "Pickled", "describe", "dump", "fill_class", "load_pickle"]

PYTHON: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""The Python minor that runs here, as it stands on the wire."""

_BY_VALUE: Final = frozenset({"_make_function", "_make_skeleton_class", "_make_skeleton_enum"})


class Pickled:
    """A pickle and what its reader needs.

    Attributes:
        data: The pickle.
        code: Names of the functions and classes in it by value; not empty: it holds code.
        modules: The users' modules that it names, and that functions in it import when they
            run: by name, and not in `data` unless it was made with `embed`.
    """

    __slots__ = ("code", "data", "modules")

    def __init__(self, data: bytes, code: list[str], modules: dict[str, ModuleText]) -> None:
        self.data = data
        self.code = code
        self.modules = modules


def dump(value: Any, known: Collection[tuple[str, bytes]] | None = None) -> Pickled:
    """The pickle of a value. Raises whatever pickling raises.

    Args:
        value: Anything.
        known: (name, key) of the modules that the reader has; the text of others goes into the
            pickle. None: no text goes into it, the caller sends `modules` along.
    """
    pickler_class = _pickler_class()
    with io.BytesIO() as file:
        pickler = pickler_class(file, known)
        pickler.dump(value)
        return Pickled(file.getvalue(), pickler.code, pickler.modules)


def load_pickle(data: Any, python: Any, what: str) -> Any:
    """The value in a pickle.

    Args:
        data: The pickle.
        python: The minor that its code is tied to; None where it holds none.
        what: For errors: "the arguments".

    Raises:
        VersionMismatch: It is tied to another Python.
        DecodeError: It cannot be loaded here; says why.
    """
    if type(data) is not bytes:
        raise DecodeError(f"{what}: a pickle is not a byte string")
    if python is not None and python != PYTHON:
        raise VersionMismatch(
            f"{what} hold code of Python {str(python)[:8]}, and this is Python {PYTHON}: a class "
            "or function of __main__, a lambda or a closure travels only between equal minors; "
            "move it into a module of its own, which travels as text"
        )
    try:
        return pickle.loads(data)
    except (VersionMismatch, DecodeError):
        raise
    except Exception as error:
        raise DecodeError(
            f"{what} cannot be unpickled here: {type(error).__name__}: {error}"
        ) from error


def describe(value: Any) -> str:
    """What a value is, for errors: "a sqlite3.Connection"."""
    kind = type(value)
    if isinstance(value, type) or kind is FunctionType:
        return f"{'the class' if isinstance(value, type) else 'the function'} {value.__qualname__}"
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    name = kind.__qualname__ if kind.__module__ == "builtins" else _full_name(kind)
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"


def _full_name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value)}"


_own_classes: WeakSet[type] = WeakSet()
_received_classes: WeakSet[type] = WeakSet()


def fill_class(made: type, state: Any) -> Any:
    """Give a class that travelled by value what belongs in it (part of the wire form).

    cloudpickle finds a class that comes home by its id, but then fills it in again: its methods
    would be replaced by copies that no longer see the globals of `__main__`.
    """
    if made in _own_classes:
        return made
    from cloudpickle.cloudpickle import _class_setstate

    _received_classes.add(made)
    return _class_setstate(made, state)


_found: list[Any] = []
_registry_lock: Final = Lock()
"""cloudpickle's registry belongs to the process; it is changed for a moment and changed back."""


def _pickler_class() -> Any:
    """The pickler; cloudpickle is imported on first use, for most calls never need it."""
    if not _found:
        _found.append(_make_pickler_class())
    return _found[0]


def _make_pickler_class() -> Any:
    import cloudpickle

    from forage_wire.values.checking import differs_from_text
    from forage_wire.values.user_modules import (
        closure_of,
        imports_in_code,
        is_on_devices,
        user_file,
    )

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc, name-defined, unused-ignore]
        """cloudpickle's, with users' modules by name and text."""

        def __init__(self, file: io.BytesIO, known: Collection[tuple[str, bytes]] | None) -> None:
            super().__init__(file, protocol=5)
            self.code: list[str] = []
            self.modules: dict[str, ModuleText] = {}
            self._known = known

        def reducer_override(self, value: Any) -> Any:
            kind = type(value)
            if kind is FunctionType or isinstance(value, type):
                module = self._home(value)
                if module is not None:
                    return attribute_of, (module, value.__qualname__)
                reduced = self._by_own_name_or_value(value)
                if (
                    reduced is not NotImplemented
                    and getattr(reduced[0], "__name__", "") in _BY_VALUE
                ):
                    self.code.append(_full_name(value))
                    if kind is FunctionType:
                        self._note_late_imports(value)
                    else:
                        if value not in _received_classes:
                            _own_classes.add(value)
                        # The last item is what fills the class in; ours spares an original.
                        reduced = (*reduced[:5], fill_class)
                return reduced
            if kind is ModuleType:
                return self._module(value)
            if kind is CodeType:
                self.code.append(value.co_qualname)
            return NotImplemented

        def _home(self, value: Any) -> ModuleType | None:
            """The user's module in which a function or class can be found by its name."""
            name, path = value.__module__, value.__qualname__
            if type(name) is not str or name == "__main__" or "<locals>" in path:
                return None
            module = sys.modules.get(name)
            if module is None or user_file(name) is None:
                return module_loaded_for(name, path, value)
            try:
                is_there = attribute_of(module, path) is value
            except AttributeError:
                return None
            return module if is_there and not differs_from_text(value, module) else None

        def _by_own_name_or_value(self, value: Any) -> Any:
            """As cloudpickle does, but by value where no device can find a user's module."""
            module = sys.modules.get(value.__module__)
            file = getattr(module, "__file__", None) or ""
            if (
                module is None
                or is_on_devices(module.__name__)
                or not file.endswith((".py", ".pyc"))
            ):
                return super().reducer_override(value)
            with _registry_lock:
                if module.__name__ in cloudpickle.list_registry_pickle_by_value():
                    return super().reducer_override(value)
                cloudpickle.register_pickle_by_value(module)
                try:
                    return super().reducer_override(value)
                finally:
                    cloudpickle.unregister_pickle_by_value(module)

        def _module(self, module: ModuleType) -> Any:
            name = module.__name__
            key = key_of_loaded(module)
            if key is not None:
                return shipped_module, (name, key, None)
            if sys.modules.get(name) is not module or user_file(name) is None:
                return NotImplemented
            texts = closure_of([name])
            self.modules.update((text.name, text) for text in texts)
            key = next(text.key for text in texts if text.name == name)
            if self._known is None or (name, key) in self._known:
                return shipped_module, (name, key, None)
            return shipped_module, (name, key, tuple(tuple(text) for text in texts))

        def _note_late_imports(self, function: FunctionType) -> None:
            package = function.__globals__.get("__package__") or ""
            names = imports_in_code(function.__code__, package)
            if not names:
                return
            self.modules.update((text.name, text) for text in closure_of(names))

    return Pickler


def not_serializable(what: str, value: Any, error: Exception) -> NotSerializable:
    """The error for a value that cannot be pickled."""
    return NotSerializable(f"{what}, {describe(value)}, cannot be pickled: {error}")
