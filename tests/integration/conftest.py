"""Clusters shared by the tests here: one for each broker engine and test process.

A test that kills something starts it again; `whole` sees to it that what comes next begins with a
cluster of which everything runs and is known.
"""

from collections.abc import Generator, Iterator

import pytest

from forage import Client, LocalCluster
from integration.engines import ENGINES
from integration.observing import until

DETECT_S = 0.5


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one shared cluster go to one test process, so that there is one of each."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "shared" in callspec.params:
            item.add_marker(pytest.mark.xdist_group(f"cluster with {callspec.params['shared']}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test fails, its report has the ends of the services' logs."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("shared")
    if report.failed and isinstance(cluster, LocalCluster) and cluster.broker is not None:
        for service in [cluster.broker, cluster.controller, *cluster.devices]:
            report.sections.append((repr(service), service.log_tail()))
    return report


@pytest.fixture(scope="session", params=ENGINES)
def shared(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Three devices of one slot, once for each engine."""
    with LocalCluster(devices=3, engine=request.param, detect_s=DETECT_S) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: LocalCluster) -> Iterator[LocalCluster]:
    """The shared cluster, whole before the test and after it."""
    yield shared
    make_whole(shared)


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client of the shared cluster; what a failed test left open is cancelled."""
    client = cluster.client()
    yield client
    client.shutdown(cancel_futures=True)


def make_whole(cluster: LocalCluster) -> None:
    """Start what does not run, and wait until the controller knows every device as alive."""
    assert cluster.broker is not None
    for service in [cluster.broker, cluster.controller, *cluster.devices]:
        if not service.is_running:
            service.start()
        service.thaw()
    names = {device.name for device in cluster.devices}
    with cluster.client() as client:

        def all_alive() -> bool:
            return names <= {row.name for row in client.devices() if row.verdict == "alive"}

        until(all_alive, f"all of {sorted(names)} alive")
