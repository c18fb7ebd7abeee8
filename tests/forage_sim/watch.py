"""What the oracles see: every message as it leaves its process, every run, every outcome.

Also the facts that several oracles need: which assignment numbers were given out for what, and
how often each call was run, raised, killed its worker.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forage_controller.core.operations import Operation
from forage_sim.headers import decode_header
from forage_sim.oracles.base import Oracle
from forage_sim.trace import message_type
from forage_wire.codec import decode
from forage_wire.errors import DecodeError
from forage_wire.io import Connected, Disconnected, MessageReceived, Publish
from forage_wire.limits import UNFINISHED_PART_BYTES_MAX
from forage_wire.link import link_number
from forage_wire.messages import Assign, Header, Linked, Part
from forage_wire.parts import PartAssembler
from forage_wire.topics import ParsedTopic, Topics

if TYPE_CHECKING:
    from forage_sim.disk import StoredState
    from forage_sim.process import Process

__all__ = ["GivenOut", "Run", "Watch"]

SPOKEN_BY_CONTROLLERS = ("inbox", "to")
SPOKEN_BY_DEVICES = ("task", "outbox")
OF_CONNECTIONS = frozenset((Connected, Disconnected, MessageReceived))
UNREAD = ("seen", "code", "answer", "need")
"""Of what a controller says, these bind it to nothing."""


@dataclass(frozen=True, slots=True)
class GivenOut:
    """An assignment as the controller first sent it."""

    number: int
    header: Header
    device: str
    session: str
    low: int
    high: int
    tries: int
    deaths: int
    losses: int

    @property
    def task(self) -> str:
        """The task's id."""
        return self.header.task

    def call_of(self, index: int) -> int:
        """The user's call that a run of it is for: with replicas, not every run has its own."""
        header = self.header
        base = header.first - header.replica * header.n
        return base // header.options.replicas + index - header.first


@dataclass(slots=True)
class Run:
    """One start of one call at a worker."""

    process: "Process"
    session: str
    """The device's session at that time."""
    assignment: int
    task: str
    index: int
    at_ms: int
    checkpoint: bytes | None = None
    """The state that it was given to go on from."""
    lost: bool = False
    """Its worker died before the agent heard how it ended."""
    ended: bool = False
    """It has come to its end, or its worker has."""


class Watch:
    """Hands what happens to the oracles."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._parsed: dict[str, ParsedTopic | None] = {}
        self._assemblers: dict[tuple[str, str, str, str, int], PartAssembler] = {}
        self._unfinished: dict[tuple[str, str, str, str, int], list[bytes]] = {}
        self._last_part: dict[tuple[str, str, str, str, int], int] = {}
        self.given_out: dict[int, GivenOut] = {}
        self.runs: dict[tuple[str, int], list[Run]] = {}
        """By (task, index), in order."""
        self.raised: Counter[tuple[str, int]] = Counter()
        self.killed: Counter[tuple[str, int]] = Counter()
        """Workers that died in a call."""
        self._published: list[Callable[[Process, Publish, ParsedTopic], None]] = []
        self._sent: list[Callable[[Process, ParsedTopic, Linked], None]] = []
        self._started: list[Callable[[Run, bytes], None]] = []
        self._resolved: list[Callable[[Process, str, int, object], None]] = []
        self._decided: list[Callable[[Process, str, int, tuple[str, ...]], None]] = []
        self._saved: list[Callable[[StoredState, Operation], None]] = []
        self.assigned_in: dict[bytes, tuple[int, ...]] = {}
        """Payload -> assignments that it brings (of parts: each brings all)."""
        self._event: list[Callable[[Process, Any], None]] = []

    def join(self, oracles: Sequence[Oracle]) -> None:
        """Let these oracles see what they look at."""
        for oracle in oracles:
            for name, listeners in (
                ("published", self._published),
                ("sent", self._sent),
                ("started", self._started),
                ("resolved", self._resolved),
                ("event", self._event),
                ("saved", self._saved),
                ("decided", self._decided),
            ):
                if getattr(type(oracle), name) is not getattr(Oracle, name):
                    listeners.append(getattr(oracle, name))

    # -- what happens -----------------------------------------------------------------------

    def event(self, process: "Process", event: Any) -> None:
        """A process is about to hand an event to its core: of its connection, others are unseen."""
        if type(event) not in OF_CONNECTIONS:
            return
        for listener in self._event:
            listener(process, event)

    def saved(self, before: "StoredState", operation: Operation) -> None:
        """A controller hands an operation to its disk."""
        for listener in self._saved:
            listener(before, operation)

    def parse(self, topic: str) -> ParsedTopic | None:
        """A topic, read; there are few of them."""
        parsed = self._parsed.get(topic)
        if parsed is None:
            parsed = self._parsed[topic] = self._topics.parse(topic)
        return parsed

    def published(self, process: "Process", publish: Publish) -> None:
        """A process gives a message to its connection."""
        parsed = self.parse(publish.topic)
        if parsed is None:
            raise AssertionError(f"{process.name} publishes on a foreign topic {publish.topic!r}")
        for listener in self._published:
            listener(process, publish, parsed)
        kind = message_type(publish.payload)
        # Decoding all would cost more than the cores do; the oracles look at these.
        if parsed.branch in SPOKEN_BY_DEVICES:
            if kind not in ("outcomes", "trimmed", "checkpoint", "part"):
                return
        elif parsed.branch not in SPOKEN_BY_CONTROLLERS or kind in UNREAD:
            return
        message: Linked | None = decode(publish.payload, 1 << 22)
        payloads = [publish.payload]
        if isinstance(message, Part):
            message = self._assemble(process, publish, message, payloads)
        if message is None:
            return
        if isinstance(message, Assign):
            numbers = tuple(each.assignment for each in message.assignments)
            for payload in payloads:
                self.assigned_in[payload] = numbers
            self._give_out(message, parsed.device)
        for told in self._sent:
            told(process, parsed, message)

    def started(
        self,
        process: "Process",
        assignment: int,
        index: int,
        body: bytes,
        checkpoint: bytes | None = None,
    ) -> Run:
        """A worker begins a call."""
        given = self.given_out.get(assignment)
        if given is None:
            raise AssertionError(f"{process.name} runs assignment {assignment} that nobody made")
        at_ms = process.world.clock.now_ms
        run = Run(process, process.session, assignment, given.task, index, at_ms, checkpoint)
        self.runs.setdefault((given.task, given.call_of(index)), []).append(run)
        for listener in self._started:
            listener(run, body)
        return run

    def resolved(self, process: "Process", task: str, index: int, item: object) -> None:
        """A client's core gives a call's outcome to its caller."""
        for listener in self._resolved:
            listener(process, task, index, item)

    def decided(self, process: "Process", task: str, call: int, devices: tuple[str, ...]) -> None:
        """A client takes a call with replicas for decided."""
        for listener in self._decided:
            listener(process, task, call, devices)

    def _assemble(
        self, process: "Process", publish: Publish, part: Part, payloads: list[bytes]
    ) -> Linked | None:
        # A new link of the same sessions counts its parted messages anew; within one, a part that
        # is sent again would end what is unfinished of the next message.
        key = (process.client_id, publish.topic, part.session, part.controller, link_number(part))
        if part.n <= self._last_part.get(key, 0):
            return None
        self._last_part[key] = part.n
        assembler = self._assemblers.setdefault(key, PartAssembler())
        unfinished = self._unfinished.setdefault(key, [])
        unfinished.append(publish.payload)
        try:
            whole = assembler.add(part)
        except DecodeError as error:
            raise AssertionError(f"{process.name} sends parts that do not fit: {error}") from None
        if whole is None:
            return None
        payloads.extend(unfinished)
        unfinished.clear()
        return decode(whole, UNFINISHED_PART_BYTES_MAX)

    def _give_out(self, message: Assign, device: str) -> None:
        for assignment in message.assignments:
            if assignment.assignment in self.given_out:
                continue
            self.given_out[assignment.assignment] = GivenOut(
                number=assignment.assignment,
                header=decode_header(assignment.header),
                device=device,
                session=message.session,
                low=assignment.low,
                high=assignment.high,
                tries=assignment.tries,
                deaths=assignment.deaths,
                losses=assignment.losses,
            )
