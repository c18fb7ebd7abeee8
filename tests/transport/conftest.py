"""Fixtures: an owner that closes what it opened, brokers and peers that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from transport.mosquitto import Mosquitto, mosquitto_program
from transport.owner import Owner
from transport.peer import Peer, Session


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[Callable[[Sequence[str]], Mosquitto]]:
    """Start a mosquitto with the given settings."""
    if mosquitto_program() is None:
        pytest.skip("mosquitto is not installed")
    started: list[Mosquitto] = []

    def start(settings: Sequence[str]) -> Mosquitto:
        folder = tmp_path / f"mosquitto-{len(started)}"
        folder.mkdir()
        broker = Mosquitto(folder, settings)
        started.append(broker)
        broker.start()
        return broker

    yield start
    for broker in started:
        broker.kill()


@pytest.fixture
def mosquitto(start_mosquitto: Callable[[Sequence[str]], Mosquitto]) -> Mosquitto:
    """An open broker on loopback."""
    return start_mosquitto(["allow_anonymous true"])


@pytest.fixture
def start_peer() -> Iterator[Callable[[Callable[[Session], None]], Peer]]:
    """Start a scripted peer."""
    started: list[Peer] = []

    def start(script: Callable[[Session], None]) -> Peer:
        peer = Peer(script)
        started.append(peer)
        return peer

    yield start
    for peer in started:
        peer.close()
