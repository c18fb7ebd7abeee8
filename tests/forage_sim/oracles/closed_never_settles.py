"""Where the controller settles, only an assignment that is open does."""

from typing import TYPE_CHECKING

from forage_controller.core.operations import Operation, SaveOutcomes
from forage_sim.oracles.base import Oracle

if TYPE_CHECKING:
    from forage_sim.disk import StoredState

__all__ = ["ClosedNeverSettles"]


class ClosedNeverSettles(Oracle):
    """Looks at each outcome that is handed to the disk, in the order of the operations."""

    statement = "an assignment that is closed, or gave the call back, never settles it"

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
