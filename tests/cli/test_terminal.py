"""What a terminal is shown: pictures that move, colours, and plain lines for those who ask for them."""

import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from cli.conftest import LIMIT_S
from forage import LocalCluster

SIZE = (40, 110)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown(*words: str, **environment: str) -> tuple[int, str]:
    """Run a command on a terminal of its own: its exit code, and all that it wrote there."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, SIZE)
    process = subprocess.Popen(
        [sys.executable, "-m", "forage.cli", *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", **environment},
        start_new_session=True,
    )
    os.close(slave)
    chunks: list[bytes] = []
    try:
        while True:
            try:
                chunk = os.read(master, 65_536)
            except OSError:
                break  # Linux's way to say that nobody has the other end any more.
            if not chunk:
                break
            chunks.append(chunk)
        return process.wait(LIMIT_S), b"".join(chunks).decode()
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_the_demo_shows_a_picture_of_the_fleet() -> None:
    code, text = shown("demo", "--files", "40")
    assert code == 0
    plain = ESCAPE.sub("", text)
    assert "device" in plain
    assert "files done" in plain
    assert re.search(r"━+ +40 of 40", plain)
    assert re.search(r"SIGKILL to device-\d \(pid \d+\) in the middle of its work", plain)
    assert "both reports are equal" in plain
    # Red for the blow.
    assert re.search(r"\x1b\[[0-9;]*31m[^\x1b]*SIGKILL", text)
    # The cursor is given back.
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_who_wants_no_colours_gets_lines(
    variable: str, broker: str, forage_cluster: LocalCluster
) -> None:
    code, text = shown("run", "jobs.py:write", "2", **{variable: "1"})
    assert code == 0
    assert sorted(text.split("\r\n")) == ["", "2", "line 0", "line 1", "to stderr"]


def test_an_error_is_red_on_a_terminal_and_not_where_nobody_wants_that() -> None:
    code, text = shown("run", "nofile.py:main")
    assert code == 2
    assert text.startswith("\x1b[31m\x1b[1mforage: \x1b[0mThe file nofile.py does not exist")
    code, text = shown("run", "nofile.py:main", NO_COLOR="1")
    assert text.startswith("forage: The file nofile.py does not exist")


def test_a_call_on_its_way_is_shown_and_then_taken_away(broker: str) -> None:
    code, text = shown("run", "jobs.py:write", "3")
    assert code == 0
    plain = [line.strip() for line in ESCAPE.sub("", text).replace("\r", "\n").split("\n")]
    for line in ("line 0", "line 1", "line 2", "to stderr"):
        assert plain.count(line) == 1
    assert [line for line in plain if line][-1] == "3"
