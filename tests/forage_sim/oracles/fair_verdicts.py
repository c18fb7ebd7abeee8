"""A device is declared dead for a reason: silence, its own session's last word, or a successor."""

from typing import TYPE_CHECKING, Any

from forage_sim.oracles.base import Oracle
from forage_wire.codec import decode_json
from forage_wire.documents import ControllerPresence, DevicePresence, DeviceVerdict
from forage_wire.io import MessageReceived, Publish
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.world import World

__all__ = ["FairVerdicts"]

DEVICE_BRANCHES = ("device-presence", "device-load", "outbox", "task")


class FairVerdicts(Oracle):
    """Sees what controllers hear, and judges when they say `dead`."""

    statement = (
        "a device is declared dead only after its detection time of silence, on the will or "
        "goodbye of its newest session, or when another start has taken its name"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        # All by (controller's start, device): another controller has heard other things.
        self._heard_ms: dict[tuple[str, str], int] = {}
        self._newest: dict[tuple[str, str], dict[str, int]] = {}
        """Start of the device -> the highest connect counter heard."""
        self._ended: dict[tuple[str, str], int] = {}
        """When the newest session was heard to end, until that is told, or was not told in time."""
        self._active_ms: dict[str, int] = {}
        """Start of the controller -> since when it tells what it hears."""
        self._verdicts: dict[tuple[str, str], str] = {}

    def event(self, process: "Process", event: Any) -> None:
        if not isinstance(event, MessageReceived) or process.name not in self._controllers():
            return
        topic = self.world.topics.parse(event.topic)
        if topic is None or topic.branch not in DEVICE_BRANCHES:
            return
        name = (process.start_part, topic.device)
        if topic.branch != "device-presence":
            if not event.retain:
                self._heard_ms[name] = self.world.clock.now_ms
            return
        presence = decode_json(event.payload, DevicePresence)
        start, _, counter = presence.session.partition("-")
        newest = self._newest.setdefault(name, {})
        if presence.state in ("lost", "offline"):
            if int(counter) >= newest.get(start, 0):
                self._ended[name] = self.world.clock.now_ms
            return
        newest[start] = max(newest.get(start, 0), int(counter))
        # Told in the turn in which it was heard; or, by one that starts, when it is active.
        told_ms = max(self._ended.get(name, 0), self._active_ms.get(process.start_part, 10**9))
        if told_ms < self.world.clock.now_ms:
            self._ended.pop(name, None)
        if not event.retain:
            self._heard_ms[name] = self.world.clock.now_ms

    def published(self, process: "Process", publish: Publish, topic: ParsedTopic) -> None:
        if topic.branch == "controller-presence" and publish.payload:
            if decode_json(publish.payload, ControllerPresence).state == "active":
                self._active_ms.setdefault(process.start_part, self.world.clock.now_ms)
            return
        if topic.branch != "verdict" or not publish.payload:
            return
        verdict = decode_json(publish.payload, DeviceVerdict)
        name = (process.start_part, topic.device)
        before, self._verdicts[name] = self._verdicts.get(name, ""), verdict.verdict
        if verdict.verdict != "dead" or before == "dead":
            return
        newest = self._newest.get(name, {})
        if self._ended.pop(name, None) is not None or len(newest) > 1:
            # Of two starts under one name, one has to go.
            return
        silent_ms = self.world.clock.now_ms - self._heard_ms.get(name, -(10**9))
        if silent_ms < (self.world.plan.detect_ms or 0):
            raise self.broken(
                f"{topic.device} is declared dead ({verdict.why}) {silent_ms} ms after it was "
                f"heard; its sessions are {newest}"
            )

    def _controllers(self) -> list[str]:
        return [node.name for node in self.world.controllers]
