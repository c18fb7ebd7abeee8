"""`ClientCore`: everything a client decides.

Owns its sessions and links with the controller, its tasks from their opening until they are
released, which outcome of a call counts (the first valid one), and what is said to whom when.
Merging of submissions, values, futures and threads are the shell's.

**Links.** A link's key is the pair of sessions. A connection begins with a link to "whoever is the
controller" (""), and sends hello and pages on it at once; the first answer names the controller's
session, and the link goes on under that name. It begins anew, with an inventory and everything
that is not acknowledged, when a controller's presence names another session, or when one shows
itself and no welcome came within a second of hello.

**What must survive.** A page is kept until `acknowledged`; a query until its answer; what is
collected stands in the inventory; cancellations are collected, and those with force are said
again. So a lost message, link, broker or controller costs time alone.
"""

from typing import assert_never

from forage.core.collecting import Collecting
from forage.core.commands import (
    AnswerReceived,
    Command,
    ControllerMissing,
    ProtocolRefused,
    RefuseTask,
    Welcomed,
)
from forage.core.controllers import Controllers, is_later_session
from forage.core.device_parts import DeviceParts
from forage.core.events import (
    AttachAsked,
    CallsCancelled,
    CallsDecided,
    CallsSubmitted,
    CloseAsked,
    Event,
    QueryAsked,
    QueryDropped,
    TaskOpened,
)
from forage.core.headers import Headers
from forage.core.receiving import Receiving
from forage.core.replicas import (
    attached_record,
    decide,
    news_of,
    open_calls,
)
from forage.core.sending import Sending
from forage.core.tasks import TaskRecord
from forage_wire.codec import decode, decode_json, encode_json
from forage_wire.errors import DecodeError
from forage_wire.ignored import KEYS_IGNORED, IgnoredKeys
from forage_wire.io import (
    BatchEnded,
    Connected,
    Disconnected,
    MessageReceived,
    Note,
    Publish,
    PublishAcknowledged,
)
from forage_wire.limits import PACKET_BYTES_MAX, PROTOCOL_MINOR
from forage_wire.link import link_number
from forage_wire.messages import (
    Acknowledged,
    Answer,
    Cancel,
    ClientPresence,
    ControllerPresence,
    Linked,
    NeedCode,
    Outcomes,
    OutcomeSet,
    Part,
    Progress,
    Query,
    Released,
    Settled,
    Started,
    SubmissionRefused,
    Welcome,
)
from forage_wire.topics import Topics, is_name

__all__ = ["ClientCore"]

_RESTART_AFTER_MS = 1_000
"""A controller that is there and has not welcomed us for this long never got our hello."""


class ClientCore:
    """Events in, commands out.

    Args:
        user: On whose behalf.
        client: This process's 13 random characters.
        topics: The topics of its fleet.
        python: This process's Python minor, such as 3.11; empty for a simulated client.
        software: Name and version of this program, for people.
        welcome_ms: No welcome within this time of a connection is `ControllerMissing`.
        packet_bytes_max: The largest message that this client takes or sends.
    """

    def __init__(
        self,
        *,
        user: str,
        client: str,
        topics: Topics,
        python: str = "",
        software: str = "",
        welcome_ms: int = 5_000,
        packet_bytes_max: int = PACKET_BYTES_MAX,
    ) -> None:
        self.user = user
        self.client = client
        self.topics = topics
        self.python = python
        self.welcome_ms = welcome_ms
        self.packet_bytes_max = packet_bytes_max
        self.tasks: dict[str, TaskRecord] = {}
        """Until they are released."""
        self.dropped = 0
        """Messages that could not be used."""
        self.ignored = IgnoredKeys()
        self._session = ""
        self._sending = Sending(
            topic=topics.from_client(user, client),
            packet_bytes_max=packet_bytes_max,
            python=python,
            software=software,
        )
        self._headers = Headers(user=user, client=client, python=python)
        self._to_topic = topics.to_client(user, client)
        # What follows is the task (or `-`), which messages name themselves, and the device.
        self._task_prefix = topics.task(user, client, "", "").removesuffix("//")
        self._controllers = Controllers()
        self._parts = DeviceParts()
        self._queries: dict[int, Query] = {}
        self._collecting = Collecting()
        self._receiving = Receiving(self.tasks, self._sending, self._collecting)
        self._hello_ms = 0
        self._missing_due_ms: int | None = None

    # -- what the shell looks at ------------------------------------------------------------

    @property
    def repeated(self) -> int:
        """Outcomes of calls that had one already."""
        return self._receiving.repeated

    @property
    def is_idle(self) -> bool:
        """Whether what is submitted now would go out now, and nothing before it waits.

        True while every page sent is acknowledged or has shown an outcome.
        """
        return self._sending.is_idle

    @property
    def is_welcome(self) -> bool:
        """Whether a controller has answered on this connection."""
        return self._sending.is_welcome

    @property
    def unacknowledged_bytes(self) -> int:
        """Pages kept because the controller has not committed them."""
        return self._sending.unacknowledged_bytes

    @property
    def unacknowledged_pages(self) -> int:
        """How many those are."""
        return self._sending.unacknowledged_pages

    @property
    def waiting_messages(self) -> int:
        """Messages that wait for room in the window."""
        return self._sending.waiting_messages

    def is_handed_over(self, task: str) -> bool:
        """Whether the controller has committed all that was submitted of a task."""
        record = self.tasks.get(task)
        return record is None or not record.pages

    @property
    def reconnect_spread_ms(self) -> int:
        """How far the controller wants a fleet's reconnects spread."""
        return self._controllers.reconnect_spread_ms

    def subscriptions(self) -> list[tuple[str, int]]:
        """What the shell subscribes to before `Connected`: (filter, QoS)."""
        return self.topics.client_subscriptions(self.user, self.client)

    def will(self, session: str) -> Publish:
        """What the broker is to publish if this connection ends without a goodbye.

        It is also the goodbye itself: the last thing to publish before an orderly end.
        """
        del session  # A client's absence is an empty message, whichever session it was.
        return Publish(
            topic=self.topics.client_presence(self.user, self.client), payload=b"", retain=True
        )

    # -- events -----------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        """Advance by one event.

        Args:
            event: What happened.
            now_ms: Monotonic milliseconds; never less than in the call before.

        Returns:
            Commands to carry out in order.
        """
        out: list[Command] = []
        match event:
            case MessageReceived():
                self._on_message(event, now_ms, out)
                if KEYS_IGNORED:
                    self._note_ignored(event.topic, out)
            case BatchEnded():
                self._on_batch_ended(now_ms, out)
            case CallsSubmitted():
                self._on_submitted(event, out)
            case TaskOpened():
                self._on_opened(event)
            case CallsCancelled():
                self._on_cancelled(event, now_ms)
            case CallsDecided():
                self._on_decided(event, now_ms)
            case QueryAsked():
                query = Query(
                    id=event.id, what=event.what, name=event.name, arguments=dict(event.arguments)
                )
                self._queries[event.id] = query
                self._sending.send(query)
            case QueryDropped():
                self._queries.pop(event.id, None)
            case AttachAsked():
                self._on_attach(event)
            case CloseAsked():
                self._on_close(now_ms, out)
            case Connected():
                self._on_connected(event, now_ms, out)
            case Disconnected():
                self._sending.disconnect()
                self._controllers.forget()
                self._parts = DeviceParts()
                self._missing_due_ms = None
            case PublishAcknowledged():
                pass  # A client asks for no receipts: only its controller's word counts.
            case _:
                assert_never(event)
        return out

    def next_wakeup_ms(self) -> int | None:
        """When `BatchEnded` has something to do without further events; None: never."""
        link = self._sending.link
        if link is None:
            return None
        due = link.next_wakeup_ms()
        collecting_due_ms = self._collecting.due_ms
        if collecting_due_ms is not None and (due is None or collecting_due_ms < due):
            due = collecting_due_ms
        if not self._sending.is_welcome:
            for each in (self._missing_due_ms, self._restart_due_ms()):
                if each is not None and (due is None or each < due):
                    due = each
        return due

    # -- connection and controller ----------------------------------------------------------

    def _on_connected(self, event: Connected, now_ms: int, out: list[Command]) -> None:
        # Retained presences may have come already: a broker may send them before it says that
        # the subscription is made.
        self._session = event.session
        self._missing_due_ms = now_ms + self.welcome_ms
        out.append(
            Publish(
                topic=self.topics.client_presence(self.user, self.client),
                payload=encode_json(ClientPresence(state="online", session=event.session)),
                retain=True,
            )
        )
        self._start_link("", now_ms)

    def _start_link(self, controller: str, now_ms: int, epoch: int = 0) -> None:
        """Begin to number anew: hello, inventory, then all that may have been lost."""
        self._hello_ms = now_ms
        attached = [name for name, record in self.tasks.items() if record.attached]
        for name in attached:
            # With all outcomes here nothing is asked again, so no answer will release it.
            if self.tasks[name].is_complete:
                self._forget(name)
        self._sending.start_link(self._session, controller, self.tasks)
        self._sending.controller_epoch = epoch
        self._sending.send_inventory(self.tasks)
        self._collecting.inventory_sent()
        for name in attached:
            if name in self.tasks:
                self._sending.attach(name)
        for query in self._queries.values():
            self._sending.send(query)

    def _restart_due_ms(self) -> int | None:
        """When to knock again at a controller that shows itself and has not welcomed us."""
        link = self._sending.link
        if self._sending.is_welcome or link is None or link.controller:
            return None
        if not self._controllers.current:
            return None
        return self._hello_ms + _RESTART_AFTER_MS

    def _on_controller_presence(
        self, name: str, event: MessageReceived, now_ms: int, out: list[Command]
    ) -> None:
        try:
            presence = decode_json(event.payload, ControllerPresence) if event.payload else None
        except DecodeError as error:
            self._drop(out, f"topic={event.topic} reason={error}")
            return
        self._controllers.heard(name, presence)
        current, link = self._controllers.current, self._sending.link
        if not current or link is None or current == link.controller:
            return
        if link.controller and self._controllers.epoch >= self._sending.controller_epoch:
            self._missing_due_ms = now_ms + self.welcome_ms
            self._start_link(current, now_ms, self._controllers.epoch)

    def _on_welcome(self, message: Welcome, out: list[Command]) -> None:
        self._missing_due_ms = None
        if abs(message.minor - PROTOCOL_MINOR) > 1:
            out.append(
                ProtocolRefused(
                    text=f"The controller speaks protocol 1.{message.minor}, this client "
                    f"1.{PROTOCOL_MINOR}; install the same version of forage at both ends."
                )
            )
            return
        self._sending.welcome(message.packet_bytes_max)
        out.append(Welcomed(controller=message.controller, devices=message.devices))

    # -- submissions ------------------------------------------------------------------------

    def _on_opened(self, event: TaskOpened) -> None:
        self.tasks[event.task] = TaskRecord(
            task=event.task,
            key=event.key,
            function=event.function,
            form=event.form,
            label=event.label,
            python_min=event.python_min,
            code=event.code,
            options=event.options,
            # Only there can an attempt that was given up never win.
            settle=event.settle,
        )

    def _on_submitted(self, event: CallsSubmitted, out: list[Command]) -> None:
        task = self.tasks.get(event.task)
        if task is None:
            # It was refused while its next calls were on their way here.
            ranges = ((event.first, event.first + len(event.calls)),)
            text = f"The task {event.task} was refused before these calls were submitted."
            out.append(RefuseTask(task=event.task, reason="unknown", text=text, ranges=ranges))
            return
        pages = task.cut_pages(
            event.calls,
            last=event.last,
            header=self._headers.of(task, self._sending.packet_bytes_max),
            packet_bytes_max=self._sending.packet_bytes_max,
        )
        self._sending.add_pages(pages)

    def _on_cancelled(self, event: CallsCancelled, now_ms: int) -> None:
        task = self.tasks.get(event.task)
        if task is None:
            # Another client's: the controller decides whether we may.
            self._sending.send(Cancel(task=event.task, ranges=event.ranges, force=event.force))
            return
        ranges = event.ranges if task.layout is None else task.layout.runs_of(event.ranges)
        fresh: list[tuple[int, int]] = []
        for low, high in ranges:
            fresh += task.resolved.missing(low, high)
        if event.force:
            task.force(ranges)
        self._collecting.note_ended(task, fresh, now_ms)
        # Calls that have not been sent go out, or never, as collected: nothing runs them.
        self._sending.cancel(task, ranges if event.force else tuple(fresh), event.force)

    def _on_decided(self, event: CallsDecided, now_ms: int) -> None:
        task = self.tasks.get(event.task)
        if task is None or task.layout is None:
            return
        fresh, unwanted = decide(task, event.ranges)
        self._collecting.note_ended(task, fresh, now_ms)
        if not task.attached:
            self._sending.cancel(task, unwanted, True)

    def _on_attach(self, event: AttachAsked) -> None:
        # Whatever was known of it has reached its end here, and now it is wanted once more.
        self._forget(event.task)
        self.tasks[event.task] = attached_record(event)
        self._sending.attach(event.task)

    def _on_close(self, now_ms: int, out: list[Command]) -> None:
        if self._sending.link is not None:
            self._sending.say_collected(self._collecting.take())
            out += self._sending.poll(now_ms)

    # -- messages ---------------------------------------------------------------------------

    def _on_message(self, event: MessageReceived, now_ms: int, out: list[Command]) -> None:
        topic = event.topic
        device = ""
        if topic != self._to_topic:
            # Looked at by its parts: tasks are many, and each is heard of a few times.
            prefix, _slash, device = topic.rpartition("/")
            prefix, _slash, _task = prefix.rpartition("/")
            if prefix != self._task_prefix or not is_name(device):
                self._on_other_topic(event, now_ms, out)
                return
        if self._sending.link is None:
            return
        try:
            message = decode(event.payload, self.packet_bytes_max)
            if device:
                self._on_task(message, device, now_ms, out)
            else:
                self._on_to(message, now_ms, out)
        except DecodeError as error:
            self._drop(out, f"topic={topic} reason={error}")

    def _on_other_topic(self, event: MessageReceived, now_ms: int, out: list[Command]) -> None:
        parsed = self.topics.parse(event.topic)
        if parsed is not None and parsed.branch == "controller-presence":
            self._on_controller_presence(parsed.controller, event, now_ms, out)
        else:
            self._drop(out, f"topic={event.topic} reason=unknown topic")

    def _on_to(self, message: Linked, now_ms: int, out: list[Command]) -> None:
        """A message from the controller."""
        link = self._sending.link
        if link is None or message.session != self._session or not message.controller:
            self._drop(out, "reason=for another session")
            return
        number = link_number(message)
        if number > link.number:
            # The controller thought us gone, and has let our link go.
            self._start_link(message.controller, now_ms, message.epoch)
            return
        if number < link.number:
            self._drop(out, "reason=of an earlier link")
            return
        if not link.controller:
            self._sending.name_controller(message.controller, message.epoch)
        if message.controller == link.controller:
            self._sending.controller_epoch = max(self._sending.controller_epoch, message.epoch)
        elif message.epoch > self._sending.controller_epoch or is_later_session(
            message.controller, link.controller
        ):
            # It was started anew, or has connected again, and its presence, which would have told
            # us, was lost.
            self._start_link(message.controller, now_ms, message.epoch)
            return
        else:
            self._drop(out, f"reason=from another controller session={message.controller}")
            return
        for ready in link.receive(message, now_ms):
            self._on_ready(ready, now_ms, out)
        if link.is_forgotten:
            self._start_link(message.controller, now_ms, message.epoch)

    def _on_ready(self, message: Linked, now_ms: int, out: list[Command]) -> None:
        match message:
            case Outcomes():
                for outcomes in message.sets:
                    self._on_outcomes(outcomes, outcomes.device, now_ms, out, archived=True)
            case Acknowledged():
                for task, first in message.rows:
                    self._sending.acknowledged(self.tasks.get(task), first)
            case Settled():
                self._receiving.on_settled(message, now_ms)
            case Released():
                for task in message.tasks:
                    self._on_released(task, out)
            case Welcome():
                self._on_welcome(message, out)
            case Answer():
                if self._queries.pop(message.id, None) is not None:
                    out.append(AnswerReceived(id=message.id, ok=message.ok, body=message.body))
            case SubmissionRefused():
                self._on_refused(message.task, message.reason, message.text, out)
            case NeedCode():
                self._sending.send_code(message.hashes, self.tasks)
            case _:
                self._drop(out, f"reason=unexpected {type(message).__name__}")

    def _on_task(self, message: Linked, device: str, now_ms: int, out: list[Command]) -> None:
        """A message from a device."""
        if type(message) is Part:
            whole = self._parts.add(device, message)
            if whole is None:
                return
            message = whole
        match message:
            case Outcomes():
                for outcomes in message.sets:
                    self._on_outcomes(outcomes, device, now_ms, out, archived=False)
            case Started() | Progress():
                out += news_of(self.tasks, device, message)
            case _:
                self._drop(out, f"device={device} reason=unexpected {type(message).__name__}")

    def _on_outcomes(
        self,
        outcomes: OutcomeSet,
        device: str,
        now_ms: int,
        out: list[Command],
        *,
        archived: bool,
    ) -> None:
        unusable = self._receiving.on_outcomes(outcomes, device, now_ms, out, archived=archived)
        if unusable:
            self._drop(out, f"task={outcomes.task} device={device} reason={unusable}")

    # -- what the controller ends -----------------------------------------------------------

    def _on_released(self, task: str, out: list[Command]) -> None:
        record = self.tasks.get(task)
        if record is not None and not record.is_complete:
            self._on_refused(
                task,
                "data-lost",
                f"The controller no longer keeps the outcomes of task {task}; submit it again.",
                out,
            )
        self._forget(task)

    def _on_refused(self, task: str, reason: str, text: str, out: list[Command]) -> None:
        record = self.tasks.get(task)
        if record is None:
            return
        ranges = open_calls(record)
        record.resolved.update(record.open_ranges())
        self._forget(task)
        out.append(RefuseTask(task=task, reason=reason, text=text, ranges=ranges))

    def _forget(self, task: str) -> None:
        record = self.tasks.pop(task, None)
        self._collecting.forget(task)
        if record is not None:
            for first in list(record.pages):
                self._sending.acknowledged(record, first)

    # -- the end of a batch -----------------------------------------------------------------

    def _on_batch_ended(self, now_ms: int, out: list[Command]) -> None:
        if self._sending.link is None:
            return
        if not self._sending.is_welcome:
            self._knock_again(now_ms, out)
        collecting_due_ms = self._collecting.due_ms
        if collecting_due_ms is not None and now_ms >= collecting_due_ms:
            self._sending.say_collected(self._collecting.take())
        out += self._sending.poll(now_ms)

    def _knock_again(self, now_ms: int, out: list[Command]) -> None:
        """Nobody has welcomed us on this link."""
        restart_due_ms = self._restart_due_ms()
        if restart_due_ms is not None and now_ms >= restart_due_ms:
            self._start_link(self._controllers.current, now_ms, self._controllers.epoch)
        if self._missing_due_ms is not None and now_ms >= self._missing_due_ms:
            self._missing_due_ms = None
            text = self._controllers.missing_text(self.topics.root, self.welcome_ms)
            out.append(ControllerMissing(text=text))

    def _note_ignored(self, topic: str, out: list[Command]) -> None:
        parsed = self.topics.parse(topic)
        text = self.ignored.take((parsed and parsed.device) or "the controller")
        if text:
            out.append(Note(level="warning", text=text))

    def _drop(self, out: list[Command], why: str) -> None:
        """Count a message that cannot be used; the first, second, fourth, ... make a line."""
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:
            out.append(Note(level="warning", text=f"message dropped {why} dropped={self.dropped}"))
