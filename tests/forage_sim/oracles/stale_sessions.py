"""What an earlier session says, or is told, changes nothing."""

from typing import TYPE_CHECKING, Any

from forage_sim.oracles.base import Oracle
from forage_sim.oracles.fair_verdicts import DEVICE_BRANCHES, SESSION
from forage_sim.trace import message_type
from forage_wire.io import Disconnected, MessageReceived, Publish
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.watch import Run
    from forage_sim.world import World

__all__ = ["StaleSessions"]

GONE = (b'{"state":"lost"', b'{"state":"offline"')
"""What is said of a session that is over, and read as nothing else."""


class StaleSessions(Oracle):
    """Compares what is said and done with the newest session that was heard before."""

    statement = (
        "once a controller has heard a session, it speaks to no earlier one of the same process; "
        "a device runs only what it was sent under the session that it had then"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._heard: dict[tuple[str, bytes], tuple[int, int, int]] = {}
        """(controller's start, peer's start) -> counter heard before, when, and now."""
        self._active_ms: dict[str, int] = {}
        """Start of a controller -> since when it rules."""
        self._rightly_sent: dict[tuple[str, int], None] = {}
        """(start of the device, assignment) that came under its session."""

    def event(self, process: "Process", event: Any) -> None:
        if type(event) is Disconnected and process.start_part not in self._active_ms:
            # What it had kept for the time when it would rule is gone.
            for name in [name for name in self._heard if name[0] == process.start_part]:
                del self._heard[name]
        if type(event) is not MessageReceived:
            return
        topic = self.world.parse(event.topic)
        if topic is None:
            return
        if topic.branch == "inbox":
            self._read(process, event.payload)
        elif self.is_controller(process) and topic.branch in DEVICE_BRANCHES:
            if topic.branch == "device-load" and event.retain:
                return
            found = SESSION.search(event.payload)
            if found is not None and not event.payload.startswith(GONE):
                self._hear(process, found[1], int(found[2]))

    def _hear(self, process: "Process", start: bytes, counter: int) -> None:
        name = (process.start_part, start)
        before, at_ms, now = self._heard.get(name, (0, -1, 0))
        if at_ms < self.world.clock.now_ms:
            before, at_ms = now, self.world.clock.now_ms
        self._heard[name] = (before, at_ms, max(now, counter))

    def _read(self, process: "Process", payload: bytes) -> None:
        if message_type(payload) not in ("assign", "part"):
            return
        found = SESSION.search(payload)
        if found is not None and found[0].decode() == process.session:
            for number in self.world.watch.assigned_in.get(payload, ()):
                self._rightly_sent[process.start_part, number] = None

    def published(self, process: "Process", publish: Publish, topic: ParsedTopic) -> None:
        if topic.branch == "controller-presence" and b'"active"' in publish.payload[:20]:
            self._active_ms.setdefault(process.start_part, self.world.clock.now_ms)
        if topic.branch != "inbox" or message_type(publish.payload) == "device-refused":
            # Whoever is sent away may be there or not: it holds nothing.
            return
        found = SESSION.search(publish.payload)
        if found is None:
            return
        before, at_ms, now = self._heard.get((process.start_part, found[1]), (0, -1, 0))
        # What it hears in one turn with what it says may have come after it was said; and what
        # it heard while it started, it reads in its first turn.
        now_ms = self.world.clock.now_ms
        if self._active_ms.get(process.start_part, now_ms) == now_ms:
            return
        newest = now if at_ms < now_ms else before
        if int(found[2]) < newest:
            raise self.broken(
                f"{process.name} speaks to session {found[0].decode()} of {topic.device}, "
                f"and has heard its connection number {newest}"
            )

    def started(self, run: "Run", body: bytes) -> None:
        if (run.process.start_part, run.assignment) not in self._rightly_sent:
            raise self.broken(
                f"{run.process.name} starts {run.task}.{run.index} of assignment {run.assignment}, "
                "which never came under a session that was its own"
            )
