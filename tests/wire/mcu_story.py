"""A microcontroller's whole life on the bus, byte for byte: what `firmware-notes` explains.

One device of the MCU profile joins, runs a call, answers a repeat, refuses what it cannot run,
reports an error, is lost, comes back, and meets a controller that was started anew.
"""

import dataclasses
from typing import Any

import cbor2

from forage_wire.codec import encode, encode_header, encode_json, join_calls
from forage_wire.messages import (
    Acknowledge,
    Assign,
    Assignment,
    AssignmentRefused,
    Beat,
    ControllerPresence,
    DeviceCapabilities,
    DeviceInventory,
    DevicePresence,
    Header,
    Linked,
    Outcomes,
    OutcomeSet,
    Report,
    Seen,
)
from forage_wire.tags import slice_tag
from forage_wire.topics import Topics
from wire.diagnostic import to_json

__all__ = ["CAPABILITIES", "DEVICE", "story"]

DEVICE = "lamp-1"
USER = "ann"
CLIENT = "0c4t2v9k1m7ab"
TASK = CLIENT + "-1"
KEY = bytes(range(16))
TOPICS = Topics()
EPOCH = 3
FIRST_CONTROLLER = "fedcba9876543210-1"
SECOND_CONTROLLER = "00112233445566aa-1"

PRESENCE = DevicePresence(state="online", session="00000000000000a7-1", software="lamp 4")
CAPABILITIES = DeviceCapabilities(
    session="00000000000000a7-1",
    slots=1,
    packet_bytes_max=4_096,
    queue_bytes_max=2_048,
    profile="mcu",
    arch="xtensa",
    os="FreeRTOS 10.5",
    functions={"org.example.blink": "1"},
)


class _Story:
    """Writes the steps down, stamped as each end's link would."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.device_session = "00000000000000a7-1"
        self.controller_session = FIRST_CONTROLLER
        self.epoch = EPOCH
        self.n = {"device": 0, "controller": 0}

    def document(self, who: str, topic: str, document: object, what: str) -> None:
        text = encode_json(document).decode()
        self._step(who, topic, what, retained=True, text=text)

    def numbered(self, who: str, topic: str, message: Linked, what: str) -> bytes:
        self.n[who] += 1
        return self._message(who, topic, message, what, n=self.n[who])

    def unnumbered(self, who: str, topic: str, message: Linked, what: str) -> None:
        self._message(who, topic, message, what, n=0)

    def again(self, who: str, topic: str, payload: bytes, what: str) -> None:
        self._binary(who, topic, what, payload)

    def beat(self, what: str) -> None:
        payload = encode(Beat(session=self.device_session))
        self._binary("device", TOPICS.outbox(DEVICE), what, payload, qos=0)

    def new_link(self) -> None:
        self.n = {"device": 0, "controller": 0}

    def _message(self, who: str, topic: str, message: Linked, what: str, n: int) -> bytes:
        other = "controller" if who == "device" else "device"
        stamped = dataclasses.replace(
            message,
            session=self.device_session,
            controller=self.controller_session,
            epoch=self.epoch if who == "controller" else 0,
            n=n,
            seen=self.n[other],
        )
        payload = encode(stamped)
        self._binary(who, topic, what, payload)
        return payload

    def _binary(self, who: str, topic: str, what: str, payload: bytes, **form: Any) -> None:
        wire = to_json(cbor2.loads(payload))
        self._step(who, topic, what, **form, hex=payload.hex(), wire=wire)

    def _step(self, who: str, topic: str, what: str, **form: Any) -> None:
        self.steps.append({"from": who, "what": what, "topic": topic, **form})


def _header(index: int, name: str) -> bytes:
    header = Header(
        user=USER,
        client=CLIENT,
        task=TASK,
        function=(name, "1"),
        form="named",
        label=name.rpartition(".")[2],
        first=index,
        n=1,
        last=index == 2,
    )
    return encode_header(header)


def _assignment(counter: int, index: int, epoch: int, name: str, args: list[Any]) -> Assignment:
    number = epoch * 2**40 + counter
    return Assignment(
        assignment=number,
        header=_header(index, name),
        low=index,
        high=index + 1,
        beat_ms=5_000,
        tag=slice_tag(KEY, TASK, number, index, index + 1, DEVICE),
        calls=join_calls([cbor2.dumps([0, args])]),
    )


def _outcomes(given: Assignment, item: Any, run_us: int, errors: Any = ()) -> Outcomes:
    """What a device answers: everything but its own part is copied from the assignment."""
    return Outcomes(
        sets=(
            OutcomeSet(
                task=TASK,
                assignment=given.assignment,
                low=given.low,
                high=given.high,
                tag=given.tag,
                ranges=((given.low, given.high),),
                errors=errors,
                run_us=run_us,
                data=cbor2.dumps([item]),
            ),
        )
    )


def _join(tell: _Story) -> None:
    inbox, outbox = TOPICS.inbox(DEVICE), TOPICS.outbox(DEVICE)
    presence = dataclasses.replace(PRESENCE, session=tell.device_session)
    capabilities = dataclasses.replace(CAPABILITIES, session=tell.device_session)
    tell.document("device", TOPICS.device_presence(DEVICE), presence, "presence")
    tell.document("device", TOPICS.device_capabilities(DEVICE), capabilities, "capabilities")
    tell.new_link()
    tell.numbered("controller", inbox, Report(), "the controller asks what the device holds")
    tell.numbered(
        "device", outbox, DeviceInventory(received=1, rows=()), "nothing: inventory, message 1"
    )


def story() -> dict[str, Any]:
    """The vectors' file: steps in order, each with its topic and payload."""
    tell = _Story()
    inbox, outbox = TOPICS.inbox(DEVICE), TOPICS.outbox(DEVICE)
    task = TOPICS.task(USER, CLIENT, TASK, DEVICE)
    lost = DevicePresence(state="lost", session=tell.device_session)
    tell.document("device's will", TOPICS.device_presence(DEVICE), lost, "set when connecting")
    _join(tell)

    first = _assignment(1, 0, EPOCH, "org.example.blink", [3, "red"])
    payload = tell.numbered("controller", inbox, Assign(assignments=(first,)), "blink(3, 'red')")
    outcome = _outcomes(first, [True], 1_200_000)
    tell.beat("a sign of life while it runs: at least every beat_ms")
    answer = tell.numbered("device", task, outcome, "the outcome, to client and controller")
    tell.again("controller", inbox, payload, "the same again: no `seen` has come yet")
    tell.again("device", task, answer, "the outcome kept, said again; the call does not run again")
    acknowledge = Acknowledge(rows=((first.assignment, ((0, 1),)),))
    tell.numbered("controller", inbox, acknowledge, "committed: the device forgets the outcome")
    tell.unnumbered("device", outbox, Seen(), "nothing else to say: a bare seen, within 20 ms")

    unknown = _assignment(2, 1, EPOCH, "org.example.dim", [0])
    tell.numbered("controller", inbox, Assign(assignments=(unknown,)), "a function it lacks")
    tell.numbered(
        "device",
        outbox,
        AssignmentRefused(assignment=unknown.assignment, reason="function"),
        "refused: the controller gives it to another",
    )
    failing = _assignment(3, 1, EPOCH, "org.example.blink", [-1, "red"])
    tell.numbered("controller", inbox, Assign(assignments=(failing,)), "blink(-1, 'red')")
    error = {"reason": "refused", "message": "blink: -1 is no number of times."}
    tell.numbered(
        "device",
        task,
        _outcomes(failing, error, 40, ((1, "error", True),)),
        "an error, final: the header's options allow no retries",
    )
    acknowledge = Acknowledge(rows=((failing.assignment, ((1, 2),)),))
    tell.numbered("controller", inbox, acknowledge, "committed")

    last = _assignment(4, 2, EPOCH, "org.example.blink", [1, "green"])
    tell.numbered("controller", inbox, Assign(assignments=(last,)), "the last thing it hears")
    tell.document("broker", TOPICS.device_presence(DEVICE), lost, "power fails: its will")
    tell.device_session = "00000000000000a8-1"
    _join(tell)

    again = _assignment(5, 2, EPOCH, "org.example.blink", [1, "green"])
    tell.numbered("controller", inbox, Assign(assignments=(again,)), "the call that was lost")
    outcome = _outcomes(again, [True], 400_000)
    tell.numbered("device", task, outcome, "its outcome, which a dying controller never reads")
    tell.controller_session, tell.epoch = SECOND_CONTROLLER, EPOCH + 1
    presence = ControllerPresence(state="active", epoch=tell.epoch, session=tell.controller_session)
    tell.document(
        "controller", TOPICS.controller_presence("main"), presence, "started anew: a new session"
    )
    tell.new_link()
    tell.numbered("controller", inbox, Report(), "message 1 of a new link: the numbers start anew")
    rows = ((again.assignment, TASK, 2, 3, "unacknowledged"),)
    tell.numbered("device", outbox, DeviceInventory(received=1, rows=rows), "what it still holds")
    tell.numbered("device", task, outcome, "then what is not acknowledged, once more")
    acknowledge = Acknowledge(rows=((again.assignment, ((2, 3),)),))
    tell.numbered("controller", inbox, acknowledge, "committed")
    offline = dataclasses.replace(PRESENCE, state="offline", session=tell.device_session)
    tell.document("device", TOPICS.device_presence(DEVICE), offline, "goodbye")
    return {
        "about": (
            "a device of the MCU profile, from its first connection to its goodbye; QoS 1 unless "
            "a step says otherwise; a step with `text` is JSON and retained, one with `hex` CBOR"
        ),
        "task_key": {"hex": KEY.hex()},
        "steps": tell.steps,
    }
