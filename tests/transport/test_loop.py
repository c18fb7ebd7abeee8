"""The selector loop and its wake-up."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator

import pytest

from forage_wire.shell.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_wake_from_another_thread_ends_an_endless_poll(loop: Loop) -> None:
    thread = threading.Thread(target=loop.wake)
    thread.start()
    loop.poll(None)
    thread.join()


def test_no_wake_is_lost_between_a_poll_and_the_owners_look_at_its_queue(loop: Loop) -> None:
    """Whatever was queued before its `wake` is seen by a look after some `poll`."""
    count = 20_000
    queued: list[int] = []

    def produce() -> None:
        for number in range(count):
            queued.append(number)
            loop.wake()

    thread = threading.Thread(target=produce)
    thread.start()
    while len(queued) < count:
        loop.poll(None)
    thread.join()


def test_many_wakes_are_one(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    for _ in range(100_000):  # More than the pipe holds.
        loop.wake()
    loop.poll(None)
    calls: list[str] = []
    loop.register(pair[0], lambda: calls.append("read"))
    pair[1].send(b"x")
    loop.poll(None)
    assert calls == ["read"]


def test_ready_thing_is_called_and_a_silent_one_is_not(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    calls: list[str] = []
    loop.register(pair[0], lambda: calls.append("one"))
    loop.register(pair[1], lambda: calls.append("other"))
    loop.poll(0)
    assert calls == []
    pair[1].send(b"x")
    loop.poll(None)
    assert calls == ["one"]


def test_registering_again_replaces_callback_and_events(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    calls: list[str] = []
    loop.register(pair[0], lambda: calls.append("read"))
    loop.register(pair[0], lambda: calls.append("write"), events=selectors.EVENT_WRITE)
    loop.poll(None)
    assert calls == ["write"]


def test_thing_unregistered_by_an_earlier_callback_of_the_turn_is_not_called(loop: Loop) -> None:
    calls: list[str] = []
    pairs = [socket.socketpair() for _ in range(2)]

    def first_come() -> None:
        calls.append("called")
        for near, _ in pairs:
            loop.unregister(near)

    for near, far in pairs:
        loop.register(near, first_come)
        far.send(b"x")
    loop.poll(None)
    loop.poll(0)
    assert calls == ["called"]
    for near, far in pairs:
        near.close()
        far.close()


def test_unregistering_the_unknown_is_no_error(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    loop.unregister(pair[0])
