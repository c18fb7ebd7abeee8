"""An assignment number starts a call at most once, and only where it was sent."""

from typing import TYPE_CHECKING

from forage_sim.oracles.base import Oracle
from forage_wire.messages import Linked, Outcomes
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.watch import Run
    from forage_sim.world import World

__all__ = ["StartedOnce"]


class StartedOnce(Oracle):
    """The number is the fence: neither repeats nor stale sessions start anything twice."""

    statement = (
        "a call is started at most once for each assignment number, by the start of the device "
        "that the assignment names; again only if its worker died before it could report"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._last: dict[tuple[int, int], Run] = {}
        self._told: set[tuple[int, int]] = set()

    def sent(self, process: "Process", topic: ParsedTopic, message: Linked) -> None:
        if topic.branch in ("task", "outbox") and isinstance(message, Outcomes):
            for outcomes in message.sets:
                for low, high in outcomes.ranges:
                    self._told.update((outcomes.assignment, at) for at in range(low, high))

    def started(self, run: "Run", body: bytes) -> None:
        given = self.world.watch.given_out[run.assignment]
        where = f"{run.process.name} starts {run.task}.{run.index} of assignment {run.assignment}"
        name = (run.assignment, run.index)
        if name in self._told:
            raise self.broken(f"{where}, whose outcome it has sent")
        before = self._last.get(name)
        if before is not None and not before.lost:
            raise self.broken(f"{where} a second time")
        self._last[name] = run
        if not given.low <= run.index < given.high:
            raise self.broken(f"{where}, which is [{given.low}, {given.high})")
        if run.process.name != given.device:
            raise self.broken(f"{where}, which was given to {given.device}")
        # Sessions of one start differ in their counters: a connection may end meanwhile.
        if given.session.partition("-")[0] != run.process.start_part:
            raise self.broken(f"{where}, which was for another start ({given.session})")
        spec = self.world.tasks[run.task]
        if spec.calls[run.index].body() != body:
            raise self.broken(f"{where} with the bytes of another call")
