"""Selectors that are no files, as on Windows: the loop around them watches what they list."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator

import pytest

from forage_wire.shell.loop import Loop
from forage_wire.shell.nesting import ListedSelector

READ = selectors.EVENT_READ


class Owner:
    """Has a selector inside the loop's, as a connection has."""

    def __init__(self) -> None:
        self.selector = ListedSelector()
        self.turns = 0

    def fileno(self) -> int:
        return self.selector.fileno()

    def turn(self) -> None:
        self.turns += 1


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.selector.close()


@pytest.fixture
def loop(owner: Owner) -> Iterator[Loop]:
    loop = Loop()
    loop.register(owner, owner.turn)
    loop.poll(0)
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_what_the_owner_lists_is_watched_until_it_is_taken_off(
    loop: Loop, owner: Owner, pair: tuple[socket.socket, socket.socket]
) -> None:
    owner.selector.register(pair[0], READ)
    pair[1].send(b"x")
    loop.poll(None)
    assert owner.turns == 1
    owner.selector.unregister(pair[0])
    loop.poll(0)
    assert owner.turns == 1


def test_a_change_by_another_thread_reaches_a_loop_that_sleeps(
    loop: Loop, owner: Owner, pair: tuple[socket.socket, socket.socket]
) -> None:
    owner.selector.register(pair[0], READ)
    loop.poll(0)

    def wait_for_room() -> None:
        owner.selector.modify(pair[0], READ | selectors.EVENT_WRITE)

    thread = threading.Thread(target=wait_for_room)
    thread.start()
    while owner.turns == 0:
        loop.poll(None)
    thread.join()


def test_an_owner_that_is_forgotten_is_left_alone(
    loop: Loop, owner: Owner, pair: tuple[socket.socket, socket.socket]
) -> None:
    owner.selector.register(pair[0], READ)
    loop.poll(0)
    loop.unregister(owner)
    pair[1].send(b"x")
    loop.poll(0)
    assert owner.turns == 0


def test_a_descriptor_that_is_used_again_is_watched_for_its_new_socket(
    loop: Loop, owner: Owner, pair: tuple[socket.socket, socket.socket]
) -> None:
    first, far = socket.socketpair()
    owner.selector.register(first, READ)
    loop.poll(0)
    owner.selector.unregister(first)
    number = first.fileno()
    first.close()
    far.close()
    second = pair[0].dup()
    assert second.fileno() == number
    with second:
        owner.selector.register(second, READ)
        pair[1].send(b"x")
        loop.poll(None)
        assert owner.turns == 1
        owner.selector.unregister(second)
