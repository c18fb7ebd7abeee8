"""An attempt goes on from its own call's state, and never from an older one than there was."""

from typing import TYPE_CHECKING

from forage_controller.core.operations import Operation, SaveAssignment, SaveCheckpoint
from forage_sim.disk import StoredState
from forage_sim.nodes import ControllerProcess
from forage_sim.oracles.base import Oracle
from forage_sim.oracles.devices_vote_once import calls_of
from forage_sim.workload import step_of
from forage_wire.codec import decode_header
from forage_wire.messages import Assign, Assignment, Checkpoint, Linked
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
        "forward; and a replica goes on from what its own device has made"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._expected: dict[int, dict[int, SaveCheckpoint]] = {}
        """Assignment -> its calls' checkpoints when it was made, in the store or on the way."""
        self._makers: dict[tuple[str, int, int], dict[str, None]] = {}
        """Checkpoint of a call with replicas -> the devices that said that they made it."""

    def saved(self, before: StoredState, operation: Operation) -> None:
        stored = before.tasks.get(getattr(operation, "task", ""))
        if stored is None:
            return
        match operation:
            case SaveAssignment():
                calls = range(operation.low, operation.high)
                found = {
                    at: row
                    for at, row in stored.checkpoints.items()
                    if at in calls
                    and (row.device == operation.device or not self._has_replicas(row.task))
                }
                self._expected.setdefault(operation.assignment, found)
            case SaveCheckpoint():
                name = f"{operation.task}.{operation.index}"
                former = stored.checkpoints.get(operation.index)
                if former is not None and former.number >= operation.number:
                    raise self.broken(
                        f"checkpoint {operation.number} of {name} replaces {former.number}"
                    )
                index = operation.index
                if self._has_replicas(operation.task):
                    (index,) = calls_of(stored, ((index, index + 1),))
                if self._step(operation.task, index, operation.data) is None:
                    raise self.broken(f"another call's state is stored for {name}")

    def _step(self, task: str, index: int, state: bytes) -> int | None:
        spec = self.world.tasks[task]
        return step_of(spec.calls[index].body(), state) if index < len(spec.calls) else None

    def _has_replicas(self, task: str) -> bool:
        return self.world.tasks[task].options.replicas > 1

    def _look_who_made_it(self, device: str, assignment: Assignment) -> None:
        task = decode_header(assignment.header).task
        if assignment.checkpoint is None or not self._has_replicas(task):
            return
        number = assignment.checkpoint[0]
        makers = self._makers.get((task, assignment.low, number), {})
        if device not in makers:
            raise self.broken(
                f"{device} is to run replica {assignment.low} of {task} from checkpoint {number}, "
                f"which {' and '.join(makers) or 'nobody'} made"
            )

    def sent(self, process: "Process", topic: ParsedTopic, message: Linked) -> None:
        if isinstance(message, Checkpoint) and self._has_replicas(message.task):
            name = (message.task, message.index, message.number)
            self._makers.setdefault(name, {})[topic.device] = None
        if not isinstance(message, Assign):
            return
        for assignment in message.assignments:
            self._look_who_made_it(topic.device, assignment)
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
