"""Brokers of our own for the tests here: each on a free port, and proven to be ours."""

import os
from collections.abc import Iterator

import pytest

from broker.raw_mqtt import listening_pids
from forage_broker.embedded import EmbeddedBroker
from forage_broker.mosquitto import MosquittoBroker, find_mosquitto

NEEDS_MOSQUITTO = pytest.mark.skipif(
    find_mosquitto() is None, reason="mosquitto is not installed (Debian: apt install mosquitto)"
)


@pytest.fixture
def embedded() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        assert listening_pids(broker.port) == {os.getpid()}
        yield broker


@pytest.fixture
def mosquitto() -> Iterator[MosquittoBroker]:
    with MosquittoBroker() as broker:
        assert broker.pid != 0
        assert listening_pids(broker.port) == {broker.pid}
        yield broker


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=NEEDS_MOSQUITTO)])
def port(request: pytest.FixtureRequest) -> int:
    """The port of a running broker, once for each engine."""
    broker: EmbeddedBroker | MosquittoBroker = request.getfixturevalue(request.param)
    return broker.port
