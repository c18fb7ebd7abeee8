"""A broker for all tests here, and a fleet of its own (its own root topic) for each."""

import itertools
from collections.abc import Iterator

import pytest

import forage
from forage_broker.embedded import EmbeddedBroker
from forage_broker.mosquitto import MosquittoBroker, find_mosquitto
from forage_wire.address import BrokerAddress
from sdk.fleet import Fleet

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def broker() -> Iterator[BrokerAddress]:
    with EmbeddedBroker() if find_mosquitto() is None else MosquittoBroker() as running:
        yield BrokerAddress(host="127.0.0.1", port=running.port)


@pytest.fixture(autouse=True)
def own_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the machine's user has configured is not for tests."""
    for name in ("BROKER", "ROOT", "USER", "INSECURE", "TLS_CA_FILE", "IN_TASK"):
        monkeypatch.delenv(f"FORAGE_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture
def root() -> str:
    """A root topic that nobody else uses."""
    return f"root{next(_numbers)}"


@pytest.fixture
def fleet(broker: BrokerAddress, root: str) -> Iterator[Fleet]:
    """Runs calls as they come."""
    with Fleet(broker, root=root) as running:
        yield running


@pytest.fixture
def holding(broker: BrokerAddress, root: str) -> Iterator[Fleet]:
    """Keeps calls until it is told to finish them."""
    with Fleet(broker, root=root, holds=True) as running:
        yield running


@pytest.fixture
def client(fleet: Fleet) -> Iterator[forage.Client]:
    """A client whose calls are run at once."""
    with fleet.connect() as connected:
        yield connected


@pytest.fixture
def held(holding: Fleet) -> Iterator[forage.Client]:
    """A client whose calls are held; those left are cancelled at the end."""
    connected = holding.connect()
    yield connected
    connected.shutdown(wait=False, cancel_futures=True)
    holding.release()
    connected.shutdown()
