"""Every client that lives gets an end of every call and question."""

from forage_sim.oracles.base import Oracle

__all__ = ["EveryCallEnds"]


class EveryCallEnds(Oracle):
    """Looks at what users wait for once nothing goes wrong any more."""

    statement = "when nothing goes wrong any more, every call of a living client ends"

    def unfinished(self) -> list[str]:
        return self.world.lacking()
