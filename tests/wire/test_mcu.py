"""The MCU profile as its page tells it, against the controller's real core."""

from typing import Any

import cbor2

from core.desk import KEY, Desk, FakeClient
from forage_wire.codec import decode, encode_header, join_calls
from forage_wire.io import Connected, Disconnected
from forage_wire.messages import Acknowledge, Assign, Header, Linked, Outcomes, Page, Submit
from wire.mcu import Mcu

CLIENT = "0" * 13
TASK = CLIENT + "-1"


class DeskDevice:
    """What a desk asks of a device, answered by firmware."""

    link = None

    def __init__(self, desk: Desk, mcu: Mcu) -> None:
        self.desk, self.mcu = desk, mcu
        self.hears = True
        self.heard: list[Linked] = []

    def flush(self) -> None:
        self.mcu.flush(self.desk.publish)

    def on_inbox(self, payload: bytes) -> None:
        if self.hears:
            assert len(payload) <= 4_096
            self.heard.append(decode(payload))
            self.mcu.on_inbox(payload)


def put_on(desk: Desk, mcu: Mcu) -> DeskDevice:
    device = DeskDevice(desk, mcu)
    desk.devices[mcu.name] = device  # type: ignore[assignment]
    mcu.join()
    desk.run()
    return device


def blinking(args: list[Any]) -> str:
    return f"blinked {args[0]} times"


def submit(client: FakeClient, n: int, name: str = "org.example.blink") -> None:
    header = Header(
        user=client.user,
        client=client.name,
        task=TASK,
        function=(name, "1"),
        form="named",
        first=0,
        n=n,
        last=True,
    )
    calls = join_calls([cbor2.dumps([0, [index]]) for index in range(n)])
    page = Page(header=encode_header(header), calls=calls, key=KEY)
    client.send(Submit(pages=(page,)))
    client.desk.run()


class Watched(Desk):
    """A desk that keeps what devices say in CBOR."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox_of_controller: list[Linked] = []

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        if "/outbox/" in topic or "/task/" in topic:
            self.inbox_of_controller.append(decode(payload))
        super().publish(topic, payload, retain)


def outcomes_of(desk: Watched) -> list[Any]:
    """The values that the controller has of the task, by index."""
    found = {}
    for message in desk.inbox_of_controller:
        if isinstance(message, Outcomes):
            for outcomes in message.sets:
                (low, _high), *_ = outcomes.ranges
                found[low] = cbor2.loads(outcomes.data)[0]
    return [found[index] for index in sorted(found)]


def test_a_microcontroller_runs_one_call_after_another() -> None:
    desk = Watched()
    desk.begin()
    device = put_on(desk, Mcu("lamp", 0xA6, blinking))
    submit(desk.client(), 5)
    desk.advance(2_000)
    assert device.mcu.ran == [[0], [1], [2], [3], [4]]
    assert outcomes_of(desk) == [[f"blinked {index} times"] for index in range(5)]
    assert device.mcu.kept is None
    assert desk.core.ledger.settled == 5
    # One call at a time, each of a slice of its own, the next after the acknowledgement.
    kinds = [type(message) for message in device.heard if type(message) in (Assign, Acknowledge)]
    assert kinds == [Assign, Acknowledge] * 5


def test_a_repeated_assignment_is_answered_and_not_run_again() -> None:
    desk = Watched()
    desk.begin()
    device = put_on(desk, Mcu("lamp", 0xA6, blinking))
    device.hears = False
    submit(desk.client(), 1)
    device.hears = True
    # Its first copy was lost on the way; the controller says it again, as does the device.
    desk.advance(3_000)
    assert device.mcu.ran == [[0]]
    device.mcu.tick()
    desk.run()
    assert device.mcu.ran == [[0]]
    assert desk.core.ledger.settled == 1


def test_a_function_that_it_lacks_is_not_given_to_it() -> None:
    desk = Watched()
    desk.begin()
    device = put_on(desk, Mcu("lamp", 0xA6, blinking))
    submit(desk.client(), 1, name="org.example.dim")
    desk.advance(1_000)
    assert [type(message) for message in device.heard if isinstance(message, Assign)] == []


def test_a_refusal_as_full_is_offered_again_without_another_event() -> None:
    desk = Watched()
    desk.begin()
    device = put_on(desk, Mcu("lamp", 0xA6, blinking))
    device.mcu.kept = {"a": 1, "k": TASK, "l": 0, "u": 1}
    submit(desk.client(), 1)
    assert device.mcu.ran == []
    device.mcu.kept = None
    desk.advance(1_000)
    assert device.mcu.ran == [[0]]


def test_what_a_lost_microcontroller_had_is_run_after_it_is_back() -> None:
    desk = Watched()
    desk.begin()
    device = put_on(desk, Mcu("lamp", 0xA6, blinking))
    device.hears = False
    submit(desk.client(), 1)
    desk.publish(*device.mcu.will())
    desk.run()
    device.mcu.boot()
    device.mcu.join()
    device.hears = True
    desk.run()
    desk.advance(1_000)
    assert device.mcu.ran == [[0]]
    assert desk.core.ledger.settled == 1


def test_an_outcome_survives_the_controllers_new_session() -> None:
    desk = Watched()
    desk.begin()
    device = put_on(desk, Mcu("lamp", 0xA6, blinking))
    client = desk.client()
    # The outcome is said while nobody listens: it is kept, and said again on the next link.
    desk.commits = False
    submit(client, 1)
    assert device.mcu.kept is not None
    desk.handle(Disconnected())
    desk.commits = True
    desk.commit()
    desk.handle(Connected(session=f"{desk.start}-2"))
    desk.run()
    desk.advance(2_000)
    assert device.mcu.ran == [[0]]
    assert device.mcu.kept is None
    assert device.mcu.controller == f"{desk.start}-2"
    assert desk.core.ledger.settled == 1
