"""Values as CBOR, where CBOR holds them exactly: wrapped in tags before encoding, unwrapped after.

cbor2 is used without hooks. A value is first turned into what cbor2 writes natively, with
`CBORTag` around everything that CBOR has no type for; on the way back a strict walk unwraps
these tags and refuses whatever else cbor2 can make of native tags (regular expressions,
messages, shared references, …). Two references to one mutable container, a cycle, a subclass
or an unknown type make a value inexact: it then goes as a pickle.

Tags (none of them means anything to cbor2 itself):

    40, 1040, 64-86    numpy arrays as RFC 8746 typed arrays (module `arrays`)
    61600  array [dtype, shape, fortran order, bytes]   other numpy arrays
    61601  typed array or [dtype, bytes]                numpy scalar
    61602  array                                        tuple
    61603  array                                        set
    61604  array                                        frozenset
    61605  [real: float, imaginary: float]              complex
    61606  byte string                                  bytearray
    61607  [start, stop, step]                          range
    61608  array [key, value, key, value, …]            dict with keys that are not scalars
    61609  [year, month, day, hour, minute, second, microsecond, fold, zone]   datetime
    61610  [year, month, day]                           date
    61611  [hour, minute, second, microsecond, fold, zone]                     time
    61612  [days, seconds, microseconds]                timedelta
    61613  text                                         Decimal, as str() writes it
    61614  [numerator, denominator]                     Fraction

A zone is null, text (the key of a `ZoneInfo`), or [microseconds east] or [microseconds east,
name] of a `timezone`. Integers beyond 64 bits are the bignums of RFC 8949 (tags 2 and 3).
"""

import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any, Final

import cbor2
from cbor2 import CBORTag

from forage_wire.errors import DecodeError
from forage_wire.values.arrays import (
    ARRAY_TAGS,
    BULK_BYTES_MIN,
    Bulk,
    NotExact,
    array_of,
    array_to_wire,
    scalar_of,
    scalar_to_wire,
)

__all__ = [
    "SCALARS",
    "TAG_TUPLE",
    "NotExact",
    "WireForm",
    "check_plain",
    "encode_wire",
    "head",
    "restore",
]

DEPTH_MAX: Final = 64
"""Containers within containers; deeper values go as pickles and are refused in CBOR."""

_TAG_SCALAR: Final = 61601
TAG_TUPLE: Final = 61602
_TAG_SET: Final = 61603
_TAG_FROZENSET: Final = 61604
_TAG_COMPLEX: Final = 61605
_TAG_BYTEARRAY: Final = 61606
_TAG_RANGE: Final = 61607
_TAG_DICT: Final = 61608
_TAG_DATETIME: Final = 61609
_TAG_DATE: Final = 61610
_TAG_TIME: Final = 61611
_TAG_TIMEDELTA: Final = 61612
_TAG_DECIMAL: Final = 61613
_TAG_FRACTION: Final = 61614

_SAFE: Final = frozenset({str, bytes, float, bool, type(None)})
"""Types whose every instance is itself on the wire."""
SCALARS: Final = _SAFE | {int}
_ARRAYS: Final = frozenset({list, tuple})
_INT_MIN: Final = -(2**64)
_INT_END: Final = 2**64

# cbor2 makes immutable containers inside tags and keys: of version 6 a frozendict, of 5 its own.
_FROZEN_MAP: Final[type] = type(next(iter(cbor2.loads(b"\xa1\xa0\xf6"))))


class WireForm:
    """One conversion of values to what cbor2 writes natively.

    Attributes:
        tagged: True once something needed a tag (or a key that is no text): kind `cbor`.
        bulk: True once large data is held by reference (`encode_wire` then copies them once).
    """

    __slots__ = ("_seen", "bulk", "tagged")

    def __init__(self) -> None:
        self.tagged = False
        self.bulk = False
        self._seen: set[int] = set()

    def of(self, value: Any, depth: int = DEPTH_MAX) -> Any:
        """The wire form of one value. Raises NotExact where CBOR does not hold it exactly."""
        kind = type(value)
        if kind in _SAFE:
            if kind is bytes and len(value) >= BULK_BYTES_MIN:
                self.bulk = True
                return Bulk(value)
            if kind is str and len(value) >= BULK_BYTES_MIN:
                self.bulk = True
                return Bulk(value.encode(), 3)
            return value
        if kind is int:
            if not _INT_MIN <= value < _INT_END:
                self.tagged = True
            return value
        converter = _CONVERTERS.get(kind)
        if converter is None:
            converter = _late_converter(kind)
        return converter(self, value, depth - 1)

    def tag(self, number: int, content: Any) -> CBORTag:
        self.tagged = True
        return CBORTag(number, content)

    def enter(self, container: Any, depth: int) -> None:
        """Count a container in: no second reference to it, and not too deep."""
        identity = id(container)
        if depth < 0 or identity in self._seen:
            raise NotExact
        self._seen.add(identity)

    def items(self, items: Any, depth: int) -> Any:
        """The wire forms of a container's items; the container itself where all are scalars."""
        kinds = set(map(type, items))
        if kinds <= _SAFE:
            return items
        if kinds == {int}:
            if min(items) < _INT_MIN or max(items) >= _INT_END:
                self.tagged = True
            return items
        return [self.of(item, depth) for item in items]


def _list(form: WireForm, value: list[Any], depth: int) -> Any:
    form.enter(value, depth)
    return form.items(value, depth)


def _dict(form: WireForm, value: dict[Any, Any], depth: int) -> Any:
    form.enter(value, depth)
    kinds = set(map(type, value))
    if kinds <= {str}:
        pass
    elif kinds <= SCALARS:
        form.tagged = True
    else:
        flat: list[Any] = []
        for key, item in value.items():
            flat.append(form.of(key, depth))
            flat.append(form.of(item, depth))
        return form.tag(_TAG_DICT, flat)
    if set(map(type, value.values())) <= _SAFE:
        return value
    return {key: form.of(item, depth) for key, item in value.items()}


def _tuple(form: WireForm, value: tuple[Any, ...], depth: int) -> Any:
    if value:
        form.enter(value, depth)
    return form.tag(TAG_TUPLE, form.items(value, depth))


def _set(form: WireForm, value: set[Any], depth: int) -> Any:
    form.enter(value, depth)
    return form.tag(_TAG_SET, form.items(list(value), depth))


def _frozenset(form: WireForm, value: frozenset[Any], depth: int) -> Any:
    if value:
        form.enter(value, depth)
    return form.tag(_TAG_FROZENSET, form.items(list(value), depth))


def _complex(form: WireForm, value: complex, _depth: int) -> Any:
    return form.tag(_TAG_COMPLEX, [value.real, value.imag])


def _bytearray(form: WireForm, value: bytearray, depth: int) -> Any:
    form.enter(value, depth)
    return form.tag(_TAG_BYTEARRAY, bytes(value))


def _range(form: WireForm, value: range, _depth: int) -> Any:
    return form.tag(_TAG_RANGE, [value.start, value.stop, value.step])


_MICROSECOND: Final = timedelta(microseconds=1)


def _zone(zone: tzinfo | None) -> Any:
    kind: Any = type(zone)
    if zone is None:
        return None
    if kind is timezone:
        # A timezone's arguments as pickle asks for them: with a name only where one was given.
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        if name and type(name[0]) is not str:
            raise NotExact
        return [offset // _MICROSECOND, *name]
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and kind is zoneinfo.ZoneInfo:
        key = zone.key  # type: ignore[attr-defined]
        # Another instance than the cache's (`no_cache`) compares and pickles differently.
        if type(key) is str and zoneinfo.ZoneInfo(key) is zone:
            return key
    raise NotExact


def _datetime(form: WireForm, value: datetime, _depth: int) -> Any:
    fields = [value.year, value.month, value.day, value.hour, value.minute, value.second]
    return form.tag(_TAG_DATETIME, [*fields, value.microsecond, value.fold, _zone(value.tzinfo)])


def _date(form: WireForm, value: date, _depth: int) -> Any:
    return form.tag(_TAG_DATE, [value.year, value.month, value.day])


def _time(form: WireForm, value: time, _depth: int) -> Any:
    fields = [value.hour, value.minute, value.second, value.microsecond, value.fold]
    return form.tag(_TAG_TIME, [*fields, _zone(value.tzinfo)])


def _timedelta(form: WireForm, value: timedelta, _depth: int) -> Any:
    return form.tag(_TAG_TIMEDELTA, [value.days, value.seconds, value.microseconds])


def _decimal(form: WireForm, value: Any, _depth: int) -> Any:
    return form.tag(_TAG_DECIMAL, str(value))


def _fraction(form: WireForm, value: Any, _depth: int) -> Any:
    if type(value.numerator) is not int or type(value.denominator) is not int:
        raise NotExact
    return form.tag(_TAG_FRACTION, [value.numerator, value.denominator])


def _array(form: WireForm, value: Any, depth: int) -> Any:
    form.enter(value, depth)
    wire, bulk = array_to_wire(value)
    form.tagged = True
    form.bulk = form.bulk or bulk
    return wire


def _numpy_scalar(form: WireForm, value: Any, _depth: int) -> Any:
    return form.tag(_TAG_SCALAR, scalar_to_wire(value))


_Converter = Callable[[WireForm, Any, int], Any]
_CONVERTERS: dict[type, _Converter] = {
    list: _list,
    dict: _dict,
    tuple: _tuple,
    set: _set,
    frozenset: _frozenset,
    complex: _complex,
    bytearray: _bytearray,
    range: _range,
    datetime: _datetime,
    date: _date,
    time: _time,
    timedelta: _timedelta,
}


def _late_converter(kind: type) -> _Converter:
    """The converter of a type whose module is imported only where users need it."""
    module = sys.modules.get(kind.__module__)
    converter: _Converter
    if kind.__module__ == "decimal" and kind is getattr(module, "Decimal", None):
        converter = _decimal
    elif kind.__module__ == "fractions" and kind is getattr(module, "Fraction", None):
        converter = _fraction
    elif kind.__module__ == "numpy" and kind is getattr(module, "ndarray", None):
        converter = _array
    elif kind.__module__ == "numpy" and kind is getattr(module, kind.__name__, None):
        if not issubclass(kind, module.generic):  # type: ignore[union-attr]
            raise NotExact
        converter = _numpy_scalar
    else:
        raise NotExact
    _CONVERTERS[kind] = converter
    return converter


def encode_wire(wire: Any, bulk: bool) -> bytes:
    """The CBOR of a wire form; large data is copied once, straight into the result."""
    if not bulk:
        return cbor2.dumps(wire)
    chunks: list[bytes | memoryview] = []
    _write(wire, chunks)
    return b"".join(chunks)


def head(major: int, length: int) -> bytes:
    """The head of a CBOR item, in the shortest form."""
    if length < 24:
        return bytes(((major << 5) | length,))
    for extra, size in ((24, 1), (25, 2), (26, 4)):
        if length < 1 << (8 * size):
            return bytes(((major << 5) | extra,)) + length.to_bytes(size, "big")
    return bytes(((major << 5) | 27,)) + length.to_bytes(8, "big")


def _write(wire: Any, chunks: list[bytes | memoryview]) -> None:
    kind = type(wire)
    if kind is Bulk:
        chunks += (head(wire.major, len(wire.data)), wire.data)
    elif kind is CBORTag:
        chunks.append(head(6, wire.tag))
        _write(wire.value, chunks)
    elif kind is list and not set(map(type, wire)) <= SCALARS:
        chunks.append(head(4, len(wire)))
        for item in wire:
            _write(item, chunks)
    elif kind is dict and not set(map(type, wire.values())) <= SCALARS:
        chunks.append(head(5, len(wire)))
        for key, item in wire.items():
            chunks.append(cbor2.dumps(key))
            _write(item, chunks)
    else:
        chunks.append(cbor2.dumps(wire))


# -- back -----------------------------------------------------------------------------------------


def check_plain(value: Any) -> None:
    """Refuse (DecodeError) what is not a plain value, in something that cbor2 has loaded."""
    _check_plain(value, DEPTH_MAX, set())


def _check_plain(value: Any, depth: int, seen: set[int]) -> None:
    kind = type(value)
    if kind in SCALARS:
        return
    if kind is dict:
        if not set(map(type, value)) <= {str}:
            raise DecodeError("a plain value holds a map with a key that is not text")
        items: Any = value.values()
    elif kind is list:
        items = value
    else:
        raise DecodeError(f"a plain value holds a {kind.__name__}")
    # A shared reference (tag 29) could make a small message unfold without end.
    if depth <= 0 or id(value) in seen:
        raise DecodeError("a plain value is too deep, or refers to itself")
    seen.add(id(value))
    if not set(map(type, items)) <= SCALARS:
        for item in items:
            _check_plain(item, depth - 1, seen)


def restore(raw: Any) -> Any:
    """The value that a wire form (loaded by cbor2) stands for. Raises DecodeError alone."""
    if type(raw) is CBORTag and raw.tag == TAG_TUPLE:
        # The commonest result that is not plain: a tuple of scalars.
        items = raw.value
        if type(items) in _ARRAYS and SCALARS.issuperset(map(type, items)):
            return tuple(items)
    try:
        return _Restorer().of(raw, DEPTH_MAX)
    except DecodeError:
        raise
    # Hostile content makes constructors raise many things, all of them the sender's fault.
    except Exception as error:
        raise DecodeError(f"a value is malformed: {type(error).__name__}: {error}") from None


class _Restorer:
    """One walk over what cbor2 has loaded."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def of(self, raw: Any, depth: int) -> Any:
        kind = type(raw)
        if kind in SCALARS:
            return raw
        if kind is CBORTag:
            return self._tag(raw, depth)
        # Inside tags and keys cbor2 makes a tuple of an array.
        if kind is list or kind is tuple:
            return self.items(raw, depth)
        if kind is dict or kind is _FROZEN_MAP:
            self._enter(raw, depth)
            if not set(map(type, raw)) <= SCALARS:
                raise DecodeError("a map has a key that is not a scalar")
            return {key: self.of(item, depth - 1) for key, item in raw.items()}
        raise DecodeError(f"a value holds a {kind.__name__}")

    def items(self, raw: Any, depth: int) -> list[Any]:
        """The values of an array."""
        if type(raw) is not list and type(raw) is not tuple:
            raise DecodeError("a tag holds no array")
        self._enter(raw, depth)
        if set(map(type, raw)) <= SCALARS:
            return list(raw)
        return [self.of(item, depth - 1) for item in raw]

    def _enter(self, container: Any, depth: int) -> None:
        if depth <= 0:
            raise DecodeError(f"a value is deeper than {DEPTH_MAX}")
        if container:
            if id(container) in self._seen:
                raise DecodeError("a value refers to itself")
            self._seen.add(id(container))

    def _tag(self, tag: CBORTag, depth: int) -> Any:
        if depth <= 0:
            raise DecodeError(f"a value is deeper than {DEPTH_MAX}")
        number = tag.tag
        container = _CONTAINERS.get(number)
        if container is not None:
            return container(self.items(tag.value, depth))
        restorer = _RESTORERS.get(number)
        if restorer is not None:
            return restorer(tag.value)
        if number in ARRAY_TAGS:
            return array_of(number, tag.value)
        raise DecodeError(f"a value holds the unknown tag {number}")


def _set_of(items: list[Any]) -> set[Any]:
    found = set(items)
    if len(found) != len(items):
        raise DecodeError("a set holds an element twice")
    return found


def _frozenset_of(items: list[Any]) -> frozenset[Any]:
    return frozenset(_set_of(items))


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    found = dict(zip(items[::2], items[1::2], strict=True))
    if len(found) * 2 != len(items):
        raise DecodeError("a map holds a key twice")
    return found


def _integers(raw: Any, count: int) -> Any:
    """Exactly `count` integers."""
    if type(raw) not in (list, tuple) or len(raw) != count or set(map(type, raw)) != {int}:
        raise DecodeError(f"a tag does not hold {count} integers")
    return raw


def _complex_of(raw: Any) -> complex:
    if type(raw) not in (list, tuple) or len(raw) != 2 or set(map(type, raw)) != {float}:
        raise DecodeError("a complex number is not two floats")
    return complex(*raw)


def _bytearray_of(raw: Any) -> bytearray:
    if type(raw) is not bytes:
        raise DecodeError("a bytearray is not a byte string")
    return bytearray(raw)


def _range_of(raw: Any) -> range:
    return range(*_integers(raw, 3))


def _zone_of(raw: Any) -> tzinfo | None:
    if raw is None:
        return None
    if type(raw) is str:
        from zoneinfo import ZoneInfo

        return ZoneInfo(raw)
    offset = timedelta(microseconds=_integers(raw[:1], 1)[0])
    if len(raw) == 1:
        return timezone(offset)
    if len(raw) != 2 or type(raw[1]) is not str:
        raise DecodeError("a zone is not [offset, name]")
    return timezone(offset, raw[1])


def _datetime_of(raw: Any) -> datetime:
    *fields, fold, zone = raw
    year, month, day, hour, minute, second, microsecond = _integers(fields, 7)
    return datetime(year, month, day, hour, minute, second, microsecond, _zone_of(zone), fold=fold)


def _date_of(raw: Any) -> date:
    return date(*_integers(raw, 3))


def _time_of(raw: Any) -> time:
    *fields, fold, zone = raw
    hour, minute, second, microsecond = _integers(fields, 4)
    return time(hour, minute, second, microsecond, _zone_of(zone), fold=fold)


def _timedelta_of(raw: Any) -> timedelta:
    return timedelta(*_integers(raw, 3))


def _decimal_of(raw: Any) -> Any:
    from decimal import Decimal

    value = Decimal(raw) if type(raw) is str else None
    if str(value) != raw:
        raise DecodeError("a Decimal is not written as str() writes it")
    return value


def _fraction_of(raw: Any) -> Any:
    from fractions import Fraction

    numerator, denominator = _integers(raw, 2)
    value = Fraction(numerator, denominator)
    if value.denominator != denominator:
        raise DecodeError("a Fraction is not in lowest terms")
    return value


_CONTAINERS: Final[dict[int, Callable[[list[Any]], Any]]] = {
    TAG_TUPLE: tuple,
    _TAG_SET: _set_of,
    _TAG_FROZENSET: _frozenset_of,
    _TAG_DICT: _dict_of,
}
_RESTORERS: Final[dict[int, Callable[[Any], Any]]] = {
    _TAG_SCALAR: scalar_of,
    _TAG_COMPLEX: _complex_of,
    _TAG_BYTEARRAY: _bytearray_of,
    _TAG_RANGE: _range_of,
    _TAG_DATETIME: _datetime_of,
    _TAG_DATE: _date_of,
    _TAG_TIME: _time_of,
    _TAG_TIMEDELTA: _timedelta_of,
    _TAG_DECIMAL: _decimal_of,
    _TAG_FRACTION: _fraction_of,
}
