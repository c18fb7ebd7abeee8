"""The kinds of fields that messages are made of: what each accepts, and its bounds.

A kind turns what a decoder found (`raw`) into a checked value and back. Checks are strict:
exact types (True is no integer), bounded sizes, and no floats but where a JSON document,
read by people, holds a measurement.
"""

import re
from collections.abc import Callable
from typing import Any

from forage_wire.limits import LIST_ITEMS_MAX, RANGES_MAX, TEXT_CHARACTERS_MAX
from forage_wire.reading import (
    BYTES,
    INTEGER,
    OTHER,
    TEXT,
    Reader,
    read_any,
    read_array,
    read_bytes,
    read_integer,
    read_ranges,
    read_row,
    read_text,
)
from forage_wire.records import dataclass

__all__ = [
    "Kind",
    "boolean",
    "data",
    "integer",
    "list_of",
    "name_or_version",
    "nullable",
    "number",
    "one_of",
    "pattern",
    "ranges",
    "record",
    "row",
    "text",
    "text_map",
    "unsigned",
]


_INDEX_END = 2**32
"""Ranges of indices end here."""
_KNOWN_MAX = 1_024
_KNOWN_CHARACTERS_MAX = 64
"""Of the texts that a pattern has matched: how many are kept, and how long they are."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of field.

    `decode` raises ValueError with a phrase on anything it does not accept. `encode` is None
    where the value goes on the wire as it is. `name` and `bounds` say which function below made
    it, with what arguments, so that tools (tests, documentation) can read what it accepts.
    `read` is the short way from bytes (`forage_wire.reading`; None: as any item, then `decode`).
    """

    name: str
    bounds: tuple[Any, ...]
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any] | None = None
    read: Reader | None = None
    shape: tuple[int, int, int] = (OTHER, 0, 0)
    """For a table to read short ones itself: of INTEGER the least and the most, of BYTES their
    lengths."""
    known: dict[bytes, str] | None = None
    """Of TEXT: those found to be right."""

    @property
    def reader(self) -> Reader:
        """The short way from bytes, whichever it is."""
        return read_any(self.decode) if self.read is None else self.read


def unsigned(maximum: int = 2**63 - 1, minimum: int = 0) -> Kind:
    """An integer of minimum to maximum."""

    def decode(raw: Any) -> int:
        if type(raw) is not int or not minimum <= raw <= maximum:
            raise ValueError(f"not an integer of {minimum} to {maximum}")
        return raw

    if minimum < 0:
        return Kind("unsigned", (maximum, minimum), decode)
    shape = (INTEGER, minimum, maximum)
    return Kind(
        "unsigned", (maximum, minimum), decode, read=read_integer(minimum, maximum), shape=shape
    )


def integer(minimum: int, maximum: int) -> Kind:
    """An integer that may be negative."""
    return unsigned(maximum, minimum)


def number() -> Kind:
    """A measurement in a JSON document: an integer or a finite float."""

    def decode(raw: Any) -> float | int:
        if (type(raw) is int or type(raw) is float) and -1e300 < raw < 1e300:
            return raw
        raise ValueError("not a finite number")

    return Kind("number", (), decode)


def boolean() -> Kind:
    """True or False."""

    def decode(raw: Any) -> bool:
        if raw is True or raw is False:
            return raw
        raise ValueError("not true or false")

    return Kind("boolean", (), decode)


def text(maximum: int = TEXT_CHARACTERS_MAX) -> Kind:
    """Text of at most `maximum` characters, each of which UTF-8 can hold."""

    def decode(raw: Any) -> str:
        if type(raw) is not str or len(raw) > maximum:
            raise ValueError(f"not a text of at most {maximum} characters")
        # JSON can name lone surrogates; whoever writes them to a file or terminal would fail.
        if not raw.isascii():
            raw.encode()
        return raw

    return Kind("text", (maximum,), decode)


def pattern(expression: str, what: str, *, empty: bool = False) -> Kind:
    """Text that matches a regular expression in full (or is empty, where that is allowed)."""
    # The same sessions and names come in every message.
    known: dict[str, None] = {}
    matches: Callable[[str], re.Match[str] | None] | None = None

    def decode(raw: Any) -> str:
        if type(raw) is not str:
            raise ValueError(f"not {what}")
        if raw in known or (empty and not raw):
            return raw
        nonlocal matches
        if matches is None:
            # Not before it is needed: a program uses few of them.
            matches = re.compile(expression).fullmatch
        if matches(raw) is None:
            raise ValueError(f"not {what}")
        if len(known) >= _KNOWN_MAX:
            known.clear()
        if len(raw) <= _KNOWN_CHARACTERS_MAX:
            known[raw] = None
        return raw

    # As bytes, for the short way.
    texts: dict[bytes, str] = {}
    read = read_text(decode, texts)
    return Kind("pattern", (expression, empty), decode, read=read, shape=(TEXT, 0, 0), known=texts)


def one_of(*choices: str) -> Kind:
    """One of some words."""

    def decode(raw: Any) -> str:
        if type(raw) is not str or raw not in choices:
            raise ValueError(f"not one of {', '.join(choices)}")
        return raw

    return Kind("one_of", choices, decode)


def data(maximum: int, *sizes: int) -> Kind:
    """A byte string of at most `maximum` bytes, of one of `sizes` if any are named."""

    def decode(raw: Any) -> bytes:
        if type(raw) is not bytes or len(raw) > maximum or (sizes and len(raw) not in sizes):
            raise ValueError(f"not a byte string of {sizes or f'at most {maximum}'} bytes")
        return raw

    if len(sizes) > 1:
        return Kind("data", (maximum, sizes), decode)
    least, most = (0, maximum) if not sizes else (sizes[0], min(sizes[0], maximum))
    shape = (BYTES, least, most)
    return Kind("data", (maximum, sizes), decode, read=read_bytes(least, most), shape=shape)


def nullable(kind: Kind) -> Kind:
    """Null or another kind."""
    decode_inner, encode_inner = kind.decode, kind.encode

    def decode(raw: Any) -> Any:
        return None if raw is None else decode_inner(raw)

    if encode_inner is None:
        return Kind("nullable", (kind,), decode)

    def encode(value: Any) -> Any:
        return None if value is None else encode_inner(value)

    return Kind("nullable", (kind,), decode, encode)


def list_of(kind: Kind, maximum: int = LIST_ITEMS_MAX) -> Kind:
    """An array of one kind; a tuple in the message."""
    decode_inner, encode_inner = kind.decode, kind.encode

    def decode(raw: Any) -> tuple[Any, ...]:
        if type(raw) is not list or len(raw) > maximum:
            raise ValueError(f"not an array of at most {maximum}")
        return tuple([decode_inner(item) for item in raw])

    read = read_array(kind.reader, maximum)
    if encode_inner is None:
        return Kind("list_of", (kind, maximum), decode, read=read)

    def encode(value: Any) -> Any:
        return [encode_inner(item) for item in value]

    return Kind("list_of", (kind, maximum), decode, encode, read=read)


def row(*kinds: Kind) -> Kind:
    """An array of fixed length with a kind for each place; a tuple in the message."""
    decoders = [kind.decode for kind in kinds]
    encoders = [kind.encode for kind in kinds]
    length = len(kinds)

    def decode(raw: Any) -> tuple[Any, ...]:
        if type(raw) is not list or len(raw) != length:
            raise ValueError(f"not an array of {length}")
        return tuple([decoder(item) for decoder, item in zip(decoders, raw, strict=True)])

    read = read_row(tuple([kind.reader for kind in kinds]))
    if not any(encoders):
        return Kind("row", kinds, decode, read=read)

    def encode(value: Any) -> Any:
        return [
            item if encoder is None else encoder(item)
            for encoder, item in zip(encoders, value, strict=True)
        ]

    return Kind("row", kinds, decode, encode, read=read)


def ranges(maximum: int = RANGES_MAX) -> Kind:
    """Half-open index ranges, sorted and disjoint: [[low, high], ...]."""

    def decode(raw: Any) -> tuple[tuple[int, int], ...]:
        if type(raw) is not list or len(raw) > maximum:
            raise ValueError(f"not an array of at most {maximum} ranges")
        found: list[tuple[int, int]] = []
        end = 0
        for item in raw:
            if type(item) is not list or len(item) != 2:
                raise ValueError("a range is not [low, high]")
            low, high = item
            if type(low) is not int or type(high) is not int or not end <= low < high <= _INDEX_END:
                raise ValueError("ranges are not sorted, disjoint and within bounds")
            found.append((low, high))
            end = high
        return tuple(found)

    return Kind("ranges", (maximum,), decode, read=read_ranges(maximum, _INDEX_END))


def text_map(maximum: int = 64, value: Kind | None = None) -> Kind:
    """A map of short texts to texts (or to another kind)."""
    value = text(256) if value is None else value
    decode_key, decode_value = text(64).decode, value.decode

    def decode(raw: Any) -> dict[str, Any]:
        if type(raw) is not dict or len(raw) > maximum:
            raise ValueError(f"not a map of at most {maximum}")
        return {decode_key(key): decode_value(item) for key, item in raw.items()}

    return Kind("text_map", (maximum, value), decode)


def name_or_version() -> Kind:
    """A function: the SHA-256 of its code, or (name, version) of a named one."""

    def decode(raw: Any) -> bytes | tuple[str, str]:
        if type(raw) is bytes and len(raw) == 32:
            return raw
        if type(raw) is list and len(raw) == 2 and all(type(item) is str for item in raw):
            name, version = raw
            if 0 < len(name) <= 128 and len(version) <= 32:
                return (name, version)
        raise ValueError("not a SHA-256 or [name, version]")

    return Kind("name_or_version", (), decode)


def record(message_class: type, table: Callable[[type], Any]) -> Kind:
    """A map that is a dataclass of its own; `table` gives the codec's functions for it."""
    found = table(message_class)
    return Kind("record", (message_class,), found.decode_map, found.encode_map, read=found.read)
