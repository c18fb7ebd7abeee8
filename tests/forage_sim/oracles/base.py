"""What an oracle is: it sees everything and changes nothing."""

from typing import TYPE_CHECKING, Any

from forage_controller.core.operations import Operation
from forage_wire.io import Publish
from forage_wire.messages import Linked
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.disk import StoredState
    from forage_sim.process import Process
    from forage_sim.watch import Run
    from forage_sim.world import World

__all__ = ["Oracle", "OracleViolated"]


class OracleViolated(AssertionError):
    """Something happened that must never be seen."""


class Oracle:
    """One statement about every run. An oracle overrides what it looks at."""

    statement = ""
    """In one sentence."""

    def __init__(self, world: "World") -> None:
        self.world = world

    def broken(self, how: str) -> OracleViolated:
        """The exception to raise."""
        return OracleViolated(f"{type(self).__name__}: {how}. It says: {self.statement}")

    def published(self, process: "Process", publish: Publish, topic: ParsedTopic) -> None:
        """A process gives a message to its connection."""

    def sent(self, process: "Process", topic: ParsedTopic, message: Linked) -> None:
        """The same, decoded and parts put together: what controllers order, what devices settle."""

    def started(self, run: "Run", body: bytes) -> None:
        """A worker begins a call."""

    def resolved(self, process: "Process", task: str, index: int, item: object) -> None:
        """A client's core gives a call's outcome to its caller."""

    def decided(self, process: "Process", task: str, call: int, devices: tuple[str, ...]) -> None:
        """A client takes a call with replicas for decided, by the outcomes of these devices."""

    def event(self, process: "Process", event: Any) -> None:
        """A process hands an event of its connection to its core."""

    def saved(self, before: "StoredState", operation: Operation) -> None:
        """A controller hands an operation to its disk, of which this is the state before it."""

    def looked(self) -> None:
        """Some time has passed."""

    def unfinished(self) -> list[str]:
        """What is not as it must be in the end, in sentences: asked once faults are over."""
        return []

    def is_controller(self, process: "Process") -> bool:
        """Whether this is a controller's process."""
        return any(node.name == process.name for node in self.world.controllers)
