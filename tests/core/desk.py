"""A desk in front of the controller's core: devices and clients as a test plays them, by hand.

Real links and real bytes; the broker between is a list, the store commits when told to.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import cbor2

from forage_controller.core.commands import Command, Exit
from forage_controller.core.config import CoreConfig, Limits
from forage_controller.core.controller import ControllerCore
from forage_controller.core.operations import (
    CodeLoaded,
    LoadCode,
    LoadOutcomes,
    LoadPage,
    MachineTime,
    Operation,
    OutcomesLoaded,
    PageLoaded,
    RecoveredState,
    Save,
    SaveCode,
    SaveCommitted,
    SaveOutcomes,
    SavePage,
    StoredOutcomes,
)
from forage_wire.codec import decode, decode_json, encode, encode_header, encode_json, join_calls
from forage_wire.io import BatchEnded, Connected, Disconnected, MessageReceived, Note, Publish
from forage_wire.link import Link, link_number
from forage_wire.messages import (
    Assign,
    Assignment,
    Code,
    Collected,
    ControllerPresence,
    DeviceCapabilities,
    DeviceInventory,
    DevicePresence,
    Header,
    Hello,
    Linked,
    Options,
    Outcomes,
    OutcomeSet,
    Page,
    Report,
    Submit,
)
from forage_wire.ranges import RangeSet
from forage_wire.topics import Topics

TOPICS = Topics()
CODE = hashlib.sha256(b"code").digest()
"""Of the one function that all tasks call."""
KEY = b"k" * 16
START = "c" * 16


@dataclass
class FakeDevice:
    """A device's end of its link."""

    name: str
    desk: "Desk"
    start: str
    counter: int = 1
    slots: int = 1
    link: Link | None = None
    assignments: list[Assignment] = field(default_factory=list)
    received: list[Linked] = field(default_factory=list)
    python: str = "3.11"
    broker: str = "mqtt://127.0.0.1:1883"
    labels: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    """Other capabilities."""
    answers: bool = True

    @property
    def session(self) -> str:
        return f"{self.start}-{self.counter}"

    def join(self) -> None:
        presence = DevicePresence(state="online", session=self.session)
        self.desk.publish(TOPICS.device_presence(self.name), encode_json(presence))
        self.say_capabilities()
        self.desk.run()

    def say_capabilities(self) -> None:
        capabilities = DeviceCapabilities(
            session=self.session,
            slots=self.slots,
            python=self.python,
            broker=self.broker,
            labels=self.labels,
            **self.more,
        )
        self.desk.publish(TOPICS.device_capabilities(self.name), encode_json(capabilities))

    def say(self, state: str) -> None:
        presence = DevicePresence(state=state, session=self.session)
        self.desk.publish(TOPICS.device_presence(self.name), encode_json(presence))
        self.desk.run()

    def on_inbox(self, payload: bytes) -> None:
        message = decode(payload)
        if message.session != self.session:
            return
        number = link_number(message)
        if (
            self.link is None
            or self.link.controller != message.controller
            or self.link.number < number
        ):
            self.link = Link(
                session=self.session,
                controller=message.controller,
                number=number,
                topic=TOPICS.outbox(self.name),
                window=16,
            )
        for ready in self.link.receive(message, self.desk.now_ms):
            self.received.append(ready)
            if isinstance(ready, Assign):
                self.assignments.extend(ready.assignments)
            if isinstance(ready, Report) and self.answers:
                self.say_capabilities()
                self.inventory()

    def inventory(self, *rows: tuple[int, str, int, int, str]) -> None:
        assert self.link is not None
        self.send(DeviceInventory(received=self.link.received, rows=rows))

    def send(self, message: Linked, topic: str | None = None) -> None:
        assert self.link is not None
        self.link.send(message, topic)
        self.flush()

    def flush(self) -> None:
        if self.link is not None:
            for out in self.link.poll(self.desk.now_ms):
                self.desk.publish(out.topic, out.payload)

    def finish(
        self,
        assignment: Assignment,
        *,
        topic: str = "",
        indices: tuple[int, int] | None = None,
        errors: tuple[tuple[int, str, bool], ...] = (),
        run_us: int = 100,
    ) -> None:
        """Answer (part of) an assignment: call i gives the value i."""
        header = cbor2.loads(assignment.header)
        low, high = indices or (assignment.low, assignment.high)
        bad = {row[0] for row in errors}
        items: list[Any] = [
            {"reason": "x", "message": "y"} if index in bad else [index]
            for index in range(low, high)
        ]
        outcomes = OutcomeSet(
            task=header["t"],
            assignment=assignment.assignment,
            low=assignment.low,
            high=assignment.high,
            tag=assignment.tag,
            ranges=((low, high),),
            errors=errors,
            run_us=run_us,
            data=cbor2.dumps(items),
        )
        self.send(
            Outcomes(sets=(outcomes,)),
            topic or TOPICS.task(header["u"], header["c"], header["t"], self.name),
        )
        self.desk.run()

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.received if isinstance(message, kind)]


@dataclass
class FakeClient:
    """A client's end of its link."""

    desk: "Desk"
    name: str = "0" * 13
    user: str = "bob"
    counter: int = 1
    controller: str = ""
    link: Link | None = None
    received: list[Linked] = field(default_factory=list)
    tasks: int = 0

    @property
    def session(self) -> str:
        return f"{'a' * 16}-{self.counter}"

    def hello(self, controller: str = "") -> None:
        number = 0
        if self.link is not None and self.link.session == self.session:
            number = self.link.number + 1
        self.link = Link(
            session=self.session,
            controller=controller,
            number=number,
            topic=TOPICS.from_client(self.user, self.name),
            window=8,
        )
        self.link.send(Hello(minor=0, python="3.11"))

    def send(self, message: Linked) -> None:
        if self.link is None:
            self.hello()
        assert self.link is not None
        self.link.send(message)
        self.flush()

    def flush(self) -> None:
        if self.link is not None:
            for out in self.link.poll(self.desk.now_ms):
                self.desk.publish(out.topic, out.payload)

    def page(
        self,
        n: int,
        *,
        task: str = "",
        first: int = 0,
        last: bool = True,
        form: str = "source",
        function: bytes | tuple[str, str] = CODE,
        settle: str = "direct",
        collected: tuple[tuple[int, int], ...] = (),
        replica: int = 0,
        **options: Any,
    ) -> Page:
        if "retries" in options:
            # At once, too: see `Desk`.
            options.setdefault("backoff_ms", 0)
        header = Header(
            user=self.user,
            client=self.name,
            task=task or self.next_task(),
            function=function,
            form=form,
            label="f",
            python="3.11",
            settle=settle,
            options=Options(**options),
            first=first,
            n=n,
            last=last,
            replica=replica,
        )
        calls = join_calls([cbor2.dumps([0, [index]]) for index in range(first, first + n)])
        return Page(header=encode_header(header), calls=calls, key=KEY, collected=collected)

    def next_task(self) -> str:
        self.tasks += 1
        return f"{self.name}-{self.tasks}"

    def submit(self, n: int, **options: Any) -> str:
        """One task of one page; its code goes with the first."""
        page = self.page(n, **options)
        if self.tasks == 1:
            self.send(Code(hash=CODE, form="source", data=b"code"))
        self.send(Submit(pages=(page,)))
        self.desk.run()
        task: str = cbor2.loads(page.header)["t"]
        return task

    def submit_pages(self, pages: int, n: int, **options: Any) -> str:
        """One task of several pages of `n` calls."""
        task = self.next_task()
        if self.tasks == 1:
            self.send(Code(hash=CODE, form="source", data=b"code"))
        for number in range(pages):
            page = self.page(n, task=task, first=number * n, last=number == pages - 1, **options)
            self.send(Submit(pages=(page,)))
        self.desk.run()
        while self.link is not None and self.link.waiting:
            self.desk.advance(20)
        return task

    def collect(self, task: str, *ranges: tuple[int, int]) -> None:
        self.send(Collected(rows=((task, ranges),)))
        self.desk.run()

    def on_to(self, payload: bytes) -> None:
        message = decode(payload)
        assert self.link is not None
        if message.session != self.session:
            return
        self.link.controller = message.controller
        self.received.extend(self.link.receive(message, self.desk.now_ms))

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.received if isinstance(message, kind)]


class Desk:
    """The controller's core, a store that commits by itself unless told otherwise, a clock."""

    def __init__(
        self,
        *,
        recovered: RecoveredState | None = None,
        detect_ms: int | None = None,
        start: str = START,
        limits: Limits | None = None,
        acknowledge_after_ms: int = 0,
        synchronous: bool = False,
        machine: MachineTime | None = None,
    ) -> None:
        self.now_ms = 1_000
        self.start = start
        # At once unless a test is about that, for most of them let no time pass.
        limits = replace(limits or Limits(), acknowledge_after_ms=acknowledge_after_ms)
        config = CoreConfig(detect_ms=detect_ms, limits=limits, synchronous=synchronous)
        self.core = ControllerCore(config, recovered or RecoveredState(), start, machine=machine)
        self.commits = True
        self.uncommitted: list[Save] = []
        self.saved: list[Operation] = []
        self.published: list[Publish] = []
        self.notes: list[str] = []
        self.exits: list[Exit] = []
        self.loads: list[LoadPage | LoadCode | LoadOutcomes] = []
        self.devices: dict[str, FakeDevice] = {}
        self.clients: list[FakeClient] = []
        self.inbound: list[tuple[str, bytes, bool]] = []

    # -- the world --------------------------------------------------------------------------

    def device(self, name: str, **options: Any) -> FakeDevice:
        start = f"{len(self.devices) + 1:x}".zfill(16)
        device = FakeDevice(name=name, desk=self, start=start, **options)
        self.devices[name] = device
        device.join()
        return device

    def client(self, **options: Any) -> FakeClient:
        client = FakeClient(desk=self, **options)
        self.clients.append(client)
        return client

    def begin(self, session: str = "") -> "Desk":
        """Connect and become active."""
        self.handle(Connected(session=session or f"{self.start}-1"))
        self.run()
        self.advance(200)
        return self

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.inbound.append((topic, payload, retain))

    def handle(self, event: Any) -> None:
        self._carry_out(self.core.handle(event, self.now_ms))

    def advance(self, ms: int) -> None:
        """Let time pass, with every wake-up on the way."""
        end = self.now_ms + ms
        while True:
            due = self.core.next_wakeup_ms()
            others = [
                found
                for peer in [*self.devices.values(), *self.clients]
                if peer.link is not None and (found := peer.link.next_wakeup_ms()) is not None
            ]
            dues = [found for found in [due, *others] if found is not None and found <= end]
            if not dues:
                break
            self.now_ms = max(self.now_ms, min(dues))
            self.run()
            if min(dues) == self.now_ms and self.core.next_wakeup_ms() == due == self.now_ms:
                raise AssertionError(f"the core wants to be woken at {due} for ever")
        self.now_ms = end
        self.core.next_wakeup_ms()
        self.run()

    def run(self) -> None:
        """Carry messages until nobody has anything to say."""
        for _round in range(1_000):
            for peer in [*self.devices.values(), *self.clients]:
                peer.flush()
            inbound, self.inbound = self.inbound, []
            for topic, payload, retain in inbound:
                self.handle(MessageReceived(topic=topic, payload=payload, retain=retain))
            self.handle(BatchEnded())
            if self.commits and self.uncommitted:
                self.commit()
                self.handle(BatchEnded())
            if not self.inbound and not (self.commits and self.uncommitted):
                return
        raise AssertionError("messages go round for ever")

    def commit(self) -> None:
        """The store commits everything it was given."""
        saves, self.uncommitted = self.uncommitted, []
        for save in saves:
            self.saved.extend(save.operations)
        if saves:
            self.handle(SaveCommitted(number=saves[-1].number))

    def answer_loads(self) -> None:
        """The store gives what it was asked for, of all that it committed."""
        while self.loads:
            load = self.loads.pop(0)
            match load:
                case LoadPage():
                    pages = [
                        page.calls
                        for page in self.operations(SavePage)
                        if (page.task, page.first) == (load.task, load.first)
                    ]
                    calls = pages[0] if pages else None
                    self.handle(PageLoaded(task=load.task, first=load.first, calls=calls))
                case LoadCode():
                    found = [code for code in self.operations(SaveCode) if code.hash == load.hash]
                    form, data = (found[0].form, found[0].data) if found else ("", None)
                    self.handle(CodeLoaded(hash=load.hash, form=form, data=data))
                case LoadOutcomes():
                    self.handle(
                        OutcomesLoaded(
                            request=load.request, task=load.task, rows=self._archived(load)
                        )
                    )
            self.run()

    def _archived(self, load: LoadOutcomes) -> tuple[StoredOutcomes, ...]:
        wanted = RangeSet(load.ranges)
        return tuple(
            StoredOutcomes(
                **{name: getattr(row, name) for name in StoredOutcomes.__slots__}  # type: ignore[attr-defined]
            )
            for row in self.operations(SaveOutcomes)
            if row.task == load.task and any(wanted.common(*each) for each in row.settled)
        )

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Publish():
                    self.published.append(command)
                    self._deliver(command)
                case Save():
                    self.uncommitted.append(command)
                case Note():
                    self.notes.append(command.text)
                case Exit():
                    self.exits.append(command)
                case _:
                    self.loads.append(command)

    def _deliver(self, message: Publish) -> None:
        parsed = TOPICS.parse(message.topic)
        assert parsed is not None, message.topic
        if parsed.branch == "inbox" and parsed.device in self.devices:
            self.devices[parsed.device].on_inbox(message.payload)
        if parsed.branch == "to":
            for client in self.clients:
                if (client.user, client.name) == (parsed.user, parsed.client):
                    client.on_to(message.payload)

    # -- what was said ----------------------------------------------------------------------

    def documents(self, branch: str, kind: type) -> list[Any]:
        return [
            decode_json(message.payload, kind)
            for message in self.published
            if (parsed := TOPICS.parse(message.topic)) is not None
            and parsed.branch == branch
            and message.payload
        ]

    @property
    def presence(self) -> list[str]:
        return [
            document.state for document in self.documents("controller-presence", ControllerPresence)
        ]

    def operations(self, kind: type) -> list[Any]:
        return [operation for operation in self.saved if isinstance(operation, kind)]


def raw(message: Linked, **stamps: Any) -> bytes:
    """A message's bytes, stamped by hand."""
    return encode(message, **stamps)


__all__ = [
    "CODE",
    "KEY",
    "START",
    "TOPICS",
    "Desk",
    "Disconnected",
    "FakeClient",
    "FakeDevice",
    "raw",
]
