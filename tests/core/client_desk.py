"""A client's core on a desk: its messages are laid out here, and answered by hand.

The controller's end of the link is a real `Link`; loss is a payload that nobody hands over.
"""

from typing import Any, TypeVar

import cbor2

from forage.core.client import ClientCore
from forage.core.commands import Command
from forage.core.events import CallsSubmitted, Event, TaskOpened
from forage_wire.codec import decode, decode_header, encode, encode_json
from forage_wire.io import BatchEnded, Connected, MessageReceived, Note, Publish
from forage_wire.link import Link
from forage_wire.messages import (
    Acknowledged,
    ControllerPresence,
    Header,
    Linked,
    Outcomes,
    OutcomeSet,
    Page,
    Submit,
    Welcome,
)
from forage_wire.ranges import Ranges
from forage_wire.tags import slice_tag
from forage_wire.topics import Topics

__all__ = ["CLIENT", "CONTROLLER", "DEVICE_SESSION", "KEY", "Desk", "task_id"]

USER = "ann"
CLIENT = "0123456789abc"
SESSION = f"{'a' * 16}-1"
CONTROLLER = f"{'c' * 16}-1"
DEVICE_SESSION = f"{'d' * 16}-1"
KEY = bytes(range(16))
HASH = b"\x07" * 32

_Message = TypeVar("_Message", bound=Linked)


def task_id(number: int = 1) -> str:
    return f"{CLIENT}-{number}"


class Desk:
    """One client's core, a controller's end of its link, and a clock."""

    def __init__(self, **settings: Any) -> None:
        self.topics = Topics()
        self.core = ClientCore(user=USER, client=CLIENT, topics=self.topics, **settings)
        self.now_ms = 1_000
        self.session = SESSION
        self.sent: list[tuple[str, bytes]] = []
        """What the client published and nobody has read yet."""
        self.commands: list[Command] = []
        """What it ordered besides, until `take`."""
        self.link = self.controller_link(CONTROLLER)
        self.received: list[Linked] = []
        """What the controller's end of the link has made of it."""

    def controller_link(self, session: str, number: int = 0) -> Link:
        """The controller's end; `number` counts the links of this session of the client."""
        return Link(
            number=number,
            session=self.session,
            controller=session,
            epoch=1,
            topic=self.topics.to_client(USER, CLIENT),
            window=16,
        )

    # -- the client's side ------------------------------------------------------------------------

    def tell(self, *events: Event) -> None:
        """Events, and the end of the batch."""
        for event in (*events, BatchEnded()):
            for command in self.core.handle(event, self.now_ms):
                if type(command) is Publish:
                    self.sent.append((command.topic, command.payload))
                else:
                    self.commands.append(command)

    def connect(self, session: str = SESSION) -> None:
        self.session = session
        self.tell(Connected(session=session))

    def sleep(self, ms: int) -> None:
        """Let time pass, with the wake-ups that the core asks for."""
        end = self.now_ms + ms
        while True:
            due = self.core.next_wakeup_ms()
            if due is None or due > end:
                break
            self.now_ms = max(self.now_ms, due)
            self.tell()
        self.now_ms = end

    def open(self, number: int = 1, **fields: Any) -> None:
        event = TaskOpened(
            task=task_id(number),
            key=KEY,
            **{"function": HASH, "form": "source", "code": b"code", **fields},
        )
        self.tell(event)

    def submit(
        self, calls: list[bytes], number: int = 1, first: int = 0, last: bool = True
    ) -> None:
        self.tell(CallsSubmitted(task=task_id(number), first=first, calls=tuple(calls), last=last))

    def open_and_submit(self, calls: int, number: int = 1, **fields: Any) -> None:
        self.open(number, **fields)
        self.submit([b"\x82\x00\x80"] * calls, number)

    def take(self, kind: type[Any]) -> list[Any]:
        """The commands of a kind so far; notes need not be asked for, others may not be left."""
        found = [command for command in self.commands if type(command) is kind]
        self.commands = [command for command in self.commands if type(command) is not kind]
        return found

    def nothing_left(self) -> bool:
        return all(type(command) is Note for command in self.commands)

    # -- the controller's side --------------------------------------------------------------------

    def read(self) -> list[Linked]:
        """What arrived at the controller since the last time, in order."""
        found: list[Linked] = []
        sent, self.sent = self.sent, []
        for topic, payload in sent:
            if topic == self.topics.from_client(USER, CLIENT):
                found += self.link.receive(decode(payload), self.now_ms)
        self.received += found
        return found

    def read_one(self, kind: type[_Message]) -> _Message:
        found = [message for message in self.read() if type(message) is kind]
        assert len(found) == 1, found
        return found[0]

    def lose(self) -> None:
        """What the client published does not arrive."""
        self.sent.clear()

    def raw(self) -> list[Linked]:
        """What the client published on its topic, as it stands, without a link."""
        sent, self.sent = self.sent, []
        return [decode(data) for topic, data in sent if topic.startswith("forage/1/from/")]

    def answer(self, *messages: Linked) -> None:
        """The controller sends these; they arrive."""
        for message in messages:
            self.link.send(message)
        self.deliver()

    def deliver(self) -> None:
        """Whatever the controller's end of the link has to say arrives."""
        for outgoing in self.link.poll(self.now_ms):
            self.tell(MessageReceived(topic=outgoing.topic, payload=outgoing.payload))

    def welcome(self, **fields: Any) -> None:
        """Connect and be welcomed; nothing is left lying about."""
        self.connect()
        self.read()
        self.answer(Welcome(minor=0, **fields))
        self.commands.clear()

    def presence(
        self, session: str, state: str = "active", epoch: int = 1, name: str = "main"
    ) -> None:
        document = ControllerPresence(state=state, epoch=epoch, session=session)
        topic = self.topics.controller_presence(name)
        self.tell(MessageReceived(topic=topic, payload=encode_json(document)))

    def acknowledge(self, *rows: tuple[str, int]) -> None:
        self.answer(Acknowledged(rows=rows))

    # -- a device's side --------------------------------------------------------------------------

    def outcomes(
        self,
        ranges: Ranges,
        *,
        number: int = 1,
        device: str = "pi1",
        errors: tuple[tuple[int, str, bool], ...] = (),
        items: list[Any] | None = None,
        **fields: Any,
    ) -> OutcomeSet:
        """Outcomes of one assignment that was made of exactly these ranges' span."""
        low, high = ranges[0][0], ranges[-1][1]
        indices = [index for start, end in ranges for index in range(start, end)]
        values: dict[str, Any] = {
            "task": task_id(number),
            "assignment": 5,
            "low": low,
            "high": high,
            "tag": slice_tag(KEY, task_id(number), 5, low, high, device),
            "ranges": ranges,
            "errors": errors,
            "data": cbor2.dumps([[index] for index in indices] if items is None else items),
        }
        return OutcomeSet(**{**values, **fields})

    def device_says(self, message: Linked, device: str = "pi1", number: int = 1) -> None:
        topic = self.topics.task(USER, CLIENT, task_id(number), device)
        payload = encode(message, session=DEVICE_SESSION, n=9)
        self.tell(MessageReceived(topic=topic, payload=payload))

    def resolve(self, ranges: Ranges, *, device: str = "pi1", **fields: Any) -> None:
        outcomes = self.outcomes(ranges, device=device, **fields)
        self.device_says(Outcomes(sets=(outcomes,)), device)


def pages_of(messages: list[Linked]) -> list[tuple[Header, Page]]:
    """The pages of all submits among these, with their headers."""
    return [
        (decode_header(page.header), page)
        for message in messages
        if type(message) is Submit
        for page in message.pages
    ]
