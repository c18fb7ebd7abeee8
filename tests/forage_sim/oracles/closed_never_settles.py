"""Where the controller settles, only an assignment that is open does."""

from typing import TYPE_CHECKING

from forage_controller.core.operations import Operation, SaveOutcomes
from forage_sim.oracles.base import Oracle

if TYPE_CHECKING:
    from forage_sim.disk import StoredState
    from forage_sim.process import Process

__all__ = ["ClosedNeverSettles"]


class ClosedNeverSettles(Oracle):
    """Looks at each outcome that is handed to the disk, in the order of the operations."""

    statement = (
        "where the controller settles, an assignment that is closed, or gave the call back, never "
        "does it, and its client hears of nothing that is not committed"
    )

    def resolved(self, process: "Process", task: str, index: int, item: object) -> None:
        spec = self.world.tasks[task]
        if spec.settle != "controller" or not isinstance(item, list):
            return
        if spec.options.replicas > 1:
            # Of which runs it was made is `DevicesVoteOnce`'s affair.
            return
        state = self.world.disk.state
        stored = state.tasks.get(task)
        if task not in state.ever_released and (stored is None or index not in stored.settled):
            raise self.broken(f"{process.name} has the value of {task}.{index}, not committed")

    def saved(self, before: "StoredState", operation: Operation) -> None:
        if not isinstance(operation, SaveOutcomes) or not operation.assignment:
            return
        spec = self.world.tasks.get(operation.task)
        if spec is None or spec.settle != "controller":
            return
        opened = before.assignments.get(operation.assignment)
        where = f"assignment {operation.assignment} settles {operation.task} {operation.settled}"
        if opened is None:
            raise self.broken(f"{where} and is not open")
        for low, high in operation.settled:
            if low < opened.low or high > opened.high:
                raise self.broken(f"{where} and has only [{opened.low}, {opened.high})")
