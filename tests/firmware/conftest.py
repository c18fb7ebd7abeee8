"""The two firmware clients, for each test that takes `kind`, and what they run against."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware.boards import KINDS, Board, Harness, harness_command
from forage import Client, LocalCluster
from integration.conftest import make_whole
from integration.observing import until

DETECT_S = 0.5
_numbers = itertools.count(1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each client in turn."""
    name: str = request.param
    return name


@pytest.fixture
def harness(kind: str) -> Iterator[Harness]:
    """A client's core, which is to end well."""
    harness = Harness(harness_command(kind))
    yield harness
    assert harness.close() == 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the one shared cluster go to one test process."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("firmware cluster"))


@pytest.fixture(scope="session")
def shared() -> Iterator[LocalCluster]:
    """Broker, controller and one device that runs Python."""
    with LocalCluster(devices=["pi"], detect_s=DETECT_S) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: LocalCluster) -> Iterator[LocalCluster]:
    """The shared cluster, whole before the test and after it."""
    yield shared
    make_whole(shared)


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    client = cluster.client()
    yield client
    client.shutdown(cancel_futures=True)


@pytest.fixture
def board(kind: str, cluster: LocalCluster, client: Client, tmp_path: Path) -> Iterator[Board]:
    """A board that the controller knows, the only one that is alive."""
    board = make_board(kind, cluster, tmp_path, f"lamp-{next(_numbers)}")
    board.start()
    until_alive(client, board)
    yield board
    board.kill()
    until(lambda: client.device(board.name).state == "lost", "the board's will")


def make_board(kind: str, cluster: LocalCluster, folder: Path, name: str) -> Board:
    """A board of this cluster that is not switched on yet; its label `room` is its name."""
    home = folder / name
    home.mkdir()
    port = int(cluster.broker_url.rpartition(":")[2])
    return Board(kind, home, name, port, {"room": name})


def until_alive(client: Client, board: Board) -> None:
    """Until the controller knows it as online, and what it is (which is another message)."""

    def is_alive() -> bool:
        return any(
            row.name == board.name
            and (row.state, row.verdict) == ("online", "alive")
            and row.slots > 0
            for row in client.devices()
        )

    until(is_alive, f"{board.name} online: {board.terminal()}")
