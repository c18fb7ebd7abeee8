"""A controller process of the test's own, and what a test needs to speak with it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from forage_wire.address import BrokerAddress
from forage_wire.codec import decode, encode_header, join_calls
from forage_wire.link import Link
from forage_wire.messages import Header, Hello, Linked, Page
from forage_wire.topics import Topics
from transport.owner import Owner, Party, now_ms

TOPICS = Topics()
WAIT_S = 30.0


class Lines:
    """A stream's lines as they come, read by a thread so that the process never blocks on us."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: list[str] = []
        self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[list[str]], bool]) -> list[str]:
        """All lines, once they meet the condition."""
        with self._changed:
            met = self._changed.wait_for(
                lambda: condition(self._lines) or self._is_over, timeout=WAIT_S
            )
            assert met, self._lines
            assert condition(self._lines), self._lines
            return list(self._lines)

    def all(self) -> list[str]:
        """Everything, once the stream has ended."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self._lines


class ControllerProcess:
    """`python -m forage_controller.main`, ended by its id."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        own = {key: value for key, value in os.environ.items() if not key.startswith("FORAGE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "forage_controller.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=own | (environment or {}),
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out = Lines(self.process.stdout)
        self.log = Lines(self.process.stderr)

    def ready(self) -> dict[str, str]:
        """The ready line's fields, once it is there."""
        lines = self.out.wait_for(lambda lines: bool(lines))
        word, *fields = lines[0].split()
        assert word == "ready"
        return dict(field.split("=", 1) for field in fields)

    def wait_for_log(self, text: str) -> list[str]:
        return self.log.wait_for(lambda lines: any(text in line for line in lines))

    def log_count(self, text: str) -> int:
        return sum(text in line for line in self.log.wait_for(lambda lines: True))

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(WAIT_S)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Caller:
    """A client's end of a real link, over a real broker."""

    def __init__(self, owner: Owner, address: BrokerAddress, client: str = "0" * 13) -> None:
        self.owner = owner
        self.user = "bob"
        self.client = client
        self.session = "a" * 16 + "-1"
        topics = TOPICS.client_subscriptions(self.user, client)
        self.party: Party = owner.online(address, topics)
        self.link = Link(
            session=self.session,
            controller="",
            topic=TOPICS.from_client(self.user, client),
            window=8,
        )
        self.received: list[Linked] = []
        self._taken = 0
        self.link.send(Hello(minor=0, python="3.11"))

    def send(self, message: Linked) -> None:
        self.link.send(message)

    def pump(self) -> None:
        """Take what came, send what is due."""
        messages = self.party.messages
        for event in messages[self._taken :]:
            if event.topic == TOPICS.to_client(self.user, self.client):
                message = decode(event.payload)
                self.link.controller = message.controller
                self.received += self.link.receive(message, now_ms())
        self._taken = len(messages)
        for out in self.link.poll(now_ms()):
            self.party.connection.publish(out.topic, out.payload, qos=1)

    def until(self, condition: Callable[[], bool]) -> None:
        """Go on with the link until the condition holds."""

        def holds() -> bool:
            self.pump()
            return condition()

        self.owner.until(holds)

    def wait_for(self, kind: type[Linked]) -> Linked:
        """The first message of this kind."""

        def found() -> list[Linked]:
            return [message for message in self.received if isinstance(message, kind)]

        self.until(lambda: bool(found()))
        return found()[0]

    def page(self, task: str, n: int) -> Page:
        header = Header(
            user=self.user,
            client=self.client,
            task=task,
            function=("org.app.task", "1"),
            form="named",
            label="f",
            first=0,
            n=n,
            last=True,
        )
        return Page(header=encode_header(header), calls=join_calls([b"call"] * n), key=b"k" * 16)


def arguments_for(address: BrokerAddress | str, state_dir: Path, *more: str) -> list[str]:
    """Flags of a controller of the test's own."""
    return ["--broker", str(address), "--state-dir", str(state_dir), *more]
