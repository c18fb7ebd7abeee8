"""When everything is collected, nobody keeps anything of it."""

from forage_sim.inspection import left_over
from forage_sim.oracles.base import Oracle

__all__ = ["NothingLeft"]


class NothingLeft(Oracle):
    """Looks into memories, disks and fleets until there is nothing of what has ended."""

    statement = "what was collected, and what nobody will collect, is released everywhere"

    def unfinished(self) -> list[str]:
        return left_over(self.world)
