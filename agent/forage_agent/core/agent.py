"""The agent's core: everything that a device decides, and nothing that it touches.

`AgentCore` routes events to the parts that own the decisions:

- `controllers.Controllers`: whose messages count, and the link to the controller.
- `acceptance.Acceptance`: which assignments are taken.
- `holdings.Holdings`: the assignments held, from acceptance to the last acknowledgement.
- `pool.Pool`: workers, and the calls before them.
- `leases.Leases`: how long exclusive calls may be run.
- `outbox.Outbox`: outcomes on their way.
- `presence.PublicWord`: presence, capabilities, load.

Numbered messages leave at `BatchEnded` alone, in this order: the inventory of a new link, answers,
starts, outcomes. What came together is so answered together.
"""

from typing import assert_never

from forage_agent.core.acceptance import Acceptance
from forage_agent.core.checkpoints import Checkpoints
from forage_agent.core.code import CodeStore
from forage_agent.core.controllers import Controllers
from forage_agent.core.events import (
    CapabilitiesMeasured,
    Command,
    DrainAsked,
    Event,
    ExitAsked,
    ExitProcess,
    InputDropped,
    LoadMeasured,
    LogLines,
    WorkerCheckpoint,
    WorkerExited,
    WorkerLoaded,
    WorkerOutcomes,
    WorkerProgress,
    WorkerReady,
    WorkerReturned,
)
from forage_agent.core.holdings import Holdings
from forage_agent.core.leases import Leases
from forage_agent.core.logs import log_messages
from forage_agent.core.notes import Notes
from forage_agent.core.outbox import Outbox
from forage_agent.core.pool import Pool
from forage_agent.core.presence import PublicWord
from forage_agent.core.progress import ProgressReports
from forage_agent.core.settings import Settings
from forage_agent.core.slices import Piece, Slice
from forage_agent.core.starts import Starts
from forage_wire.codec import decode, decode_json, encode
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
from forage_wire.link import Link, Outgoing
from forage_wire.messages import (
    Accepted,
    Acknowledge,
    Assign,
    Assignment,
    AssignmentRefused,
    Beat,
    CancelAssigned,
    Code,
    ControllerPresence,
    DeviceInventory,
    DevicePresence,
    DeviceRefused,
    Drain,
    Forget,
    Lease,
    Linked,
    NeedCode,
    Part,
    Report,
    Seen,
    Trim,
    Trimmed,
)
from forage_wire.topics import Topics

__all__ = ["AgentCore"]

REFUSED_EXIT_CODE = 2


class AgentCore:
    """One device's decisions: facts in, orders out.

    Args:
        settings: What is decided once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._device = settings.device
        self._topics = Topics(settings.root)
        self._inbox = self._topics.inbox(self._device)
        self._word = PublicWord(settings, self._topics)
        self._controllers = Controllers(
            self._topics.outbox(self._device), settings.packet_bytes_max
        )
        self._holdings = Holdings()
        self._leases = Leases()
        self._code = CodeStore(settings.code_bytes_max)
        self._outbox = Outbox(self._topics, self._device)
        self._acceptance = Acceptance(settings, self._word, self._holdings, self._outbox)
        self._starts = Starts(self._topics, self._device, settings.capabilities.slots)
        self._progress = ProgressReports(self._topics, self._device)
        self._checkpoints = Checkpoints(self._outbox)
        named = {name.encode(): function for name, function in settings.functions.items()}
        self._pool = Pool(
            settings.capabilities.slots, self._code, named, self._on_ended, self._on_started
        )
        self.notes = Notes()
        self.ignored = IgnoredKeys()
        self._commands: list[Command] = []
        self._now_ms = 0
        self._inventory_due = False
        self._answers: list[Linked] = []
        self._settling: dict[int, Slice] = {}
        self._receipt = 0
        self._spoken_ms = 0  # When anything last left that the controller takes as a sign of life.
        self._has_ended = False

    # -- what the shell looks at ----------------------------------------------------------------

    @property
    def reconnect_spread_ms(self) -> int:
        """Over how much time the fleet is to spread its first reconnects."""
        return self._controllers.reconnect_spread_ms

    @property
    def is_busy(self) -> bool:
        """Whether the device holds any assignment."""
        return len(self._holdings) > 0

    def will(self, session: str) -> Publish:
        """What the broker is to be told before a connection with this session begins."""
        return self._word.will(session)

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        """Advance by one event.

        Args:
            event: What happened.
            now_ms: Monotonic milliseconds; never less than in the call before.

        Returns:
            Commands to carry out in order.
        """
        self._now_ms = now_ms
        if self._has_ended:
            return []
        match event:
            case MessageReceived():
                self._on_message(event)
            case WorkerOutcomes():
                self._commands += self._pool.on_outcomes(event, now_ms)
            case BatchEnded():
                self._on_batch_ended()
            case PublishAcknowledged():
                self._on_publish_acknowledged(event.receipt)
            case LogLines():
                self._on_log_lines(event)
            case WorkerReady():
                self._pool.on_ready(event.slot)
            case WorkerLoaded():
                self._pool.on_loaded(event.slot, now_ms)
            case WorkerProgress():
                self._on_progress(event)
            case WorkerCheckpoint():
                part = self._pool.holder(event.slot, event.assignment, event.index)
                self._checkpoints.note(part, event.index, event.data)
            case WorkerReturned():
                self._pool.on_returned(event)
            case WorkerExited():
                self._commands += self._pool.on_exited(event, now_ms)
            case LoadMeasured():
                self._word.measured(event)
            case CapabilitiesMeasured():
                self._on_capabilities(event)
            case Connected():
                self._on_connected(event.session)
            case Disconnected():
                self._controllers.disconnected()
                self._outbox.lost_connection()
            case DrainAsked():
                self._drain(event.on)
            case ExitAsked():
                self._exit(event.code, event.reason)
            case InputDropped():
                self._count("dropped", f"{event.reason} topic={event.topic[:120]!r}")
            case _:
                assert_never(event)
        commands, self._commands = self._commands, []
        return commands

    def next_wakeup_ms(self) -> int | None:
        """When a `BatchEnded` is needed even if nothing happens; None: never."""
        # Most parts have nothing to do at most times, and this is asked after each turn.
        found = [self._pool.next_wakeup_ms()]
        if self.notes.texts:
            found.append(self.notes.next_wakeup_ms())
        if self._controllers.session:
            found.append(self._word.next_wakeup_ms(self._pool.running, self._pool.queued))
        if self._leases.parts:
            found.append(self._leases.next_end_ms())
        link = self._controllers.link
        if link is not None:
            found.append(link.next_wakeup_ms())
            if self._holdings.beat_ms is not None:
                found.append(self._spoken_ms + self._holdings.beat_ms)
                found.append(self._holdings.accepted_due_ms())
            if self._outbox.waiting and link.has_room:
                found.append(self._outbox.next_wakeup_ms())
            if self._checkpoints.waiting and link.has_room:
                found.append(self._checkpoints.due_ms())
            if self._starts.announcing:
                found.append(self._starts.due_ms())
            if self._leases.parts:
                found.append(self._leases.next_question_ms())
            if self._progress.waiting:
                found.append(self._progress.due_ms())
        due = [moment for moment in found if moment is not None]
        return min(due) if due else None

    # -- connection -----------------------------------------------------------------------------

    def _on_connected(self, session: str) -> None:
        self._controllers.connected(session)
        self._outbox.lost_connection()
        self._word.begin(session, self._now_ms)
        self._answers.clear()
        self._starts.clear()
        self._commands.append(self._word.presence(self._now_ms))
        self._commands.append(self._word.capabilities_document())

    def _on_new_link(self) -> None:
        """The controller knows nothing of what we hold: inventory, then all outcomes again."""
        self._inventory_due = True
        self._answers.clear()
        self._starts.clear()
        self._pool.report_again()
        self._code.ask_again()
        self._leases.ask_again()
        self._checkpoints.send_again()
        self._outbox.send_again(self._holdings, self._now_ms)

    def _on_capabilities(self, event: CapabilitiesMeasured) -> None:
        self._word.capabilities = event.capabilities
        if self._controllers.session:
            self._commands.append(self._word.capabilities_document())

    def _exit(self, code: int, reason: str) -> None:
        """Say what is to be said, then end."""
        link = self._controllers.link
        if link is not None:
            self._checkpoints.send(link, self._now_ms, at_once=True)
            self._outbox.send(link, self._now_ms, at_once=True)
            self._publish_all(link.poll(self._now_ms))
        if self._controllers.session:
            self._word.state = "offline"
            self._commands.append(self._word.presence(self._now_ms))
        self._commands.append(ExitProcess(code=code, reason=reason))
        self._has_ended = True

    def _drain(self, on: bool) -> None:
        state = self._word.state
        self._word.state = "draining" if on else "online"
        if self._word.state != state and self._controllers.session:
            self._commands.append(self._word.presence(self._now_ms))

    # -- messages -------------------------------------------------------------------------------

    def _on_message(self, event: MessageReceived) -> None:
        try:
            if event.topic == self._inbox:
                self._on_inbox(decode(event.payload, self._settings.packet_bytes_max))
            else:
                self._on_public_word(event)
        except DecodeError as error:
            self._count("unreadable", f"{error} topic={event.topic[:120]!r}")
        if KEYS_IGNORED:
            parsed = self._topics.parse(event.topic)
            who = parsed.controller if parsed is not None else ""
            text = self.ignored.take(who or "the controller")
            if text:
                self._commands.append(Note(level="warning", text=text))

    def _on_public_word(self, event: MessageReceived) -> None:
        """What a controller says to all, or what the broker has of ours. Raises DecodeError."""
        parsed = self._topics.parse(event.topic)
        branch, device = ("", "") if parsed is None else (parsed.branch, parsed.device)
        if branch == "controller-presence":
            # An empty message clears what the broker kept; it says nothing.
            if event.payload:
                self._on_controller(decode_json(event.payload, ControllerPresence))
        elif branch == "device-presence" and device == self._device:
            if event.payload:
                self._word.heard(decode_json(event.payload, DevicePresence))
        else:
            self._count("unknown-topic", f"a message on {event.topic[:120]!r}")

    def _on_controller(self, presence: ControllerPresence) -> None:
        if self._controllers.on_presence(presence):
            self._commands.append(self._word.presence(self._now_ms))
            self._commands.append(self._word.capabilities_document())
            self._on_new_link()

    def _on_inbox(self, message: Linked) -> None:
        verdict = self._controllers.judge(message)
        if verdict == "stale":
            self._count("stale", f"a message for session={message.session!r}")
            return
        if verdict == "refuse":
            self._refuse_controller(message.controller)
            return
        if verdict == "new":
            self._on_new_link()
        link = self._controllers.link
        if link is None:
            raise AssertionError("a message was taken without a link")
        dropped = link.dropped
        for ready in link.receive(message, self._now_ms):
            self._on_ready_message(ready)
        if link.dropped > dropped:
            self._count("unreadable", "a message in parts, or too far ahead")

    def _refuse_controller(self, controller: str) -> None:
        """There is no link to a controller that is not obeyed: one message, unnumbered."""
        self._count("epoch", f"refused controller={controller}")
        refusal = AssignmentRefused(
            session=self._controllers.session,
            controller=controller,
            reason="epoch",
            epoch_bound=self._controllers.epoch,
            holder=self._controllers.holder,
        )
        self._commands.append(
            Publish(topic=self._topics.outbox(self._device), payload=encode(refusal))
        )

    def _on_ready_message(self, message: Linked) -> None:
        match message:
            case Assign():
                for assignment in message.assignments:
                    self._on_assignment(assignment)
            case Acknowledge():
                for number, ranges in message.rows:
                    part = self._holdings.get(number)
                    if part is not None:
                        self._outbox.acknowledged(part, ranges)
                        self._settling[number] = part
            case Trim():
                self._on_trim(message)
            case CancelAssigned():
                part = self._holdings.get(message.assignment)
                if part is not None:
                    self._commands += self._pool.cancel(part, message.ranges, force=message.force)
            case Lease():
                for part in self._leases.granted(message, self._now_ms):
                    self._commands += self._pool.leased(part)
            case Forget():
                for number in message.assignments:
                    part = self._holdings.get(number)
                    if part is not None:
                        self._forget(part)
            case Code():
                self._on_code(message)
            case Report():
                # Whoever asks may have had no room for outcomes: those not acknowledged go again.
                # And it may have missed who we are: nothing else would ever tell it.
                self._inventory_due = True
                self._commands.append(self._word.presence(self._now_ms))
                self._commands.append(self._word.capabilities_document())
                self._outbox.send_again(self._holdings, self._now_ms)
            case Drain():
                self._drain(message.on)
            case DeviceRefused():
                self._on_refused(message)
            case Seen() | Part():
                raise AssertionError("the link keeps these to itself")
            case _:
                self._count("unexpected", f"a {type(message).__name__} in the inbox")

    def _on_refused(self, message: DeviceRefused) -> None:
        holder = f" (it is connected from {message.address})" if message.address else ""
        # Saying goodbye lets the other one, whose presence ours has overwritten, say its own again.
        self._exit(
            REFUSED_EXIT_CODE, f"The controller refuses this device: {message.reason}{holder}."
        )

    # -- assignments ----------------------------------------------------------------------------

    def _on_assignment(self, assignment: Assignment) -> None:
        number = assignment.assignment
        held = self._holdings.get(number)
        if held is not None:  # A repeat: what runs goes on, and what has ended is said again.
            self._count("repeated", f"assignment={number} is held already", quiet=True)
            self._outbox.say_again(held, self._now_ms)
            return
        if self._holdings.has_ended(number):
            self._count("repeated", f"assignment={number} has ended", quiet=True)
            return
        try:
            header = self._acceptance.header(assignment.header)
        except DecodeError as error:
            self._count("unreadable", f"assignment={number}: {error}")
            self._answers.append(AssignmentRefused(assignment=number, reason="function"))
            return
        reason = self._acceptance.why_not(assignment, header)
        if reason:
            self._answers.append(AssignmentRefused(assignment=number, reason=reason))
            return
        part = Slice.of(assignment, header)
        self._holdings.add(part, self._now_ms)
        if isinstance(header.function, bytes):
            self._code.hold(part.function)
            part.has_code = part.function in self._code
        else:
            part.has_code = True
        if part.announce:
            self._starts.wait(part)
        if not part.has_lease:
            self._leases.hold(part)
        self._pool.offer(part)

    def _on_trim(self, message: Trim) -> None:
        rows: list[tuple[int, int]] = []
        for number, wished in message.rows:
            part = self._holdings.get(number)
            if part is not None:
                rows.append((number, self._pool.trim(part, wished)))
                self._settling[number] = part
        if rows:
            self._answers.append(Trimmed(rows=tuple(rows)))

    def _forget(self, part: Slice) -> None:
        self._commands += self._pool.forget(part)
        self._outbox.drop(part)
        self._checkpoints.drop(part)
        self._through(part)
        self._holdings.remove(part)

    def _through(self, part: Slice) -> None:
        """Nothing of a slice is to be run any more."""
        if self._holdings.through(part):
            if part.announce:
                self._starts.drop(part)
            if self._leases.parts:
                self._leases.drop(part)
            if isinstance(part.header.function, bytes):
                self._code.release(part.function)

    def _on_code(self, message: Code) -> None:
        if not self._code.add(message):
            self._count("unreadable", "code that is not what its hash says")
            return
        for part in self._holdings:
            if part.function == message.hash and not part.has_code:
                part.has_code = True
                self._pool.offer(part)

    # -- what workers bring ---------------------------------------------------------------------

    def _on_ended(self, part: Slice, piece: Piece) -> None:
        if part.checkpoints:
            self._checkpoints.ended(part, piece)
        self._outbox.add(part, piece, self._now_ms)
        self._settling[part.assignment] = part

    def _on_started(self, part: Slice, index: int) -> None:
        if not part.announce and self._controllers.link is not None:
            self._starts.started(part, index)

    def _on_progress(self, event: WorkerProgress) -> None:
        part = self._pool.holder(event.slot, event.assignment, event.index)
        if part is not None and self._controllers.link is not None:
            self._progress.note(event.slot, part, event.index, event.permille, event.text)

    def _on_log_lines(self, event: LogLines) -> None:
        if self._controllers.session:
            self._commands += log_messages(
                event.rows,
                self._holdings.get,
                self._pool.current(event.slot),
                self._topics,
                self._device,
            )

    def _on_publish_acknowledged(self, receipt: int) -> None:
        self._outbox.arrived(receipt)
        part = self._starts.confirmed(receipt)
        if part is not None:
            self._pool.offer(part)

    # -- the end of a batch ---------------------------------------------------------------------

    def _on_batch_ended(self) -> None:
        now_ms = self._now_ms
        if self._leases.parts:
            for part in self._leases.expired(now_ms):
                self._commands += self._pool.expire(part)
        self._commands += self._pool.poll(now_ms)
        is_awaited = bool(self._settling) and self._settle()
        if self._controllers.link is not None:
            self._speak(self._controllers.link, is_awaited=is_awaited)
        if self._controllers.session and now_ms >= self._word.silent_until_ms:
            self._commands += self._word.due(self._pool.running, self._pool.queued, now_ms)
        if self.notes.texts:
            self._commands += self.notes.due(now_ms)

    def _settle(self) -> bool:
        """Let go of what has ended or was acknowledged; True where somebody may wait for just that.

        It was then the last of its stream that is here.
        """
        is_awaited = False
        for part in self._settling.values():
            if part.has_ended:
                is_awaited = is_awaited or not self._pool.has_more_of(part.stream)
                self._through(part)
                if not part.pieces:
                    self._holdings.remove(part)
        self._settling.clear()
        return is_awaited

    def _speak(self, link: Link, *, is_awaited: bool) -> None:
        """Everything for the controller, and what the client hears on its task topic."""
        now_ms = self._now_ms
        if self._inventory_due:
            self._inventory_due = False
            self._holdings.accepted_by_inventory()
            link.send(DeviceInventory(received=link.received, rows=self._holdings.rows()))
        if self._code.wanted:
            self._answers.append(NeedCode(hashes=self._code.missing()))
        accepted = self._holdings.accepted_due(now_ms)
        if accepted:
            self._answers.append(Accepted(assignments=accepted))
        if self._answers:
            for answer in self._answers:
                link.send(answer)
            self._answers.clear()
        if self._starts.rows:
            self._starts.send(link)
        if self._starts.announcing:
            for part, announcement in self._starts.announcements(link, now_ms):
                self._starts.sent(part, self._publish(announcement, receipt=True), now_ms)
        if self._progress.waiting:
            for report in self._progress.send(link, now_ms):
                self._publish(report, receipt=False)
        if self._leases.parts:
            question = self._leases.question(now_ms)
            if question is not None:
                self._publish(link.unnumbered(question, qos=1), receipt=False)
        if self._checkpoints.is_busy:
            self._checkpoints.send(link, now_ms)
        if self._outbox.waiting and link.has_room:
            more_soon = not is_awaited and self._pool.runs_short_calls
            self._outbox.send(link, now_ms, more_soon=more_soon)
        self._publish_all(link.poll(now_ms))
        beat_ms = self._holdings.beat_ms
        if beat_ms is None:
            self._spoken_ms = now_ms
        elif now_ms >= self._spoken_ms + beat_ms:
            self._spoken_ms = now_ms
            beat = encode(Beat(session=link.session))
            self._commands.append(Publish(topic=link.topic, payload=beat, qos=0))

    def _publish_all(self, outgoing: list[Outgoing]) -> None:
        for one in outgoing:
            is_outcome = one.topic is not self._controllers.outbox_topic
            receipt = self._publish(one, receipt=is_outcome)
            if is_outcome:
                self._outbox.left(receipt)

    def _publish(self, outgoing: Outgoing, *, receipt: bool) -> int:
        self._spoken_ms = self._now_ms
        if receipt:
            self._receipt += 1
        number = self._receipt if receipt else 0
        self._commands.append(
            Publish(
                topic=outgoing.topic, payload=outgoing.payload, qos=outgoing.qos, receipt=number
            )
        )
        return number

    def _count(self, kind: str, text: str, *, quiet: bool = False) -> None:
        self.notes.count(kind, "" if quiet else text)
