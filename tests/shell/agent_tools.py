"""An agent process of the test's own, and the smallest controller that can speak with it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cbor2

from forage_wire.address import BrokerAddress
from forage_wire.codec import decode, encode_header, encode_json, join_calls
from forage_wire.limits import DEVICE_WINDOW
from forage_wire.link import Link
from forage_wire.messages import (
    Assign,
    Assignment,
    Code,
    ControllerPresence,
    Header,
    Linked,
    Options,
    Outcomes,
    Report,
)
from forage_wire.topics import Topics
from forage_wire.values import Outcome, decode_outcome_item, encode_call, ship
from shell.controller_tools import Lines
from transport.owner import Owner, now_ms

__all__ = ["CLIENT", "TASK", "TOPICS", "WAIT_S", "AgentProcess", "FakeController", "is_alive"]

TOPICS = Topics()
WAIT_S = 30.0
CLIENT = "0123456789abc"
TASK = f"{CLIENT}-1"

_Message = TypeVar("_Message", bound=Linked)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


class AgentProcess:
    """`python -m forage_agent`, ended by its id."""

    def __init__(
        self, *arguments: str, environment: dict[str, str] | None = None, folder: Path | None = None
    ) -> None:
        own = {key: value for key, value in os.environ.items() if not key.startswith("FORAGE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "forage_agent", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=own | (environment or {}),
            cwd=folder,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out = Lines(self.process.stdout)
        self.log = Lines(self.process.stderr)

    @property
    def pid(self) -> int:
        return self.process.pid

    def ready(self) -> dict[str, str]:
        """The ready line's fields, once it is there."""
        lines = self.out.wait_for(lambda lines: bool(lines))
        word, *fields = lines[0].split()
        assert word == "ready"
        return dict(field.split("=", 1) for field in fields)

    def family(self) -> list[int]:
        """The zygote and all workers."""
        found: list[int] = []
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            for thread in os.listdir(f"/proc/{pid}/task"):
                text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
                found.extend(map(int, text.split()))
                waiting.extend(map(int, text.split()))
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class FakeController:
    """Says what a controller says, by hand, to one device."""

    def __init__(self, owner: Owner, address: BrokerAddress, device: str = "dev") -> None:
        self.owner = owner
        self.device = device
        self.session = os.urandom(8).hex() + "-1"
        self.party = owner.online(
            address,
            [
                (f"{TOPICS.prefix}device/{device}/#", 1),
                (TOPICS.outbox(device), 1),
                (f"{TOPICS.prefix}task/#", 1),
                (f"{TOPICS.prefix}log/#", 0),
            ],
        )
        self.received: list[Linked] = []
        self.lines: list[tuple[str, str]] = []
        self.link: Link | None = None
        self._taken = 0
        self._number = 0

    # -- what the device says -------------------------------------------------------------------

    def pump(self) -> None:
        """Take what came, send what is due."""
        messages = self.party.messages
        for event in messages[self._taken :]:
            parsed = TOPICS.parse(event.topic)
            assert parsed is not None
            if parsed.branch == "log":
                texts = event.payload.decode().split("\n")
                self.lines.extend([(parsed.task, text) for text in texts])
            elif parsed.branch in ("outbox", "task"):
                message = decode(event.payload)
                if self.link is not None and message.controller == self.session:
                    self.received += self.link.receive(message, now_ms())
                elif not message.controller:
                    self.received.append(message)
        self._taken = len(messages)
        if self.link is not None:
            for out in self.link.poll(now_ms()):
                self.party.connection.publish(out.topic, out.payload, qos=1)

    def until(self, condition: Callable[[], Any]) -> None:
        """Go on until the condition holds."""

        def holds() -> bool:
            self.pump()
            return bool(condition())

        self.owner.until(holds)

    def document(self, leaf: str) -> dict[str, Any]:
        """The newest `presence`, `capabilities` or `load` of the device."""
        topic = f"{TOPICS.prefix}device/{self.device}/{leaf}"
        self.until(lambda: any(one.topic == topic for one in self.party.messages))
        payload = [one.payload for one in self.party.messages if one.topic == topic][-1]
        found: dict[str, Any] = json.loads(payload)
        return found

    def until_state(self, state: str) -> dict[str, Any]:
        """The device's presence once it says this."""
        self.until(lambda: self.document("presence")["state"] == state)
        return self.document("presence")

    def of(self, kind: type[_Message]) -> list[_Message]:
        """All messages of one kind so far."""
        return [message for message in self.received if isinstance(message, kind)]

    def outcomes(self) -> dict[int, Outcome]:
        """All outcomes so far, by index."""
        found: dict[int, Outcome] = {}
        for message in self.of(Outcomes):
            for one in message.sets:
                indices = [index for low, high in one.ranges for index in range(low, high)]
                for index, item in zip(indices, cbor2.loads(one.data), strict=True):
                    found[index] = decode_outcome_item(item)
        return found

    # -- what the device is told ----------------------------------------------------------------

    def adopt(self) -> str:
        """Begin a link with the device's present session; the answer is that session."""
        session = str(self.until_state("online")["session"])
        self.link = Link(
            session=session,
            controller=self.session,
            epoch=1,
            topic=TOPICS.inbox(self.device),
            window=DEVICE_WINDOW,
        )
        self.send(Report())
        return session

    def appear(self) -> None:
        """Publish the presence of an active controller."""
        document = ControllerPresence(state="active", epoch=1, session=self.session)
        topic = TOPICS.controller_presence("main")
        self.party.connection.publish(topic, encode_json(document), qos=1, retain=True)

    def send(self, *messages: Linked) -> None:
        assert self.link is not None
        for message in messages:
            self.link.send(message)
        self.pump()

    def assign(
        self,
        function: Callable[..., Any] | tuple[str, str],
        arguments: Sequence[tuple[Any, ...]],
        *,
        first: int = 0,
        options: Options | None = None,
        beat_ms: int = 10_000,
    ) -> int:
        """Give the device calls; the answer is the assignment's number."""
        self._number += 1
        number = 2**40 + self._number
        if isinstance(function, tuple):
            key: bytes | tuple[str, str] = function
            form, python = "named", ""
        else:
            shipped = ship(function)
            key, form, python = shipped.hash, shipped.form, shipped.python
            self.send(Code(hash=shipped.hash, form=shipped.form, data=shipped.blob))
        header = Header(
            user="user",
            client=CLIENT,
            task=TASK,
            function=key,
            form=form,
            python=python,
            options=options or Options(),
            first=0,
            n=4_096,
            last=True,
        )
        given = Assignment(
            assignment=number,
            header=encode_header(header),
            low=first,
            high=first + len(arguments),
            beat_ms=beat_ms,
            tag=bytes(16),
            calls=join_calls([encode_call(args, {}) for args in arguments]),
        )
        self.send(Assign(assignments=(given,)))
        return number

    def values(self, count: int) -> list[Any]:
        """The values of the first `count` calls, once they are there."""
        self.until(lambda: len(self.outcomes()) >= count)
        found = self.outcomes()
        assert all(outcome.ok for outcome in found.values())
        return [found[index].value for index in sorted(found)]
