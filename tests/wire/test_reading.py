"""The short way from bytes to a message accepts nothing else, and finds nothing else, than the long."""

from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forage_wire import codec
from forage_wire.codec import decode, encode
from forage_wire.errors import DecodeError
from forage_wire.limits import PACKET_BYTES_MAX
from forage_wire.messages import (
    Acknowledge,
    Acknowledged,
    Assign,
    Assignment,
    Collected,
    Outcomes,
    OutcomeSet,
    Page,
    Released,
    Seen,
    Submit,
    Unusable,
)
from wire.strategies import MESSAGE_CLASSES, instances

TASK = "0" * 13 + "-1"
STAMPS: dict[str, Any] = {
    "session": "a" * 16 + "-1",
    "controller": "b" * 16 + "-1",
    "n": 2**32 + 7,
    "seen": 2**32 + 300,
}
EVERYDAY = [
    Submit(pages=(Page(header=b"h" * 90, calls=b"\x81\x41x", key=b"k" * 16),) * 3),
    Assign(
        assignments=(
            Assignment(
                assignment=2**40 + 1,
                header=b"h" * 300,
                low=0,
                high=4_096,
                beat_ms=125,
                tag=b"t" * 16,
                calls=b"c" * 70_000,
            ),
        )
    ),
    Outcomes(
        sets=(
            OutcomeSet(
                task=TASK,
                assignment=2**40 + 1,
                high=30,
                tag=b"t" * 16,
                ranges=((0, 1), (20, 30)),
                errors=((0, "error", True),),
                run_us=70_000,
                data=b"\x80",
            ),
        )
    ),
    Acknowledge(rows=((2**40 + 1, ((0, 1),)),)),
    Acknowledged(rows=((TASK, 4_096),)),
    Collected(rows=((TASK, ((0, 1), (2, 2**32))),)),
    Released(tasks=(TASK,)),
    Seen(),
    Seen(gap=True),
]


def short(payload: bytes) -> object:
    """What the short way finds; None where it gives up."""
    try:
        return codec._read(payload)
    except codec._NOT_SHORT:
        return None


def long(payload: bytes) -> object:
    try:
        return codec._decode_closely(payload, PACKET_BYTES_MAX * 64)
    except DecodeError:
        return DecodeError


def check(payload: bytes) -> None:
    found = short(payload)
    if found is not None:
        assert found == long(payload)
        assert not isinstance(found, Unusable)


@pytest.mark.parametrize("message", EVERYDAY, ids=lambda message: type(message).__name__)
def test_what_is_said_all_day_goes_the_short_way(message: Any) -> None:
    payload = encode(message, **STAMPS)
    assert short(payload) == long(payload) == decode(payload)


@given(message=st.one_of([instances(message_class) for message_class in MESSAGE_CLASSES]))
@settings(max_examples=300, deadline=None)
def test_both_ways_find_the_same_in_any_message(message: Any) -> None:
    payload = encode(message)
    check(payload)
    assert decode(payload) == long(payload)


@given(
    message=st.one_of(
        st.sampled_from(EVERYDAY),
        st.one_of([instances(message_class) for message_class in MESSAGE_CLASSES]),
    ),
    data=st.data(),
)
@settings(max_examples=1_500, deadline=None)
def test_what_is_broken_is_accepted_by_both_or_by_neither(
    message: Any, data: st.DataObject
) -> None:
    payload = encode(message, **STAMPS)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(payload), 150)))
        end = data.draw(st.integers(at, min(len(payload), at + 4)))
        payload = payload[:at] + data.draw(st.binary(max_size=4)) + payload[end:]
    check(payload)


@given(message=st.sampled_from(EVERYDAY[2:]))
@settings(max_examples=20, deadline=None)
def test_a_message_that_ends_too_early_or_too_late_is_not_taken_the_short_way(message: Any) -> None:
    payload = encode(message, **STAMPS)
    for end in range(len(payload)):
        assert short(payload[:end]) is None
    assert short(payload + b"\x00") is None


@pytest.mark.parametrize(
    "change",
    [
        {"zz": 1},
        {"s": "A" * 16 + "-1"},
        {"n": 2**63},
        {"n": -1},
        {"n": True},
        {"q": 1.5},
        {"k": None},
    ],
    ids=str,
)
def test_what_is_wrong_or_unknown_is_left_to_the_long_way(change: dict[str, Any]) -> None:
    raw: dict[str, Any] = cbor2.loads(encode(Seen(), **STAMPS))
    assert short(cbor2.dumps(raw)) is not None
    assert short(cbor2.dumps(raw | change)) is None


def test_a_key_that_stands_twice_is_left_to_the_long_way() -> None:
    payload = encode(Seen(), session=STAMPS["session"], seen=5)
    twice = bytes((payload[0] + 1,)) + payload[1:] + b"\x61q\x05"
    assert short(twice) is None
    with pytest.raises(DecodeError):
        decode(twice)
