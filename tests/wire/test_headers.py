"""Headers are read by what is around their tasks: with no other result than if each were new."""

from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forage_wire import codec
from forage_wire.codec import decode_header, encode_header
from forage_wire.errors import DecodeError
from forage_wire.ignored import KEYS_IGNORED
from forage_wire.messages import Header, Options
from forage_wire.records import replace
from wire.strategies import instances

CLIENT = "0" * 13
PLAIN = Header(
    user="bob",
    client=CLIENT,
    task=f"{CLIENT}-1",
    function=b"\x07" * 32,
    form="source",
    options=Options(retries=2),
    first=0,
    n=1,
    last=True,
)


def read(data: bytes) -> object:
    try:
        return decode_header(data)
    except DecodeError:
        return DecodeError


def read_anew(data: bytes) -> object:
    """As by somebody who has never read a header."""
    known = codec._headers.copy()
    codec._headers.clear()
    try:
        return read(data)
    finally:
        codec._headers.clear()
        codec._headers.update(known)


@pytest.mark.parametrize("user", ["b", "b" * 23, "b" * 24, "b" * 32])
@pytest.mark.parametrize("counter", ["2", "v" * 9, "v" * 10, "v" * 13])
def test_a_header_that_differs_in_its_task_is_that_header_with_the_task(
    user: str, counter: str
) -> None:
    first = replace(PLAIN, user=user)
    other = replace(first, task=f"{CLIENT}-{counter}")
    assert decode_header(encode_header(first)) == first
    assert decode_header(encode_header(other)) == other
    assert decode_header(encode_header(first)) == first


@given(header=instances(Header), others=st.lists(instances(Header), max_size=3))
@settings(max_examples=60, deadline=None)
def test_every_header_is_read_as_if_it_were_the_first(header: Header, others: list[Header]) -> None:
    for each in [*others, header]:
        for task in (each.task, f"{CLIENT}-5", header.task):
            data = encode_header(replace(each, task=task))
            assert read(data) == read_anew(data)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_broken_header_beside_a_known_one_is_refused_as_ever(data: st.DataObject) -> None:
    whole = encode_header(PLAIN)
    assert decode_header(whole) == PLAIN
    at = data.draw(st.integers(0, 48))
    end = data.draw(st.integers(at, at + 3))
    broken = whole[:at] + data.draw(st.binary(max_size=3)) + whole[end:]
    assert read(broken) == read_anew(broken)


@pytest.mark.parametrize(
    "task", ["", "x", f"{CLIENT}-", f"{CLIENT}-W", f"{CLIENT}_1", f"{CLIENT}-" + "1" * 14]
)
def test_a_task_that_is_none_is_refused_in_a_header_that_is_known(task: str) -> None:
    decode_header(encode_header(PLAIN))
    with pytest.raises(DecodeError):
        decode_header(encode_header(replace(PLAIN, task=task)))


def test_a_task_with_a_longer_head_than_need_be_is_refused() -> None:
    data = encode_header(PLAIN)
    text = PLAIN.task.encode()
    assert data.count(bytes((0x60 + len(text),)) + text) == 1
    longer = data.replace(bytes((0x60 + len(text),)) + text, bytes((0x78, len(text))) + text)
    decode_header(data)
    with pytest.raises(DecodeError):
        decode_header(longer)


def test_a_key_that_nobody_knows_is_counted_each_time() -> None:
    raw: dict[str, Any] = {**cbor2.loads(encode_header(PLAIN)), "zz": 1}
    KEYS_IGNORED.clear()
    for _ in range(3):
        assert decode_header(cbor2.dumps(raw)) == PLAIN
    assert KEYS_IGNORED == {"Header.zz": 3}
    KEYS_IGNORED.clear()


def test_no_more_headers_are_known_than_there_is_room_for() -> None:
    for number in range(1_000):
        decode_header(encode_header(replace(PLAIN, label=str(number))))
    assert len(codec._headers) <= 256
