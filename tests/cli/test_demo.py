"""`forage demo` and `forage up` as programs: what they show, and that nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cli.conftest import LIMIT_S, begin, descendants, finish, is_alive, wait_until_gone
from forage.cli.demo import _compare
from forage.cli.endings import Ending

FILES = "60"


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.mark.parametrize("engine", ["auto", pytest.param("embedded", marks=pytest.mark.slow)])
def test_the_demo_kills_a_device_and_ends_with_equal_reports(
    engine: str, own_temporary_folder: Path
) -> None:
    ended = finish(begin("demo", "--engine", engine, "--files", FILES))
    assert (ended.code, ended.err) == (0, "")
    out = ended.out
    assert re.search(rf"{FILES} files, [\d.]+ MB, to be measured by 3 devices", out)
    [(killed, pid)] = re.findall(r"SIGKILL to (device-\d) \(pid (\d+)\)", out)
    assert f"the controller declares {killed} dead" in out
    [done] = re.findall(rf"{FILES} of {FILES} files done in [\d.]+ s: (.*)", out)
    counts = {name: int(count) for count, name in re.findall(r"(\d+) by (device-\d)", done)}
    assert sum(counts.values()) == int(FILES)
    assert counts[killed] < int(FILES)
    # What it held was run by the others.
    [given] = re.findall(r"the work it held is given to others: (.*)", out)
    assert killed not in given
    assert "both reports are equal" in out
    assert [line.split()[:2] for line in out.splitlines()[-3:]] == [
        ["forage", "up"],
        ["forage", "run"],
        ["forage", "watch"],
    ]
    assert "\x1b" not in out
    # Nothing is left, neither processes nor files.
    assert not is_alive(int(pid))
    assert os.listdir(own_temporary_folder) == []


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_an_interrupted_demo_leaves_nothing_behind(
    number: signal.Signals, own_temporary_folder: Path
) -> None:
    process = begin("demo", "--engine", "embedded")
    try:
        assert process.stdout is not None
        while "ready at" not in (line := process.stdout.readline()):
            assert line, "the demo has ended"
        started = descendants(process.pid)
        assert len(started) >= 5
        process.send_signal(number)
        ended = finish(process)
    finally:
        process.kill()
        process.wait()
    wait_until_gone(started)
    if number == signal.SIGKILL:
        return
    assert ended.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert ended.err in ("forage: Interrupted.\n", "forage: Terminated.\n")
    assert os.listdir(own_temporary_folder) == []


def test_an_interrupted_comparison_leaves_nothing_behind(own_temporary_folder: Path) -> None:
    process = begin("demo", "--engine", "embedded", "--files", FILES)
    try:
        assert process.stdout is not None
        while "the same without forage" not in (line := process.stdout.readline()):
            assert line, "the demo has ended"
        started = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        ended = finish(process)
    finally:
        process.kill()
        process.wait()
    wait_until_gone(started)
    # A quick machine may have been done; whatever it was, it ended in order.
    assert ended.code in (0, 130)
    assert "Traceback" not in ended.err
    assert os.listdir(own_temporary_folder) == []


def test_reports_that_differ_end_the_demo_in_a_sentence() -> None:
    report = {"files": 3, "tokens": 10}
    _compare(report, dict(report))
    with pytest.raises(Ending, match="tokens 10 there, 11 here") as caught:
        _compare(report, {"files": 3, "tokens": 11})
    assert caught.value.exit_code == 1


def test_up_offers_commands_that_work_and_ends_with_ctrl_c(own_temporary_folder: Path) -> None:
    process = begin("up", "-n", "2", "--port", "0", "--engine", "embedded", "--root", "lab")
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline().rstrip())
            assert lines[-1] or len(lines) < 40, "it has ended"
        snippet = "\n".join(line[4:] for line in lines if line.startswith("    "))
        assert "export FORAGE_BROKER=mqtt://127.0.0.1:" in snippet
        assert "export FORAGE_ROOT=lab" in snippet
        # As pasted into a shell, with this Python's programs first on the path.
        script = f"forage() {{ '{sys.executable}' -m forage.cli \"$@\"; }}\npython3() {{ '{sys.executable}' \"$@\"; }}\n"
        done = subprocess.run(
            ["bash", "-c", script + snippet], capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.stderr == ""
        out = done.stdout.splitlines()
        assert out[0].startswith("NAME")
        assert out[-2:] == [
            "265252859812191058636308480000000",
            "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
        ]
        started = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        ended = finish(process)
    finally:
        process.kill()
        process.wait()
    assert ended.code == 130
    assert "All of it has ended." in ended.err
    wait_until_gone(started)
    assert os.listdir(own_temporary_folder) == []


def test_up_says_which_device_has_ended_and_ends_with_the_last_one() -> None:
    process = begin("up", "-n", "1", "--port", "0", "--engine", "embedded")
    try:
        assert process.stdout is not None
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line, "it has ended"
        [agent] = [
            pid
            for pid in descendants(process.pid)
            if "forage_agent\0--broker" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        os.kill(agent, signal.SIGKILL)
        ended = finish(process)
    finally:
        process.kill()
        process.wait()
    assert ended.code == 1
    assert "device-1 has ended (SIGKILL)" in ended.err
    assert ended.err.splitlines()[-1] == (
        "forage: All devices have ended; start anew with `forage up`."
    )


def test_a_port_that_is_taken_is_said() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = finish(begin("up", "-n", "1", "--port", port, "--engine", "embedded"))
    assert ended.code == 1
    assert f"port {port} on 127.0.0.1 is in use" in ended.err
    assert "Traceback" not in ended.err
