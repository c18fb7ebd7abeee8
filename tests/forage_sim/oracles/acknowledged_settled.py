"""What was acknowledged is settled in the end, whoever has died meanwhile."""

from typing import TYPE_CHECKING

from forage_sim.oracles.base import Oracle
from forage_wire.messages import Acknowledged, Linked
from forage_wire.ranges import RangeSet
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.world import World

__all__ = ["AcknowledgedSettled"]


class AcknowledgedSettled(Oracle):
    """Remembers the acknowledged pages, and looks at the disk when all is said to be done."""

    statement = "every acknowledged call is settled or collected in the end, and on the disk"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._pages: dict[tuple[str, int], None] = {}

    def sent(self, process: "Process", topic: ParsedTopic, message: Linked) -> None:
        if topic.branch == "to" and isinstance(message, Acknowledged):
            self._pages.update(dict.fromkeys(message.rows))

    def unfinished(self) -> list[str]:
        state = self.world.disk.state
        found = []
        for task, first in self._pages:
            if task in state.ever_released:
                continue
            stored = state.tasks.get(task)
            page = None if stored is None else stored.pages.get(first)
            if stored is None or page is None:
                found.append(f"acknowledged page {first} of {task} is not on the disk")
                continue
            done = RangeSet(stored.settled)
            done.update(stored.collected)
            for low, high in done.missing(first, first + page.n):
                found.append(f"acknowledged calls {task} [{low}, {high}) have not ended")
        return found
