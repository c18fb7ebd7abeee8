"""Packets of an inbound stream that is cut anywhere, and packets as we write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forage_wire.shell.framing import (
    MalformedError,
    Packet,
    PacketReader,
    Skipped,
    length_bytes,
    parse_publish,
    publish_packet,
)
from transport import peer
from transport.peer import with_length

LIMIT = 200


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, Packet | Skipped]:
    """One packet as it travels, and what the reader shall make of it."""
    size = draw(st.one_of(st.integers(0, LIMIT), st.integers(LIMIT, 20_000)))
    if draw(st.booleans()) and size <= LIMIT:
        first = draw(st.sampled_from([0x20, 0x40, 0x90, 0xD0]))
        body = draw(st.binary(min_size=size, max_size=size))
        return with_length(first, body), (first, body)
    topic = draw(st.text(alphabet="ab/é", max_size=5))
    qos = draw(st.sampled_from([0, 1]))
    packet = peer.publish_packet(topic, bytes(size), qos=qos, message_id=size + 1)
    length = 2 + len(topic.encode()) + 2 * qos + size
    if length <= LIMIT:
        return packet, (packet[0], packet[-length:])
    return packet, Skipped(topic=topic, packet_bytes=length, message_id=size + 1 if qos else None)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    """A stream in pieces."""
    places = zip([0, *cuts], [*cuts, len(stream)], strict=True)
    return [stream[low:high] for low, high in places]


@given(st.lists(packets(), max_size=8), st.data())
def test_a_stream_gives_the_same_packets_wherever_it_is_cut(
    sent: list[tuple[bytes, Packet | Skipped]], data: st.DataObject
) -> None:
    stream = b"".join(packet for packet, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = PacketReader(LIMIT)
    read = [packet for chunk in cut(stream, cuts) for packet in reader.feed(chunk)]
    assert read == [expected for _, expected in sent]
    assert reader.malformed is None


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_are_read_or_called_malformed_alike_wherever_they_are_cut(
    chunks: list[bytes],
) -> None:
    pieces, whole = PacketReader(LIMIT), PacketReader(LIMIT)
    read = [packet for chunk in chunks for packet in pieces.feed(chunk)]
    assert read == whole.feed(b"".join(chunks))
    assert pieces.malformed == whole.malformed
    if pieces.malformed is not None:
        assert pieces.feed(b"\xd0\x00") == []


@pytest.mark.parametrize(
    "stream",
    [
        b"\x30\xff\xff\xff\xff\x01",  # A length of five bytes.
        with_length(0x90, bytes(LIMIT + 1)),  # No message, and too long.
        with_length(0x30, b"\xff\xff" + bytes(LIMIT)),  # A topic longer than its packet.
    ],
)
def test_from_an_impossible_packet_on_nothing_is_read(stream: bytes) -> None:
    before = peer.publish_packet("t", b"before")
    reader = PacketReader(LIMIT)
    assert reader.feed(before + stream) == [(before[0], before[2:])]
    assert reader.malformed
    assert reader.feed(before) == []


@given(
    st.text(alphabet="ab/é", max_size=200),
    st.binary(max_size=300),
    st.sampled_from([0, 1]),
    st.booleans(),
    st.integers(1, 65_535),
)
def test_what_is_written_is_what_another_writes_and_what_is_read(
    topic: str, payload: bytes, qos: int, retain: bool, message_id: int
) -> None:
    packet = publish_packet(topic.encode(), payload, qos=qos, retain=retain, message_id=message_id)
    assert packet == peer.publish_packet(
        topic, payload, qos=qos, retain=retain, message_id=message_id
    )
    ((first, body),) = PacketReader(LIMIT * 10).feed(packet)
    assert bool(first & 1) == retain
    assert parse_publish(first, body) == (topic, payload, message_id if qos else None)


@pytest.mark.parametrize(
    ("length", "written"),
    # The table of MQTT 3.1.1, section 2.2.3.
    [
        (0, b"\x00"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_151, b"\xff\xff\x7f"),
        (2_097_152, b"\x80\x80\x80\x01"),
        (268_435_455, b"\xff\xff\xff\x7f"),
    ],
)
def test_lengths_are_written_as_the_standard_says(length: int, written: bytes) -> None:
    assert bytes(length_bytes(length)) == written


def test_what_mqtt_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="65,535"):
        publish_packet(bytes(65_536), b"", qos=1, retain=False, message_id=1)
    with pytest.raises(ValueError, match="256 MiB"):
        length_bytes(268_435_456)


@pytest.mark.parametrize(
    ("first", "body"),
    [
        (0x30, b""),
        (0x30, b"\x00\x02t"),
        (0x32, b"\x00\x01t\x00"),  # No room for a message id.
        (0x34, b"\x00\x01t\x00\x01"),  # QoS 2.
        (0x36, b"\x00\x01t\x00\x01"),  # QoS 3.
    ],
)
def test_an_impossible_message_is_malformed(first: int, body: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_publish(first, body)


def test_a_topic_that_is_no_text_is_nobodys() -> None:
    assert parse_publish(0x30, b"\x00\x02\xff\xfex") == ("\ufffd", b"x", None)
