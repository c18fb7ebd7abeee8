"""Cables pulled in one direction and in both, lost packets, slow links: real hosts in namespaces."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.namespaces import FROM, TO, Fleet, why_not

LIMIT_S = 90.0
WAYS = [(FROM,), (TO,), (FROM, TO)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.xdist_group("network namespaces"),
]


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("network"), devices=2, detect_s=1.0) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared: Fleet) -> Iterator[Fleet]:
    yield shared
    shared.heal()
    with shared.client() as client:
        shared.until(lambda: set(shared.verdicts(client).values()) == {"alive"}, "all alive")


def work(token: str, index: int, seconds: float) -> str:
    time.sleep(seconds)
    return f"{token} {index}"


def work_noted(runs: Path, seconds: float) -> str:
    with runs.open("a") as file:
        file.write("run\n")
    time.sleep(seconds)
    return "done"


@pytest.mark.parametrize("ways", WAYS, ids="+".join)
def test_a_device_that_is_cut_off_loses_no_work_and_comes_back(
    fleet: Fleet, ways: tuple[str, ...]
) -> None:
    with fleet.client() as client:
        batch = client.submit_all(work, ["cut"] * 60, range(60), [0.1] * 60)
        fleet.until(lambda: batch.progress().done >= 4, "some work done")
        fleet.part("device-1", ways)
        if FROM in ways:
            # What it says does not arrive, so it is silent, and its work is done by the other.
            fleet.until(lambda: fleet.verdicts(client)["device-1"] == "dead", "found silent")
            assert batch.results(timeout=LIMIT_S) == [f"cut {index}" for index in range(60)]
        fleet.heal()
        assert batch.results(timeout=LIMIT_S) == [f"cut {index}" for index in range(60)]
        assert fleet.dropped() == 0, "healed"
        fleet.until(lambda: fleet.verdicts(client)["device-1"] == "alive", "back")
        future = client.options(device="device-1").submit(work, "again", 7, 0.0)
        assert future.result(LIMIT_S) == "again 7"


@pytest.mark.parametrize("ways", WAYS, ids="+".join)
def test_a_controller_that_is_cut_off_loses_nothing(fleet: Fleet, ways: tuple[str, ...]) -> None:
    with fleet.client() as client:
        batch = client.submit_all(work, ["ruled"] * 60, range(60), [0.1] * 60)
        fleet.until(lambda: batch.progress().done >= 4, "some work done")
        fleet.part("controller", ways)
        fleet.until(lambda: fleet.dropped() > 20, "packets lost")
        late = client.submit_all(work, ["late"] * 5, range(5), [0.0] * 5)
        fleet.heal()
        assert batch.results(timeout=LIMIT_S) == [f"ruled {index}" for index in range(60)]
        assert late.results(timeout=LIMIT_S) == [f"late {index}" for index in range(5)]


@pytest.mark.parametrize("ways", WAYS, ids="+".join)
def test_a_client_that_is_cut_off_finds_its_outcomes(fleet: Fleet, ways: tuple[str, ...]) -> None:
    with fleet.client() as client:
        batch = client.submit_all(work, ["away"] * 30, range(30), [0.05] * 30)
        fleet.until(lambda: batch.progress().done >= 4, "some work done")
        fleet.part("client", ways)
        late = client.submit_all(work, ["late"] * 5, range(5), [0.0] * 5)
        fleet.until(lambda: fleet.dropped() > 3, "packets lost")
        fleet.heal()
        assert batch.results(timeout=LIMIT_S) == [f"away {index}" for index in range(30)]
        assert late.results(timeout=LIMIT_S) == [f"late {index}" for index in range(5)]


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path, devices=2, detect_s=30.0) as fleet:
        yield fleet


def test_with_three_in_ten_packets_lost_nobody_is_called_dead(patient: Fleet) -> None:
    with patient.client() as client:
        batch = client.submit_all(work, ["lossy"] * 40, range(40), [0.25] * 40)
        for name in patient.names:
            patient.lose_three_in_ten(name)
        assert batch.results(timeout=LIMIT_S) == [f"lossy {index}" for index in range(40)]
        assert patient.dropped() > 10
        assert patient.said(" is dead: ") == []
        patient.heal()


@pytest.mark.parametrize("ways", [(TO,), (FROM, TO)], ids="+".join)
def test_a_device_that_a_broker_gave_up_sooner_than_the_controller_keeps_its_work(
    tmp_path: Path, ways: tuple[str, ...]
) -> None:
    # Broker and agent end a connection after 15 to 20 s of silence.
    with Fleet(tmp_path, devices=2, detect_s=60.0) as fleet, fleet.client() as client:
        runs = tmp_path / "runs"
        held = client.options(device="device-1").submit(work_noted, runs, 30.0)
        fleet.until(runs.exists, "the call runs")
        fleet.part("device-1", ways)
        fleet.until(lambda: bool(fleet.said("device-1 is suspect: its connection")), "given up")
        fleet.heal()
        fleet.until(lambda: bool(fleet.said("device-1 is alive: heard")[1:]), "back")
        assert held.result(LIMIT_S) == "done"
        assert runs.read_text() == "run\n"
        assert fleet.said(" is dead: ") == []


def test_on_a_link_of_64_kbit_nobody_is_called_dead(patient: Fleet) -> None:
    for name in patient.names:
        patient.throttle(name, "64kbit")
    with patient.client() as client:
        data = [bytes(2_000)] * 30
        batch = client.submit_all(len, data)
        assert batch.results(timeout=LIMIT_S) == [2_000] * 30
        assert patient.said(" is dead: ") == []
