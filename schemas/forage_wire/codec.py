"""Bytes to messages and back: strict on input, bounded, driven by the messages' tables.

CBOR for work (`encode`, `decode`), JSON for what people read (`encode_json`, `decode_json`).
A decoder raises `DecodeError` alone: the peer's fault, to be counted and dropped.
"""

import json
from typing import Any, TypeVar

import cbor2

from forage_wire.errors import DecodeError
from forage_wire.fields import TASK
from forage_wire.limits import HEADER_BYTES_MAX, PACKET_BYTES_MAX
from forage_wire.messages import CBOR_MESSAGES, Header, Linked, Unusable
from forage_wire.reading import Unusual
from forage_wire.strict import load_plain
from forage_wire.table import table_of

__all__ = [
    "SharedHeader",
    "cut_calls",
    "decode",
    "decode_header",
    "decode_json",
    "encode",
    "encode_header",
    "encode_json",
    "join_calls",
]

_Message = TypeVar("_Message")

_TYPES = {message_class: code for code, message_class in CBOR_MESSAGES.items()}
_TABLES = {code: table_of(message_class) for code, message_class in CBOR_MESSAGES.items()}
_TABLES_BY_BYTES = {code.encode(): table for code, table in _TABLES.items()}
_BEYOND_LINK = {code: table.columns[5:] for code, table in _TABLES.items()}
"""What a message says beside the link's own five fields."""
_HEADER = table_of(Header)
_UNUSABLE = table_of(Unusable)

_KNOWN_MAX = 256
_KNOWN_BYTES_MAX = 1_024
_headers: dict[bytes, dict[str, Any]] = {}
"""Headers without their tasks -> their fields: so many at most, each of so many bytes."""

_dumps = cbor2.dumps
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode(
    message: Linked,
    *,
    session: str | None = None,
    controller: str | None = None,
    epoch: int | None = None,
    n: int = 0,
    seen: int = 0,
) -> bytes:
    """The CBOR of a message, with the link's fields set as given (else as the message has them).

    A link stamps each message as it goes out; giving the stamps here saves a copy of it.
    """
    code = _TYPES[type(message)]
    found: dict[str, Any] = {"t": code}
    # Not a loop over the link's fields: this runs for every message that goes out.
    if stamp := message.session if session is None else session:
        found["s"] = stamp
    if stamp := message.controller if controller is None else controller:
        found["c"] = stamp
    if number := message.epoch if epoch is None else epoch:
        found["e"] = number
    if number := n or message.n:
        found["n"] = number
    if number := seen or message.seen:
        found["q"] = number
    for name, key, _decode, encode_field, default in _BEYOND_LINK[code]:
        value = getattr(message, name)
        if value is default or value == default:
            continue
        found[key] = value if encode_field is None else encode_field(value)
    return _dumps(found)


def decode(payload: bytes, bytes_max: int = PACKET_BYTES_MAX) -> Linked:
    """The message in `payload`.

    Raises:
        DecodeError: It is too long, not plain CBOR in its one shortest form (see
            `forage_wire.strict`), of an unknown type, or a field is missing or wrong; but a
            numbered message of the latter kinds comes back as `Unusable`, for its link to count.
            Unknown keys are ignored and noted (`forage_wire.ignored`).
    """
    if len(payload) <= bytes_max:
        try:
            return _read(payload)
        except _NOT_SHORT:
            pass  # What is wrong with it, if anything is, is found by a closer look.
    return _decode_closely(payload, bytes_max)


_NOT_SHORT = (Unusual, DecodeError, KeyError, IndexError, ValueError, TypeError)


def _read(payload: bytes) -> Linked:
    """A message as `encode` writes it, its type first, in one pass."""
    if payload[1:3] != b"\x61t" or payload[3] < 0x60:
        raise Unusual
    end = payload[3] - 0x5C
    message: Linked
    message, end = _TABLES_BY_BYTES[payload[4:end]].read_fields(payload, end, payload[0] - 0xA1)
    if end != len(payload):
        raise Unusual
    return message


def _decode_closely(payload: bytes, bytes_max: int) -> Linked:
    raw = _load(payload, bytes_max)
    if type(raw) is not dict:
        raise DecodeError("not a map")
    code = raw.get("t")
    if type(code) is not str:
        raise DecodeError("it names no message type")
    table = _TABLES.get(code)
    if table is None:
        return _unusable(raw, f"unknown message type {code[:40]!r}")
    try:
        message: Linked = table.decode_map(raw)
    except ValueError as error:
        return _unusable(raw, f"{code}: {error}")
    return message


def _unusable(raw: dict[str, Any], reason: str) -> Unusable:
    try:
        message: Unusable = _UNUSABLE.decode_map({**raw, "reason": reason})
    except ValueError:
        raise DecodeError(reason) from None
    if message.n == 0:
        raise DecodeError(reason)
    return message


def encode_header(header: Header) -> bytes:
    """The CBOR of a page's header, as it is carried verbatim."""
    return _dumps(_HEADER.encode_map(header))


class SharedHeader:
    """What many headers have in common: that is looked through once, and not for each of them.

    Args:
        header: One of them, of replica 0.
    """

    __slots__ = ("_found",)

    def __init__(self, header: Header) -> None:
        self._found = _HEADER.encode_map(header)

    def encode(self, *, task: str, first: int, n: int, last: bool, replica: int = 0) -> bytes:
        """As `encode_header` of the header with these fields."""
        found = self._found | {"t": task, "i": first, "n": n, "l": last}
        if replica:
            found["ri"] = replica
        return _dumps(found)


def decode_header(data: bytes) -> Header:
    """A page's header; DecodeError as in `decode`.

    A client's headers differ in little but their tasks, and there may be thousands a second: what
    is around the task is read once.
    """
    head, text, end = _place_of_task(data)
    around = data[:head] + data[end:]
    known = _headers.get(around) if end else None
    try:
        if known is not None:
            return Header(**{**known, "task": TASK.decode(data[text:end].decode())})
        header: Header = _HEADER.decode_map(_load(data, HEADER_BYTES_MAX))
    except ValueError as error:
        raise DecodeError(f"header: {error}") from None
    # (Keys that nobody here knows are to be counted each time.)
    if end and len(data) <= _KNOWN_BYTES_MAX and encode_header(header) == data:
        if len(_headers) >= _KNOWN_MAX:
            _headers.clear()
        _headers[around] = {column[0]: getattr(header, column[0]) for column in _HEADER.columns}
    return header


def _place_of_task(data: bytes) -> tuple[int, int, int]:
    """Where, in a header as `encode_header` writes it, the task's head is, its text, and its end.

    All 0 where the header begins in another way: it is read as a whole then.
    """
    head = text = end = 0
    at = 1
    try:
        for key in (b"\x61u", b"\x61c", b"\x61t"):
            if data[at : at + 2] != key:
                return 0, 0, 0
            head = at + 2
            text = head + 1
            size = data[head] - 0x60
            if size == 24:
                size = data[text] if data[text] >= 24 else -1
                text += 1
            if not 0 <= size < 256 or data[head] > 0x78:
                return 0, 0, 0
            at = end = text + size
    except IndexError:
        return 0, 0, 0
    return (head, text, end) if end <= len(data) else (0, 0, 0)


def _load(payload: bytes, bytes_max: int) -> Any:
    if len(payload) > bytes_max:
        raise DecodeError(f"{len(payload)} bytes are above the limit of {bytes_max}")
    return load_plain(payload)


def cut_calls(calls: bytes) -> list[Any]:
    """A page's calls, one by one: each a byte string or [bytes, references, hints].

    Raises DecodeError where `calls` is not a CBOR array of those. The bytes stay unread.
    """
    raw = _load(calls, len(calls))
    if type(raw) is not list:
        raise DecodeError("calls: not an array")
    for call in raw:
        if type(call) is not bytes and not (
            type(call) is list and len(call) == 3 and type(call[0]) is bytes
        ):
            raise DecodeError("calls: an item is neither bytes nor [bytes, references, hints]")
    return raw


def join_calls(calls: list[Any]) -> bytes:
    """Calls as one byte string for a page or an assignment."""
    return _dumps(calls)


def encode_json(document: Any) -> bytes:
    """A text document as compact JSON, every field spelled out for those who read it."""
    table = table_of(type(document))
    found: dict[str, Any] = {}
    for name, key, _decode, encode_field, _default in table.columns:
        value = getattr(document, name)
        if value is None:
            continue
        found[key] = value if encode_field is None else encode_field(value)
    return _encode_json(found).encode()


def decode_json(payload: bytes, document_class: type[_Message]) -> _Message:
    """The document in `payload`; DecodeError where it is none of that class."""
    if len(payload) > PACKET_BYTES_MAX:
        raise DecodeError(f"{len(payload)} bytes are above the limit of {PACKET_BYTES_MAX}")
    try:
        raw = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {type(error).__name__}") from None
    try:
        document: _Message = table_of(document_class).decode_map(raw)
    except ValueError as error:
        raise DecodeError(f"{document_class.__name__}: {error}") from None
    return document
