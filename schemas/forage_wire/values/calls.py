"""Calls and outcomes: (args, kwargs) and values to bytes and back, each in its best kind."""

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import cbor2

from forage_wire.errors import DecodeError, NotSerializable, VersionMismatch
from forage_wire.values.arrays import Bulk
from forage_wire.values.exact import (
    SCALARS,
    TAG_TUPLE,
    NotExact,
    WireForm,
    check_plain,
    encode_wire,
    head,
    restore,
)
from forage_wire.values.pickles import PYTHON, Pickled, describe, dump, load_pickle

if TYPE_CHECKING:
    from forage_wire.values.shipping import ShippedFunction

__all__ = [
    "KIND_CBOR",
    "KIND_CODE",
    "KIND_HANDLE",
    "KIND_PICKLE",
    "KIND_PLAIN",
    "Outcome",
    "decode_call",
    "decode_outcome_item",
    "encode_call",
    "encode_long_call",
    "encode_outcome_value",
    "encode_short_call",
    "read_plain_calls",
]

KIND_PLAIN: Final = 0
KIND_CBOR: Final = 1
KIND_PICKLE: Final = 2
KIND_CODE: Final = 3
KIND_HANDLE: Final = 4

_dumps: Final[Callable[[Any], bytes]] = cbor2.dumps
_loads = cbor2.loads


class Outcome(NamedTuple):
    """What a call came to: a value (`ok`), or the error map for `rebuild_error`."""

    ok: bool
    value: Any


_ONLY_BYTES: Final = frozenset({bytes})


def _all_scalars(items: list[Any]) -> bool:
    return SCALARS.issuperset(map(type, items))


# -- short calls and values of the commonest types, written without cbor2 -------------------------

_SMALL_MIN: Final = -256
_SMALL_END: Final = 1_024
_SMALL: Final[list[bytes]] = [bytes(_dumps(number)) for number in range(_SMALL_MIN, _SMALL_END)]
_SHORT_TEXT: Final = 256
_TEXT_HEADS: Final = [head(3, length) for length in range(_SHORT_TEXT)]
_ITEMS_END: Final = 24
_ARRAY_HEADS: Final = [head(4, length) for length in range(_ITEMS_END)]
_MAP_HEADS: Final = [head(5, length) for length in range(_ITEMS_END)]
_TUPLE_HEAD: Final = head(6, TAG_TUPLE)
_CALL_HEADS: Final = [head(4, 2) + head(0, kind) for kind in range(2)]
_CALL_OF_ONE: Final = _CALL_HEADS[KIND_PLAIN] + _ARRAY_HEADS[1]
_VALUE_HEADS: Final = [head(4, 1), head(4, 2) + head(0, KIND_CBOR)]
_SMALL_VALUES: Final = [_VALUE_HEADS[KIND_PLAIN] + chunk for chunk in _SMALL]
_CONSTANTS: Final[dict[bool | None, bytes]] = {None: b"\xf6", True: b"\xf5", False: b"\xf4"}
_pack_float = Struct(">Bd").pack
_pack_16, _pack_32, _pack_64 = Struct(">BH").pack, Struct(">BI").pack, Struct(">BQ").pack


def _long(value: int) -> bytes | None:
    """The CBOR of an integer of more than one byte; None of one that takes more than eight."""
    major = 0x00
    if value < 0:
        major = 0x20
        value = -1 - value
    if value < 2**16:
        return _pack_16(major | 0x19, value)
    if value < 2**32:
        return _pack_32(major | 0x1A, value)
    if value < 2**64:
        return _pack_64(major | 0x1B, value)
    return None


def _short(value: Any) -> bytes | None:
    """The CBOR of a short scalar, byte for byte as cbor2 writes it; None of anything else."""
    kind = type(value)
    if kind is int:
        if _SMALL_MIN <= value < _SMALL_END:
            small: bytes = _SMALL[value - _SMALL_MIN]
            return small
        if 0 <= value < 2**16:
            medium: bytes = _pack_16(0x19, value)
            return medium
        return _long(value)
    if kind is str:
        try:
            data: bytes = value.encode()
        except UnicodeEncodeError:
            return None
        if len(data) < _SHORT_TEXT:
            return _TEXT_HEADS[len(data)] + data
    elif kind is float:
        # Not so infinities and NaN, whose difference is NaN.
        if value - value == 0.0:
            packed: bytes = _pack_float(0xFB, value)
            return packed
    elif value is None or value is True or value is False:
        return _CONSTANTS[value]
    return None


def _short_items(value: Any) -> bytes | None:
    """The CBOR of a short list, tuple or dict of short scalars; None of anything else."""
    kind = type(value)
    if kind is list or kind is tuple:
        if len(value) >= _ITEMS_END:
            return None
        chunks = [
            _ARRAY_HEADS[len(value)] if kind is list else _TUPLE_HEAD + _ARRAY_HEADS[len(value)]
        ]
        for item in value:
            chunk = _short(item)
            if chunk is None:
                return None
            chunks.append(chunk)
        return b"".join(chunks)
    if kind is dict and len(value) < _ITEMS_END:
        chunks = [_MAP_HEADS[len(value)]]
        for name, item in value.items():
            key, chunk = _short(name), _short(item)
            if key is None or chunk is None or type(name) is not str:
                return None
            chunks += (key, chunk)
        return b"".join(chunks)
    return None


def encode_short_call(args: tuple[Any, ...]) -> bytes | None:
    """The call body of a few short scalars and at most one short container; None of all else."""
    if len(args) == 1:
        # The commonest call: nothing to join.
        chunk = _short(args[0])
        if chunk is not None:
            return _CALL_OF_ONE + chunk
    elif len(args) >= _ITEMS_END:
        return None
    kind = KIND_PLAIN
    container = None
    chunks = [_ARRAY_HEADS[len(args)]]
    for value in args:
        chunk = _short(value)
        if chunk is None:
            # Two containers could be one and the same, which takes the long way.
            chunk = _short_items(value) if container is None else None
            if chunk is None:
                return None
            container = value
            if type(value) is tuple:
                kind = KIND_CBOR
        chunks.append(chunk)
    return _CALL_HEADS[kind] + b"".join(chunks)


def encode_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    function: Callable[..., Any] | None = None,
    shipped: "ShippedFunction | None" = None,
) -> bytes:
    """The call body for these arguments.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        function: Names the parameters in errors; not otherwise used.
        shipped: What the call is for: modules that it brings are not sent with the arguments.

    Raises:
        NotSerializable: An argument cannot travel; the message names it.
    """
    body = None if kwargs else encode_short_call(args)
    return encode_long_call(args, kwargs, function, shipped) if body is None else body


def encode_long_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    function: Callable[..., Any] | None = None,
    shipped: "ShippedFunction | None" = None,
) -> bytes:
    """As `encode_call`, where `encode_short_call` has none."""
    form = WireForm()
    try:
        wire: list[Any] = [KIND_PLAIN, [form.of(value) for value in args]]
        if kwargs:
            wire.append({name: form.of(value) for name, value in kwargs.items()})
        if form.tagged:
            wire[0] = KIND_CBOR
        return encode_wire(wire, form.bulk)
    except (NotExact, UnicodeEncodeError):
        pickled = _dump_arguments(args, kwargs, function, shipped)
    return _pickle_item(pickled)


def _pickle_item(pickled: Pickled) -> bytes:
    return encode_wire(
        [KIND_CODE, Bulk(pickled.data), PYTHON]
        if pickled.code
        else [KIND_PICKLE, Bulk(pickled.data)],
        True,
    )


def _dump_arguments(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    function: Callable[..., Any] | None,
    shipped: "ShippedFunction | None",
) -> Pickled:
    known = frozenset() if shipped is None else shipped.modules
    try:
        return dump((args, kwargs), known)
    # Pickling runs users' code (__reduce__, __getstate__), which may raise anything.
    except Exception as error:
        whole = error
    for position, value in enumerate(args, 1):
        _check_argument(value, position, _parameter_name(function, position))
    for name, value in kwargs.items():
        _check_argument(value, 0, name)
    raise NotSerializable(f"the arguments cannot be pickled: {whole}") from whole


def _check_argument(value: Any, position: int, name: str) -> None:
    try:
        dump(value, frozenset())
    except Exception as error:
        what = f"argument {position} (" if position else "the argument ("
        named = f"`{name}`, " if name else ""
        raise NotSerializable(
            f"{what}{named}{describe(value)}) cannot be pickled: {error}"
        ) from error


def _parameter_name(function: Callable[..., Any] | None, position: int) -> str:
    if function is None:
        return ""
    import inspect

    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ""
    for index, parameter in enumerate(parameters, 1):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return f"*{parameter.name}"
        if index == position:
            return parameter.name
    return ""


def decode_call(body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in a call body. Load the call's function first: it may bring modules.

    Raises:
        DecodeError: Not a call body, or its pickle cannot be loaded here (says why).
        VersionMismatch: It holds code of another Python minor.
    """
    try:
        raw = _loads(body)
    # Hostile bytes make cbor2 raise many things, also RecursionError and MemoryError.
    except Exception as error:
        raise DecodeError(f"a call is not CBOR: {type(error).__name__}") from None
    if type(raw) is not list or not 2 <= len(raw) <= 3 or type(raw[0]) is not int:
        raise DecodeError("a call is not [kind, arguments, …]")
    kind, args = raw[0], raw[1]
    if kind == KIND_PLAIN and len(raw) == 2 and type(args) is list and _all_scalars(args):
        return tuple(args), {}
    if kind in (KIND_PLAIN, KIND_CBOR):
        kwargs = raw[2] if len(raw) == 3 else {}
        if type(args) is not list or type(kwargs) is not dict:
            raise DecodeError("a call's arguments are not an array and a map")
        if kwargs and not set(map(type, kwargs)) <= {str}:
            raise DecodeError("a call's keyword is not text")
        if kind == KIND_CBOR:
            args, kwargs = restore([args, kwargs])
        else:
            check_plain(raw[1:])
        return tuple(args), kwargs
    if not (kind == KIND_PICKLE and len(raw) == 2) and not (kind == KIND_CODE and len(raw) == 3):
        raise DecodeError(f"a call of the unknown kind {kind}")
    value = load_pickle(args, raw[2] if kind == KIND_CODE else None, "the arguments")
    if type(value) is not tuple or len(value) != 2:
        raise DecodeError("a call's pickle is not (args, kwargs)")
    args, kwargs = value
    if type(args) is not tuple or type(kwargs) is not dict:
        raise DecodeError("a call's pickle is not (args, kwargs)")
    if not set(map(type, kwargs)) <= {str}:
        raise DecodeError("a call's keyword is not text")
    return args, kwargs


def read_plain_calls(bodies: list[Any]) -> list[tuple[Any, ...] | None]:
    """The arguments of each call that has scalars and nothing else; None: `decode_call` reads it.

    All in one go, which takes two thirds of the time. They are one client's calls of one task: one
    that writes bodies which are not one item each spoils nobody's calls but its own.
    """
    unread: list[tuple[Any, ...] | None] = [None] * len(bodies)
    if not _ONLY_BYTES.issuperset(map(type, bodies)):
        return unread
    try:
        found = _loads(head(4, len(bodies)) + b"".join(bodies))
    # Whatever is wrong with one of them is that call's own error.
    except Exception:
        return unread
    if type(found) is not list or len(found) != len(bodies):
        return unread
    # A kind of False or 0.0 is none. One expression, not a function: 200,000 of them a second.
    are_scalars = SCALARS.issuperset
    return [
        tuple(raw[1])
        if type(raw) is list
        and len(raw) == 2
        and raw[0] == KIND_PLAIN
        and type(raw[0]) is int
        and type(raw[1]) is list
        and are_scalars(map(type, raw[1]))
        else None
        for raw in found
    ]


def encode_outcome_value(value: Any, *, client_python: str = "", what: str = "the result") -> bytes:
    """The outcome item (CBOR) of a call's result.

    Args:
        value: The result.
        client_python: The client's Python minor ("3.13"), where known.
        what: What the value is, for errors.

    Raises:
        NotSerializable: It cannot travel.
        VersionMismatch: It holds code, and the client's Python minor is another; names the class.
    """
    if type(value) is int and _SMALL_MIN <= value < _SMALL_END:
        return _SMALL_VALUES[value - _SMALL_MIN]
    chunk = _short(value)
    if chunk is None:
        chunk = _short_items(value)
    if chunk is not None:
        return (
            _VALUE_HEADS[KIND_CBOR] if type(value) is tuple else _VALUE_HEADS[KIND_PLAIN]
        ) + chunk
    form = WireForm()
    try:
        wire = form.of(value)
        return encode_wire([KIND_CBOR, wire] if form.tagged else [wire], form.bulk)
    except (NotExact, UnicodeEncodeError):
        pass
    try:
        pickled = dump(value, frozenset())
    except Exception as error:
        raise NotSerializable(f"{what}, {describe(value)}, cannot be pickled: {error}") from error
    if pickled.code and client_python and client_python != PYTHON:
        raise VersionMismatch(
            f"{what} holds the code of {pickled.code[0]}, which ties it to Python {PYTHON}, "
            f"and the client is Python {client_python}: return plain values, or move "
            f"{pickled.code[0]} into a module of its own, which travels as text"
        )
    return _pickle_item(pickled)


def decode_outcome_item(item: object) -> Outcome:
    """The outcome in an item of an outcomes message (already loaded by cbor2).

    Raises:
        DecodeError: Not an outcome item, or its pickle cannot be loaded here.
        VersionMismatch: It holds code of another Python minor.
    """
    if type(item) is list:
        length = len(item)
        if length == 1:
            value = item[0]
            if type(value) not in SCALARS:
                check_plain(value)
            return Outcome(True, value)
        if length and type(item[0]) is int:
            kind = item[0]
            if kind == KIND_CBOR and length == 2:
                return Outcome(True, restore(item[1]))
            if kind == KIND_PICKLE and length == 2:
                return Outcome(True, load_pickle(item[1], None, "the result"))
            if kind == KIND_CODE and length == 3:
                return Outcome(True, load_pickle(item[1], item[2], "the result"))
    elif type(item) is dict:
        return Outcome(False, item)
    raise DecodeError("not an outcome item")
