"""An attempt goes on from its own call's state, and never from an older one than there was."""

from typing import TYPE_CHECKING

from forage_controller.core.operations import Operation, SaveAssignment, SaveCheckpoint
from forage_sim.disk import StoredState
from forage_sim.nodes import ControllerProcess
from forage_sim.oracles.base import Oracle
from forage_sim.workload import step_of
from forage_wire.messages import Assign, Linked
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.watch import Run
    from forage_sim.world import World

__all__ = ["OwnCheckpoint"]

ENTRY_BYTES = 256
"""What the controller counts for each beside its data."""


class OwnCheckpoint(Oracle):
    """Compares what attempts are given with what was in the store when they were made."""

    statement = (
        "a call goes on from a state of its own, alone, and from none older than one that the "
        "controller had taken before it made the assignment; what is stored of a call only goes "
        "forward"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._expected: dict[int, dict[int, SaveCheckpoint]] = {}
        """Assignment -> its calls' checkpoints when it was made, in the store or on the way."""

    def saved(self, before: StoredState, operation: Operation) -> None:
        stored = before.tasks.get(getattr(operation, "task", ""))
        if stored is None:
            return
        match operation:
            case SaveAssignment():
                calls = range(operation.low, operation.high)
                found = {at: row for at, row in stored.checkpoints.items() if at in calls}
                self._expected.setdefault(operation.assignment, found)
            case SaveCheckpoint():
                name = f"{operation.task}.{operation.index}"
                former = stored.checkpoints.get(operation.index)
                if former is not None and former.number >= operation.number:
                    raise self.broken(
                        f"checkpoint {operation.number} of {name} replaces {former.number}"
                    )
                if self._step(operation.task, operation.index, operation.data) is None:
                    raise self.broken(f"another call's state is stored for {name}")

    def _step(self, task: str, index: int, state: bytes) -> int | None:
        spec = self.world.tasks[task]
        return step_of(spec.calls[index].body(), state) if index < len(spec.calls) else None

    def sent(self, process: "Process", topic: ParsedTopic, message: Linked) -> None:
        if not isinstance(message, Assign):
            return
        for assignment in message.assignments:
            number = assignment.assignment
            expected = self._expected.get(number, {})
            given = 0 if assignment.checkpoint is None else assignment.checkpoint[0]
            if (expected or given) and assignment.high - assignment.low > 1:
                raise self.broken(
                    f"assignment {number} has {assignment.high - assignment.low} calls and states "
                    f"for {list(expected) or 'one'} of them"
                )
            for index, row in expected.items():
                if given < row.number:
                    raise self.broken(
                        f"assignment {number} of {row.task}.{index} goes on from checkpoint "
                        f"{given}, and there was {row.number}"
                    )

    def started(self, run: "Run", body: bytes) -> None:
        name = f"{run.task}.{run.index}"
        step = step_of(body, run.checkpoint)
        if step is None:
            raise self.broken(f"{run.process.name} runs {name} from another call's state")
        if run.checkpoint is not None:
            self.world.trace.counters["resumed"] += 1
            if self.world.tasks[run.task].options.at_most_once:
                raise self.broken(f"{name} goes on from a state, and may run only once")
        row = self._expected.get(run.assignment, {}).get(run.index)
        if row is not None and step < (step_of(body, row.data) or 0):
            raise self.broken(
                f"{run.process.name} runs {name} from step {step}, and there was "
                f"{step_of(body, row.data)}"
            )

    def looked(self) -> None:
        for node in self.world.controllers:
            process = node.process
            if not isinstance(process, ControllerProcess) or not process.alive:
                continue
            ledger = process.core().ledger
            held = sum(
                len(kept.data) + ENTRY_BYTES
                for task in ledger.tasks.values()
                for kept in (task.checkpoints or {}).values()
            )
            if held != ledger.checkpoints.bytes:
                raise self.broken(
                    f"{process.name} holds {held} bytes of checkpoints and counts "
                    f"{ledger.checkpoints.bytes}"
                )
