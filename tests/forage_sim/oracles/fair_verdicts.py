"""A device is declared alive or dead for a reason, and what is retained is none."""

import re
from typing import TYPE_CHECKING, Any

from forage_controller.core.sessions import start_of
from forage_controller.core.state import Device
from forage_sim.nodes import ControllerProcess
from forage_sim.oracles.base import Oracle
from forage_wire.codec import decode_json
from forage_wire.documents import DevicePresence, DeviceVerdict
from forage_wire.io import Connected, MessageReceived, Publish
from forage_wire.topics import ParsedTopic

if TYPE_CHECKING:
    from forage_sim.process import Process
    from forage_sim.world import World

__all__ = ["FairVerdicts"]

DEVICE_BRANCHES = ("device-presence", "device-load", "outbox", "task")
CANDIDATE_MS = 5_000
"""A second, and as long as a controller stands still where it is frozen."""
PATIENCE_MS = 15_000
"""A broker that hears nothing for this long (or longer) may end the connection."""
SESSION = re.compile(rb"([0-9a-f]{16})-(\d+)")
"""The first in a message is its sender's."""


class _Known:
    """What one start of a controller has heard of one device."""

    def __init__(self) -> None:
        self.heard_ms: dict[bytes, int] = {}
        """Start of the device -> when it last gave a sign of life."""
        self.newest: dict[bytes, int] = {}
        """Start of the device -> the highest connect counter heard."""
        self.over: dict[bytes, None] = {}
        """Starts that were declared over, and have not been heard since."""
        self.ends_ms: list[int] = []
        """When a newest session was heard to end, until that is told, or it is heard again."""
        self.alive_ms = -(10**9)
        """The last sign of life of any."""
        self.verdict = ""


class FairVerdicts(Oracle):
    """Sees what controllers hear, and judges what they say of it."""

    statement = (
        "a device is declared alive only when it is heard; dead only after its detection time of "
        "silence while the controller listened, on the will or goodbye of its newest session "
        "(unless its broker has ended that for its silence, and it holds work), or when another "
        "start has taken its name"
    )

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        # By (controller's start, device): another controller has heard other things.
        self._known: dict[tuple[str, str], _Known] = {}
        self._starts: dict[tuple[str, str], dict[bytes, None]] = {}
        """(controller, device) -> its starts ever heard: a controller's disk tells of earlier ones."""
        self._counters: dict[tuple[str, str], dict[bytes, int]] = {}
        """(controller, device) -> the highest connect counter of each start ever heard."""
        self._connected_ms: dict[str, int] = {}
        """Start of a controller -> since when it hears anybody."""
        self._active_ms: dict[str, int] = {}
        """Start of a controller -> since when it rules."""

    def event(self, process: "Process", event: Any) -> None:
        if type(event) is Connected:
            self._connected_ms[process.start_part] = self.world.clock.now_ms
        if type(event) is not MessageReceived or not self.is_controller(process):
            return
        topic = self.world.parse(event.topic)
        if topic is None or topic.branch not in DEVICE_BRANCHES:
            return
        known = self._of(process, topic.device)
        now_ms = self.world.clock.now_ms
        found = SESSION.search(event.payload)
        if found is None:
            return
        start, counter = found[1], int(found[2])
        if topic.branch == "device-presence":
            presence = decode_json(event.payload, DevicePresence)
            if presence.state in ("lost", "offline"):
                if counter < known.newest.get(start, 0) or start in known.over:
                    return
                if presence.state == "offline" or not self._was_silent(
                    process, topic.device, start
                ):
                    known.ends_ms.append(now_ms)
                return
            # An end is told in the turn in which it is heard, whatever else is heard then; by a
            # controller that starts, in its first turn as an active one.
            active_ms = self._active_ms.get(process.start_part, now_ms)
            known.ends_ms = [at_ms for at_ms in known.ends_ms if max(at_ms, active_ms) == now_ms]
        known.over.pop(start, None)
        known.newest[start] = max(known.newest.get(start, 0), counter)
        self._starts.setdefault((process.name, topic.device), {})[start] = None
        counters = self._counters.setdefault((process.name, topic.device), {})
        counters[start] = max(counters.get(start, 0), counter)
        if not event.retain:
            known.alive_ms = now_ms
            if counter == counters[start]:
                # (What an earlier connection said is no sign of life, whoever says it again.)
                known.heard_ms[start] = now_ms

    def published(self, process: "Process", publish: Publish, topic: ParsedTopic) -> None:
        if topic.branch == "controller-presence" and b'"active"' in publish.payload[:20]:
            self._active_ms.setdefault(process.start_part, self.world.clock.now_ms)
        if topic.branch != "verdict" or not publish.payload:
            return
        verdict = decode_json(publish.payload, DeviceVerdict)
        known = self._of(process, topic.device)
        before, known.verdict = known.verdict, verdict.verdict
        # Where two have the name, one that was heard gets it a little later.
        since_ms = self.world.clock.now_ms - CANDIDATE_MS if before else 0
        heard_ms = known.alive_ms
        if heard_ms >= 0:
            # What it kept while it was starting it hears when it begins to rule.
            heard_ms = max(heard_ms, self._active_ms.get(process.start_part, 0))
        if verdict.verdict == "alive" and before != "alive" and heard_ms < since_ms:
            raise self.broken(f"{topic.device} is declared alive and was not heard of late")
        if verdict.verdict != "dead" or before not in ("alive", "suspect"):
            # It says so again, or of a device that it has not heard.
            return
        if not self._is_fair(process, topic.device, known, verdict.why):
            raise self.broken(
                f"{topic.device} is declared dead ({verdict.why}); its starts' connections are "
                f"{known.newest}, heard at {known.heard_ms}"
            )

    def _was_silent(self, process: "Process", name: str, start: bytes) -> bool:
        """Whether a device with work was silent for longer than a broker bears."""
        if any(fault.target == "controller" for fault in self.world.plan.faults):
            # Silence while it was away, or stood still, does not count.
            return False
        device = self._device(process, name)
        if not device.assignments:
            return False
        heard_ms = self._of(process, name).heard_ms.get(start, 0)
        busy_ms = process.machine.world_ms(device.busy_since_ms)
        since_ms = max(heard_ms, busy_ms, self._connected_ms[process.start_part])
        return self.world.clock.now_ms - since_ms >= PATIENCE_MS

    def _is_fair(self, process: "Process", device: str, known: _Known, why: str) -> bool:
        if why.startswith("silent"):
            # Of two under one name, that may be of the one that is current.
            heard_ms = min([*known.heard_ms.values()], default=-(10**9))
            heard_ms = max(heard_ms, self._connected_ms[process.start_part])
            return self.world.clock.now_ms - heard_ms >= self._detect_ms()
        if why == "it was started anew":
            # The one that has the name now need not be the one that was heard last.
            winner = start_of(self._device(process, device).session).encode()
            earlier = [start for start in known.newest if start not in (*known.over, winner)]
            known.over.update(dict.fromkeys(earlier))
            for start in earlier:
                known.heard_ms.pop(start, None)
            # The first of the two may be one that only its disk has told it of.
            return len(self._starts.get((process.name, device), {})) > 1
        return bool(known.ends_ms) and known.ends_ms.pop() >= 0

    def _device(self, process: "Process", name: str) -> Device:
        """What a controller has of a device."""
        if not isinstance(process, ControllerProcess):
            return Device(name=name)
        return process.core().fleet.devices.get(name) or Device(name=name)

    def _detect_ms(self) -> int:
        detect_ms = self.world.plan.detect_ms or 0
        jumps = any(
            fault.kind == "clock-jump" and fault.target == "controller"
            for fault in self.world.plan.faults
        )
        # Of its own clock's jump, up to a quarter may count as silence.
        return detect_ms * 3 // 4 if jumps else detect_ms

    def _of(self, process: "Process", device: str) -> _Known:
        return self._known.setdefault((process.start_part, device), _Known())
