"""An exclusive call never runs twice at a time."""

from typing import TYPE_CHECKING

from forage_sim.oracles.base import Oracle

if TYPE_CHECKING:
    from forage_sim.watch import Run
    from forage_sim.world import World

__all__ = ["ExclusiveAlone"]


class ExclusiveAlone(Oracle):
    """Leases hold at both ends, whoever is cut off, frozen or dead."""

    statement = (
        "no call of an exclusive task begins while another attempt of it is running anywhere, as "
        "long as the controller's clock goes as fast as the devices'"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._running: dict[tuple[str, int], list[Run]] = {}
        # A leap of the controller's clock is time that passed for nobody else.
        self._clocks_agree = not any(
            fault.kind == "clock-jump" and fault.target == world.controller.name
            for fault in world.plan.faults
        )

    def started(self, run: "Run", body: bytes) -> None:
        if not self._clocks_agree or not self.world.tasks[run.task].options.exclusive:
            return
        name = (run.task, run.index)
        alive = [
            other
            for other in self._running.get(name, ())
            if not other.ended and other.process.alive
        ]
        if alive:
            other = alive[0]
            raise self.broken(
                f"{run.process.name} begins {run.task}.{run.index} of assignment {run.assignment} "
                f"while {other.process.name} runs it of assignment {other.assignment}, "
                f"since {other.at_ms} ms"
            )
        self._running[name] = [*alive, run]
