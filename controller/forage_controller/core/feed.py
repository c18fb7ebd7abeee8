"""What feeds a standby's store: operations on the wire, a snapshot's pieces, and their orders.

An operation travels as its kind's name and its fields in the dataclass's order. Its types are
those that the class says, and nothing else is taken: what a standby writes today is what it rules
by tomorrow. Both ends are of one store schema, which `Join` says.
"""

import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

import cbor2

from forage_controller.core.operations import Operation
from forage_wire.errors import DecodeError
from forage_wire.records import dataclass
from forage_wire.strict import load_plain

__all__ = [
    "SCHEMA_VERSION",
    "CloseSnapshot",
    "InstallSnapshot",
    "OpenSnapshot",
    "ReadSnapshot",
    "SnapshotFailed",
    "SnapshotInstalled",
    "SnapshotOpened",
    "SnapshotRead",
    "WriteSnapshot",
    "decode_operations",
    "encode_operations",
    "size_of",
    "to_plain",
]

SCHEMA_VERSION = 3
"""Of the store, and so of what is said of it here."""

_FIELD_BYTES = 12
"""What a field that is no long text takes, about."""


# -- the active controller's store ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSnapshot:
    """Command: keep a copy of the store as it is after every `Save` given so far (or later)."""

    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOpened:
    """Event: the copy is there, and holds every `Save` up to `position`."""

    request: int
    position: int
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFailed:
    """Event: there is no copy: the disk has no room for one, or cannot be read or written."""

    request: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSnapshot:
    """Command: read a piece of the copy."""

    request: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRead:
    """Event: the answer to `ReadSnapshot`."""

    request: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSnapshot:
    """Command: the copy is of no more use."""

    request: int


# -- the standby's store --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSnapshot:
    """Command: a piece of the copy that is to take our store's place; offset 0 begins anew."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallSnapshot:
    """Command: the copy is complete: it is our store from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInstalled:
    """Event: the copy is our store, on the disk."""

    epoch: int
    """That it holds."""


# -- operations on the wire -----------------------------------------------------------------------

_Check = Callable[[Any], Any]


def _check_of(hint: Any) -> _Check:
    """What makes the wire's value the field's, or raises ValueError."""
    origin = get_origin(hint)
    if origin is tuple:
        arguments = get_args(hint)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return _list_check(_check_of(arguments[0]))
        return _row_check([_check_of(argument) for argument in arguments])
    if origin in (Union, types.UnionType):
        return _union_check([_check_of(argument) for argument in get_args(hint)])
    assert hint in (int, str, bytes, bool, type(None)), hint
    return _plain_check(hint)


def _plain_check(kind: type) -> _Check:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{type(value).__name__} is no {kind.__name__}")
        return value

    return check


def _list_check(each: _Check) -> _Check:
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise ValueError("not a list")
        return tuple([each(item) for item in value])

    return check


def _row_check(checks: list[_Check]) -> _Check:
    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != len(checks):
            raise ValueError(f"not a row of {len(checks)}")
        return tuple([each(item) for each, item in zip(checks, value, strict=True)])

    return check


def _union_check(checks: list[_Check]) -> _Check:
    def check(value: Any) -> Any:
        for each in checks:
            try:
                return each(value)
            except ValueError:
                continue
        raise ValueError(f"{type(value).__name__} is of no kind that is taken")

    return check


def _columns(kind: type) -> tuple[tuple[str, _Check], ...]:
    hints = get_type_hints(kind)
    return tuple([(field.name, _check_of(hints[field.name])) for field in fields(kind)])


_KINDS: dict[str, tuple[type[Any], tuple[tuple[str, _Check], ...]]] = {
    kind.__name__: (kind, _columns(kind)) for kind in get_args(Operation)
}
_NAMES = {
    kind: (name, tuple([column[0] for column in columns]))
    for name, (kind, columns) in _KINDS.items()
}


def to_plain(operation: Operation) -> list[Any]:
    """An operation as `encode_operations` takes it: it keeps the operation's own byte strings."""
    name, columns = _NAMES[type(operation)]
    return [name, *[getattr(operation, column) for column in columns]]


def size_of(plain: Sequence[Any]) -> int:
    """About how many bytes an operation takes on the wire."""
    size = _FIELD_BYTES * len(plain)
    for value in plain:
        kind = type(value)
        if kind is bytes or kind is str:
            size += len(value)
        elif kind is tuple:
            size += _FIELD_BYTES * 2 * len(value)
    return size


def encode_operations(plain: Sequence[Sequence[Any]]) -> bytes:
    """Operations made by `to_plain`, in order, as CBOR."""
    return cbor2.dumps(plain)


def decode_operations(data: bytes) -> list[Operation]:
    """What `encode_operations` made.

    Raises:
        DecodeError: It is not the CBOR of operations that we know.
    """
    found: list[Operation] = []
    rows = load_plain(data)
    for row in _rows(rows):
        name, *values = row
        kind, columns = _KINDS.get(name, (None, ())) if type(name) is str else (None, ())
        if kind is None or len(values) != len(columns):
            raise DecodeError(f"an unknown operation {str(name)[:40]!r} of {len(values)} fields")
        try:
            found.append(
                kind(
                    **{
                        column: check(value)
                        for (column, check), value in zip(columns, values, strict=True)
                    }
                )
            )
        except ValueError as error:
            raise DecodeError(f"{name}: {error}") from None
    return found


def _rows(raw: Any) -> Iterable[list[Any]]:
    if type(raw) is not list or any(type(row) is not list or not row for row in raw):
        raise DecodeError("not a list of operations")
    return raw
