"""The memory that a worker and its agent share: whole words or none."""

import mmap

import pytest

from forage_agent.shell.shared_page import PAGE_BYTES, read_progress, write_progress
from forage_wire.running import PROGRESS_TEXT_MAX


@pytest.fixture
def page() -> mmap.mmap:
    return mmap.mmap(-1, PAGE_BYTES)


def test_nothing_said_is_nothing_read(page: mmap.mmap) -> None:
    assert read_progress(page) is None


@pytest.mark.parametrize("text", ["", "resizing", "größer", "\U0001f43f" * PROGRESS_TEXT_MAX])
def test_the_last_word_is_read(page: mmap.mmap, text: str) -> None:
    write_progress(page, 2**41, 7, 1, "x" * PROGRESS_TEXT_MAX)
    write_progress(page, 2**41 + 1, 8, 1_000, text)
    assert read_progress(page) == (2**41 + 1, 8, 1_000, text)


def test_a_text_that_utf_8_cannot_hold_is_shown_as_python_writes_it(page: mmap.mmap) -> None:
    write_progress(page, 1, 0, 0, "a\ud800")
    assert read_progress(page) == (1, 0, 0, "a\\ud800")


def test_a_word_that_is_half_written_is_not_read(page: mmap.mmap) -> None:
    write_progress(page, 2**41, 7, 400, "forty")
    at = page[:].index(b"forty")
    page[at : at + 5] = b"fifty"
    assert read_progress(page) is None


def test_whatever_is_in_the_page_is_no_error(page: mmap.mmap) -> None:
    for byte in (b"\xff", b"\x01", b"\x80"):
        page[:] = byte * PAGE_BYTES
        assert read_progress(page) is None
