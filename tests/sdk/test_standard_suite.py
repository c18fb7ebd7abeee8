"""CPython's own tests of `concurrent.futures`, run on our futures and client.

They come with Python where it was built from source; Debian's packages leave them out.
"""

import importlib
import logging
import sys
import unittest
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import forage
from forage.future import Future

_PACKAGE = "test.test_concurrent_futures"


def suite(name: str) -> ModuleType:
    """A module of the suite: one file up to 3.11, a package since."""
    try:
        whole = importlib.import_module(_PACKAGE)
        return (
            importlib.import_module(f"{_PACKAGE}.{name}") if hasattr(whole, "__path__") else whole
        )
    except ImportError as error:
        pytest.skip(f"this Python comes without its own tests: {error}")


def run(case: type[unittest.TestCase]) -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    problems = [text for _, text in result.failures + result.errors]
    assert not problems, "\n".join(problems)
    assert result.testsRun > 0


def make_future(
    state: str = "PENDING", exception: BaseException | None = None, result: Any = None
) -> Future[Any]:
    future: Future[Any] = Future()
    future._state = state
    future._exception = exception
    future._result = result
    return future


def test_futures(monkeypatch: pytest.MonkeyPatch) -> None:
    module = suite("test_future")
    monkeypatch.setattr(module, "create_future", make_future)
    # The tests look for log lines on stderr, where they go while nobody has set up anything else.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    if hasattr(module, "Future"):
        monkeypatch.setattr(module, "Future", Future)
    for name, old in list(vars(module).items()):
        # The module's own specimens, one in each state.
        if name.endswith("_FUTURE"):
            new = make_future(old._state, old._exception, old._result)
            monkeypatch.setattr(module, name, new)
    run(module.FutureTests)


@pytest.fixture(scope="module")
def cluster() -> Iterator[forage.LocalCluster]:
    if sys.platform != "linux":
        pytest.skip("agents run on Linux")
    with forage.LocalCluster(devices=2, slots=2) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mixin"),
    [
        ("executor", "ExecutorTest"),
        ("test_wait", "WaitTests"),
        ("test_as_completed", "AsCompletedTests"),
    ],
)
def test_executors(cluster: forage.LocalCluster, name: str, mixin: str) -> None:
    module = suite(name)

    class OurCase(getattr(module, mixin), unittest.TestCase):  # type: ignore[misc]
        # It tests the constructor of pools of threads and processes.
        test_max_workers_negative = None
        worker_count = 4

        def setUp(self) -> None:
            self.executor = cluster.client()

        def tearDown(self) -> None:
            self.executor.shutdown(cancel_futures=True)

        def executor_type(self, *_: Any, **__: Any) -> forage.Client:
            return cluster.client()

    run(OurCase)
