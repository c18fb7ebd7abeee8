"""Shipped functions, kept for the next submit of the same function.

What a function ships depends on its code, defaults, closure and the globals that it reads,
and so on through the functions among those. A `_Watch` holds all of these as they were; the
shipped function is used again while they are the same objects, and while they are of kinds
that cannot change inside. With anything that can change (a list in a closure, an instance) the
function is pickled at each submit; only how it travels is remembered.

Functions are held weakly: the cache keeps none of them alive.
"""

import re
import sys
from collections.abc import Callable
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any, Final
from weakref import ref

from forage_wire.values.shipping import Plan, ShippedFunction, carry_out, global_names, plan
from forage_wire.values.user_modules import is_on_devices, user_file

__all__ = ["FunctionCache"]

_MISSING: Final = object()
_UNCHANGING: Final = frozenset(
    {int, float, complex, str, bytes, bool, type(None), type(...), range, re.Pattern}
)
_UNCHANGING_BY_NAME: Final = frozenset(
    {"datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta"}
    | {"decimal.Decimal", "fractions.Fraction"}
)
"""Types whose modules are not imported for this."""


class _CanChange(Exception):
    """Something that the function depends on can change without becoming another object."""


class _Watch:
    """One function as it was: cheap to compare with what it is now."""

    __slots__ = ("_cells", "_code", "_defaults", "_function", "_globals", "_keywords")

    def __init__(self, function: FunctionType, names: list[str], closure: bool = True) -> None:
        self._function = ref(function)
        self._code = function.__code__
        self._defaults = function.__defaults__
        self._keywords = tuple((function.__kwdefaults__ or {}).items())
        cells = (function.__closure__ or ()) if closure else ()
        self._cells = tuple((cell, _held(_content(cell))) for cell in cells)
        values = function.__globals__
        self._globals = tuple((name, _held(values.get(name, _MISSING))) for name in names)

    def holds(self) -> bool:
        """Whether everything is still the same object."""
        function = self._function()
        if (
            function is None
            or function.__code__ is not self._code
            or function.__defaults__ is not self._defaults
        ):
            return False
        if self._globals:
            get = function.__globals__.get
            for name, value in self._globals:
                now = get(name, _MISSING)
                if now is not value and (type(value) is not ref or now is not value()):
                    return False
        for cell, value in self._cells:
            now = _content(cell)
            if now is not value and (type(value) is not ref or now is not value()):
                return False
        keywords = function.__kwdefaults__
        if self._keywords or keywords:
            return tuple((keywords or {}).items()) == self._keywords
        return True


def _held(value: Any) -> Any:
    """A value to compare with later: whatever can be is held weakly."""
    if type(value) in _UNCHANGING:
        return value
    try:
        return ref(value)
    except TypeError:
        return value


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


class _Entry:
    """What is known of one function.

    Attributes:
        function: Weak.
        shipped: To be used again while all watches hold; None where it must be made anew.
        plan: How it travels, for making it anew.
    """

    __slots__ = ("function", "plan", "shipped", "specs", "watches")

    def __init__(self, function: "ref[Any]", how: Plan) -> None:
        self.function = function
        self.plan = how
        self.shipped: ShippedFunction | None = None
        self.watches: tuple[_Watch, ...] = ()
        self.specs: tuple[tuple[dict[str, Any], Any], ...] = ()


class FunctionCache:
    """Shipped functions, reused while nothing that they depend on can have changed.

    Holds functions weakly. Safe for use by several threads.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, function: Callable[..., Any]) -> ShippedFunction:
        """The function as shipped last, or shipped anew where anything in it can have changed.

        Raises:
            NotSerializable: As `ship` does.
        """
        entry = self._entries.get(id(function))
        if entry is not None and entry.function() is function:
            shipped = entry.shipped
            if shipped is not None:
                for watch in entry.watches:
                    if not watch.holds():
                        break
                else:
                    for namespace, spec in entry.specs:
                        if namespace.get("__spec__") is not spec:
                            break
                    else:
                        return shipped
            elif all(watch.holds() for watch in entry.watches):
                # The same code with state that can change: the way it travels is the same.
                return carry_out(function, entry.plan)
        return self._anew(function)

    def _anew(self, function: Callable[..., Any]) -> ShippedFunction:
        how = plan(function)
        shipped = carry_out(function, how)
        try:
            reference = ref(function, self._forget(id(function)))
        except TypeError:
            return shipped
        entry = _Entry(reference, how)
        finder = _Finder(how)
        try:
            finder.visit(function)
            entry.shipped = shipped
            entry.watches = tuple(finder.watches.values())
        except _CanChange:
            # The plan depends on the code alone; names and values are pickled anew.
            if not isinstance(function, FunctionType) or how.entry is not None:
                return shipped
            entry.watches = (_Watch(function, [], closure=False),)
        entry.specs = tuple(finder.specs.values())
        self._entries[id(function)] = entry
        return shipped

    def _forget(self, key: int) -> Callable[[Any], None]:
        entries = self._entries

        def forget(reference: Any) -> None:
            entry = entries.get(key)
            # The place may have been taken by a new function already.
            if entry is not None and entry.function is reference:
                del entries[key]

        return forget


class _Finder:
    """Everything that a function depends on; raises _CanChange at what can change inside."""

    def __init__(self, how: Plan) -> None:
        self.watches: dict[int, _Watch] = {}
        self.specs: dict[str, tuple[dict[str, Any], Any]] = {}
        self._entry = how.entry
        for text in how.modules:
            if text.name != "__main__":
                self._module(text.name, sys.modules.get(text.name))

    def visit(self, value: Any) -> None:
        kind = type(value)
        if kind in _UNCHANGING or value is _MISSING:
            return
        if kind is tuple or kind is frozenset:
            for item in value:
                self.visit(item)
        elif kind is FunctionType:
            self._function(value)
        elif kind is ModuleType:
            self._module(value.__name__, value)
        elif isinstance(value, type | BuiltinFunctionType) and not _is_bound(value):
            if value.__module__ not in (None, "builtins"):
                self._module(value.__module__, sys.modules.get(value.__module__))
        elif (
            # In source mode whatever else a global holds is imported by the text itself.
            self._entry is None
            and f"{kind.__module__}.{kind.__qualname__}" not in _UNCHANGING_BY_NAME
        ):
            raise _CanChange

    def _function(self, function: FunctionType) -> None:
        if id(function) in self.watches:
            return
        top = not self.watches
        if (top and self._entry is not None and self._entry[0] != "__main__") or _is_named(
            function
        ):
            # It travels by its name; only its constants are compared with its module's text.
            names = [
                name
                for name in global_names(function.__code__)
                if type(function.__globals__.get(name)) in _UNCHANGING
            ]
            self.watches[id(function)] = _Watch(function, names, closure=False)
            self._module(function.__module__, sys.modules.get(function.__module__))
            return
        names = global_names(function.__code__)
        self.watches[id(function)] = _Watch(function, names)
        if function.__dict__:
            raise _CanChange
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.visit(default)
        for cell in function.__closure__ or ():
            self.visit(_content(cell))
        for used in names:
            self.visit(function.__globals__.get(used, _MISSING))

    def _module(self, name: str, module: ModuleType | None) -> None:
        """A module that is found by its name stays what it is until it is loaded anew."""
        if name in self.specs or (module is not None and is_on_devices(name)):
            return
        if module is None:
            # Imported late, inside a function: its text alone counts.
            return
        if sys.modules.get(name) is not module or user_file(name) is None:
            raise _CanChange
        self.specs[name] = (module.__dict__, module.__dict__.get("__spec__"))


def _is_bound(value: Any) -> bool:
    owner = getattr(value, "__self__", None)
    return owner is not None and not isinstance(owner, ModuleType | type)


def _is_named(function: FunctionType) -> bool:
    """Whether a function travels by its name: found in a module other than `__main__`."""
    module = sys.modules.get(function.__module__)
    if module is None or function.__module__ == "__main__":
        return False
    found: Any = module
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function
