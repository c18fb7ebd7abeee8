"""numpy arrays and scalars as CBOR, without passing through lists.

RFC 8746 where it has a type (integers and floats of both byte orders): a typed array for one
dimension, tag 40 (rows first) or 1040 (columns first) with [shape, typed array] for others.
Booleans, complex numbers, dates and fixed-width strings have a tag of our own that names
numpy's dtype. Everything else (objects, records, longdouble, subclasses) goes as a pickle.
numpy is imported only where a value needs it.
"""

import math
import re
import sys
from typing import Any, Final

from cbor2 import CBORTag

from forage_wire.errors import DecodeError

__all__ = [
    "ARRAY_TAGS",
    "BULK_BYTES_MIN",
    "Bulk",
    "NotExact",
    "array_of",
    "array_to_wire",
    "scalar_of",
    "scalar_to_wire",
]

BULK_BYTES_MIN: Final = 64 * 1024
"""From this size on bytes are copied once, straight into the message: cbor2 grows its output
as it goes, which costs some 2 ms for each MB."""

_TAG_ROWS: Final = 40
_TAG_COLUMNS: Final = 1040
_TAG_OTHER: Final = 61600
_TYPED: Final = {
    "|u1": 64,
    ">u2": 65,
    ">u4": 66,
    ">u8": 67,
    "<u2": 69,
    "<u4": 70,
    "<u8": 71,
    "|i1": 72,
    ">i2": 73,
    ">i4": 74,
    ">i8": 75,
    "<i2": 77,
    "<i4": 78,
    "<i8": 79,
    ">f2": 80,
    ">f4": 81,
    ">f8": 82,
    "<f2": 84,
    "<f4": 85,
    "<f8": 86,
}
_DTYPES: Final = {tag: dtype for dtype, tag in _TYPED.items()}
_OTHER_DTYPE: Final = r"\|b1|[<>]c(8|16)|[<>][Mm]8(\[\d*[a-zA-Zμ]+\])?|\|S\d+|[<>]U\d+"

ARRAY_TAGS: Final = frozenset({_TAG_ROWS, _TAG_COLUMNS, _TAG_OTHER, *_DTYPES})


class NotExact(Exception):
    """CBOR does not hold this value exactly; it goes as a pickle."""


class Bulk:
    """A large byte string or text, not copied yet.

    Attributes:
        major: Its CBOR major type: 2 for a byte string, 3 for text.
        data: The bytes.
    """

    __slots__ = ("data", "major")

    def __init__(self, data: bytes | memoryview, major: int = 2) -> None:
        self.data = data
        self.major = major


def _dtype_text(dtype: Any) -> str:
    """The dtype as numpy writes it, where that text alone gives the very same dtype back."""
    text: str = dtype.str
    if text not in _TYPED and not re.fullmatch(_OTHER_DTYPE, text):
        raise NotExact
    # Two C types of one size (long and long long) share a text; metadata has none.
    if _numpy().dtype(text).char != dtype.char:
        raise NotExact
    if dtype.metadata is not None or dtype.itemsize == 0:
        raise NotExact
    return text


def _numpy() -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        try:
            import numpy
        except ImportError:
            raise DecodeError(
                "a value holds a numpy array, and numpy is not installed here"
            ) from None
    return numpy


def array_to_wire(array: Any) -> tuple[Any, bool]:
    """The wire form of an ndarray, and whether it holds a `Bulk`. Raises NotExact."""
    numpy = _numpy()
    dtype = _dtype_text(array.dtype)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    rows = array.T if fortran else array
    data: Any
    bulk = array.nbytes >= BULK_BYTES_MIN
    if bulk:
        # No copy where the array lies in one piece; its bytes are read when the message is made.
        data = Bulk(memoryview(numpy.ascontiguousarray(rows).reshape(-1).view(numpy.uint8)))
    else:
        data = rows.tobytes()
    tag = _TYPED.get(dtype)
    if tag is None:
        return CBORTag(_TAG_OTHER, [dtype, list(array.shape), fortran, data]), bulk
    typed = CBORTag(tag, data)
    if array.ndim == 1:
        return typed, bulk
    return CBORTag(_TAG_COLUMNS if fortran else _TAG_ROWS, [list(array.shape), typed]), bulk


def scalar_to_wire(scalar: Any) -> Any:
    """The wire form of a numpy scalar, inside its tag. Raises NotExact."""
    dtype = _dtype_text(scalar.dtype)
    # A text scalar drops the zeros at its end on the way back.
    if scalar.dtype.kind in "SU" or type(scalar) is not scalar.dtype.type:
        raise NotExact
    tag = _TYPED.get(dtype)
    if tag is None:
        return [dtype, scalar.tobytes()]
    return CBORTag(tag, scalar.tobytes())


def _filled(dtype_text: str, shape: tuple[int, ...], fortran: bool, data: Any) -> Any:
    """A writable array of its own with these bytes."""
    if type(data) is not bytes:
        raise DecodeError("an array's data is not a byte string")
    numpy = _numpy()
    dtype = numpy.dtype(dtype_text)
    if dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise DecodeError("an array's data does not fit its shape")
    order = "F" if fortran else "C"
    if not data:
        return numpy.empty(shape, dtype, order)
    array = numpy.frombuffer(data, dtype).reshape(shape, order=order).copy(order)
    if dtype.kind == "b" and (array.view(numpy.uint8) > 1).any():
        raise DecodeError("an array of booleans holds something else")
    return array


def _typed_of(tag: Any) -> tuple[str, Any]:
    dtype = _DTYPES.get(tag.tag) if type(tag) is CBORTag else None
    if dtype is None:
        raise DecodeError("an array holds no typed array")
    return dtype, tag.value


def _shape_of(raw: Any) -> tuple[int, ...]:
    if type(raw) not in (list, tuple) or not all(type(size) is int and size >= 0 for size in raw):
        raise DecodeError("an array's shape is not a list of sizes")
    return tuple(raw)


def array_of(tag: int, content: Any) -> Any:
    """The ndarray in one of ARRAY_TAGS."""
    if tag in _DTYPES:
        dtype = _DTYPES[tag]
        size = int(dtype[2:])
        if type(content) is not bytes or len(content) % size:
            raise DecodeError("a typed array is not a byte string of whole items")
        return _filled(dtype, (len(content) // size,), False, content)
    if tag == _TAG_OTHER:
        dtype, shape, fortran, data = content
        if (
            type(dtype) is not str
            or not re.fullmatch(_OTHER_DTYPE, dtype)
            or type(fortran) is not bool
        ):
            raise DecodeError("an array's dtype is unknown")
        return _filled(dtype, _shape_of(shape), fortran, data)
    shape, typed = content
    dtype, data = _typed_of(typed)
    return _filled(dtype, _shape_of(shape), tag == _TAG_COLUMNS, data)


def scalar_of(content: Any) -> Any:
    """The numpy scalar inside a scalar's tag."""
    if type(content) is CBORTag:
        dtype, data = _typed_of(content)
    else:
        dtype, data = content
        if type(dtype) is not str or not re.fullmatch(_OTHER_DTYPE, dtype) or dtype[1] in "SU":
            raise DecodeError("a scalar's dtype is unknown")
    return _filled(dtype, (), False, data)[()]
