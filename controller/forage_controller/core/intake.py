"""Messages taken in: read strictly, by topic, then handed to the part they concern."""

from collections.abc import Callable

from forage_controller.core.assignments import Assignments
from forage_controller.core.clients import Clients
from forage_controller.core.codes import CodeShelf
from forage_controller.core.effects import Effects
from forage_controller.core.fleet import Fleet
from forage_controller.core.leases import Leases
from forage_controller.core.ledger import Ledger
from forage_controller.core.monitor import Monitor
from forage_controller.core.reconcile import Reconciler
from forage_controller.core.settlement import Settlement
from forage_controller.core.state import Device
from forage_wire.codec import decode, decode_json
from forage_wire.errors import DecodeError
from forage_wire.io import MessageReceived
from forage_wire.limits import EPOCH_BELIEVED_MAX, LIST_ITEMS_MAX
from forage_wire.link import link_number
from forage_wire.messages import (
    Accepted,
    Acknowledge,
    AssignmentRefused,
    Beat,
    Checkpoint,
    ClientPresence,
    ControllerPresence,
    DeviceCapabilities,
    DeviceInventory,
    DeviceLoad,
    DevicePresence,
    Linked,
    NeedCode,
    Outcomes,
    Progress,
    Renew,
    Started,
    Trimmed,
)
from forage_wire.ranges import Ranges
from forage_wire.topics import ParsedTopic, Topics

__all__ = ["Intake"]

_FULL_MS = 100
"""A device that refuses work is given nothing for this long; twice as long the next time ..."""
_FULL_DOUBLINGS = 7
"""... up to this often, until it has done some."""
_PROGRESS_MAX = 1_024
"""Calls of a task whose last word on how far they are is kept: the ones heard of first go."""
_CODE_WANTED_MAX = 1_024
"""Functions that one device may be owed at a time."""


class Intake:
    """One method for each branch of topics; what cannot be read is counted and dropped."""

    def __init__(
        self,
        effects: Effects,
        topics: Topics,
        fleet: Fleet,
        clients: Clients,
        ledger: Ledger,
        settlement: Settlement,
        assignments: Assignments,
        reconciler: Reconciler,
        monitor: Monitor,
        codes: CodeShelf,
        leases: Leases,
        refused_epoch: Callable[[Device, int, str], None],
    ) -> None:
        self._effects = effects
        self._topics = topics
        self._fleet = fleet
        self._clients = clients
        self._ledger = ledger
        self._settlement = settlement
        self._assignments = assignments
        self._reconciler = reconciler
        self._monitor = monitor
        self._codes = codes
        self._leases = leases
        self._refused_epoch = refused_epoch

    def controller_presence(self, topic: ParsedTopic, payload: bytes) -> ControllerPresence | None:
        """Another controller's word, or ours; None where it cannot be read (or was cleared)."""
        if not payload:
            return None
        try:
            presence = decode_json(payload, ControllerPresence)
            if presence.epoch > EPOCH_BELIEVED_MAX:
                raise DecodeError(f"no controller has come to epoch {presence.epoch}")
            return presence
        except DecodeError as error:
            self._effects.drop(f"controller/{topic.controller}", error)
            return None

    def on_message(self, topic: ParsedTopic, event: MessageReceived, now_ms: int) -> None:
        """Everything but controllers' presence."""
        try:
            match topic.branch:
                case "task" | "outbox":
                    self._on_device(topic, decode(event.payload), now_ms)
                case "from":
                    message = decode(event.payload)
                    self._clients.on_message(topic.user, topic.client, message, now_ms)
                case "log":
                    self._monitor.on_log(topic.task, event.payload)
                case _:
                    self._on_document(topic, event, now_ms)
        except DecodeError as error:
            who = topic.device or f"{topic.user}/{topic.client}"
            self._effects.drop(who, f"{error} (on {topic.branch})")

    def _on_document(self, topic: ParsedTopic, event: MessageReceived, now_ms: int) -> None:
        payload, retain = event.payload, event.retain
        if topic.branch == "client-presence":
            if payload:
                decode_json(payload, ClientPresence)
            self._clients.on_presence(topic.user, topic.client, bool(payload), now_ms)
        elif not payload:
            # Somebody cleared a device's retained document; nothing is known by that.
            return
        elif topic.branch == "device-presence":
            presence = decode_json(payload, DevicePresence)
            self._fleet.on_presence(topic.device, presence, retain, now_ms)
        elif topic.branch == "device-capabilities":
            capabilities = decode_json(payload, DeviceCapabilities)
            self._fleet.on_capabilities(topic.device, capabilities)
        elif topic.branch == "device-load":
            load = decode_json(payload, DeviceLoad)
            self._fleet.on_load(topic.device, load, retain, now_ms)

    def _on_device(self, topic: ParsedTopic, message: Linked, now_ms: int) -> None:
        if not message.session:
            # Nobody's: it must not count as another device of the name.
            self._effects.drop(topic.device, "a message that names no session")
            return
        device = self._fleet.on_message(topic.device, message.session, now_ms)
        if device is None:
            self._effects.drop(topic.device, "a message of another session")
            return
        link = device.link
        if link is None or message.controller not in ("", link.controller):
            # A beat names nobody; anything else is for an earlier session of ours.
            if not isinstance(message, Beat):
                self._effects.drop(topic.device, "a message for another controller session")
            return
        if message.n and not message.controller:
            self._effects.drop(topic.device, "a numbered message that names no controller")
            return
        # A beat and a refusal stand outside of any link: they say neither n nor seen.
        if (message.n or message.seen) and link_number(message) != link.number:
            self._effects.drop(topic.device, "a message of an earlier link")
            return
        # What the device has seen may have opened its window.
        self._assignments.touched[device.name] = device
        dropped = link.dropped
        for ready in link.receive(message, now_ms):
            self._on_ready(device, ready, now_ms)
        if link.dropped > dropped:
            self._effects.drop(topic.device, "parts that make no message")

    def _on_ready(self, device: Device, message: Linked, now_ms: int) -> None:
        match message:
            case Outcomes():
                self._on_outcomes(device, message, now_ms)
            case Started():
                for task_id, index, number in message.rows:
                    opened = self._assignments.open.get(number)
                    if opened is not None and opened.device is device:
                        task = opened.task
                        if task.id == task_id and index not in task.done:
                            task.started[index] = number
                            opened.running = (index, now_ms)
            case Trimmed():
                self._on_trimmed(device, message, now_ms)
            case DeviceInventory():
                self._reconciler.on_inventory(device, message, now_ms)
                self._fleet.on_inventory(device)
            case AssignmentRefused():
                self._on_refused(device, message, now_ms)
            case NeedCode():
                for code_hash in message.hashes:
                    device.codes.pop(code_hash, None)
                self._resend_code(device, message.hashes)
            case Progress():
                self._on_progress(device, message)
            case Renew():
                self._leases.on_renew(device, message, now_ms)
            case Checkpoint():
                self._on_checkpoint(device, message, now_ms)
            case Accepted() | Beat():
                pass
            case _:
                self._effects.drop(device.name, f"{type(message).__name__} from a device")

    def _on_progress(self, device: Device, message: Progress) -> None:
        task, index = self._ledger.tasks.get(message.task), message.index
        page = None if task is None else task.page_of(index)
        if task is None or page is None or index in task.done:
            return
        for opened in page.holding(index, index + 1):
            if opened.device is device:
                if index not in task.progress and len(task.progress) >= _PROGRESS_MAX:
                    del task.progress[next(iter(task.progress))]
                task.progress[index] = (message.permille, message.text)
                return

    def _on_checkpoint(self, device: Device, message: Checkpoint, now_ms: int) -> None:
        opened = self._assignments.open.get(message.assignment)
        if opened is not None and (opened.device is not device or opened.task.id != message.task):
            self._effects.drop(device.name, "a checkpoint of an assignment that is another's")
            return
        self._ledger.checkpoints.take(opened, message, now_ms)

    def _on_outcomes(self, device: Device, message: Outcomes, now_ms: int) -> None:
        for outcomes in message.sets:
            try:
                if not self._settlement.on_outcomes(device, outcomes, now_ms):
                    self._reconciler.keep_outcomes(device, outcomes, now_ms)
            except DecodeError as error:
                self._effects.drop(device.name, error)

    def _on_trimmed(self, device: Device, message: Trimmed, now_ms: int) -> None:
        for number, high in message.rows:
            opened = self._assignments.open.get(number)
            if opened is not None and opened.device is device:
                self._reconciler.give_back(opened, high, now_ms)

    def _on_refused(self, device: Device, message: AssignmentRefused, now_ms: int) -> None:
        if message.reason == "epoch":
            if message.epoch_bound > EPOCH_BELIEVED_MAX:
                # It takes nothing from us, whatever the reason is.
                self._fleet.refused(device)
                why = f"no controller has come to epoch {message.epoch_bound}"
                self._effects.drop(device.name, why)
            else:
                self._refused_epoch(device, message.epoch_bound, message.holder)
            return
        opened = self._assignments.open.get(message.assignment)
        if opened is None or opened.device is not device:
            return
        function = opened.page.header.function
        if message.reason == "function" and isinstance(function, tuple):
            # Until it says what it has.
            device.lacks[function] = None
            self._fleet.changed(device)
        elif message.reason != "expired":
            # It may say that for ever: the more often, the longer it is left alone.
            wait_ms = _FULL_MS << min(device.refusals, _FULL_DOUBLINGS)
            device.refusals += 1
            device.refusing_until_ms = now_ms + wait_ms
            # Full of outcomes, perhaps, that are committed.
            self._settlement.acknowledge_now(now_ms)
        self._effects.note(
            "info",
            f"device={device.name} refused assignment={message.assignment}: {message.reason}",
        )
        self._reconciler.take_back(opened, f"refused: {message.reason}", now_ms)

    def _resend_code(self, device: Device, hashes: tuple[bytes, ...]) -> None:
        users = {
            opened.page.header.function: opened.task.client
            for opened in device.assignments.values()
        }
        for code_hash in hashes:
            if len(device.code_wanted) < _CODE_WANTED_MAX:
                # Nobody's where the page of the assignment that needs it is still on its way:
                # the code comes with it.
                self._codes.owe(device, code_hash, users.get(code_hash))

    def acknowledge(self, device: Device, rows: list[tuple[int, Ranges]]) -> None:
        """Tell a device what is committed of what it sent."""
        if device.link is None:
            return
        for at in range(0, len(rows), LIST_ITEMS_MAX):
            device.link.send(Acknowledge(rows=tuple(rows[at : at + LIST_ITEMS_MAX])))
