"""Running the command `forage`: in this process where that is enough, else as a program."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from forage import LocalCluster
from forage.cli import main

LIMIT_S = 60

JOBS = '''\
"""Functions for the tests of the terminal."""

import os
import signal
import sys
import threading
import time

import helpers


def double(x):
    return 2 * x


def greet(name="nobody", *, loud=False):
    text = f"hello {name}"
    return text.upper() if loud else text


def echo(*args, **kwargs):
    return [list(args), kwargs]


def by_helper(x):
    return helpers.triple(x)


def write(lines):
    for number in range(lines):
        print(f"line {number}")
    print("to stderr", file=sys.stderr)
    return lines


def fail(x):
    raise ValueError(f"no such thing: {x}")


def fail_if_odd(x):
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def give_lock():
    return threading.Lock()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path):
    print("waiting", flush=True)
    while not os.path.exists(path):
        time.sleep(0.01)
    return "found"


NUMBER = 17
'''


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr; there has to be one and no more."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("forage: ")


Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """Commands choose how much is logged, for their process; here others come after them."""
    logger = logging.getLogger("forage")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `jobs.py`, and none of this machine's settings."""
    for name in list(os.environ):
        if name.startswith("FORAGE_") or name in ("NO_COLOR", "CI"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "place"
    place.mkdir()
    (place / "jobs.py").write_text(JOBS)
    (place / "helpers.py").write_text("def triple(x):\n    return 3 * x\n")
    monkeypatch.chdir(place)
    # Commands put the folders of files that they load there.
    monkeypatch.setattr(sys, "path", list(sys.path))
    return place


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command in this process: `run("device", "ls")`."""
    before = set(sys.modules)

    def run_command(*words: str) -> Ended:
        capfd.readouterr()
        code = main(list(words))
        sys.stdout.flush()
        captured = capfd.readouterr()
        return Ended(code=code, out=captured.out, err=captured.err)

    yield run_command
    for name in {"jobs", "helpers"} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture
def broker(forage_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a fleet with two devices, where commands find it."""
    monkeypatch.setenv("FORAGE_BROKER", forage_cluster.broker_url)
    return forage_cluster.broker_url


def begin(*words: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    """Start a command as a program of its own, in a session of its own as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "forage.cli", *words],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> Ended:
    """Wait for its end."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    return Ended(code=process.returncode, out=out, err=err)


def descendants(pid: int) -> list[int]:
    """All that a process has started, and what these have; not those that lost their parent."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # No process, or one that has just ended.
    found = [pid]
    for parent in found:
        found.extend(child for child, its_parent in parents.items() if its_parent == parent)
    return found[1:]


def wait_until_gone(pids: list[int]) -> None:
    """Return when none of these processes runs any more."""
    deadline = time.monotonic() + LIMIT_S
    for pid in pids:
        while is_alive(pid):
            assert time.monotonic() < deadline, f"process {pid} is still there"
            time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
