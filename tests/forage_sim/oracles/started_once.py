"""An assignment number starts a call at most once, and only where it was sent."""

from typing import TYPE_CHECKING

from forage_sim.oracles.base import Oracle
from forage_wire.messages import Linked, Outcomes, Trimmed
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
        "that the assignment names; again only if its worker died before it could report; and what "
        "has begun is not given back"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._last: dict[tuple[int, int], Run] = {}
        self._told: set[tuple[int, int]] = set()
        self._runs: dict[int, list[Run]] = {}
        """By assignment."""

    def sent(self, process: "Process", topic: ParsedTopic, message: Linked) -> None:
        if topic.branch in ("task", "outbox") and isinstance(message, Outcomes):
            for outcomes in message.sets:
                for low, high in outcomes.ranges:
                    self._told.update((outcomes.assignment, at) for at in range(low, high))
        elif topic.branch == "outbox" and isinstance(message, Trimmed):
            for number, high in message.rows:
                self._check_given_back(process, number, high)

    def _check_given_back(self, process: "Process", number: int, high: int) -> None:
        for run in self._runs.get(number, ()):
            if run.process is process and run.index >= high and not run.lost:
                raise self.broken(
                    f"{process.name} gives back {run.task}.{run.index} of assignment {number}, "
                    "which it has begun"
                )

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
        self._runs.setdefault(run.assignment, []).append(run)
        if not given.low <= run.index < given.high:
            raise self.broken(f"{where}, which is [{given.low}, {given.high})")
        if run.process.name != given.device:
            raise self.broken(f"{where}, which was given to {given.device}")
        # Sessions of one start differ in their counters: a connection may end meanwhile.
        if given.session.partition("-")[0] != run.process.start_part:
            raise self.broken(f"{where}, which was for another start ({given.session})")
        spec = self.world.tasks[run.task]
        if spec.calls[given.call_of(run.index)].body() != body:
            raise self.broken(f"{where} with the bytes of another call")
