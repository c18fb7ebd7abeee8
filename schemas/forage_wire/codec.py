"""Bytes to messages and back: strict on input, bounded, driven by the messages' tables.

CBOR for work (`encode`, `decode`), JSON for what people read (`encode_json`, `decode_json`).
A decoder raises `DecodeError` alone: the peer's fault, to be counted and dropped.
"""

import json
from typing import Any, TypeVar

import cbor2

from forage_wire.errors import DecodeError
from forage_wire.limits import HEADER_BYTES_MAX, PACKET_BYTES_MAX
from forage_wire.messages import CBOR_MESSAGES, Header, Linked, Unusable
from forage_wire.strict import load_plain
from forage_wire.table import table_of

__all__ = [
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
_HEADER = table_of(Header)
_UNUSABLE = table_of(Unusable)

_dumps = cbor2.dumps


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
    for name, key, _decode, encode_field, default in _TABLES[code].columns[5:]:
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


def decode_header(data: bytes) -> Header:
    """A page's header; DecodeError as in `decode`."""
    raw = _load(data, HEADER_BYTES_MAX)
    try:
        header: Header = _HEADER.decode_map(raw)
    except ValueError as error:
        raise DecodeError(f"header: {error}") from None
    return header


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
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


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
