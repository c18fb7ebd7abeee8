"""The filter of oversized packets, on streams cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forage_wire.shell.framing import OversizeFilter, Skipped
from transport.peer import publish_packet, with_length

LIMIT = 40


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, Skipped | None]:
    """One packet, and what the filter shall say of it (None: it passes)."""
    size = draw(st.one_of(st.integers(0, LIMIT), st.integers(100, 20_000)))
    if draw(st.booleans()) and size <= LIMIT:
        return with_length(draw(st.sampled_from([0x20, 0x40, 0x90, 0xD0])), bytes(size)), None
    topic = draw(st.text(alphabet="ab/é", max_size=5))
    qos = draw(st.sampled_from([0, 1]))
    packet = publish_packet(topic, bytes(size), qos=qos, message_id=size + 1)
    length = 2 + len(topic.encode()) + 2 * qos + size
    if length <= LIMIT:
        return packet, None
    return packet, Skipped(topic=topic, packet_bytes=length, message_id=size + 1 if qos else None)


@given(st.lists(packets(), max_size=8), st.data())
def test_only_oversized_messages_are_taken_out_wherever_the_stream_is_cut(
    sent: list[tuple[bytes, Skipped | None]], data: st.DataObject
) -> None:
    stream = b"".join(packet for packet, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    oversize = OversizeFilter(LIMIT)
    admitted = b"".join(
        oversize.admit(stream[low:high])
        for low, high in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    )
    assert admitted == b"".join(packet for packet, skipped in sent if skipped is None)
    assert oversize.skipped == [skipped for _, skipped in sent if skipped is not None]


def test_stream_without_oversized_packets_is_handed_on_without_a_copy() -> None:
    chunk = publish_packet("t", b"x" * 10) * 3 + publish_packet("t", b"y" * 10)[:5]
    assert OversizeFilter(LIMIT).admit(chunk) is chunk


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_pass_or_are_called_malformed(chunks: list[bytes]) -> None:
    oversize = OversizeFilter(LIMIT)
    admitted = 0
    for chunk in chunks:
        was_malformed = oversize.malformed is not None
        admitted_now = len(oversize.admit(chunk))
        assert not (was_malformed and admitted_now)
        admitted += admitted_now
    assert admitted <= sum(map(len, chunks))


@pytest.mark.parametrize(
    "stream",
    [
        b"\x30\xff\xff\xff\xff\x01",  # A length of five bytes.
        with_length(0x90, bytes(LIMIT + 1)),  # No message, and too long.
        with_length(0x30, b"\xff\xff" + bytes(LIMIT)),  # A topic longer than its packet.
    ],
)
def test_from_an_impossible_packet_on_nothing_is_admitted(stream: bytes) -> None:
    before = publish_packet("t", b"before")
    oversize = OversizeFilter(LIMIT)
    assert oversize.admit(before + stream) == before
    assert oversize.malformed
    assert oversize.admit(before) == b""
