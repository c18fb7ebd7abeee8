"""What a call costs the controller when there are ever more devices and ever more calls.

`python -m forage_sim.scale` (`make scale`) runs the real cores over the simulated network and
prints the time that the controller's core took, for each call and for each assignment, in one
process, so that the rows can be compared. Workers answer a whole chunk at a time, and no
oracle looks on: what is measured is one core.

Time grows with what the processor's caches no longer hold, too; `--count` counts the functions of
ours that are called instead, which are the same on every machine.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forage_agent.core.events import (
    KillWorker,
    LeaseWorker,
    RunCalls,
    StartWorker,
    TakeBack,
    WorkerOutcomes,
    WorkerReady,
)
from forage_sim.faults import DeviceSpec, Plan
from forage_sim.nodes import ClientNode, ClientProcess, ControllerProcess, DeviceProcess
from forage_sim.process import Process
from forage_sim.watch import Watch
from forage_sim.workers import Workers
from forage_sim.workload import CallSpec, ClientSpec, TaskSpec
from forage_sim.world import World
from forage_wire.io import Publish
from forage_wire.messages import Options

__all__ = ["CELLS", "Figures", "ScaleWorld", "main", "measure"]

CALL_US = 1_000
"""What each call runs: a slice of 40 ms holds forty of them, once they are measured."""
CALLS_PER_TASK = 100_000
SUBMIT_AT_MS = 3_000
"""When devices have come and been asked for their inventories."""
STEP_MS = 50
CELLS = (
    *((10, 10_000), (100, 10_000), (1_000, 10_000)),
    *((10, 100_000), (100, 100_000), (1_000, 100_000), (10_000, 100_000)),
    *((10, 1_000_000), (1_000, 1_000_000), (10_000, 1_000_000)),
)
"""(devices, calls)."""


@dataclass(slots=True)
class Figures:
    """What one world came to."""

    devices: int
    calls: int
    core_us: float = 0.0
    """Time in the controller's core from the submission until all was collected."""
    functions: int = 0
    """Functions called in it meanwhile, where they are counted."""
    assignments: int = 0
    simulated_ms: int = 0
    wall_s: float = 0.0
    events: int = 0
    starting_us: float = 0.0
    """The same until then: devices coming."""

    @property
    def call_us(self) -> float:
        """For each call."""
        return self.core_us / self.calls

    @property
    def assignment_us(self) -> float:
        """For each assignment."""
        return self.core_us / max(1, self.assignments)


class _QuickWorkers(Workers):
    """Workers that are always ready and answer a chunk when all of its calls would have run."""

    def order(self, command: StartWorker | RunCalls | TakeBack | KillWorker | LeaseWorker) -> None:
        if isinstance(command, StartWorker):
            self.tell(WorkerReady(slot=command.slot, pid=self.next_pid()))
        elif isinstance(command, RunCalls):
            begin_ms = max(self.process.world.clock.now_ms, self._free_ms(command.slot))
            for chunk in command.chunks:
                count = chunk.high - chunk.low
                begin_ms += -(-count * CALL_US // 1_000)
                outcome = WorkerOutcomes(
                    slot=command.slot,
                    assignment=chunk.assignment,
                    first=chunk.low,
                    count=count,
                    items=b"\x81\x00" * count,
                    errors=(),
                    run_us=count * CALL_US,
                )
                self.process.world.clock.at(begin_ms, self._telling(outcome))
            self._busy_until_ms[command.slot] = begin_ms

    def __init__(self, process: DeviceProcess) -> None:
        super().__init__(process)
        self._busy_until_ms: dict[int, int] = {}

    def _free_ms(self, slot: int) -> int:
        return self._busy_until_ms.get(slot, 0)

    def _telling(self, outcome: WorkerOutcomes) -> Callable[[], None]:
        return lambda: self.process.put(outcome)


class _Unwatched(Watch):
    """Looks at nothing."""

    def event(self, process: Process, event: Any) -> None:
        pass

    def published(self, process: Process, publish: Publish) -> None:
        pass


class _CountingClient(ClientNode):
    """A client that counts its outcomes, instead of keeping and judging them."""

    resolved = 0

    def resolve(self, process: ClientProcess, command: Any) -> None:
        self.resolved += len(command.items)

    def refuse(self, process: ClientProcess, command: Any) -> None:
        raise AssertionError(command)


@dataclass(slots=True)
class _Meter:
    """Adds up the time within the controller's core.

    By the cheap clock: the one of processor time costs more here than what is measured. So the
    machine must have a processor for it alone.
    """

    counts: bool = False
    """Whether functions are counted, which makes the time worthless."""
    core_ns: int = 0
    functions: int = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*arguments: Any) -> Any:
            began = time.perf_counter_ns()
            try:
                return function(*arguments)
            finally:
                self.core_ns += time.perf_counter_ns() - began

        def counted(*arguments: Any) -> Any:
            sys.setprofile(self._on_call)
            try:
                return function(*arguments)
            finally:
                sys.setprofile(None)

        return counted if self.counts else metered

    def _on_call(self, _frame: object, event: str, _argument: object) -> None:
        self.functions += event == "call"


class ScaleWorld(World):
    """A quiet world with one client."""

    def __init__(self, devices: int, calls: int, seed: int = 0) -> None:
        call = CallSpec(nonce=1, run_ms=0)
        tasks = tuple(
            TaskSpec(
                at_ms=SUBMIT_AT_MS,
                function="f",
                calls=(call,) * min(CALLS_PER_TASK, calls - first),
                options=Options(wait_ms=10**9),
            )
            for first in range(0, calls, CALLS_PER_TASK)
        )
        plan = Plan(
            devices=(DeviceSpec(),) * devices,
            clients=(ClientSpec(tasks=tasks),),
            detect_ms=15_000,
            start_ms_max=1_000,
        )
        super().__init__(seed, plan)
        self.watch = _Unwatched(self.topics)
        client = _CountingClient(self, "client-0", plan.clients[0])
        self.clients = [client]
        self.nodes["client-0"] = client
        self.client = client
        self.oracles = []
        self.conditions.queue_messages_max = 10**9

    def make_workers(self, process: DeviceProcess) -> Workers:
        return _QuickWorkers(process)


def measure(devices: int, calls: int, seed: int = 0, *, counts: bool = False) -> Figures:
    """Run one world to its end."""
    began = time.monotonic()
    world = ScaleWorld(devices, calls, seed)
    meter = _Meter(counts=counts)
    world.controller.start()
    process = world.controller.process
    assert isinstance(process, ControllerProcess)
    core: Any = process.core()
    core.handle = meter.around(core.handle)
    core.next_wakeup_ms = meter.around(core.next_wakeup_ms)
    world.begin()
    world.clock.run_until(SUBMIT_AT_MS)
    figures = Figures(devices=devices, calls=calls, starting_us=meter.core_ns / 1_000)
    gc.collect()
    gc.freeze()
    meter.core_ns = meter.functions = 0
    while world.client.resolved < calls or core.ledger.tasks:
        world.clock.run_until(world.clock.now_ms + STEP_MS)
        if world.clock.now_ms > 3_600_000:
            raise AssertionError(f"{world.client.resolved} of {calls} after an hour")
    figures.core_us = meter.core_ns / 1_000
    figures.functions = meter.functions
    figures.assignments = core.assignments.next_number & (2**40 - 1)
    figures.simulated_ms = world.clock.now_ms - SUBMIT_AT_MS
    figures.events = world.clock.steps
    figures.wall_s = time.monotonic() - began
    return figures


def main() -> int:
    """Print the table; the last columns compare with the first row."""
    parser = argparse.ArgumentParser(prog="forage_sim.scale", description=__doc__)
    parser.add_argument("--devices", type=int, nargs="*", help="only these numbers of devices")
    parser.add_argument("--calls", type=int, nargs="*", help="only these numbers of calls")
    parser.add_argument("--count", action="store_true", help="functions called instead of time")
    options = parser.parse_args()
    cells = [
        (devices, calls)
        for devices, calls in CELLS
        if devices in (options.devices or (devices,)) and calls in (options.calls or (calls,))
    ]
    if options.count:
        _print_counts(cells)
    else:
        _print_times(cells)
    return 0


def _print_counts(cells: list[tuple[int, int]]) -> None:
    print(f"{'devices':>8} {'calls':>9} {'functions/call':>15} {'functions/assignment':>21}")
    for devices, calls in cells:
        found = measure(devices, calls, counts=True)
        print(
            f"{devices:>8} {calls:>9} {found.functions / calls:>15.1f} "
            f"{found.functions / found.assignments:>21.0f}",
            flush=True,
        )


def _print_times(cells: list[tuple[int, int]]) -> None:
    print(
        f"{'devices':>8} {'calls':>9} {'us/call':>8} {'us/assignment':>14} {'calls each':>10} "
        f"{'simulated s':>11} {'events/s':>9} {'wall s':>7} {'call':>6} {'assignment':>10}"
    )
    first: Figures | None = None
    for devices, calls in cells:
        found = measure(devices, calls)
        first = first or found
        print(
            f"{found.devices:>8} {found.calls:>9} {found.call_us:>8.2f} "
            f"{found.assignment_us:>14.1f} {found.calls / found.assignments:>10.1f} "
            f"{found.simulated_ms / 1_000:>11.1f} {found.events / found.wall_s:>9.0f} "
            f"{found.wall_s:>7.1f} {found.call_us / first.call_us:>6.2f} "
            f"{found.assignment_us / first.assignment_us:>10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
