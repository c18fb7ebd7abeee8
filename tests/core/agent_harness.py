"""A controller's end of the wire and a broker that loses nothing, around one agent's core."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, TypeVar

import cbor2

from forage_agent.core.agent import AgentCore
from forage_agent.core.events import (
    Command,
    KillWorker,
    LeaseWorker,
    RunCalls,
    StartWorker,
    TakeBack,
    WorkerExited,
    WorkerOutcomes,
    WorkerReady,
)
from forage_agent.core.settings import NamedFunction, Settings
from forage_wire.codec import decode, encode_header, encode_json, join_calls
from forage_wire.io import BatchEnded, Connected, MessageReceived, Publish, PublishAcknowledged
from forage_wire.limits import DEVICE_WINDOW
from forage_wire.link import Link
from forage_wire.messages import (
    Acknowledge,
    Assign,
    Assignment,
    Code,
    ControllerPresence,
    DeviceCapabilities,
    Header,
    Linked,
    Options,
    Outcomes,
    Report,
    Seen,
)
from forage_wire.topics import Topics

__all__ = [
    "CLIENT",
    "CODE",
    "CODE_HASH",
    "CONTROLLER",
    "SESSION",
    "TASK",
    "Harness",
    "assignment",
    "number",
    "session",
]

_Any = TypeVar("_Any")

DEVICE = "dev"
CLIENT = "0123456789abc"
TASK = f"{CLIENT}-1"
CODE = b"the code of a function"
CODE_HASH = sha256(CODE).digest()


def session(start: int, counter: int = 1) -> str:
    """A session of a process start."""
    return f"{start:016x}-{counter}"


SESSION = session(0xD0)
CONTROLLER = session(0xC0)


def number(counter: int, epoch: int = 1) -> int:
    """An assignment's number."""
    return epoch * 2**40 + counter


def assignment(
    counter: int = 1,
    low: int = 0,
    high: int = 1,
    *,
    epoch: int = 1,
    task: str = TASK,
    client: str = CLIENT,
    function: bytes | tuple[str, str] = CODE_HASH,
    options: Options | None = None,
    calls: Sequence[bytes] | None = None,
    **fields: Any,
) -> Assignment:
    """An assignment of calls whose bodies are their indices as text."""
    header = Header(
        user="user",
        client=client,
        task=task,
        function=function,
        form="pickle" if isinstance(function, bytes) else "named",
        python="3.11",
        packet_bytes_max=fields.pop("client_packet_bytes_max", 128 * 1024),
        options=options or Options(),
        first=0,
        n=4_096,
        last=True,
    )
    fields.setdefault("beat_ms", 10_000)
    bodies = [b"%d" % index for index in range(low, high)] if calls is None else list(calls)
    return Assignment(
        assignment=number(counter, epoch),
        header=encode_header(header),
        low=low,
        high=high,
        tag=bytes(16),
        calls=join_calls(bodies),
        **fields,
    )


class Harness:
    """One agent's core; time stands still unless `advance` is called.

    What the core publishes is decoded into `said` (messages) and `documents` (text); what it
    orders of workers is in `orders`. Receipts are confirmed at once while `confirms` is set.
    """

    def __init__(
        self,
        *,
        slots: int = 1,
        queue_bytes_max: int = 1 << 20,
        functions: dict[str, NamedFunction] | None = None,
        controller: str = CONTROLLER,
        epoch: int = 1,
        **settings: Any,
    ) -> None:
        capabilities = DeviceCapabilities(
            session="", slots=slots, queue_bytes_max=queue_bytes_max, python="3.11"
        )
        self.core = AgentCore(
            Settings(
                device=DEVICE, capabilities=capabilities, functions=functions or {}, **settings
            )
        )
        self.topics = Topics()
        self.now_ms = 1_000
        self.slots = slots
        self.session = ""
        self.epoch = epoch
        self.confirms = True
        self.said: list[Linked] = []
        self.topics_said: list[str] = []
        self.documents: list[tuple[str, bytes]] = []
        self.logs: list[tuple[str, bytes]] = []
        self.published: list[Publish] = []
        self.orders: list[Command] = []
        self.others: list[Command] = []
        self.receipts: list[int] = []
        self.link = self.new_link(controller)

    # -- driving --------------------------------------------------------------------------------

    def new_link(self, controller: str, epoch: int | None = None) -> Link:
        """The controller's end of a link to this device's session."""
        self.epoch = self.epoch if epoch is None else epoch
        self.link = Link(
            session=self.session,
            controller=controller,
            topic=self.topics.inbox(DEVICE),
            window=DEVICE_WINDOW,
            epoch=self.epoch,
        )
        return self.link

    def put(self, *events: Any) -> None:
        """A batch of events."""
        for event in (*events, BatchEnded()):
            self._carry_out(self.core.handle(event, self.now_ms))
        while self.confirms and self.receipts:
            receipts, self.receipts = self.receipts, []
            for receipt in receipts:
                self._carry_out(self.core.handle(PublishAcknowledged(receipt=receipt), self.now_ms))
            self._carry_out(self.core.handle(BatchEnded(), self.now_ms))
        # A core that wants to be woken at once, when it has just been, would spin for ever.
        due_ms = self.core.next_wakeup_ms()
        assert due_ms is None or due_ms > self.now_ms or self.receipts

    def advance(self, duration_ms: int) -> None:
        """Let time pass, with a wake-up whenever the core asks for one."""
        end_ms = self.now_ms + duration_ms
        while True:
            due_ms = self.core.next_wakeup_ms()
            if due_ms is None or due_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, due_ms)
            self.put()
        self.now_ms = end_ms
        self.put()

    def connect(self, device_session: str = SESSION) -> None:
        """The connection is there; the controller knows nothing of it yet."""
        self.session = device_session
        self.new_link(self.link.controller)
        self.put(Connected(session=device_session))

    def start(self) -> None:
        """Connected, workers ready, the controller's report asked for, its code sent."""
        self.connect()
        self.ready()
        self.send(Report(), Code(hash=CODE_HASH, form="pickle", data=CODE))
        self.forget_said()

    def ready(self) -> None:
        """Every worker that was ordered is there."""
        for order in [order for order in self.orders if isinstance(order, StartWorker)]:
            self.orders.remove(order)
            self.put(WorkerReady(slot=order.slot, pid=100 + order.slot))

    def inbox(self, *payloads: bytes) -> None:
        """Raw messages in the device's inbox."""
        topic = self.topics.inbox(DEVICE)
        self.put(*[MessageReceived(topic=topic, payload=payload) for payload in payloads])

    def send(self, *messages: Linked) -> None:
        """Messages of the controller, in one batch."""
        for message in messages:
            self.link.send(message)
        self.inbox(*[outgoing.payload for outgoing in self.link.poll(self.now_ms)])
        while self.link.waiting:
            # The window is full, and the device says by itself what it has seen, after 20 ms.
            self.advance(20)
            self.inbox(*[outgoing.payload for outgoing in self.link.poll(self.now_ms)])

    def say_seen(self) -> None:
        """The controller reports what it has seen, without waiting for its time to do so."""
        self.inbox(self.link.unnumbered(Seen()).payload)

    def assign(self, *assignments: Assignment) -> None:
        """Work."""
        self.send(Assign(assignments=assignments))

    def controller_presence(self, controller: str, epoch: int = 1, state: str = "active") -> None:
        """A controller's retained word."""
        document = ControllerPresence(state=state, epoch=epoch, session=controller)
        topic = self.topics.controller_presence("main")
        self.put(MessageReceived(topic=topic, payload=encode_json(document), retain=True))

    # -- workers --------------------------------------------------------------------------------

    def taken(self, kind: type[_Any]) -> list[_Any]:
        """Orders of one kind, which are then forgotten."""
        found = [order for order in self.orders if isinstance(order, kind)]
        self.orders = [order for order in self.orders if not isinstance(order, kind)]
        return found

    def given(self) -> list[tuple[int, int, int, int]]:
        """(slot, assignment, low, high) of all calls given to workers since last asked."""
        return [
            (run.slot, chunk.assignment, chunk.low, chunk.high)
            for run in self.taken(RunCalls)
            for chunk in run.chunks
        ]

    def finish(
        self,
        counter: int,
        first: int,
        count: int = 1,
        *,
        slot: int = 0,
        run_us: int | None = None,
        errors: tuple[tuple[int, str], ...] = (),
        items: bytes | None = None,
        epoch: int = 1,
    ) -> None:
        """A worker reports calls whose values are their indices."""
        if items is None:
            values = range(first, first + count)
            items = b"".join([cbor2.dumps([value]) for value in values])
        self.put(
            WorkerOutcomes(
                slot=slot,
                assignment=number(counter, epoch),
                first=first,
                count=count,
                items=items,
                errors=errors,
                run_us=10 * count if run_us is None else run_us,
            )
        )

    def die(self, slot: int = 0, *, counter: int = 0, index: int = 0, signal: str = "") -> None:
        """A worker ends while it is in a call (of no assignment: not known which)."""
        self.put(
            WorkerExited(
                slot=slot,
                signal=signal or "SIGSEGV",
                assignment=number(counter) if counter else 0,
                index=index,
            )
        )

    def measured_as(self, run_us: int) -> None:
        """Let the function's calls be known to take this long."""
        self.assign(assignment(900_000))
        self.finish(900_000, 0, run_us=run_us)
        self.send(Acknowledge(rows=((number(900_000), ((0, 1),)),)))
        self.taken(RunCalls)
        self.forget_said()

    # -- what came out --------------------------------------------------------------------------

    def forget_said(self) -> None:
        """Look only at what comes from here on."""
        self.said.clear()
        self.topics_said.clear()
        self.documents.clear()
        self.published.clear()
        self.others.clear()

    def messages(self, kind: type[_Any]) -> list[_Any]:
        """What was said, of one kind."""
        return [message for message in self.said if isinstance(message, kind)]

    def outcomes(self) -> dict[int, Any]:
        """Values (or error maps) of all outcomes said, by index."""
        found: dict[int, Any] = {}
        for message in self.messages(Outcomes):
            for one in message.sets:
                indices = [index for low, high in one.ranges for index in range(low, high)]
                for index, item in zip(indices, cbor2.loads(one.data), strict=True):
                    found[index] = item[0] if isinstance(item, list) else item
        return found

    def errors(self) -> list[tuple[int, str, bool]]:
        """All errors said: (index, reason, final)."""
        return [
            error
            for message in self.messages(Outcomes)
            for one in message.sets
            for error in one.errors
        ]

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Publish):
                self._publish(command)
            elif isinstance(command, StartWorker | RunCalls | TakeBack | KillWorker | LeaseWorker):
                self.orders.append(command)
            else:
                self.others.append(command)

    def _publish(self, command: Publish) -> None:
        self.published.append(command)
        if command.receipt:
            self.receipts.append(command.receipt)
        parsed = self.topics.parse(command.topic)
        assert parsed is not None
        if parsed.branch in ("outbox", "task"):
            message = decode(command.payload)
            if message.controller == self.link.controller:
                for ready in self.link.receive(message, self.now_ms):
                    self.said.append(ready)
                    self.topics_said.append(command.topic)
            else:
                self.said.append(message)
                self.topics_said.append(command.topic)
        elif parsed.branch == "log":
            self.logs.append((command.topic, command.payload))
        else:
            self.documents.append((command.topic, command.payload))
