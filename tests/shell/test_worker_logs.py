"""Workers' output as lines: whose they are, how long, how many."""

import os
from collections.abc import Iterator

import pytest

from forage_agent.shell.logs import LINES_PER_S_MAX, LogReader, Row
from forage_agent.shell.marks import END_MARK, mark
from forage_wire.limits import LOG_LINE_BYTES_MAX


class Pipe:
    """A reader and the end to write to."""

    def __init__(self) -> None:
        descriptor, self.write_end = os.pipe()
        os.set_blocking(descriptor, False)
        self.reader = LogReader(descriptor, "out")

    def lines(self, data: bytes | str, now_ms: int = 0) -> list[Row]:
        os.write(self.write_end, data.encode() if isinstance(data, str) else data)
        return self.reader.read(now_ms) or []

    def close_writer(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_writer()
        os.close(self.reader.descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    found = Pipe()
    yield found
    found.close()


def test_lines_come_when_they_are_complete(pipe: Pipe) -> None:
    assert pipe.lines("one\ntw") == [(0, 0, "out", "one")]
    assert pipe.lines("o\n\nthree\r\n") == [
        (0, 0, "out", "two"),
        (0, 0, "out", ""),
        (0, 0, "out", "three"),
    ]
    assert pipe.reader.read(0) == []


def test_marks_say_whose_lines_follow(pipe: Pipe) -> None:
    text = f"before\n{mark(7, 1)}first\n{END_MARK}{mark(7, 2)}no end{END_MARK}after\n"
    assert pipe.lines(text) == [
        (0, 0, "out", "before"),
        (7, 1, "out", "first"),
        (7, 2, "out", "no end"),
        (0, 0, "out", "after"),
    ]


def test_mark_in_pieces_is_understood(pipe: Pipe) -> None:
    found = [row for piece in f"{mark(12, 34)}text\n" for row in pipe.lines(piece)]
    assert found == [(12, 34, "out", "text")]


def test_nul_of_a_task_is_text_not_a_mark(pipe: Pipe) -> None:
    assert pipe.lines(b"\0hello\nworld\n") == [(0, 0, "out", "hello"), (0, 0, "out", "world")]


def test_bytes_that_are_no_text_are_replaced(pipe: Pipe) -> None:
    assert pipe.lines(b"\xff\xfe\n") == [(0, 0, "out", "\ufffd\ufffd")]


def test_long_line_is_cut_and_says_so(pipe: Pipe) -> None:
    rows = pipe.lines("x" * 20_000) + pipe.lines("y" * 20_000 + "\nnext\n")
    assert [row[3] for row in rows][1:] == ["next"]
    assert len(rows[0][3]) == LOG_LINE_BYTES_MAX
    assert rows[0][3].endswith("(cut: the line is longer)")


def test_too_many_lines_in_a_second_are_dropped_and_counted(pipe: Pipe) -> None:
    rows: list[Row] = []
    for _ in range(30):
        rows += pipe.lines("line\n" * 100, now_ms=500)
    assert len(rows) == LINES_PER_S_MAX
    later = pipe.lines("again\n", now_ms=1_500)
    assert [row[3] for row in later] == [
        f"... {3_000 - LINES_PER_S_MAX} lines dropped: more than a log can carry",
        "again",
    ]


def test_end_brings_the_last_line_though_it_has_no_newline(pipe: Pipe) -> None:
    os.write(pipe.write_end, b"a\nb")
    pipe.close_writer()
    assert [row[3] for row in pipe.reader.finish(0)] == ["a", "b"]
    assert pipe.reader.read(0) is None
