"""Slice tags: a device answers for what it was given, and for nothing else."""

from hypothesis import given, settings
from hypothesis import strategies as st

from forage_wire.tags import slice_tag, slice_tag_valid

KEY = bytes(range(16))
GIVEN = ("0c4t2v9k1m7ab-2g", 3 * 2**40 + 17, 0, 2, "pi-1")


def test_the_tag_of_what_was_given_is_valid() -> None:
    tag = slice_tag(KEY, *GIVEN)
    assert len(tag) == 16
    assert slice_tag_valid(tag, KEY, *GIVEN)


def test_no_other_slice_task_device_or_key_has_it() -> None:
    tag = slice_tag(KEY, *GIVEN)
    task, assignment, low, high, device = GIVEN
    for other in (
        (task + "0", assignment, low, high, device),
        (task, assignment + 1, low, high, device),
        (task, assignment, low + 1, high, device),
        (task, assignment, low, high + 1, device),
        (task, assignment, low, high, device + "1"),
    ):
        assert not slice_tag_valid(tag, KEY, *other)
    assert not slice_tag_valid(tag, b"\xff" * 16, *GIVEN)


@given(st.binary(max_size=20))
@settings(max_examples=50, deadline=None)
def test_other_bytes_of_any_length_are_no_tag(tag: bytes) -> None:
    assert slice_tag_valid(tag, KEY, *GIVEN) == (tag == slice_tag(KEY, *GIVEN))
