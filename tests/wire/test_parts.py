"""Messages in parts: cut, shuffled, repeated, mixed up, and put together again."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forage_wire.codec import encode
from forage_wire.errors import DecodeError
from forage_wire.limits import (
    ENVELOPE_BYTES,
    PACKET_BYTES_MAX,
    PACKET_BYTES_MIN,
    PART_BYTES,
    PARTS_MAX,
    UNFINISHED_PART_BYTES_MAX,
)
from forage_wire.messages import Part
from forage_wire.parts import PartAssembler, cut_parts

LONGEST_SESSION = "0123456789abcdef-4294967295"


@given(
    st.integers(1, 5_000),
    st.sampled_from([PACKET_BYTES_MIN, 2_000, PACKET_BYTES_MAX]),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_parts_in_any_order_and_repeated_make_the_whole(
    size: int, packet_bytes_max: int, seed: int
) -> None:
    order = random.Random(seed)
    whole = order.randbytes(size)
    parts = cut_parts(whole, 7, packet_bytes_max)
    shuffled = [*parts, *order.choices(parts, k=3)]
    order.shuffle(shuffled)
    assembler = PartAssembler()
    found = [done for part in shuffled if (done := assembler.add(part)) is not None]
    # Repeats of a message that is whole already may begin it again, and even end it.
    assert found
    assert set(found) == {whole}


@given(st.integers(1, 300_000))
@settings(max_examples=20, deadline=None)
def test_every_part_fits_its_packet_and_its_limit(size: int) -> None:
    for packet_bytes_max in (PACKET_BYTES_MIN, 4_096, PACKET_BYTES_MAX):
        for part in cut_parts(b"x" * size, 2**40, packet_bytes_max):
            assert len(part.data) <= PART_BYTES
            stamped = encode(
                part,
                session=LONGEST_SESSION,
                controller=LONGEST_SESSION,
                epoch=2**23 - 1,
                n=2**63 - 1,
                seen=2**63 - 1,
            )
            assert len(stamped) <= packet_bytes_max


def test_the_largest_message_goes_in_the_smallest_packets() -> None:
    assert PARTS_MAX * (PACKET_BYTES_MIN - ENVELOPE_BYTES) >= UNFINISHED_PART_BYTES_MAX
    with pytest.raises(ValueError, match="above the limit"):
        cut_parts(bytes(UNFINISHED_PART_BYTES_MAX + 1), 1, PACKET_BYTES_MAX)


def test_a_part_of_another_message_drops_the_unfinished_one() -> None:
    first, second = b"1" * 1_500, b"2" * 1_500
    assembler = PartAssembler()
    early = cut_parts(first, 1, PACKET_BYTES_MIN)
    late = cut_parts(second, 2, PACKET_BYTES_MIN)
    assert assembler.add(early[0]) is None
    for part in late[:-1]:
        assert assembler.add(part) is None
    assert assembler.add(late[-1]) == second
    assert [assembler.add(part) for part in early] == [None, None, first]


def test_parts_with_a_wrong_digest_are_refused_and_forgotten() -> None:
    whole = b"x" * 1_000
    assembler = PartAssembler()
    first, second = cut_parts(whole, 1, PACKET_BYTES_MIN)
    assert assembler.add(first) is None
    with pytest.raises(DecodeError, match="digest"):
        assembler.add(Part(message=1, index=1, count=2, data=b"y" * len(second.data)))
    assert assembler.add(first) is None
    assert assembler.add(second) == whole


def test_parts_without_a_digest_are_refused() -> None:
    with pytest.raises(DecodeError, match="digest"):
        PartAssembler().add(Part(message=1, index=0, count=1, data=b"x"))


def test_an_index_at_its_count_is_refused() -> None:
    with pytest.raises(DecodeError, match="index"):
        PartAssembler().add(Part(message=1, index=2, count=2, data=b"x"))


def test_unfinished_parts_are_held_up_to_the_limit() -> None:
    assembler = PartAssembler(bytes_max=100)
    for index in range(2):
        assert assembler.add(Part(message=1, index=index, count=4, data=b"x" * 50)) is None
    with pytest.raises(DecodeError, match="limit"):
        assembler.add(Part(message=1, index=2, count=4, data=b"x"))
    whole = b"y" * 100
    digest = hashlib.sha256(whole).digest()
    assert assembler.add(Part(message=2, index=0, count=1, digest=digest, data=whole)) == whole
