"""Messages of the fleet as people read them: every branch, from bytes to a plain structure.

Pure: no connection, no terminal. Users' values are shown where CBOR holds them; a pickle is never
loaded here, for looking at a message must not run anybody's code.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from reprlib import Repr
from typing import Any

import cbor2

from forage_wire.codec import cut_calls, decode, decode_header, decode_json
from forage_wire.documents import JSON_DOCUMENTS
from forage_wire.errors import DecodeError
from forage_wire.messages import CBOR_MESSAGES, Assignment, Linked, OutcomeSet, Page, Part
from forage_wire.parts import PartAssembler
from forage_wire.topics import ParsedTopic, Topics
from forage_wire.values import KIND_CODE, KIND_PICKLE, decode_call, decode_outcome_item

__all__ = ["Reader", "Reading", "one_line", "read_payload"]

_CODES = {message_class: code for code, message_class in CBOR_MESSAGES.items()}
_LINK_FIELDS = ("session", "controller", "epoch")
_COUNTER_BITS = 40
"""Of an assignment's number, below its epoch."""
_NUMBER_BITS = 32
"""Of a message's number, below its link's."""
_CALLS_SHOWN = 8
"""Of a page, an assignment or a set of outcomes."""
_SENDERS_MAX = 64
"""Parted messages that are put together at a time."""
_PART_BYTES_MAX = 4 << 20
_CALL_BYTES_SHOWN = 256 * 1024
"""A call or outcome above this is shown by its size."""

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""A SHA-256; its beginning is enough to tell it from others on a line."""

_short = Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxtuple = _short.maxdict = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One message, readable."""

    topic: str
    """Without the fleet's prefix."""
    branch: str
    """As in `forage_wire.topics`; empty where the topic is none of ours."""
    kind: str
    """What it is, such as `assign`, `device-presence`, `log` or `cleared`."""
    content: Any
    """Its fields, or its text."""
    link: Mapping[str, Any] = field(default_factory=dict)
    """Whose it is: the sessions and the epoch of a message between two ends."""
    problem: str = ""
    """Why it cannot be read, where it cannot."""


class Reader:
    """Reads what arrives, message by message; puts parted ones together.

    Args:
        topics: Under the fleet's root.
    """

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._parts: dict[tuple[str, str], PartAssembler] = {}

    def read(self, topic: str, payload: bytes) -> Reading:
        """The message that `payload` on `topic` is; never raises."""
        parsed = self._topics.parse(topic)
        shown = topic.removeprefix(self._topics.prefix)
        if parsed is None:
            return Reading(
                topic=shown,
                branch="",
                kind="unknown",
                content=_bytes_or_text(payload),
                problem="not a topic of forage",
            )
        if not payload:
            return Reading(topic=shown, branch=parsed.branch, kind="cleared", content={})
        try:
            kind, content, link = self._read(parsed, topic, payload)
        except DecodeError as error:
            return Reading(
                topic=shown,
                branch=parsed.branch,
                kind="unreadable",
                content=_bytes_or_text(payload),
                problem=str(error),
            )
        return Reading(topic=shown, branch=parsed.branch, kind=kind, content=content, link=link)

    def _read(
        self, parsed: ParsedTopic, topic: str, payload: bytes
    ) -> tuple[str, Any, dict[str, Any]]:
        if parsed.branch == "log":
            return "log", payload.decode("utf-8", "replace"), {}
        if parsed.branch in JSON_DOCUMENTS:
            document: Any = decode_json(payload, JSON_DOCUMENTS[parsed.branch])
            return parsed.branch, _fields(document, keep_defaults=True), {}
        message = decode(payload)
        if isinstance(message, Part):
            whole = self._assembler(topic, message.session).add(message)
            if whole is not None:
                message = decode(whole, len(whole))
        return _CODES[type(message)], _fields(message), _link(message)

    def _assembler(self, topic: str, session: str) -> PartAssembler:
        found = self._parts.pop((topic, session), None)
        if found is None:
            found = PartAssembler(_PART_BYTES_MAX)
            if len(self._parts) >= _SENDERS_MAX:
                del self._parts[next(iter(self._parts))]
        self._parts[topic, session] = found
        return found


def read_payload(payload: bytes) -> tuple[str, Any]:
    """What bytes are, without a topic that would tell: (kind, content).

    Raises DecodeError where they are no message, document or header of forage.
    """
    if payload[:1] == b"{":
        for name, document_class in JSON_DOCUMENTS.items():
            try:
                document: Any = decode_json(payload, document_class)
            except DecodeError:
                continue
            return name, _fields(document, keep_defaults=True)
        raise DecodeError("JSON, but none of forage's documents")
    try:
        message = decode(payload, len(payload))
    except DecodeError as error:
        try:
            return "header", _fields(decode_header(payload))
        except DecodeError:
            raise error from None
    return _CODES[type(message)], {**_link(message), **_fields(message)}


# -- from messages to plain structures ----------------------------------------------------------


def _fields(message: Any, *, keep_defaults: bool = False) -> dict[str, Any]:
    """A message's fields by name; without those of the link and those at their defaults."""
    found: dict[str, Any] = {}
    for item in fields(message):
        value = getattr(message, item.name)
        if not keep_defaults and _is_default(item, value):
            continue
        if isinstance(message, Linked) and item.name in _LINK_FIELDS:
            continue
        found[item.name] = _shown(message, item.name, value)
    return found


def _is_default(item: Any, value: Any) -> bool:
    if item.default_factory is not MISSING:
        return bool(value == item.default_factory())
    return item.default is not MISSING and bool(value == item.default)


def _link(message: Linked) -> dict[str, Any]:
    return {name: getattr(message, name) for name in _LINK_FIELDS if getattr(message, name)}


def _shown(message: Any, name: str, value: Any) -> Any:
    """A field's value for people."""
    match message, name:
        case ((Page() | Assignment()), "header"):
            return _header(value)
        case ((Page() | Assignment()), "calls"):
            return _calls(value)
        case OutcomeSet(), "data":
            return _outcomes(value)
        case Linked(), ("n" | "seen") if value >> _NUMBER_BITS:
            # A later link of one pair of sessions counts anew, and says so in the upper bits.
            return f"{value >> _NUMBER_BITS}/{value & (1 << _NUMBER_BITS) - 1}"
        case _, "assignment":
            return _assignment(value)
        case _, "rows" | "assignments":
            return [_row(item) for item in value]
        case _, "body":
            return _answer(value)
        case _, "ranges" | "collected":
            return _ranges(value)
        case _, ("key" | "tag"):
            # The key tells true outcomes from false ones; what is shown is often pasted somewhere.
            return f"{len(value)} bytes"
    return _plain(value)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else f"{len(value)} bytes"
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _row(row: Any) -> Any:
    """A row of a message, or an item of a list of assignments, with its parts made readable."""
    if isinstance(row, list | tuple):
        return [_row(item) if not _is_ranges(item) else _ranges(item) for item in row]
    # Counts and indices are below 2**32, assignments' numbers above: their epoch is at least 1.
    if isinstance(row, int) and row >> _COUNTER_BITS:
        return _assignment(row)
    return _plain(row)


def _is_ranges(item: Any) -> bool:
    return isinstance(item, list | tuple) and all(isinstance(pair, list | tuple) for pair in item)


def _assignment(number: int) -> str:
    """An assignment's number is its controller's epoch, and a count."""
    return f"{number >> _COUNTER_BITS}:{number & ((1 << _COUNTER_BITS) - 1)}"


def _ranges(ranges: Any) -> str:
    return " ".join(str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in ranges)


def _header(data: bytes) -> Any:
    try:
        header = _fields(decode_header(data))
        # Its task's name begins with the client's, and a topic names the user.
        return {name: value for name, value in header.items() if name not in ("user", "client")}
    except DecodeError as error:
        return f"unreadable: {error}"


def _calls(data: bytes) -> Any:
    try:
        bodies = [body if isinstance(body, bytes) else body[0] for body in cut_calls(data)]
    except DecodeError as error:
        return f"unreadable: {error}"
    shown = [_call(body) for body in bodies[:_CALLS_SHOWN]]
    return shown + ([f"… {len(bodies) - len(shown)} more"] if len(bodies) > len(shown) else [])


def _call(body: bytes) -> str:
    """One call's arguments as they would be written in Python."""
    if len(body) > _CALL_BYTES_SHOWN:
        return f"{len(body)} bytes"
    kind = _pickled(_loaded(body))
    if kind:
        return kind
    try:
        args, kwargs = decode_call(body)
    except Exception as error:  # Users' bytes: whatever they are, the next message is to be shown.
        return f"unreadable: {error}"
    words = [_short.repr(value) for value in args]
    words += [f"{name}={_short.repr(value)}" for name, value in kwargs.items()]
    return f"({', '.join(words)})"


def _outcomes(data: bytes) -> Any:
    if len(data) > _CALL_BYTES_SHOWN:
        return f"{len(data)} bytes"
    items = _loaded(data)
    if not isinstance(items, list):
        return f"unreadable: {len(data)} bytes"
    shown = [_outcome(item) for item in items[:_CALLS_SHOWN]]
    return shown + ([f"… {len(items) - len(shown)} more"] if len(items) > len(shown) else [])


def _outcome(item: Any) -> str:
    kind = _pickled(item)
    if kind:
        return kind
    if isinstance(item, Mapping):
        name = item.get("reason") or item.get("type") or "error"
        return f"{name}: {_short.repr(item.get('message'))}"
    try:
        return _short.repr(decode_outcome_item(item).value)
    except Exception as error:  # As above.
        return f"unreadable: {error}"


def _loaded(data: bytes) -> Any:
    try:
        return cbor2.loads(data)
    except Exception:  # Hostile bytes make the library raise many things.
        return None


def _pickled(item: Any) -> str:
    """Words for a call or an outcome that is a pickle, which is not loaded here; else empty."""
    if isinstance(item, list) and len(item) > 1 and item[0] in (KIND_PICKLE, KIND_CODE):
        data = item[1] if isinstance(item[1], bytes) else b""
        return f"{'pickle' if item[0] == KIND_PICKLE else 'pickle with code'}, {len(data)} bytes"
    return ""


def _answer(data: bytes) -> str:
    return _short.repr(data.decode("utf-8", "replace"))


def _bytes_or_text(payload: bytes) -> str:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable():
        return _short.repr(text)
    return f"{len(payload)} bytes: {payload[:24].hex()}{'…' if len(payload) > 24 else ''}"


# -- one line -----------------------------------------------------------------------------------


def one_line(content: Any) -> str:
    """A structure on one line: `field=value field=value`, lists in brackets."""
    if isinstance(content, Mapping):
        return " ".join(f"{key}={_word(value)}" for key, value in content.items())
    return _word(content)


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + one_line(value) + "}" if value else "-"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_word(item) for item in value) + "]"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == "":
        return "''"
    return _HASH.sub(r"\1…", str(value))
