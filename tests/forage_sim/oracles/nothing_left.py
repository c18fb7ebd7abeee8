"""When everything is collected, nobody keeps anything of it; and nothing grows without bound."""

from typing import TYPE_CHECKING

from forage_sim.oracles.base import Oracle

if TYPE_CHECKING:
    from forage_sim.world import World

__all__ = ["NothingLeft"]


class NothingLeft(Oracle):
    """Looks into memories and queues once all is said to be done."""

    statement = "what was collected is released everywhere, and queues stay bounded"

    def __init__(self, world: "World") -> None:
        super().__init__(world)

    def converged(self) -> None:
        left = self.world.left_over()
        if left:
            raise self.broken("; ".join(left))
