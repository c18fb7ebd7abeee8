"""When everything is collected, nobody keeps anything of it; and nothing grows without bound."""

from forage_sim.inspection import left_over
from forage_sim.oracles.base import Oracle

__all__ = ["NothingLeft"]


class NothingLeft(Oracle):
    """Looks into memories and queues once all is said to be done."""

    statement = "what was collected is released everywhere, and queues stay bounded"

    def converged(self) -> None:
        left = left_over(self.world)
        if left:
            raise self.broken("; ".join(left))
