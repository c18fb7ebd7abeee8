"""How a function is made ready to travel: as source where it can, as a pickle where it cannot.

A code blob is a CBOR map:

    modules: [[name, path, is_package, text, preamble, key], …]   users' modules, by name
    entry:   [module, dotted path]      source: where the function is, once they are imported
    pickle:  bytes                      or a pickle of it (cloudpickle, protocol 5)
    why:     text                       with a pickle: why it is none of source's

A function of a user's module travels as that module's whole text, with the users' modules
that it imports. A function of `__main__` travels as text cut out of the script (module
`extraction`). What devices have themselves is only named. Everything else is pickled; where
that pickle holds no code (a bound method of an object of a user's module, a partial of
`math.pow`) it is as good as source: no Python minor is tied to it.
"""

import sys
from collections.abc import Callable
from hashlib import sha256
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final, Literal, NamedTuple

import cbor2

from forage_wire.errors import NotSerializable
from forage_wire.limits import CALL_BYTES_MAX, PYTHON_MINOR_MIN
from forage_wire.records import dataclass, field
from forage_wire.values.checking import NotSource, differs_from_text, global_names
from forage_wire.values.modules import ModuleText, attribute_of, unwrapped
from forage_wire.values.pickles import PYTHON, describe, dump
from forage_wire.values.user_modules import closure_of, is_on_devices, user_file

__all__ = ["Plan", "ShippedFunction", "carry_out", "plan", "ship"]

_MINOR_HERE: Final = sys.version_info[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedFunction:
    """A function's code as it travels.

    Attributes:
        hash: SHA-256 of `blob`, 32 bytes: the function's name on the wire.
        blob: The code. Equal functions give equal blobs.
        form: "source" runs on any Python from `python_min` on; "pickle" on `python` alone.
        python: The Python minor that made the blob, as "3.13".
        python_min: The lowest minor (11 = 3.11) that can load it.
        name: For people: "helpers.resize".
        reason_not_source: Why it goes as a pickle, as a clause ("it is a lambda"); else empty.
        modules: (name, key) of each user's module in the blob.
    """

    hash: bytes
    blob: bytes
    form: Literal["pickle", "source"]
    python: str
    python_min: int
    name: str
    reason_not_source: str
    modules: frozenset[tuple[str, bytes]] = field(default=frozenset(), repr=False)


class Plan(NamedTuple):
    """How a function will travel, found once; carried out for each copy of its state.

    Attributes:
        entry: (module, dotted path) in source mode; None of a pickle.
        modules: The users' modules that source mode brings.
        reason: Why it is a pickle; empty in source mode.
    """

    entry: tuple[str, str] | None
    modules: list[ModuleText]
    reason: str


def ship(function: Callable[..., Any]) -> ShippedFunction:
    """Make a function ready to travel.

    Raises:
        NotSerializable: Something that it needs cannot travel; names it.
    """
    return carry_out(function, plan(function))


def plan(function: Callable[..., Any]) -> Plan:
    """Find out how a function will travel."""
    try:
        module, path = _place(function)
        if module != "__main__":
            if is_on_devices(module):
                return Plan((module, path), [], "")
            modules = closure_of([module])
            why = differs_from_text(function, sys.modules[module])
            if why:
                raise NotSource(why)
            return Plan((module, path), modules, "")
        # A decorated function's text is that of the function inside, with its decorators.
        inner = unwrapped(function)
        if not isinstance(inner, FunctionType):
            raise NotSource(f"it is {describe(function)} of __main__")
        # Imported here: who ships nothing of a script's does not pay for a parser.
        from forage_wire.values.extraction import extract

        return Plan((module, path), extract(inner), "")
    except NotSource as error:
        return Plan(None, [], str(error))


def _place(function: Any) -> tuple[str, str]:
    """The module and the dotted path where a function is found by name. Raises NotSource."""
    if isinstance(function, MethodType):
        raise NotSource("it is a bound method")
    module = getattr(function, "__module__", None)
    path = getattr(function, "__qualname__", None)
    if isinstance(function, BuiltinFunctionType):
        owner = function.__self__
        if owner is not None and not isinstance(owner, ModuleType):
            raise NotSource("it is a bound method")
        module = owner.__name__ if owner is not None else module
    if type(module) is not str or type(path) is not str or module not in sys.modules:
        raise NotSource(f"it is {describe(function)}, which no module has by name")
    if "<lambda>" in path:
        raise NotSource("it is a lambda")
    if "<locals>" in path:
        raise NotSource("it is defined inside a function")
    if module != "__main__" and not is_on_devices(module) and user_file(module) is None:
        raise NotSource(f"the text of its module {module} is not at hand")
    try:
        found = attribute_of(sys.modules[module], path)
    except AttributeError:
        found = None
    # A decorator may have left an object of its own under the function's name.
    for _ in range(16):
        if found is function:
            return module, path
        if found is None or unwrapped(found) is not function:
            break
        found, path = found.__wrapped__, f"{path}.__wrapped__"
    raise NotSource(f"{module}.{path} is not (or no longer) what its name says")


def _lowest_minor(modules: list[ModuleText]) -> int:
    """The lowest Python minor that reads all texts; `PYTHON_MINOR_MIN` where there are none."""
    if not modules:
        return PYTHON_MINOR_MIN
    from forage_wire.values.grammar import lowest_minor

    return max(lowest_minor(part) for text in modules for part in (text.text, text.preamble))


def carry_out(function: Callable[..., Any], how: Plan) -> ShippedFunction:
    """Make the blob. Raises NotSerializable."""
    body: dict[str, Any]
    code: list[str] = []
    if how.entry is not None:
        modules = how.modules
        body = {"modules": [list(text) for text in modules], "entry": list(how.entry)}
    else:
        try:
            pickled = dump(function)
        # Pickling runs users' code, which may raise anything.
        except Exception as error:
            raise _blame(function, error) from error
        modules, code = [pickled.modules[name] for name in sorted(pickled.modules)], pickled.code
        body = {
            "modules": [list(text) for text in modules],
            "pickle": pickled.data,
            "why": how.reason,
        }
    blob = cbor2.dumps(body)
    if len(blob) > CALL_BYTES_MAX:
        raise NotSerializable(
            f"the function {_name(function)} is {len(blob)} bytes with all that it needs, above "
            f"the limit of {CALL_BYTES_MAX}: pass large data as arguments"
        )
    python_min = _MINOR_HERE if code else _lowest_minor(modules)
    return ShippedFunction(
        hash=sha256(blob).digest(),
        blob=blob,
        form="pickle" if code else "source",
        python=PYTHON,
        python_min=python_min,
        name=_name(function),
        reason_not_source=how.reason if code else "",
        modules=frozenset((text.name, text.key) for text in modules),
    )


def _name(function: Any) -> str:
    path = getattr(function, "__qualname__", None)
    module = getattr(function, "__module__", None)
    if type(path) is not str:
        return describe(function)
    return f"{module}.{path}" if type(module) is str and module != "builtins" else path


def _blame(function: Any, error: Exception) -> NotSerializable:
    """Name what in a function cannot be pickled."""
    for what, value in _parts(function):
        try:
            dump(value)
        except Exception as cause:
            return NotSerializable(
                f"the function {_name(function)} cannot travel: {what}, {describe(value)}, "
                f"cannot be pickled: {cause}"
            )
    return NotSerializable(f"the function {_name(function)} cannot travel: {error}")


def _parts(function: Any) -> list[tuple[str, Any]]:
    if isinstance(function, MethodType):
        return [("its object", function.__self__)]
    if not isinstance(function, FunctionType):
        return []
    code = function.__code__
    found: list[tuple[str, Any]] = []
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((f"its variable {name}", cell.cell_contents))
        except ValueError:
            continue
    found += [("a default", value) for value in function.__defaults__ or ()]
    found += [
        (f"its global {name}", function.__globals__[name])
        for name in global_names(code)
        if name in function.__globals__
    ]
    return found
