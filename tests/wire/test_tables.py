"""The messages' tables, on which the codec relies."""

from typing import Annotated, Any

import cbor2
import pytest

from forage_wire import kinds, limits, records
from forage_wire.codec import decode, encode
from forage_wire.errors import DecodeError
from forage_wire.messages import Beat, Cancel, Linked, Query, Trim
from forage_wire.records import dataclass
from forage_wire.table import Table
from wire.fields import columns_of
from wire.strategies import DOCUMENT_CLASSES, MESSAGE_CLASSES, PART_CLASSES

EVERY_CLASS: list[Any] = [*MESSAGE_CLASSES, *PART_CLASSES, *DOCUMENT_CLASSES]
TASK = "0c4t2v9k1m7ab-2g"


@pytest.mark.parametrize("message_class", EVERY_CLASS)
def test_messages_are_declared_frozen_and_hold_nothing_else(message_class: type) -> None:
    # `forage_wire.records` makes a hash for what is declared frozen, and for nothing else.
    assert vars(message_class)["__hash__"] is not None
    assert vars(message_class)["__eq__"] is not None
    assert "__slots__" in vars(message_class)
    assert all(column.is_keyword for column in records.columns_of(message_class))


@pytest.mark.parametrize("message_class", MESSAGE_CLASSES)
def test_what_a_link_stamps_comes_first(message_class: type) -> None:
    """`encode` writes these itself and the other columns by the table."""
    assert [column.key for column in columns_of(message_class)[:5]] == ["s", "c", "e", "n", "q"]
    assert issubclass(message_class, Linked)


@pytest.mark.parametrize("message_class", [*MESSAGE_CLASSES, *PART_CLASSES])
def test_keys_of_envelopes_are_short(message_class: type) -> None:
    keys = [column.key for column in columns_of(message_class)]
    assert max(map(len, keys)) <= 2
    assert message_class in PART_CLASSES or "t" not in keys


def test_a_class_that_uses_a_key_twice_is_a_mistake() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Twice:
        one: Annotated[int, "a", kinds.unsigned()] = 0
        two: Annotated[int, "a", kinds.unsigned()] = 0

    with pytest.raises(AssertionError, match="twice"):
        Table(Twice)


def test_a_field_without_key_and_kind_is_a_mistake() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Plain:
        one: int = 0

    with pytest.raises(AssertionError, match="Annotated"):
        Table(Plain)


def test_fields_at_their_default_are_left_out() -> None:
    assert cbor2.loads(encode(Cancel(task=TASK, ranges=()))) == {"t": "cancel", "k": TASK, "r": []}
    assert cbor2.loads(encode(Query(id=0, what="tasks"))) == {"t": "query", "i": 0, "w": "tasks"}
    assert encode(Beat()) == b"\xa1\x61t\x64beat"


def test_stamps_given_to_the_encoder_win_over_the_message() -> None:
    own = Beat(session="0123456789abcdef-1", controller="0123456789abcdef-2", epoch=1, n=2, seen=3)
    stamped = decode(encode(own, session="", controller="0123456789abcdef-9", epoch=8, n=7, seen=6))
    assert stamped == Beat(controller="0123456789abcdef-9", epoch=8, n=7, seen=6)
    assert decode(encode(own)) == own


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({"t": "released"}, "released: k: missing"),
        ({"t": "released", "k": ["?"]}, "released: k: not a task id"),
        ({"t": "trim", "r": [[1, 2], [1, "x"]]}, "trim: r: not an integer"),
        ({"t": "outcomes", "o": [{"k": TASK, "r": [], "d": b"", "g": b"x"}]}, "outcomes: o: g: "),
    ],
)
def test_errors_name_the_message_and_the_key(raw: dict[str, Any], where: str) -> None:
    with pytest.raises(DecodeError, match=f"^{where}"):
        decode(cbor2.dumps(raw))


def test_messages_are_equal_by_what_they_say() -> None:
    assert Trim(rows=((1, 2),)) == Trim(rows=((1, 2),))
    assert Trim(rows=((1, 2),)) != Trim(rows=((1, 3),))


def test_limits_agree_with_each_other() -> None:
    assert limits.PACKET_BYTES_MIN >= limits.ENVELOPE_BYTES + 512
    assert limits.PART_BYTES + limits.ENVELOPE_BYTES <= limits.PACKET_BYTES_MAX
    assert limits.CALL_BYTES_MAX < limits.UNFINISHED_PART_BYTES_MAX
    assert max(limits.DEVICE_WINDOW, limits.CLIENT_WINDOW) <= limits.REORDER_MAX
    assert limits.BARE_SEEN_AFTER_MS < limits.REPEAT_AFTER_MS <= limits.REPEAT_AFTER_MS_MAX
    assert limits.CALLS_PER_SUBMIT_TASK_MAX <= limits.CALLS_PER_PAGE_MAX
    # A page with a range between any two of its calls still makes a valid list.
    assert limits.CALLS_PER_PAGE_MAX // 2 <= limits.RANGES_MAX
