"""Reconnect delays, the service manager's notifications, and what importing costs."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from forage_wire.shell.notify import Watchdog, sd_notify
from forage_wire.shell.reconnect import ReconnectDelay


class Highest:
    """A random source that always draws the upper bound."""

    def uniform(self, a: float, b: float, /) -> float:
        assert a == 0
        return b


def test_delays_grow_from_the_spread_to_their_limit_and_begin_anew_after_success() -> None:
    delay = ReconnectDelay(0.5, Highest())
    assert [delay.next_s() for _ in range(9)] == [0.5, 1, 1.5, 3, 6, 12, 24, 30, 30]
    delay.reset()
    delay.spread_s = 3.0
    assert [delay.next_s() for _ in range(3)] == [3.0, 3, 6]


@pytest.mark.parametrize("away_s", [0.3, 2.0, 5.0, 20.0, 600.0])
def test_nobody_waits_longer_after_the_broker_is_back_than_it_was_away(away_s: float) -> None:
    source = random.Random(3)
    after = []
    for _ in range(2_000):
        delay, waited_s = ReconnectDelay(0.5, source), 0.0
        while waited_s < away_s:
            waited_s += delay.next_s()
        after.append(waited_s - away_s)
    assert max(after) <= min(ReconnectDelay.LIMIT_S, max(1.0, away_s))


def test_a_fleet_comes_back_spread_over_the_whole_time() -> None:
    source = random.Random(7)
    firsts = [ReconnectDelay(2.0, source).next_s() for _ in range(1_000)]
    for quarter in range(4):
        low, high = quarter * 0.5, quarter * 0.5 + 0.5
        assert 150 < sum(low <= first < high for first in firsts) < 350


def test_delay_stays_bounded_after_a_very_long_absence() -> None:
    delay = ReconnectDelay(0.5, Highest())
    assert max(delay.next_s() for _ in range(5_000)) == ReconnectDelay.LIMIT_S


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_service_manager_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@forage-test-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if kind == "abstract" else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert sd_notify("READY=1\nSTATUS=here")
        manager.settimeout(10)
        assert manager.recv(100) == b"READY=1\nSTATUS=here"


@pytest.mark.parametrize("value", [None, "", "relative", "/no/such/socket"])
def test_no_service_manager_is_no_error(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert not sd_notify("READY=1")


def test_importing_the_connection_leaves_room_in_the_agents_budget_of_modules() -> None:
    program = (
        "import sys, forage_wire.shell.mqtt, forage_wire.shell.loop, forage_wire.shell.notify\n"
        "print(len(sys.modules), 'asyncio' in sys.modules, 'subprocess' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    count, asyncio, subprocess_module = ran.stdout.split()
    assert int(count) < 180
    assert (asyncio, subprocess_module) == ("False", "False")


@pytest.mark.parametrize(
    ("environment", "is_ours"),
    [
        ({}, False),
        ({"WATCHDOG_USEC": "200000"}, True),
        ({"WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
    ],
)
def test_a_watchdog_is_fed_where_it_watches_us(
    environment: dict[str, str], is_ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = Watchdog(environment)
    assert watchdog.due_ms() == (0 if is_ours else None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for now_ms in (1_000, 1_050, 1_099, 1_100):
            watchdog.feed(now_ms)
        heard = 0
        try:
            while manager.recv(100) == b"WATCHDOG=1":
                heard += 1
        except BlockingIOError:
            pass
    assert heard == (2 if is_ours else 0)
    assert watchdog.due_ms() == (1_200 if is_ours else None)
