"""A call of an `at_most_once` task starts at most once, whatever dies."""

from typing import TYPE_CHECKING

from forage_sim.oracles.base import Oracle

if TYPE_CHECKING:
    from forage_sim.watch import Run

__all__ = ["AtMostOnce"]


class AtMostOnce(Oracle):
    """Counts the starts of such calls over all devices."""

    statement = "a call of an at_most_once task is started at most once, anywhere"

    def started(self, run: "Run", body: bytes) -> None:
        if not self.world.tasks[run.task].options.at_most_once:
            return
        runs = self.world.watch.runs[run.task, run.index]
        if len(runs) > 1:
            places = ", ".join(f"{one.process.name} at {one.at_ms} ms" for one in runs)
            raise self.broken(f"{run.task}.{run.index} was started by {places}")
