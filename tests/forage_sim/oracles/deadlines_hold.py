"""A deadline is counted from when a page was taken, whatever is started anew."""

from typing import TYPE_CHECKING, Any

from forage_controller.core.operations import Operation, SaveTime
from forage_sim.disk import StoredState
from forage_sim.nodes import ControllerProcess
from forage_sim.oracles.base import Oracle
from forage_wire.messages import Acknowledged, Linked
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.world import World

__all__ = ["DeadlinesHold"]


class DeadlinesHold(Oracle):
    """Compares when the controller means to end a page's calls with when it was acknowledged."""

    statement = (
        "the time of a page's calls is over no later than their deadline after it was acknowledged, "
        "and after a power cut no later than that and what had not been counted when it came"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._acknowledged: dict[tuple[str, int], int] = {}
        """Page -> when it was acknowledged, in the world's time."""
        self._counted: dict[tuple[str, int], tuple[int, int]] = {}
        """Boot and time since, as saved -> when that was, and what restarts had cost by then."""
        self._process: Process | None = None
        self._extra_ms = 0
        """What restarts of the machine have cost."""

    def event(self, process: "Process", event: Any) -> None:
        node = self.world.controller
        if process is self._process or process is not node.process:
            return
        self._process = process
        time = node.disk.state.time
        if time is not None:
            counted_ms, self._extra_ms = self._counted[time.boot, time.boot_ms]
            if time.boot != node.machine.boot:
                self._extra_ms += self.world.clock.now_ms - counted_ms

    def saved(self, before: StoredState, operation: Operation) -> None:
        if isinstance(operation, SaveTime):
            name = (operation.boot, operation.boot_ms)
            self._counted[name] = (self.world.clock.now_ms, self._extra_ms)

    def sent(self, process: "Process", topic: ParsedTopic, message: Linked) -> None:
        if isinstance(message, Acknowledged) and process is self.world.controller.process:
            for row in message.rows:
                self._acknowledged.setdefault(row, self.world.clock.now_ms)

    def looked(self) -> None:
        node = self.world.controller
        process = node.process
        if not isinstance(process, ControllerProcess) or not process.alive:
            return
        if process is not self._process:
            return
        for task in process.core().ledger.tasks.values():
            for first, page in task.pages.items():
                taken_ms = self._acknowledged.get((task.id, first))
                if page.due_ms is None or taken_ms is None:
                    continue
                due_ms = node.machine.world_ms(page.due_ms)
                latest_ms = taken_ms + page.header.options.deadline_ms + self._extra_ms
                if due_ms > latest_ms:
                    raise self.broken(
                        f"page {first} of {task.id} was acknowledged at {taken_ms} ms and may take "
                        f"{page.header.options.deadline_ms} ms; it ends at {due_ms} ms, "
                        f"{due_ms - latest_ms} ms too late"
                    )
