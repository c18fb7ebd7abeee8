"""The firmware clients against the golden vectors: the page's story, and bytes that are broken."""

import json
import random
from typing import Any

import cbor2
import pytest

from firmware.boards import Harness, Published, harness_command
from forage_wire.codec import decode
from forage_wire.messages import Outcomes
from wire.make_vectors import FOLDER

STEPS = json.loads((FOLDER / "mcu.json").read_text())["steps"]
SESSION = "00000000000000a7-1"
MUTATIONS = 400


def comparable(payload: bytes) -> Any:
    """A message without what a clock decides, and its length without that."""
    message = cbor2.loads(payload)
    for row in message.get("o", ()):
        del row["us"]
        row["d"] = cbor2.loads(row["d"])
    return message


def same(said: Published, step: dict[str, Any]) -> bool:
    """Whether a device said what the vector has."""
    topic, qos, retain, payload = said
    if (topic, qos, retain) != (step["topic"], step.get("qos", 1), step.get("retained", False)):
        return False
    if "hex" in step:
        golden = bytes.fromhex(step["hex"])
        # Strict about the form of each item; the order of keys is free, the time taken its own.
        assert decode(payload)
        return bool(comparable(payload) == comparable(golden))
    mine, wanted = json.loads(payload), json.loads(step["text"])
    return bool(mine["session"] == wanted["session"] and mine.get("state") == wanted.get("state"))


def test_a_life_goes_as_in_the_golden_story(kind: str) -> None:
    """Each thing that the controller says there is answered with what the device says there."""
    harness = Harness(harness_command(kind))
    said: list[Published] = []
    heard = 0
    for step in STEPS:
        match step["from"]:
            case "controller" if "/inbox/" in step["topic"] and "last" not in step["what"]:
                assert not said, f"it says {said}, which the story does not have, before {step}"
                said = harness.inbox(bytes.fromhex(step["hex"]))
                heard += 1
            case "broker":
                # Power fails: what it knew is gone.
                assert harness.close() == 0
                harness = Harness(harness_command(kind))
            case "device" if step["what"] == "presence":
                said = harness.connect(json.loads(step["text"])["session"])
                assert same(said.pop(0), step)
            case "device" if step.get("qos", 1) == 1 and step["what"] != "goodbye":
                assert said, f"it does not say {step}"
                assert same(said.pop(0), step), step
            case _:
                pass
        said = [each for each in said if not is_bare_seen(each) or expected_soon(step)]
    assert heard > 10
    assert harness.close() == 0


def is_bare_seen(said: Published) -> bool:
    return "outbox" in said[0] and cbor2.loads(said[3])["t"] == "seen"


def expected_soon(step: dict[str, Any]) -> bool:
    """Whether the story's next step is a bare `seen`: elsewhere it leaves those out."""
    following = STEPS[STEPS.index(step) + 1 :][:1]
    return bool(following and "seen, within" in following[0]["what"])


REPORT = {"t": "report", "s": SESSION, "c": "fedcba9876543210-1", "e": 3, "n": 1}
SEEN = bytes.fromhex("6174647365656e")
"""`t: "seen"`, with which the broken messages of the vectors begin."""


def in_a_report(broken: bytes) -> bytes:
    """What is wrong with a message, in one that would be answered otherwise."""
    if broken[:1] < b"\xa1" or broken[1 : 1 + len(SEEN)] != SEEN:
        return broken
    stamps = {key: value for key, value in REPORT.items() if key != "n"}
    head = 0xA0 + len(stamps) + (broken[0] & 31) - 1
    return bytes([head]) + cbor2.dumps(stamps)[1:] + broken[1 + len(SEEN) :]


def test_what_every_receiver_refuses_is_dropped(harness: Harness) -> None:
    harness.connect(SESSION)
    for vector in json.loads((FOLDER / "envelope.json").read_text())["refused"]:
        assert not harness.inbox(in_a_report(bytes.fromhex(vector["hex"]))), vector["name"]
    right = in_a_report(bytes([0xA2]) + SEEN + b"\x61n\x01")
    assert right == cbor2.dumps(REPORT)
    assert len(harness.inbox(right)) == 1


def samples() -> list[bytes]:
    """Every byte string of the vectors that is a message, meant for this device's session."""
    found: list[bytes] = []
    for path in sorted((FOLDER / "messages").glob("*.json")):
        texts: list[str] = []
        collect(json.loads(path.read_text()), texts)
        found += [bytes.fromhex(text) for text in texts]
    found += [bytes.fromhex(step["hex"]) for step in STEPS if "hex" in step]
    return [for_session(payload) for payload in found]


def collect(node: Any, into: list[str]) -> None:
    if isinstance(node, dict):
        if isinstance(node.get("hex"), str):
            into.append(node["hex"])
        for each in node.values():
            collect(each, into)
    elif isinstance(node, list):
        for each in node:
            collect(each, into)


def for_session(payload: bytes) -> bytes:
    """The same message for the session that the device has, numbered as the next one."""
    try:
        message = cbor2.loads(payload)
    except Exception:
        return payload
    if not isinstance(message, dict):
        return payload
    return cbor2.dumps({**message, "s": SESSION, "c": "fedcba9876543210-1", "e": 3})


def mutated(payload: bytes, choose: random.Random) -> bytes:
    data = bytearray(payload or b"\x00")
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(data))
        match choose.randrange(5):
            case 0:
                del data[at:]
            case 1:
                data[at] ^= 1 << choose.randrange(8)
            case 2:
                data[at] = choose.randrange(256)
            case 3:
                data[at:at] = choose.randbytes(choose.randint(1, 9))
            case _:
                del data[at]
        data = data or bytearray(b"\x00")
    return bytes(data)


def hostile(seed: int, count: int) -> list[bytes]:
    """Vectors as they are, and as many broken ones."""
    choose = random.Random(seed)
    whole = samples()
    return whole + [mutated(choose.choice(whole), choose) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_no_bytes_in_its_inbox_end_it(harness: Harness, seed: int) -> None:
    harness.connect(SESSION)
    harness.inbox(cbor2.dumps(REPORT))
    n = 1
    for payload in hostile(seed, MUTATIONS):
        for _topic, _qos, _retain, said in harness.inbox(payload):
            assert len(said) <= 4_096
        # Numbered as the next, so that what can be read is acted on.
        try:
            message = cbor2.loads(payload)
            n += 1
            harness.inbox(cbor2.dumps({**message, "n": n, "q": n}))
        except Exception:
            n -= 1
    harness.poll(10)
    # It is there, and does its work for a controller that begins a new link.
    session = "00000000000000a7-2"
    harness.connect(session)
    stamps = {"s": session, "c": "0000000000000001-1", "e": 2**23 - 1}
    [forget] = [{"t": "forget", "a": [row[0] for row in held(harness, stamps)]}]
    harness.inbox(cbor2.dumps({**stamps, **forget, "n": 2, "q": 2}))
    given = dict(cbor2.loads(bytes.fromhex(STEPS[5]["hex"])), **stamps, n=3, q=2)
    drain = {"t": "drain", "o": False, **stamps, "n": 4, "q": 2}
    harness.inbox(cbor2.dumps({**drain, "n": 3}))
    answers = harness.inbox(cbor2.dumps({**given, "n": 4}))
    [outcomes] = [found for *_, said in answers if isinstance(found := decode(said), Outcomes)]
    assert cbor2.loads(outcomes.sets[0].data) == [[True]]


def held(harness: Harness, stamps: dict[str, Any]) -> list[list[Any]]:
    """What it says in its inventory on a new link."""
    answers = harness.inbox(cbor2.dumps({"t": "report", **stamps, "n": 1}))
    rows: list[list[Any]] = cbor2.loads(answers[0][3])["r"]
    return rows
