"""Messages read in one pass, bytes to fields: the short way, for what is as it should be.

Each kind of field has a reader, `read(data, at) -> (value, end)`, and each table puts those of its
fields together. What is wrong, or only unusual (an unknown key, a map of more than 23), is
`Unusual`: then the message is read again the long way (`forage_wire.strict`, then the table), and
that alone says what is wrong and what becomes of it. So a reader may give up on anything, but must
accept nothing that the long way refuses, and find in it what the long way finds.

As there, a string's length is not checked where it is read: one that reaches beyond the end gives a
position beyond it, from where there is nothing to read, or which is no end.
"""

from collections.abc import Callable
from typing import Any

from forage_wire.strict import read_item

__all__ = [
    "BYTES",
    "INTEGER",
    "OTHER",
    "TEXT",
    "Reader",
    "Unusual",
    "read_any",
    "read_array",
    "read_bytes",
    "read_integer",
    "read_ranges",
    "read_row",
    "read_text",
]

Reader = Callable[[bytes, int], tuple[Any, int]]

_NESTING_MAX = 2
"""Arrays and maps within a field that has no reader of its own: fewer than the long way allows."""
_TEXTS_MAX = 1_024
_TEXT_BYTES_MAX = 64
"""Of the texts that were found to be right: how many are kept, and how long they are."""

INTEGER, BYTES, TEXT, OTHER = range(4)
"""Shapes of fields: a table reads short ones of the first three by itself."""


class Unusual(Exception):
    """Not for a short reader."""


def _size_at(data: bytes, at: int, first: int) -> tuple[int, int]:
    """The number in the head at `at`, whose kind's heads begin with `first`, and where that ends."""
    size = data[at] - first
    if 0 <= size < 24:
        return size, at + 1
    if size == 24:
        size = data[at + 1]
        if size >= 24:
            return size, at + 2
    elif 25 <= size <= 27:
        end = at + 1 + (1 << (size - 24))
        shortest = 1 << (4 << (size - 24))
        size = int.from_bytes(data[at + 1 : end], "big")
        if size >= shortest:
            return size, end
    raise Unusual


def read_any(decode: Callable[[Any], Any]) -> Reader:
    """A field that is read as any item is, and checked then."""

    def read(data: bytes, at: int) -> tuple[Any, int]:
        item, end = read_item(data, at, _NESTING_MAX)
        return decode(item), end

    return read


def read_integer(minimum: int, maximum: int) -> Reader:
    """An integer that is not negative."""

    def read(data: bytes, at: int) -> tuple[int, int]:
        value, end = _size_at(data, at, 0x00)
        if minimum <= value <= maximum:
            return value, end
        raise Unusual

    return read


def read_bytes(minimum: int, maximum: int) -> Reader:
    """A byte string of so many bytes."""

    def read(data: bytes, at: int) -> tuple[bytes, int]:
        size, start = _size_at(data, at, 0x40)
        if minimum <= size <= maximum:
            end = start + size
            return data[start:end], end
        raise Unusual

    return read


def read_text(decode: Callable[[Any], str], known: dict[bytes, str]) -> Reader:
    """A text that often comes again, such as a name; `known` are those found to be right."""

    def read(data: bytes, at: int) -> tuple[str, int]:
        size, start = _size_at(data, at, 0x60)
        end = start + size
        raw = data[start:end]
        text = known.get(raw)
        if text is None:
            text = decode(raw.decode())
            if len(known) >= _TEXTS_MAX:
                known.clear()
            if size <= _TEXT_BYTES_MAX:
                known[raw] = text
        return text, end

    return read


def read_array(read_one: Reader, maximum: int) -> Reader:
    """An array of at most so many of one kind; a tuple."""

    def read(data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        count, at = _size_at(data, at, 0x80)
        if count > maximum:
            raise Unusual
        found = []
        for _ in range(count):
            item, at = read_one(data, at)
            found.append(item)
        return tuple(found), at

    return read


def read_row(readers: tuple[Reader, ...]) -> Reader:
    """An array with a kind for each place; a tuple."""

    def read(data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        count, at = _size_at(data, at, 0x80)
        if count != len(readers):
            raise Unusual
        found = []
        for read_one in readers:
            item, at = read_one(data, at)
            found.append(item)
        return tuple(found), at

    return read


def read_ranges(maximum: int, highest: int) -> Reader:
    """Half-open ranges, sorted and disjoint, up to `highest`."""

    def read(data: bytes, at: int) -> tuple[tuple[tuple[int, int], ...], int]:
        count, at = _size_at(data, at, 0x80)
        if count > maximum:
            raise Unusual
        found = []
        end = 0
        for _ in range(count):
            if data[at] != 0x82:
                raise Unusual
            low, high = data[at + 1], data[at + 2]
            if low < 24 and high < 24:
                at += 3
            else:
                low, at = _size_at(data, at + 1, 0x00)
                high, at = _size_at(data, at, 0x00)
            if not end <= low < high <= highest:
                raise Unusual
            found.append((low, high))
            end = high
        return tuple(found), at

    return read
