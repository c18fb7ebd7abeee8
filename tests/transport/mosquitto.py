"""A mosquitto of the test's own: a free loopback port, its own configuration, ended by its id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from forage_wire.address import BrokerAddress

__all__ = ["Mosquitto", "free_port", "mosquitto_program"]

START_TIMEOUT_S = 10.0


def mosquitto_program() -> str | None:
    """The path of mosquitto, also where only root's PATH would find it."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Mosquitto:
    """Start it with `start`; `kill` and `start` again give an empty broker on the same port."""

    def __init__(self, folder: Path, settings: Sequence[str] = ("allow_anonymous true",)) -> None:
        self.address = BrokerAddress(host="127.0.0.1", port=free_port())
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        configuration = self._folder / "mosquitto.conf"
        lines = [
            f"listener {self.address.port} 127.0.0.1",
            "set_tcp_nodelay true",
            "max_queued_messages 0",
            "persistence false",
            *self._settings,
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # Else it could not read the test's own folder.
        configuration.write_text("\n".join(lines) + "\n")
        program = mosquitto_program()
        assert program is not None
        self._process = subprocess.Popen(
            [program, "-c", str(configuration)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection((self.address.host, self.address.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, "mosquitto ended at its start"
                assert time.monotonic() < deadline, "mosquitto does not listen"
                time.sleep(0.01)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def kill(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
