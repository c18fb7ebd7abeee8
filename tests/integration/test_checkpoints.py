"""A long call goes on from its last checkpoint, whatever died: counted in steps, never in time.

The call notes each step in a file. At certain steps it waits until a file is there, so that what
dies, dies while it is known how many steps were run and which checkpoint the controller has.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forage
from forage import Client, Future, LocalCluster
from integration.observing import until

STEPS = 60
EVERY = 10
HALT = 37
"""The step after which it waits: seven steps beyond the checkpoint of step 30."""
LIMIT_S = 60.0


def count(place: str, end: str = "") -> tuple[int, list[int]]:
    """All steps; each leaves a line `{pid} {step}`, and every tenth a checkpoint.

    Returns the sum of the steps, and what each attempt that led here began with.
    """
    at, total, begun = forage.restore(default=(0, 0, []))
    begun = [*begun, at]
    folder = Path(place)
    while at < STEPS:
        at += 1
        total += at
        with (folder / "steps").open("a") as file:
            file.write(f"{os.getpid()} {at}\n")
        if at % EVERY == 0:
            forage.checkpoint((at, total, begun))
        if at == HALT and len(begun) == 1:
            while not (folder / "go").exists():
                time.sleep(0.005)
            if end == "exit":
                os._exit(9)
            if end == "raise":
                raise ValueError("halfway")
    return total, begun


def steps_of(place: Path) -> list[int]:
    """The steps that were run, in order, whoever ran them."""
    file = place / "steps"
    return [int(line.split()[1]) for line in file.read_text().splitlines()] if file.exists() else []


class Halted:
    """A call that waits at `HALT`, with its last checkpoint at the controller."""

    def __init__(self, client: Client, place: Path, end: str = "", **options: Any) -> None:
        self.place = place
        # A second attempt beside the first would run steps of its own.
        self.future: Future[tuple[int, list[int]]] = client.options(clones=False, **options).submit(
            count, str(place), end
        )
        until(lambda: steps_of(place)[-1:] == [HALT], "the call waits")
        until(self.is_kept, "the controller has saved the checkpoint of step 30")
        until(lambda: self.future.device is not None, "the client knows where it runs")
        self.device = self.future.device

    def is_kept(self) -> bool:
        kept = self.future.explain().checkpoint
        return kept is not None and kept.saved and kept.number == HALT // EVERY

    def go(self) -> None:
        (self.place / "go").touch()

    def check_end(self, *, again: int = 1) -> None:
        """It ends rightly, and was done again from the checkpoint on: `HALT - 30` steps, no more."""
        total, begun = self.future.result(timeout=LIMIT_S)
        kept = HALT // EVERY * EVERY
        assert total == sum(range(1, STEPS + 1))
        assert begun == [0, *[kept] * again]
        assert steps_of(self.place) == [*range(1, HALT + 1), *range(kept + 1, STEPS + 1)]
        assert len(steps_of(self.place)) - STEPS == HALT - kept < EVERY


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    # A call that waits still would wait for ever, and the client for it.
    (tmp_path / "go").touch()


def test_device_that_is_killed(cluster: LocalCluster, client: Client, place: Path) -> None:
    halted = Halted(client, place)
    cluster.device(halted.device).kill()
    halted.go()
    halted.check_end()
    assert halted.future.device != halted.device


def test_device_and_controller_that_are_killed(
    cluster: LocalCluster, client: Client, place: Path
) -> None:
    halted = Halted(client, place)
    cluster.controller.kill()
    cluster.device(halted.device).kill()
    halted.go()
    cluster.controller.start()
    halted.check_end()


def test_controller_that_is_killed_and_then_the_device(
    cluster: LocalCluster, client: Client, place: Path
) -> None:
    halted = Halted(client, place)
    cluster.controller.kill()
    cluster.controller.start()
    until(halted.is_kept, "the controller has it still")
    cluster.device(halted.device).kill()
    halted.go()
    halted.check_end()


def test_broker_that_comes_back_empty_and_then_a_device_that_is_killed(
    cluster: LocalCluster, client: Client, place: Path
) -> None:
    halted = Halted(client, place)
    assert cluster.broker is not None
    cluster.broker.kill()
    cluster.broker.start()
    names = {device.name for device in cluster.devices}
    alive: Callable[[], bool] = lambda: (  # noqa: E731
        names <= {row.name for row in client.devices() if row.verdict == "alive"}
    )
    until(alive, "all devices are back")
    cluster.device(halted.device).kill()
    halted.go()
    halted.check_end()


def test_worker_that_ends_itself(client: Client, place: Path) -> None:
    halted = Halted(client, place, "exit")
    halted.go()
    halted.check_end()


def test_call_that_raises_and_is_tried_again(client: Client, place: Path) -> None:
    halted = Halted(client, place, "raise", retries=1)
    halted.go()
    halted.check_end()


def keep_and_raise() -> str:
    """Fails right behind each checkpoint: what was kept last must be there all the same."""
    at = forage.restore(default=0)
    if at == 3:
        return "done"
    forage.checkpoint(at + 1)
    raise ValueError(at)


def test_state_kept_right_before_an_error_is_there_when_it_is_tried_again(client: Client) -> None:
    future = client.options(retries=3, clones=False).submit(keep_and_raise)
    assert future.result(timeout=LIMIT_S) == "done"


def keep_much_and_exit(size: int) -> tuple[int, int]:
    at, data = forage.restore(default=(0, b""))
    if at == 2:
        return at, len(data)
    forage.checkpoint((at + 1, bytes(size)))
    os._exit(1)


def test_state_of_megabytes_kept_right_before_the_worker_dies(client: Client) -> None:
    # A clone would die as well, and three deaths are the end.
    future = client.options(clones=False).submit(keep_much_and_exit, 3_000_000)
    assert future.result(timeout=LIMIT_S) == (2, 3_000_000)
