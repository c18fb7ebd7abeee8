"""A fleet in one thread, for tests of the SDK: it speaks the protocol as controller and device.

It takes apart real messages and answers with real ones; calls are run by the thread itself, with
the same decoders that a worker uses, or held back until the test lets them go.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import cbor2

import forage
from forage_wire.address import BrokerAddress
from forage_wire.codec import cut_calls, decode, decode_header, encode, encode_json
from forage_wire.link import Link, link_number
from forage_wire.messages import (
    Acknowledged,
    Answer,
    Cancel,
    Code,
    Collected,
    ControllerPresence,
    Header,
    Hello,
    Linked,
    Outcomes,
    OutcomeSet,
    Query,
    Started,
    SubmissionRefused,
    Submit,
    Welcome,
)
from forage_wire.parts import cut_parts
from forage_wire.shell import mqtt
from forage_wire.shell.loop import Loop
from forage_wire.tags import slice_tag
from forage_wire.topics import Topics
from forage_wire.values import decode_call, encode_error, encode_outcome_value, load

__all__ = ["Call", "Fleet"]

WAIT_S = 20.0


class Call:
    """One call that the fleet was given."""

    def __init__(self, header: Header, key: bytes, index: int, body: bytes) -> None:
        self.header = header
        self.key = key
        self.index = index
        self.body = body

    @property
    def name(self) -> str:
        return f"{self.header.task}.{self.index}"


class Fleet:
    """Runs until `stop`. `holds` keeps calls until `release`; `silent` welcomes nobody."""

    def __init__(
        self,
        address: BrokerAddress,
        *,
        root: str = "forage",
        holds: bool = False,
        silent: bool = False,
    ) -> None:
        self.address = address
        self.root = root
        self.topics = Topics(root)
        self.device = "pi1"
        self.session = f"{secrets.token_hex(8)}-1"
        self.holds = holds
        self.silent = silent
        self.delays_acknowledgements = False
        self.received: list[Linked] = []
        self.calls: dict[str, Call] = {}
        """Every call that arrived, by name."""
        self.held: list[Call] = []
        self.cancelled: list[tuple[str, bool]] = []
        self.answers: dict[str, Callable[[Query], bytes]] = {}
        self.refuses: dict[str, str] = {}
        self.named: dict[str, Callable[..., Any]] = {}
        self._unacknowledged: list[tuple[Link, list[tuple[str, int]]]] = []
        self._changed = threading.Condition()
        self._orders: list[Callable[[], None]] = []
        self._links: dict[str, Link] = {}
        self._places: dict[str, tuple[str, str]] = {}
        self._codes: dict[bytes, Code] = {}
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._assignment = 0
        self._part = 0
        self._stopping = False
        self._is_ready = False
        self._loop = Loop()
        self._connection = mqtt.MqttConnection(
            address,
            client_id=f"fleet-{secrets.token_hex(6)}",
            subscriptions=[(f"{root}/1/from/+/+", 1)],
        )
        self._loop.register(self._connection, lambda: None)
        self._thread = threading.Thread(target=self._run, name="test-fleet", daemon=True)

    # -- for tests ------------------------------------------------------------------------------

    def __enter__(self) -> Fleet:
        self._thread.start()
        self.wait(lambda: self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._loop.wake()
        self._thread.join(WAIT_S)
        # Not in the thread: it may see that it is to stop before it is woken.
        self._connection.close()
        self._loop.close()

    def connect(self, **settings: Any) -> forage.Client:
        """A client of this fleet."""
        return forage.connect(str(self.address), root=self.root, user="tester", **settings)

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until the condition holds of what has arrived."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), "what was waited for did not happen"

    def order(self, action: Callable[[], None]) -> None:
        """Do something in the fleet's thread."""
        self._orders.append(action)
        self._loop.wake()

    def release(self) -> None:
        """Run what is held, and hold nothing any more."""

        def act() -> None:
            self.holds = False
            held, self.held = self.held, []
            for call in held:
                self._finish(call)

        self.order(act)

    def finish(self, name: str) -> None:
        """Run one held call."""

        def act() -> None:
            call = self.calls[name]
            self.held.remove(call)
            self._finish(call)

        self.order(act)

    def acknowledge_all(self) -> None:
        """Acknowledge what was held back, and hold back no more."""

        def act() -> None:
            self.delays_acknowledgements = False
            for link, rows in self._unacknowledged:
                link.send(Acknowledged(rows=tuple(rows)))

        self.order(act)

    def start(self, name: str) -> None:
        """Say that a held call runs."""

        def act() -> None:
            call = self.calls[name]
            message = Started(rows=((call.header.task, call.index, 1),))
            self._publish_task(call.header, encode(message, session=f"{'0' * 16}-1"))

        self.order(act)

    def say(self, call: Call, item: bytes, *, error: tuple[str, bool] | None = None) -> None:
        """Send this outcome item for a call; `error` is (reason, final)."""
        self.order(lambda: self._send_outcome(call, item, error))

    def send_to(self, client: str, message: Linked) -> None:
        """Send this to a client, on its link."""
        self.order(lambda: self._links[self._places[client][1]].send(message))

    def refuse(self, task: str, reason: str, text: str) -> None:
        """Take this task no longer."""
        self.send_to(task.split("-")[0], SubmissionRefused(task=task, reason=reason, text=text))

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish anything."""

        def act() -> None:
            self._connection.publish(topic, payload)

        self.order(act)

    def messages(self, kind: type[Linked]) -> list[Any]:
        return [message for message in self.received if type(message) is kind]

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        self._connection.connect(_now())
        while not self._stopping:
            due = self._connection.next_deadline_ms()
            for link in self._links.values():
                wakeup = link.next_wakeup_ms()
                if wakeup is not None:
                    due = wakeup if due is None else min(due, wakeup)
            self._loop.poll(1.0 if due is None else max(0.0, (due - _now()) / 1000))
            for event in self._connection.read(_now()):
                if isinstance(event, mqtt.SubscribeDone):
                    self._on_connected()
                elif isinstance(event, mqtt.MessageReceived):
                    self._on_message(event.topic, event.payload)
                elif isinstance(event, mqtt.Disconnected):
                    self._connection.connect(_now())
            while self._orders:
                self._orders.pop(0)()
            self._flush()
            with self._changed:
                self._changed.notify_all()

    def _on_connected(self) -> None:
        self._links.clear()
        presence = ControllerPresence(state="active", epoch=1, session=self.session)
        self._connection.publish(
            self.topics.controller_presence("main"), encode_json(presence), retain=True
        )
        self._is_ready = True

    def _flush(self) -> None:
        for link in self._links.values():
            for outgoing in link.poll(_now()):
                self._connection.publish(outgoing.topic, outgoing.payload, qos=outgoing.qos)
        self._connection.flush(_now())

    def _on_message(self, topic: str, payload: bytes) -> None:
        parsed = self.topics.parse(topic)
        assert parsed is not None
        message = decode(payload)
        if self.silent or message.controller not in ("", self.session):
            return
        link = self._links.get(message.session)
        number = link_number(message)
        if link is None or number > link.number:
            if message.n != (number << 32) + 1:
                return
            link = self._links[message.session] = Link(
                session=message.session,
                controller=self.session,
                number=number,
                epoch=1,
                topic=self.topics.to_client(parsed.user, parsed.client),
                window=64,
            )
            self._places[parsed.client] = (parsed.user, message.session)
        for ready in link.receive(message, _now()):
            self.received.append(ready)
            self._on_ready(link, ready)

    def _on_ready(self, link: Link, message: Linked) -> None:
        match message:
            case Hello():
                link.send(Welcome(minor=0, devices=1))
            case Code():
                self._codes[message.hash] = message
            case Submit():
                self._on_submit(link, message)
            case Cancel():
                for low, high in message.ranges:
                    for index in range(low, high):
                        self.cancelled.append((f"{message.task}.{index}", message.force))
                names = {name for name, _ in self.cancelled}
                self.held = [call for call in self.held if call.name not in names]
            case Query():
                answer = self.answers.get(message.what)
                refusal = self.refuses.get(message.what)
                if answer is not None:
                    link.send(Answer(id=message.id, body=answer(message)))
                elif refusal is not None:
                    body = json.dumps({"error": refusal}).encode()
                    link.send(Answer(id=message.id, ok=False, body=body))
            case _:
                pass

    def _on_submit(self, link: Link, message: Submit) -> None:
        rows = []
        for page in message.pages:
            header = decode_header(page.header)
            rows.append((header.task, header.first))
            ended = {i for low, high in page.collected for i in range(low, high)}
            for offset, body in enumerate(cut_calls(page.calls)):
                index = header.first + offset
                call = Call(header, page.key, index, body)
                if call.name in self.calls or index in ended:
                    continue
                self.calls[call.name] = call
                if self.holds:
                    self.held.append(call)
                else:
                    self._finish(call)
        if self.delays_acknowledgements:
            self._unacknowledged.append((link, rows))
        else:
            link.send(Acknowledged(rows=tuple(rows)))

    def _finish(self, call: Call) -> None:
        try:
            value = self._function(call.header)
            args, kwargs = decode_call(call.body)
            item = encode_outcome_value(value(*args, **kwargs))
        except Exception as error:
            self._send_outcome(call, encode_error(error), ("error", True))
        else:
            self._send_outcome(call, item, None)

    def _function(self, header: Header) -> Callable[..., Any]:
        if not isinstance(header.function, bytes):
            return self.named[header.function[0]]
        function = self._functions.get(header.function)
        if function is None:
            code = self._codes[header.function]
            function = load(code.data, code.form, header.python)
            self._functions[header.function] = function
        return function

    def _send_outcome(self, call: Call, item: bytes, error: tuple[str, bool] | None) -> None:
        self._assignment += 1
        task, index = call.header.task, call.index
        outcomes = OutcomeSet(
            task=task,
            assignment=self._assignment,
            low=index,
            high=index + 1,
            tag=slice_tag(call.key, task, self._assignment, index, index + 1, self.device),
            ranges=((index, index + 1),),
            errors=() if error is None else ((index, *error),),
            data=b"\x81" + item,
        )
        assert cbor2.loads(outcomes.data)
        session = f"{'0' * 16}-1"
        whole = encode(Outcomes(sets=(outcomes,)), session=session)
        limit = call.header.packet_bytes_max
        if len(whole) <= limit:
            self._publish_task(call.header, whole)
            return
        self._part += 1
        for part in cut_parts(whole, self._part, limit):
            self._publish_task(call.header, encode(part, session=session))

    def _publish_task(self, header: Header, payload: bytes) -> None:
        topic = self.topics.task(header.user, header.client, header.task, self.device)
        self._connection.publish(topic, payload)

    def collected(self, task: str) -> set[int]:
        """The calls of a task that the client said to have."""
        found: set[int] = set()
        for message in self.messages(Collected):
            for name, ranges in message.rows:
                if name == task:
                    found |= {index for low, high in ranges for index in range(low, high)}
        return found


def _now() -> int:
    return time.monotonic_ns() // 1_000_000
