"""Exceptions as data: a worker describes one as a map, a client makes one of the same type.

An exception never travels as a pickle, and a client never imports a module on a device's word.

    error map = {
        "type": qualified name, "module": text, "message": str() of it,
        ? "args": [* [value] / [1, value with tags] / [0, repr: text, null]],
        ? "attributes": {text: as in args},     its own attributes, and those of builtins
        ? "notes": [text, …], ? "traceback": text,
        ? "cause": error map, ? "context": error map, ? "suppress": bool,
        ? "errors": [error map, …]              of an exception group
    }

A map with `reason` is an error that no user's code raised (`forage_wire.system_errors`).
"""

import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

import cbor2

from forage_wire import errors, system_errors
from forage_wire.values.exact import NotExact, WireForm, check_plain, encode_wire, restore

__all__ = ["RemoteTraceback", "encode_error", "rebuild_error"]

TRACEBACK_CHARACTERS_MAX: Final = 64 * 1024
MESSAGE_CHARACTERS_MAX: Final = 16 * 1024
VALUE_BYTES_MAX: Final = 64 * 1024
"""A larger argument or attribute of an exception is described in words."""
CHAIN_MAX: Final = 8
GROUP_MAX: Final = 64
ITEMS_MAX: Final = 64
"""Arguments, attributes and notes of one exception."""

_ROOMS: Final = ("forage_wire.", "forage_agent.", "forage.")
_ATTRIBUTES: Final = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    ImportError: ("name", "path", "msg"),
    NameError: ("name",),
    AttributeError: ("name",),
    SyntaxError: (
        *("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
        "print_file_and_line",
    ),
}
"""What a builtin exception keeps outside its arguments and its `__dict__`."""


class RemoteTraceback(Exception):
    """Stands as the `__cause__` of a rebuilt error: its text is the device's traceback."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0] if self.args else ""}"""'


def encode_error(exception: BaseException, *, traceback_text: str | None = None) -> bytes:
    """The outcome item (CBOR map) of an exception.

    Args:
        exception: What the user's function raised.
        traceback_text: As users shall read it; None formats the exception's own traceback,
            from the first frame that is the user's.
    """
    item = _described(exception, CHAIN_MAX, {id(exception)})
    if traceback_text is None:
        traceback_text = _formatted(exception)
    item["traceback"] = _text(_cut_middle(traceback_text, TRACEBACK_CHARACTERS_MAX))
    return cbor2.dumps(item)


def _formatted(exception: BaseException) -> str:
    """The traceback without the frames of the worker that called the user's function."""
    first: TracebackType | None = exception.__traceback__
    while first is not None and _is_ours(first):
        first = first.tb_next
    try:
        return "".join(traceback.format_exception(type(exception), exception, first))
    # A broken __str__ or __cause__ of the user's must not hide that the call failed.
    except Exception as error:
        return f"{type(exception).__qualname__} (its traceback cannot be formatted: {error!r})\n"


def _is_ours(entry: TracebackType) -> bool:
    return f"{entry.tb_frame.f_globals.get('__name__', '')}.".startswith(_ROOMS)


def _cut_middle(text: str, characters_max: int) -> str:
    if len(text) <= characters_max:
        return text
    half = characters_max // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def _text(text: str) -> str:
    """Text without lone surrogates, which CBOR cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _safely(make: Any, *values: Any) -> str:
    """`str` or `repr` of something that may be broken."""
    try:
        return _text(_cut_middle(str(make(*values)), MESSAGE_CHARACTERS_MAX))
    except Exception as error:
        return f"<{make.__name__} failed: {type(error).__qualname__}>"


def _value(value: Any) -> list[Any]:
    """A value as it is where CBOR holds it exactly and it is not large; else its repr."""
    form = WireForm()
    try:
        wire = form.of(value)
        data = encode_wire(wire, form.bulk)
        if len(data) <= VALUE_BYTES_MAX:
            return [1, cbor2.loads(data)] if form.tagged else [wire]
    except (NotExact, UnicodeEncodeError):
        pass
    return [0, _safely(repr, value), None]


def _described(exception: BaseException, depth: int, seen: set[int]) -> dict[str, Any]:
    kind = type(exception)
    item: dict[str, Any] = {
        "type": _text(kind.__qualname__),
        "module": _text(str(kind.__module__)),
        "message": _safely(str, exception),
    }
    if isinstance(exception, BaseExceptionGroup):
        item["args"] = [_value(exception.message)]
        if depth > 0:
            inner = exception.exceptions[:GROUP_MAX]
            item["errors"] = [_described(one, depth - 1, seen) for one in inner]
    elif exception.args:
        item["args"] = [_value(value) for value in exception.args[:ITEMS_MAX]]
    attributes = _attributes(exception)
    if attributes:
        item["attributes"] = {name: _value(value) for name, value in attributes.items()}
    notes = getattr(exception, "__notes__", None)
    if isinstance(notes, list):
        item["notes"] = [_safely(str, note) for note in notes[:ITEMS_MAX]]
    for key, other in (("cause", exception.__cause__), ("context", exception.__context__)):
        if other is not None and depth > 0 and id(other) not in seen:
            seen.add(id(other))
            item[key] = _described(other, depth - 1, seen)
    if exception.__suppress_context__:
        item["suppress"] = True
    return item


def _attributes(exception: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, names in _ATTRIBUTES.items():
        if isinstance(exception, kind):
            found.update((name, getattr(exception, name, None)) for name in names)
    own = getattr(exception, "__dict__", None)
    if type(own) is dict:
        for name, value in own.items():
            if type(name) is str and name != "__notes__" and len(found) < ITEMS_MAX:
                found[_text(name)] = value
    return {name: value for name, value in found.items() if value is not None}


# -- at the client --------------------------------------------------------------------------------


def rebuild_error(item: Mapping[str, Any], device: str, attempt: int) -> BaseException:
    """The exception that an error map describes, ready to be raised.

    Its type is the original where that is a builtin or a class already imported here, else
    `TaskFailed`. `__cause__` holds the remote traceback as text, `__context__` the exception
    that the original had as cause or context; a note names device and attempt. Never raises:
    a malformed map becomes a `TaskFailed` that says so.
    """
    try:
        if "reason" in item:
            error = _system(item)
        else:
            error = _rebuilt(item, CHAIN_MAX)
            remote = _str(item.get("traceback"))
            if remote:
                error.__cause__ = RemoteTraceback(remote)
    # A device's bytes decide what happens here; whatever it is, the call has failed.
    except Exception as problem:
        error = errors.TaskFailed(f"the call failed, and its error is malformed: {problem!r}")
    if device:
        error.add_note(f"forage: on device {device}, attempt {attempt}")
    return error


def _str(value: object, default: str = "") -> str:
    return value if type(value) is str else default


_SYSTEM: Final[dict[str, type[errors.ForageError]]] = {
    system_errors.CANCELLED: errors.TaskCancelled,
    system_errors.TIMEOUT: errors.TaskTimeout,
    system_errors.DEVICE_LOST: errors.DeviceLost,
    system_errors.DATA_LOST: errors.DataLost,
    system_errors.REFUSED: errors.Refused,
    system_errors.VERSION_MISMATCH: errors.VersionMismatch,
    system_errors.NOT_SERIALIZABLE: errors.NotSerializable,
}


def _system(item: Mapping[str, Any]) -> BaseException:
    reason = _str(item.get("reason"))
    message = _str(item.get("message")) or reason
    details = item.get("details")
    check_plain(details)
    details = details if type(details) is dict else {}
    if reason == system_errors.NO_DEVICE:
        reasons = details.get("reasons")
        pairs = reasons.items() if type(reasons) is dict else ()
        return errors.NoDevice(message, {name: str(why) for name, why in pairs})
    if reason in _SYSTEM:
        return _SYSTEM[reason](message)
    return errors.TaskFailed(message, reason=reason, details=details)


def _class_named(module: str, path: str) -> type[BaseException] | None:
    """An exception class that this process has imported already, found without running code."""
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        namespace = getattr(found, "__dict__", None)
        found = None if namespace is None else namespace.get(part)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _values(raw: Any) -> list[Any]:
    if type(raw) is not list:
        return []
    return [_value_of(entry) for entry in raw[:ITEMS_MAX]]


def _value_of(entry: Any) -> Any:
    if type(entry) is list and len(entry) == 1:
        check_plain(entry[0])
        return entry[0]
    if type(entry) is list and len(entry) == 2 and entry[0] == 1:
        return restore(entry[1])
    if type(entry) is list and len(entry) == 3 and type(entry[1]) is str:
        return _Described(entry[1])
    raise errors.DecodeError("an exception's argument is malformed")


class _Described(str):
    """The repr of a value that stayed on the device; shows as that repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _rebuilt(item: Any, depth: int) -> BaseException:
    if not isinstance(item, Mapping):
        raise errors.DecodeError("an error is not a map")
    name, module = _str(item.get("type"), "Exception"), _str(item.get("module"), "builtins")
    message = _str(item.get("message"))
    found = _class_named(module, name)
    full_name = name if module == "builtins" else f"{module}.{name}"
    error: BaseException | None = None
    if found is not None and depth >= 0:
        try:
            error = _made(found, item, depth)
        except Exception:
            error = None
    if error is None:
        error = errors.TaskFailed(
            f"{full_name}: {message}" if message else full_name, type_name=full_name
        )
    notes = item.get("notes")
    for note in notes[:ITEMS_MAX] if type(notes) is list else ():
        error.add_note(_str(note))
    for key in ("cause", "context"):
        if isinstance(item.get(key), Mapping) and depth > 0:
            error.__context__ = _rebuilt(item[key], depth - 1)
            break
    return error


def _made(kind: type[BaseException], item: Mapping[str, Any], depth: int) -> BaseException:
    """An instance, made by the builtin exception below it: no user's constructor runs."""
    base = next(one for one in kind.__mro__ if one.__module__ == "builtins")
    args = _values(item.get("args"))
    attributes = item.get("attributes")
    own = {
        name: _value_of(entry)
        for name, entry in (attributes.items() if type(attributes) is dict else ())
        if type(name) is str
    }
    if issubclass(base, BaseExceptionGroup):
        inner = item.get("errors")
        rebuilt = [_rebuilt(one, depth - 1) for one in inner] if type(inner) is list else []
        if not rebuilt:
            rebuilt = [errors.TaskFailed("the errors of this group were left out")]
        args = [_str(args[0] if args else ""), rebuilt]
    elif issubclass(base, OSError) and "filename" in own and len(args) == 2:
        # The constructor takes the names out of its arguments again.
        args += [own["filename"], None, own.get("filename2")]
    error: BaseException = base.__new__(kind, *args)
    initialise: Any = vars(base).get("__init__", BaseException.__init__)
    initialise(error, *args)
    for name, value in own.items():
        _set(error, base, name, value)
    return error


def _set(error: BaseException, base: type[BaseException], name: str, value: Any) -> None:
    """Set an attribute without running a property or `__setattr__` of the class."""
    slots = {
        slot for kind, names in _ATTRIBUTES.items() if issubclass(base, kind) for slot in names
    }
    if name in slots:
        try:
            BaseException.__setattr__(error, name, value)
        except (AttributeError, TypeError):
            return
    elif not name.startswith("__"):
        error.__dict__[name] = value
