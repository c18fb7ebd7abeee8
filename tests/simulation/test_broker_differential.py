"""The broker's model and a real mosquitto deliver the same messages for the same things done.

What is compared: (topic, payload, retain) of everything that each connection gets, in order; only
the retained messages of one subscription may come in any order, as in MQTT. Sessions are clean, as
all of ours are: what is published while a client is away is nobody's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import pytest

from forage_sim.broker import Broker, Conditions, Connection
from forage_sim.clock import Clock
from forage_wire.io import Publish
from simulation.mqtt_client import PlainClient
from transport.mosquitto import Mosquitto, mosquitto_program

CLIENTS = ("one", "two", "three")
TOPICS = ("a", "a/b", "a/c", "d/b")
FILTERS = ((("a", 1),), (("a/#", 1),), (("+/b", 0),), (("+/b", 1),), (("a/+", 1), ("d/b", 0)), ())
STEPS = 30
SEEDS = range(40)

Message = tuple[str, bytes, bool]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done: connect (also where it is connected), publish, goodbye, kill."""

    what: str
    client: str
    subscriptions: tuple[tuple[str, int], ...] = ()
    message: Publish | None = None
    """What is published; or the will."""


class World(Protocol):
    """A broker with clients."""

    def do(self, step: Step) -> None:
        """Do it, and wait until everything that comes of it has arrived."""

    def heard(self) -> list[tuple[str, list[Message]]]:
        """What each connection has got, in the order of their beginnings."""


class Modelled:
    """The simulator's broker."""

    def __init__(self, seed: int) -> None:
        self._clock = Clock(seed)
        self._broker = Broker(self._clock, Conditions(delay_ms_max=0), lambda *_what: None)
        self._open: dict[str, Connection] = {}
        self._all: list[tuple[str, list[Message]]] = []

    def do(self, step: Step) -> None:
        if step.what == "connect":
            listener = _Listener()
            connection = self._broker.connect(
                step.client, listener, step.subscriptions, step.message
            )
            assert connection is not None
            self._open[step.client] = connection
            self._all.append((step.client, listener.received))
        elif step.what == "publish":
            assert step.message is not None
            self._open[step.client].publish(step.message)
        elif step.what == "goodbye":
            self._open.pop(step.client).disconnect()
        else:
            self._open.pop(step.client).abandon()
        self._clock.run_until(self._clock.now_ms + 100)

    def heard(self) -> list[tuple[str, list[Message]]]:
        return self._all


class _Listener:
    def __init__(self) -> None:
        self.received: list[Message] = []

    def on_connected(self) -> None:
        pass

    def on_message(self, topic: str, payload: bytes, retain: bool) -> None:
        self.received.append((topic, payload, retain))

    def on_receipt(self, receipt: int) -> None:
        pass

    def on_disconnected(self) -> None:
        pass


class Real:
    """Mosquitto, with a watcher that sees the wills: by that a death is known to be noticed."""

    def __init__(self, port: int, prefix: str) -> None:
        self._port = port
        self._prefix = prefix
        self._open: dict[str, PlainClient] = {}
        self._wills: dict[str, Publish] = {}
        self._all: list[tuple[str, list[Message]]] = []
        self._deaths = 0
        self._watcher = PlainClient(port, f"{prefix}-watcher", [(f"{prefix}/gone/#", 1)])

    def do(self, step: Step) -> None:
        if step.what == "connect":
            self._connect(step)
        elif step.what == "publish":
            assert step.message is not None
            self._open[step.client].publish(self._prefixed(step.message))
        elif step.what == "goodbye":
            self._open.pop(step.client).disconnect()
            self._wills.pop(step.client, None)
        else:
            self._open.pop(step.client).kill()
            will = self._wills.pop(step.client, None)
            if will is not None:
                self._watcher.wait_until(f"{self._prefix}/{will.topic}", will.payload)
        self._settle()

    def _connect(self, step: Step) -> None:
        subscriptions = [(f"{self._prefix}/{each}", qos) for each, qos in step.subscriptions]
        will = None if step.message is None else self._prefixed(step.message)
        name = f"{self._prefix}-{step.client}"
        before = self._open.get(step.client)
        client = PlainClient(self._port, name, subscriptions, will)
        if before is not None:
            before.taken_over()
        self._wills.pop(step.client, None)
        if step.message is not None:
            self._wills[step.client] = step.message
        self._open[step.client] = client
        self._all.append((step.client, client.received))

    def _settle(self) -> None:
        # Once so that the broker has what each said, once more so that each has what came of it.
        for client in (*self._open.values(), *self._open.values()):
            client.settle()

    def _prefixed(self, message: Publish) -> Publish:
        return Publish(
            topic=f"{self._prefix}/{message.topic}",
            payload=message.payload,
            qos=message.qos,
            retain=message.retain,
        )

    def heard(self) -> list[tuple[str, list[Message]]]:
        start = len(self._prefix) + 1
        return [
            (client, [(topic[start:], payload, retain) for topic, payload, retain in received])
            for client, received in self._all
        ]

    def close(self) -> None:
        for client in (*self._open.values(), self._watcher):
            client.disconnect()


def draw_steps(seed: int) -> list[Step]:
    """Things that three clients do, in an order that the seed says."""
    random = Random(f"{seed}/steps")
    steps: list[Step] = []
    connected: dict[str, None] = {}
    for number in range(STEPS):
        client = random.choice(CLIENTS)
        payload = b"%d" % number
        # One that is there connects again, now and then: a takeover.
        if client not in connected or random.random() < 0.12:
            will = None
            if random.random() < 0.6:
                # On a topic of its own or of everybody; the watcher sees both.
                topic = random.choice((f"gone/{client}", "gone/a"))
                will = Publish(topic=topic, payload=payload, retain=random.random() < 0.5)
            filters = random.choice((*FILTERS, (("gone/#", 1),)))
            steps.append(Step("connect", client, filters, will))
            connected[client] = None
        elif random.random() < 0.2:
            steps.append(Step(random.choice(("goodbye", "kill")), client))
            del connected[client]
        else:
            retain = random.random() < 0.4
            if retain and random.random() < 0.3:
                payload = b""
            message = Publish(
                topic=random.choice(TOPICS),
                payload=payload,
                qos=random.choice((0, 1)),
                retain=retain,
            )
            steps.append(Step("publish", client, (), message))
    return steps


def comparable(heard: Sequence[tuple[str, list[Message]]]) -> list[tuple[str, list[Message]]]:
    """The same, with the retained messages that begin a subscription in one order."""
    found = []
    for client, messages in heard:
        retained = [message for message in messages if message[2]]
        live = [message for message in messages if not message[2]]
        assert messages[: len(retained)] == retained, "what is retained comes first"
        found.append((client, sorted(retained) + live))
    return found


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if mosquitto_program() is None:
        pytest.skip("mosquitto is not installed here")
    mosquitto = Mosquitto(Path(tmp_path_factory.mktemp("mosquitto")))
    mosquitto.start()
    yield mosquitto.address.port
    mosquitto.kill()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_model_delivers_what_mosquitto_delivers(port: int, seed: int) -> None:
    modelled, real = Modelled(seed), Real(port, f"s{seed}")
    done = []
    for step in draw_steps(seed):
        modelled.do(step)
        real.do(step)
        done.append(step)
        assert comparable(modelled.heard()) == comparable(real.heard()), done[-8:]
    real.close()


def test_the_steps_are_of_every_kind() -> None:
    steps = [step for seed in SEEDS for step in draw_steps(seed)]
    assert {step.what for step in steps} == {"connect", "publish", "goodbye", "kill"}
    takeovers = 0
    for seed in SEEDS:
        there: dict[str, None] = {}
        for step in draw_steps(seed):
            takeovers += step.what == "connect" and step.client in there
            if step.what == "connect":
                there[step.client] = None
            elif step.what != "publish":
                there.pop(step.client)
    assert takeovers > 20
    wills = [step.message for step in steps if step.what == "connect" and step.message]
    assert any(will.retain for will in wills)
    assert any(step.message and not step.message.payload for step in steps)
