"""The devices: which session of each is current, and whether it is alive.

Two detectors of death: the will, within milliseconds where a process dies, and silence, where a
machine freezes or a cable is cut (`silence`). A retained word is nobody's sign of life: a session
gets work once it has answered `report` with its inventory.
"""

import heapq
from collections.abc import Callable
from dataclasses import replace

from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.feasible import why_not
from forage_controller.core.links import Links
from forage_controller.core.sessions import is_newer, start_of
from forage_controller.core.silence import Silence
from forage_controller.core.state import NEVER_HEARD, Device
from forage_wire.address import parse_broker_address
from forage_wire.codec import encode, encode_json
from forage_wire.limits import PACKET_BYTES_MAX
from forage_wire.messages import (
    DeviceCapabilities,
    DeviceLoad,
    DevicePresence,
    DeviceRefused,
    DeviceVerdict,
    Header,
    Report,
)
from forage_wire.topics import Topics

__all__ = ["Fleet"]

_CANDIDATE_MS = 1_000
_DOUBT_MS = 1_000
"""A device is not asked for its inventory more often than this because of what it may run."""
_PAST_MAX = 4
"""Earlier starts of a device that are remembered."""
_GHOST_MS = 10_000
"""A session that has not answered `report` after this is not asked again until it speaks."""


class Fleet:
    """Every device ever heard, its session, its link and our verdict on it.

    `on_gone(device, why, now_ms)` is told when a device's work is to go elsewhere,
    `on_changed(device)` when it may or may not take work any more, `on_forgotten(device)` when
    it is not known any more.
    """

    def __init__(
        self,
        config: CoreConfig,
        effects: Effects,
        links: Links,
        topics: Topics,
        on_gone: Callable[[Device, str, int], None],
        on_changed: Callable[[Device], None],
        on_forgotten: Callable[[Device], None],
    ) -> None:
        self._config = config
        self._effects = effects
        self._links = links
        self._topics = topics
        self._on_gone = on_gone
        self._on_changed = on_changed
        self._on_forgotten = on_forgotten
        self.devices: dict[str, Device] = {}
        self.session = ""
        """Our own; "" while we are not active."""
        self.epoch = 0
        self.silence = Silence(config)
        self.alive = 0
        self._checks: list[tuple[int, str]] = []
        self._gone: dict[str, int] = {}
        """Devices that went without a word of late -> when."""
        self._held: dict[str, str] = {}
        self._storm_until_ms: int | None = None
        self._refusing: dict[str, Device] = {}

    # -- time -------------------------------------------------------------------------------

    def spread_ms(self) -> int:
        """Over how long devices and clients spread their first reconnect."""
        return max(self._config.reconnect_spread_ms, len(self.devices) * 1_000 // 500)

    def watch(self, device: Device) -> None:
        """See to it that a device's silence is looked at in time."""
        if device.verdict == "dead":
            if device.link is not None and device.reported_ms is not None:
                self._check_at(device, device.reported_ms + _GHOST_MS)
            return
        patience = self.silence.patience_ms(device)
        if device.verdict == "alive":
            patience //= 2
        due = self.silence.since_ms(device) + patience
        if device.check_ms is None or due < device.check_ms:
            device.check_ms = due
            heapq.heappush(self._checks, (due, device.name))

    def next_wakeup_ms(self) -> int | None:
        """When `check` has something to do."""
        due = self._checks[0][0] if self._checks else None
        if self._storm_until_ms is not None:
            due = self._storm_until_ms if due is None else min(due, self._storm_until_ms)
        return due

    def check(self, now_ms: int) -> None:
        """Judge the silence of devices whose time has come."""
        while self._checks and self._checks[0][0] <= now_ms:
            due, name = heapq.heappop(self._checks)
            device = self.devices.get(name)
            if device is None or device.check_ms != due:
                continue
            device.check_ms = None
            self._judge(device, now_ms)
            self._decide_candidate(device, now_ms)
            self.watch(device)
            if device.candidate_until_ms is not None:
                self._check_at(device, device.candidate_until_ms)
        if self._storm_until_ms is not None and now_ms >= self._storm_until_ms:
            self._end_storm(now_ms)

    def _check_at(self, device: Device, due_ms: int) -> None:
        if device.check_ms is None or due_ms < device.check_ms:
            device.check_ms = due_ms
            heapq.heappush(self._checks, (due_ms, device.name))

    def _judge(self, device: Device, now_ms: int) -> None:
        if device.verdict == "dead":
            # Somebody's retained word, and nobody answers to it: stop asking.
            if device.reported_ms is not None and now_ms >= device.reported_ms + _GHOST_MS:
                drop_link(device)
            return
        silent_ms = now_ms - self.silence.since_ms(device)
        patience = self.silence.patience_ms(device)
        if silent_ms >= patience:
            self._lost(device, f"silent for {silent_ms} ms", now_ms)
            # It may live, and have nothing to say as it never heard of the work that it owes us a
            # word for, or wake up in a moment: whoever is asked answers at once, and not with the
            # next load, half a minute later.
            self.report(device, now_ms)
        elif silent_ms >= patience // 2:
            self._set_verdict(device, "suspect", f"silent for {silent_ms} ms", now_ms)
        elif device.reported_ms is not None:
            wait_ms = self._config.limits.report_every_ms
            if device.is_in_doubt:
                wait_ms = _DOUBT_MS
            if device.slices and now_ms - device.reported_ms >= wait_ms:
                self.report(device, now_ms)

    # -- what devices say -------------------------------------------------------------------

    def device(self, name: str) -> Device | None:
        """The device of a name, made when it is first heard of; None: there are too many."""
        device = self.devices.get(name)
        if device is None and len(self.devices) < self._config.limits.devices:
            device = self.devices[name] = Device(name=name)
        if device is None:
            self._effects.drop("others", f"more than {len(self.devices)} devices")
        return device

    def expire(self, now_ms: int) -> None:
        """Forget devices that have been dead for long; their retained word would bring them back."""
        keep_ms = self._config.limits.keep_ms
        for device in list(self.devices.values()):
            if (
                device.verdict == "dead"
                and device.heard_ms + keep_ms <= now_ms
                and not device.assignments
                and device.link is None
            ):
                del self.devices[device.name]
                self._held.pop(device.name, None)
                self._refusing.pop(device.name, None)
                self._on_forgotten(device)
                if device.why != NEVER_HEARD:
                    topic = self._topics.verdict(self._config.name, device.name)
                    self._effects.publish(topic, b"", retain=True)

    def spares(self, header: Header, names: list[str]) -> bool:
        """Whether any device but these may run calls with such a header."""
        return any(
            name not in names and not why_not(device, header)
            for name, device in self.devices.items()
        )

    def changed(self, device: Device) -> None:
        """What a device may run has changed."""
        self._on_changed(device)

    def on_presence(self, name: str, presence: DevicePresence, retain: bool, now_ms: int) -> None:
        """A device's own word, or its will's."""
        device = self.device(name)
        if device is None:
            return
        if presence.state in ("lost", "offline"):
            if presence.session == device.session and device.verdict != "dead":
                before, device.state = device.state, presence.state
                if presence.state == "offline":
                    self._gone_now(device, "it said goodbye", now_ms)
                elif before != "lost":
                    self._on_will(device, now_ms)
            elif presence.session == device.session:
                device.state = presence.state
            elif not device.session:
                device.session = presence.session
                device.state = presence.state
                device.why = "it said goodbye" if presence.state == "offline" else "lost"
            return
        if not self._speaks(device, presence.session, retain, now_ms):
            return
        if device.state != presence.state:
            device.state = presence.state
            self._on_changed(device)
        if not retain:
            self._heard(device, now_ms)

    def on_capabilities(self, name: str, capabilities: DeviceCapabilities) -> None:
        """What a device is and has."""
        device = self.device(name)
        if device is None:
            return
        if device.session and start_of(capabilities.session) != start_of(device.session):
            return
        before, device.capabilities = device.capabilities, capabilities
        device.is_beside_broker = _is_beside(capabilities)
        if before is not None and replace(before, session=capabilities.session) == capabilities:
            # It says so whenever it is asked to report.
            return
        device.lacks = {}
        if device.link is not None:
            device.link.packet_bytes_max = min(
                capabilities.packet_bytes_max, self._config.packet_bytes_max
            )
        self._on_changed(device)

    def on_load(self, name: str, load: DeviceLoad, retain: bool, now_ms: int) -> None:
        """How busy a device is."""
        device = self.device(name)
        if device is None:
            return
        if retain:
            if load.session != device.session:
                return
        elif not self._speaks(device, load.session, False, now_ms):
            return
        if device.state in ("lost", "offline"):
            return
        if device.load is None or load.seq > device.load.seq or device.load.session != load.session:
            device.load = load
        if not retain:
            self._heard(device, now_ms)
            known = device.capabilities
            if known is None or start_of(known.session) != start_of(device.session):
                # What it is and has was lost on the way; it says so again when asked to report.
                self.report(device, now_ms)

    def on_message(self, name: str, session: str, now_ms: int) -> Device | None:
        """A device sent a message from `session`; None where that is not its current one."""
        device = self.device(name)
        if device is None or not self._speaks(device, session, False, now_ms):
            return None
        if device.state in ("lost", "offline"):
            # Sent before the will or the goodbye, and overtaken by it: no sign of life. Only a
            # live `online` revives this session.
            return None
        self._heard(device, now_ms)
        return device

    def on_inventory(self, device: Device) -> None:
        """The current session answered: it may get work, and a candidate may not have its name."""
        if device.candidate:
            self._refuse_candidate(device)
        if not device.verified:
            device.verified = True
            self._on_changed(device)

    def _speaks(self, device: Device, session: str, retain: bool, now_ms: int) -> bool:
        """Whether `session` is (now) the device's current one."""
        if session == device.session:
            return True
        if not device.session or is_newer(session, device.session):
            self._take_session(device, session, now_ms)
            return True
        if start_of(session) == start_of(device.session):
            return False
        past = device.past.get(start_of(session))
        if past is not None and is_newer(past, session):
            # Said long ago, and said again by the network: that connection is over.
            return False
        if device.verdict == "dead" and not device.assignments:
            self._take_session(device, session, now_ms)
            return True
        if device.verdict == "dead":
            self._gone_for_good(device, "it was started anew", now_ms)
            self._take_session(device, session, now_ms)
            return True
        if retain or session == device.candidate or is_newer(device.candidate, session):
            return False
        self._new_candidate(device, session, now_ms)
        return False

    def _take_session(self, device: Device, session: str, now_ms: int) -> None:
        drop_link(device)
        if start_of(session) == start_of(device.session):
            # An earlier session of a start never comes back; another start's may.
            device.link_number = 0
        elif device.session:
            _remember(device, device.session)
            # What the other one is and has says nothing of this one.
            known = device.capabilities
            if known is not None and start_of(known.session) != start_of(session):
                device.capabilities = None
                device.is_beside_broker = False
        device.session = session
        device.verified = False
        device.reported_ms = None
        device.codes = {}
        device.state = "online"
        device.load = None
        device.candidate = ""
        device.candidate_until_ms = None
        device.lacks = {}
        device.refusals = 0
        device.refusing_until_ms = 0
        self._on_changed(device)
        self.report(device, now_ms)

    def _heard(self, device: Device, now_ms: int) -> None:
        device.heard_ms = now_ms
        if device.verdict == "alive":
            return
        was_dead = device.verdict == "dead"
        self._set_verdict(device, "alive", "heard", now_ms)
        if was_dead:
            self._held.pop(device.name, None)
            self._gone.pop(device.name, None)
            device.verified = False
            self.report(device, now_ms)
        self.watch(device)

    def report(self, device: Device, now_ms: int) -> None:
        """Ask a device's session for its inventory."""
        if not self.session or not device.session or device.name in self._refusing:
            return
        if device.link is None:
            limit = (
                device.capabilities.packet_bytes_max if device.capabilities else PACKET_BYTES_MAX
            )
            device.link = self._links.make(
                session=device.session,
                controller=self.session,
                number=device.link_number,
                epoch=self.epoch,
                topic=self._topics.inbox(device.name),
                packet_bytes_max=min(limit, self._config.packet_bytes_max),
            )
        device.reported_ms = now_ms
        device.is_in_doubt = False
        device.link.send(Report())
        self.watch(device)

    def doubt(self, device: Device) -> None:
        """Ask a device soon for its inventory: our book of what it runs may be old."""
        device.is_in_doubt = True
        if device.reported_ms is not None:
            self._check_at(device, device.reported_ms + _DOUBT_MS)

    # -- two of one name --------------------------------------------------------------------

    def _new_candidate(self, device: Device, session: str, now_ms: int) -> None:
        device.candidate = session
        _remember(device, session)
        device.candidate_until_ms = now_ms + min(_CANDIDATE_MS, self.silence.detect_ms(device))
        self._effects.note(
            "warning", f"two devices of one name device={device.name}: asking the first"
        )
        self.report(device, now_ms)
        self._check_at(device, device.candidate_until_ms)

    def _refuse_candidate(self, device: Device) -> None:
        where = device.capabilities.address if device.capabilities else ""
        refused = DeviceRefused(
            reason=f"another device named {device.name} is at work: give this one another --name",
            address=where,
        )
        self._effects.publish(
            self._topics.inbox(device.name),
            encode(refused, session=device.candidate, controller=self.session, epoch=self.epoch),
        )
        self._effects.note(
            "warning", f"refused a second device={device.name} session={device.candidate}"
        )
        device.candidate = ""
        device.candidate_until_ms = None

    def _decide_candidate(self, device: Device, now_ms: int) -> None:
        if device.candidate_until_ms is None or now_ms < device.candidate_until_ms:
            return
        session = device.candidate
        self._gone_for_good(device, "it was started anew", now_ms)
        self._take_session(device, session, now_ms)
        self._heard(device, now_ms)

    # -- death ------------------------------------------------------------------------------

    def _on_will(self, device: Device, now_ms: int) -> None:
        """The broker has ended a connection, or found it ended."""
        if self.silence.will_tells_nothing(device, now_ms):
            drop_link(device)
            device.verified = False
            self._on_changed(device)
            self._set_verdict(device, "suspect", "its connection broke in its silence", now_ms)
            self.watch(device)
        else:
            self._lost(device, "its connection broke", now_ms)

    def _lost(self, device: Device, why: str, now_ms: int) -> None:
        """A device went without a word: dead, unless so many go at once that it is the network."""
        window = self.silence.detect_ms(device)
        fleet = self.alive
        self._gone.pop(device.name, None)
        self._gone[device.name] = now_ms
        while self._gone[next(iter(self._gone))] < now_ms - window:
            del self._gone[next(iter(self._gone))]
        fleet = max(fleet, self.alive + len(self._gone) - 1)
        limits = self._config.limits
        if fleet >= limits.storm_devices and 4 * len(self._gone) >= fleet:
            if self._storm_until_ms is None:
                self._effects.note(
                    "warning",
                    f"{len(self._gone)} of {fleet} devices gone within {window} ms: "
                    "taken for the network's fault, their work is held for one window",
                )
            self._storm_until_ms = now_ms + window
            self._held[device.name] = why
            self._die(device, why, now_ms)
            return
        self._gone_now(device, why, now_ms)

    def _die(self, device: Device, why: str, now_ms: int) -> None:
        drop_link(device)
        device.verified = False
        self._set_verdict(device, "dead", why, now_ms)

    def _gone_now(self, device: Device, why: str, now_ms: int) -> None:
        self._die(device, why, now_ms)
        self._on_gone(device, why, now_ms)

    def _gone_for_good(self, device: Device, why: str, now_ms: int) -> None:
        """A start is over: nothing of it will be heard again."""
        self._held.pop(device.name, None)
        self._gone_now(device, why, now_ms)

    def _end_storm(self, now_ms: int) -> None:
        self._storm_until_ms = None
        held, self._held = self._held, {}
        for name, why in held.items():
            device = self.devices[name]
            if device.verdict == "dead":
                self._on_gone(device, why, now_ms)

    def _set_verdict(self, device: Device, verdict: str, why: str, now_ms: int) -> None:
        if device.verdict == verdict:
            return
        self.alive += (verdict != "dead") - (device.verdict != "dead")
        device.verdict, device.why = verdict, why
        level = "info" if verdict == "alive" else "warning"
        self._effects.note(level, f"device={device.name} is {verdict}: {why}")
        self._publish_verdict(device, now_ms)
        self._on_changed(device)

    def _publish_verdict(self, device: Device, now_ms: int) -> None:
        document = DeviceVerdict(
            verdict=device.verdict,
            why=device.why[:256],
            since_s=max(0, now_ms - device.heard_ms) // 1_000,
        )
        self._effects.publish(
            self._topics.verdict(self._config.name, device.name),
            encode_json(document),
            retain=True,
        )

    # -- our own connection -----------------------------------------------------------------

    def connected(self, session: str, epoch: int, now_ms: int) -> None:
        """We are active under `session`: ask every session we know for its inventory."""
        self.session = session
        self.epoch = epoch
        self._refusing = {}
        self.silence.listen_from(now_ms + self.spread_ms() + self._config.limits.first_suspicion_ms)
        if self._storm_until_ms is not None:
            # Those held may come back as everybody does.
            self._storm_until_ms = max(self._storm_until_ms, self.silence.listening_since_ms)
        for device in self.devices.values():
            if device.why != NEVER_HEARD:
                # The broker may have forgotten what it kept.
                self._publish_verdict(device, now_ms)
            drop_link(device)
            device.link_number = 0
            device.verified = False
            if device.session and device.state not in ("lost", "offline"):
                self.report(device, now_ms)
            self.watch(device)

    def refused(self, device: Device) -> None:
        """A device obeys a higher epoch than ours: nothing more to it until we have another."""
        drop_link(device)
        device.verified = False
        self._refusing[device.name] = device
        self._on_changed(device)

    def new_epoch(self, epoch: int, now_ms: int) -> None:
        """We go on under a higher epoch: links stay, and devices that refused are asked again.

        So is who has not answered yet: what it was asked carries the epoch before and is repeated
        as it is, and who obeys a higher one would refuse it for ever.
        """
        self.epoch = epoch
        refusing, self._refusing = self._refusing, {}
        for device in self.devices.values():
            if device.link is None:
                continue
            device.link.epoch = epoch
            if not device.verified:
                drop_link(device)
                refusing[device.name] = device
        for device in refusing.values():
            self.report(device, now_ms)

    def disconnected(self) -> None:
        """We hear nobody: nobody is suspected until we are back."""
        self.session = ""
        for device in self.devices.values():
            drop_link(device)
            device.verified = False
            # Who wanted a name may be gone when we are back; who is there says so again.
            device.candidate = ""
            device.candidate_until_ms = None
            self._on_changed(device)


def drop_link(device: Device) -> None:
    """A link is over; the next one, of the same pair of sessions too, starts with `report`."""
    if device.link is not None:
        device.link.closed = True
        device.link = None
        device.link_number += 1
    # What was asked on it is not answered any more, and what was sent may not have come.
    for opened in device.assignments.values():
        opened.trim_to = None
    device.codes = {}
    device.code_wanted = {}


def _remember(device: Device, session: str) -> None:
    """Keep the newest session of a start, to know an earlier one when it is said again."""
    before = device.past.pop(start_of(session), session)
    device.past[start_of(session)] = before if is_newer(before, session) else session
    if len(device.past) > _PAST_MAX:
        del device.past[next(iter(device.past))]


def _is_beside(capabilities: DeviceCapabilities) -> bool:
    """Whether the broker is on the device itself, by the address that it has of it."""
    try:
        return parse_broker_address(capabilities.broker).is_loopback
    except ValueError:
        return False
