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
from collections.abc import Callable, Iterable
from operator import itemgetter
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any, Final
from weakref import ref

from forage_wire.values.checking import global_names
from forage_wire.values.modules import unwrapped
from forage_wire.values.shipping import Plan, ShippedFunction, carry_out, plan
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
    """One function as it was: cheap to compare with what it is now.

    Values are compared by id. What can be is held weakly: when it goes, `gone` is called, before
    its id can belong to anything else. Constants are held themselves.
    """

    __slots__ = (
        "_absent",
        "_code",
        "_contents",
        "_defaults",
        "_function",
        "_get",
        "_held",
        "_ids",
        "_keywords",
    )

    def __init__(
        self,
        function: FunctionType,
        names: Iterable[str],
        gone: Callable[[Any], None],
        closure: bool = True,
    ) -> None:
        self._function = ref(function)
        self._code = function.__code__
        self._defaults = function.__defaults__
        self._keywords = tuple((function.__kwdefaults__ or {}).items())
        namespace = function.__globals__
        present = [name for name in names if name in namespace]
        self._absent = tuple(name for name in names if name not in namespace)
        # A getter of one name gives no tuple.
        pairs = present * 2 if len(present) == 1 else present
        self._get = itemgetter(*pairs) if pairs else None
        self._ids = tuple(id(namespace[name]) for name in pairs)
        contents = [_content(cell) for cell in (function.__closure__ or ()) if closure]
        self._contents = tuple(map(id, contents))
        self._held = [_held(value, gone) for value in (*contents, *map(namespace.get, present))]

    def holds(self) -> bool:
        """Whether everything is still the same object."""
        function = self._function()
        if (
            function is None
            or function.__code__ is not self._code
            or function.__defaults__ is not self._defaults
        ):
            return False
        namespace = function.__globals__
        if self._get is not None:
            try:
                if tuple(map(id, self._get(namespace))) != self._ids:
                    return False
            except KeyError:
                return False
        for name in self._absent:
            if name in namespace:
                return False
        if self._contents:
            # A cell is never held: it may hold the function itself.
            cells = function.__closure__ or ()
            if tuple([id(_content(cell)) for cell in cells]) != self._contents:
                return False
        keywords = function.__kwdefaults__
        if self._keywords or keywords:
            return tuple((keywords or {}).items()) == self._keywords
        return True


def _held(value: Any, gone: Callable[[Any], None]) -> Any:
    if type(value) in _UNCHANGING:
        return value
    try:
        return ref(value, gone)
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
        watches: Every function that it depends on, itself among them.
        specs: (namespace, spec) of each user's module that it depends on.
        valid: False once something that a watch compares by id has gone.
    """

    __slots__ = ("__weakref__", "function", "plan", "shipped", "specs", "valid", "watches")

    def __init__(self, function: "ref[Any]", how: Plan) -> None:
        self.function = function
        self.plan = how
        self.shipped: ShippedFunction | None = None
        self.watches: tuple[_Watch, ...] = ()
        self.specs: tuple[tuple[dict[str, Any], Any], ...] = ()
        self.valid = True


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
        if entry is None or not entry.valid or entry.function() is not function:
            return self._anew(function)
        for watch in entry.watches:
            if not watch.holds():
                return self._anew(function)
        for namespace, spec in entry.specs:
            if namespace.get("__spec__") is not spec:
                return self._anew(function)
        # Without `shipped` it has state that can change, but travels the same way as before.
        return entry.shipped or carry_out(function, entry.plan)

    def _anew(self, function: Callable[..., Any]) -> ShippedFunction:
        how = plan(function)
        shipped = carry_out(function, how)
        try:
            reference = ref(function, self._forget(id(function)))
        except TypeError:
            return shipped
        entry = _Entry(reference, how)
        weak_entry = ref(entry)

        def gone(_reference: Any) -> None:
            found = weak_entry()
            if found is not None:
                found.valid = False

        finder = _Finder(how, gone)
        try:
            finder.visit(function)
            entry.shipped = shipped
            entry.watches = tuple(finder.watches.values())
        except _CanChange:
            # How it travels depends on its code alone; names and values are pickled each time.
            if not isinstance(function, FunctionType) or how.entry is not None:
                return shipped
            entry.watches = (_Watch(function, (), gone, closure=False),)
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

    def __init__(self, how: Plan, gone: Callable[[Any], None]) -> None:
        self._gone = gone
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
        elif self._entry is not None and isinstance(unwrapped(value), FunctionType):
            # A decorator's object (of functools.cache, say); in source mode it is made anew there.
            self._function(unwrapped(value))
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
            constants = [
                name
                for name in global_names(function.__code__)
                if type(function.__globals__.get(name)) in _UNCHANGING
            ]
            self.watches[id(function)] = _Watch(function, constants, self._gone, closure=False)
            self._module(function.__module__, sys.modules.get(function.__module__))
            return
        names = global_names(function.__code__)
        self.watches[id(function)] = _Watch(function, names, self._gone)
        if not function.__dict__.keys() <= {"__wrapped__"}:
            raise _CanChange
        self.visit(function.__dict__.get("__wrapped__", _MISSING))
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
