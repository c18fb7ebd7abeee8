"""The log's lines, for people and for journald."""

import logging
from collections.abc import Iterator

import pytest

from forage_wire.shell.logs import start_logging


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """What pytest had set up is there again afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level


def test_lines_have_time_level_and_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    start_logging("info")
    logging.getLogger("some.place").info("hello task=%s", "t-1")
    logging.getLogger("some.place").debug("not this")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO some.place: hello task=t-1")


def test_journald_gets_the_priority_of_every_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    start_logging("debug")
    logging.getLogger("a").warning("one\ntwo")
    logging.getLogger("a").debug("three")
    assert capsys.readouterr().err.splitlines() == ["<4>a: one", "<4>two", "<7>a: three"]
