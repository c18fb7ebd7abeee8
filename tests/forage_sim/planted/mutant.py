"""What a planted bug is."""

from dataclasses import dataclass

__all__ = ["AGENT", "CLIENT", "CONTROLLER", "WIRE", "Mutant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One bug."""

    name: str
    file: str
    old: str
    """Occurs exactly once in the file."""
    new: str
    oracles: tuple[str, ...]
    """Any of these may be the first to see it; `core` is a core's own assertion or exception."""
    world: str = ""
    """`pair`: the one of two controllers; else the ordinary one."""
    quick: bool = False
    """Whether a few hundred seeds find it, so that the slow tests try it each time."""


CONTROLLER = "controller/forage_controller/core/"
AGENT = "agent/forage_agent/core/"
CLIENT = "sdk/forage/core/"
WIRE = "schemas/forage_wire/"
