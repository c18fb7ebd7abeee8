"""What a standby says that it has, it has: a state in which the active one's disk was."""

from typing import TYPE_CHECKING

from forage_sim.oracles.base import Oracle
from forage_wire.codec import decode
from forage_wire.io import Publish
from forage_wire.messages import Replicated
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process

__all__ = ["CopyIsTrue"]


class CopyIsTrue(Oracle):
    """Compares the disk of whoever says `replicated` with all states of the other's."""

    statement = (
        "a standby whose copy is whole holds what the active controller's disk held, group by group"
    )

    def published(self, process: "Process", publish: Publish, topic: ParsedTopic) -> None:
        if topic.branch != "replica":
            return
        message = decode(publish.payload)
        if not isinstance(message, Replicated):
            return
        self.world.trace.counters["replicated"] += 1
        mine = next(node for node in self.world.controllers if node.process is process)
        [other] = [node for node in self.world.controllers if node is not mine]
        when = (other.disk.fingerprints or {}).get(mine.disk.fingerprint())
        if when is None:
            raise self.broken(
                f"{process.name} says that it has group {message.position}, and its disk is in a "
                "state in which the other's never was"
            )
        speaks_to = other.process is not None and message.controller == other.process.session
        if speaks_to and when < other.disk.since.get(message.position, 0):
            raise self.broken(
                f"{process.name} says that it has group {message.position}, and its disk is in a "
                "state from before that"
            )
