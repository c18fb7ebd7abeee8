"""Of a call with replicas, a device has one at a time, and a say once."""

from typing import TYPE_CHECKING

from forage_controller.core.operations import Operation, SaveAssignment, SaveOutcomes
from forage_sim.headers import decode_header
from forage_sim.oracles.base import Oracle
from forage_wire.ranges import Ranges

if TYPE_CHECKING:
    from forage_sim.disk import StoredState, StoredTask
    from forage_sim.process import Process

__all__ = ["DevicesVoteOnce", "calls_of"]


class DevicesVoteOnce(Oracle):
    """Looks at each assignment and each outcome that is handed to the disk."""

    statement = (
        "a device is given no run of a call while it holds another one or after one of its "
        "outcomes, and a call is decided by outcomes of as many devices as its quorum asks for"
    )

    def saved(self, before: "StoredState", operation: Operation) -> None:
        if isinstance(operation, SaveAssignment):
            self._look(before, operation.task, operation.device, (operation.low, operation.high))
        elif isinstance(operation, SaveOutcomes) and operation.device:
            for low, high in operation.settled:
                self._look(before, operation.task, operation.device, (low, high), outcome=True)

    def _look(
        self,
        before: "StoredState",
        name: str,
        device: str,
        runs: tuple[int, int],
        *,
        outcome: bool = False,
    ) -> None:
        spec, task = self.world.tasks.get(name), before.tasks.get(name)
        if spec is None or task is None or spec.options.replicas == 1:
            return
        mine = calls_of(task, (runs,))
        held: Ranges = tuple(
            (row.low, row.high)
            for row in before.assignments.values()
            if row.task == name and row.device == device and not outcome
        )
        said = [row.settled for row in task.archive if row.device == device]
        for what, ranges in (("holds", held), *(("has settled", each) for each in said)):
            others = calls_of(task, ranges)
            for call in mine:
                if call in others and others[call] != mine[call]:
                    raise self.broken(
                        f"{device} gets run {mine[call]} of {name}.{call} and {what} {others[call]}"
                    )

    def decided(self, process: "Process", task: str, call: int, devices: tuple[str, ...]) -> None:
        options = self.world.tasks[task].options
        wanted = options.quorum or options.replicas // 2 + 1
        if len(dict.fromkeys(devices)) < wanted:
            raise self.broken(f"{process.name} believes {devices} about {task}.{call}")


def calls_of(task: "StoredTask", ranges: Ranges) -> dict[int, int]:
    """Call -> its run, of some runs of a task."""
    found: dict[int, int] = {}
    for low, high in ranges:
        for page in task.pages.values():
            header = decode_header(page.header)
            base = header.first - header.replica * header.n
            for run in range(max(low, page.first), min(high, page.first + page.n)):
                found[base // header.options.replicas + run - page.first] = run
    return found
