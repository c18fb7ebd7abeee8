"""What a firmware client decides, message by message, as its page tells it and without a network."""

import json
from typing import Any

import cbor2
import pytest

from firmware.boards import Harness, Published
from forage_wire.codec import decode
from forage_wire.messages import (
    AssignmentRefused,
    Beat,
    DeviceInventory,
    Linked,
    Outcomes,
    Seen,
    Trimmed,
)

SESSION = "00000000000000a7-1"
CONTROLLER = "fedcba9876543210-1"
OTHER = "00112233445566aa-1"
TASK = "0c4t2v9k1m7ab-1"
NUMBER = 3 * 2**40 + 1
OUTBOX = "forage/1/outbox/lamp-1"
TASK_TOPIC = f"forage/1/task/ann/0c4t2v9k1m7ab/{TASK}/lamp-1"


def message(code: str, n: int = 0, seen: int = 0, **fields: Any) -> bytes:
    """A controller's message."""
    stamps = {"t": code, "s": SESSION, "c": CONTROLLER, "e": 3, "n": n, "q": seen}
    if not n:
        del stamps["n"]
    return cbor2.dumps({**stamps, **fields})


def assignment(name: str, *args: Any, number: int = NUMBER, **fields: Any) -> dict[str, Any]:
    """One assignment of a call of `name`; `header` and `options` go into its header."""
    header = {
        "u": "ann",
        "c": "0c4t2v9k1m7ab",
        "t": TASK,
        "f": [name, ""],
        "k": "named",
        "i": 0,
        "n": 1,
        "l": True,
        **({"o": fields.pop("options")} if "options" in fields else {}),
        **fields.pop("header", {}),
    }
    body = fields.pop("body", cbor2.dumps([0, list(args)]))
    given = {
        "a": number,
        "h": cbor2.dumps(header),
        "l": 0,
        "u": 1,
        "b": 1_000,
        "g": bytes(16),
        "c": cbor2.dumps([body]),
    }
    return {**given, **fields}


def joined(harness: Harness) -> None:
    """On a link, with its inventory seen: both ends have said one message."""
    harness.connect(SESSION)
    harness.inbox(message("report", 1))
    harness.inbox(message("seen", 0, 1))


def read(published: list[Published]) -> list[Linked]:
    """The CBOR messages among what was published, read as strictly as a controller does."""
    return [decode(payload) for topic, _qos, _retain, payload in published if "device" not in topic]


def give(harness: Harness, n: int, *given: dict[str, Any], seen: int = 1) -> list[Linked]:
    return read(harness.inbox(message("assign", n, seen, w=list(given))))


def the_outcome(found: list[Linked]) -> tuple[Any, tuple[tuple[int, str, bool], ...]]:
    """(item, errors) of the one outcome there is."""
    [outcomes] = [each for each in found if isinstance(each, Outcomes)]
    [row] = outcomes.sets
    [item] = cbor2.loads(row.data)
    assert row.tag == bytes(16)
    return item, row.errors


def refusal(found: list[Linked]) -> str:
    [refused] = [each for each in found if isinstance(each, AssignmentRefused)]
    assert not [each for each in found if isinstance(each, Outcomes)]
    return refused.reason


# -- joining ----------------------------------------------------------------------------------------


def test_it_introduces_itself_and_then_answers_the_report(harness: Harness) -> None:
    presence, capabilities = harness.connect(SESSION)
    assert presence[:3] == ("forage/1/device/lamp-1/presence", 1, True)
    assert json.loads(presence[3]) == {"state": "online", "session": SESSION}
    assert capabilities[:3] == ("forage/1/device/lamp-1/capabilities", 1, True)
    said = json.loads(capabilities[3])
    assert (said["session"], said["profile"], said["slots"]) == (SESSION, "mcu", 1)
    assert said["functions"]["lab.echo"] == "1"
    [inventory] = harness.inbox(message("report", 1))
    assert inventory[:3] == (OUTBOX, 1, False)
    [found] = read([inventory])
    assert isinstance(found, DeviceInventory)
    assert (found.n, found.seen, found.received, found.rows) == (1, 1, 1, ())


def test_messages_for_another_session_are_dropped(harness: Harness) -> None:
    harness.connect(SESSION)
    assert not harness.inbox(message("report", 1, s="00000000000000a6-1"))
    assert not harness.inbox(message("report", 1, s="00000000000000a7-2"))


# -- links ------------------------------------------------------------------------------------------


def test_what_is_not_seen_goes_out_again_after_1_2_4_8_8_s(harness: Harness) -> None:
    harness.connect(SESSION)
    [first] = harness.inbox(message("report", 1))
    again = harness.advance(30_000)
    assert [item for _ms, item in again] == [first] * 5
    assert [ms for ms, _item in again] == [1_000, 3_000, 7_000, 15_000, 23_000]
    harness.inbox(message("seen", 0, 1))
    assert not harness.advance(20_000)


def test_a_repeat_and_a_gap_are_answered_with_what_was_seen(harness: Harness) -> None:
    joined(harness)
    for n in (1, 4):
        [seen] = read(harness.inbox(message("drain", n, 1, o=True)))
        assert isinstance(seen, Seen)
        assert (seen.n, seen.seen) == (0, 1)


def test_an_unknown_type_and_a_wrong_field_count_as_received(harness: Harness) -> None:
    joined(harness)
    for n, wrong in enumerate(
        [
            message("later", 2, 1),
            message("assign", 3, 1),
            message("assign", 4, 1, w=[{"a": "x"}]),
            message("assign", 5, 1, w=[assignment("lab.echo", 1, b="x")]),
            message("assign", 6, 1, w=[assignment("lab.echo", 1, header={"u": "a/#"})]),
            message("assign", 7, 1, w=[assignment("lab.echo", 1, options={"to": "x"})]),
            message("acknowledge", 8, 1, r=7),
            message("trim", 9, 1, r=[[]]),
            message("forget", 10, 1, a={}),
        ],
        start=2,
    ):
        [seen] = read(harness.inbox(wrong))
        assert isinstance(seen, Seen)
        assert seen.seen == n
    assert the_outcome(give(harness, 11, assignment("lab.echo", 5))) == ([5], ())


def test_a_message_without_room_for_its_answer_is_taken_later(harness: Harness) -> None:
    harness.connect(SESSION)
    harness.inbox(message("report", 1))
    n = 1
    while found := give(harness, n + 1, assignment("lab.none", number=NUMBER + n), seen=0):
        assert refusal(found) == "function"
        n += 1
        assert n < 20
    # It has not counted as received: the same message is the next one once there is room.
    assert refusal(give(harness, n + 1, assignment("lab.none", number=NUMBER + n), seen=n)) == (
        "function"
    )


def test_a_controller_that_was_started_anew_gets_the_inventory_and_the_outcome(
    harness: Harness,
) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.echo", "kept"))
    inventory, outcomes = read(harness.inbox(message("report", 1, c=OTHER, e=4)))
    assert isinstance(inventory, DeviceInventory)
    assert inventory.rows == ((NUMBER, TASK, 0, 1, "unacknowledged"),)
    assert (inventory.controller, inventory.n) == (OTHER, 1)
    assert isinstance(outcomes, Outcomes)
    assert (outcomes.controller, outcomes.n) == (OTHER, 2)
    assert the_outcome([outcomes]) == (["kept"], ())


def test_a_new_link_of_the_same_sessions_begins_in_the_upper_bits(harness: Harness) -> None:
    joined(harness)
    base = 1 << 32
    [inventory] = read(harness.inbox(message("report", base + 1)))
    assert isinstance(inventory, DeviceInventory)
    assert (inventory.n, inventory.seen) == (base + 1, base + 1)
    # What is left of the link before is nothing to it.
    assert not harness.inbox(message("report", 2, 1))


def test_a_lower_epoch_and_another_start_of_the_same_one_are_refused(harness: Harness) -> None:
    joined(harness)
    for other in ({"e": 2}, {"c": OTHER}, {"c": OTHER, "e": 1}):
        [refused] = read(harness.inbox(message("report", 1, **other)))
        assert isinstance(refused, AssignmentRefused)
        assert (refused.reason, refused.epoch_bound, refused.holder) == ("epoch", 3, CONTROLLER)
        assert (refused.n, refused.controller) == (0, other.get("c", CONTROLLER))
    # Of the same start, what an earlier connection of it said comes too late.
    harness.inbox(message("report", 1, c="fedcba9876543210-2"))
    assert not harness.inbox(message("report", 1))


# -- calls ------------------------------------------------------------------------------------------


def test_a_call_is_answered_on_its_tasks_topic(harness: Harness) -> None:
    joined(harness)
    [published] = harness.inbox(message("assign", 2, 1, w=[assignment("lab.echo", "hello")]))
    assert published[:3] == (TASK_TOPIC, 1, False)
    [found] = read([published])
    assert isinstance(found, Outcomes)
    [row] = found.sets
    assert (row.task, row.assignment, row.low, row.high) == (TASK, NUMBER, 0, 1)
    assert row.ranges == ((0, 1),)
    assert cbor2.loads(row.data) == [["hello"]]


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1),
        *(-1, -24, -25, -256, -257, -(2**31) - 1, -(2**63)),
        *(0.0, 1.5, -0.1, 1e300, float("inf")),
        *("", "a", "x" * 23, "x" * 24, "x" * 300, "grüße", "\U0001f4a1"),
        *(b"", b"\x00\xff", bytes(300)),
    ],
)
def test_a_plain_value_comes_back_as_it_went(harness: Harness, value: Any) -> None:
    joined(harness)
    item, errors = the_outcome(give(harness, 2, assignment("lab.echo", value)))
    assert (item, errors) == ([value], ())
    assert type(item[0]) is type(value)


def test_a_repeated_assignment_is_answered_from_memory(harness: Harness) -> None:
    joined(harness)
    given = message("assign", 2, 1, w=[assignment("lab.echo", 7)])
    first = harness.inbox(given)
    # The same message again: the same bytes, for the first ones may be lost.
    assert harness.inbox(given) == first
    # The assignment under another number, with the outcome seen: it is said once more.
    [again] = read(harness.inbox(message("assign", 3, 2, w=[assignment("lab.echo", 8)])))
    assert isinstance(again, Outcomes)
    assert again.n == 3
    assert the_outcome([again]) == ([7], ())


def test_an_outcome_is_kept_until_it_is_acknowledged(harness: Harness) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.echo", 7))
    another = assignment("lab.echo", 8, number=NUMBER + 1)
    assert refusal(give(harness, 3, another, seen=2)) == "full"
    harness.inbox(message("acknowledge", 4, 3, r=[[NUMBER + 5, [[0, 1]]]]))
    assert refusal(give(harness, 5, another, seen=3)) == "full"
    [seen] = read(harness.inbox(message("acknowledge", 6, 4, r=[[NUMBER, [[0, 1]]]])))
    assert isinstance(seen, Seen)
    assert the_outcome(give(harness, 7, another, seen=4)) == ([8], ())


def test_what_does_not_fit_is_refused_with_its_reason(harness: Harness) -> None:
    joined(harness)
    cases = [
        ("function", assignment("lab.none")),
        ("function", assignment("lab.echo", 1, header={"f": ["lab.echo", "2"]})),
        ("function", assignment("lab.echo", 1, header={"f": bytes(32)})),
        ("size", assignment("lab.echo", 1, u=2)),
        ("size", assignment("lab.echo", "x" * 2_100)),
    ]
    for n, (reason, given) in enumerate(cases, start=2):
        assert refusal(give(harness, n, given, seen=n - 1)) == reason
    n += 1
    harness.inbox(message("drain", n, n - 1, o=True))
    assert refusal(give(harness, n + 1, assignment("lab.echo", 1), seen=n - 1)) == "draining"
    harness.inbox(message("drain", n + 2, n, o=False))
    assert the_outcome(give(harness, n + 3, assignment("lab.echo", 1), seen=n)) == ([1], ())


@pytest.mark.parametrize(
    "body",
    [
        cbor2.dumps([1, [cbor2.CBORTag(4_000, [1])]]),
        cbor2.dumps([0, [2**70]]),
        cbor2.dumps([2, b"pickle"]),
        cbor2.dumps([0, 5]),
        cbor2.dumps([0, [[[[[[1]]]]]]]),
        b"\x82\x00\x81\xf7",  # undefined
        b"\x82\x00\x9f\x01\xff",  # an array of indefinite length
        b"",
    ],
)
def test_arguments_that_it_cannot_read_are_a_final_error(harness: Harness, body: bytes) -> None:
    joined(harness)
    item, errors = the_outcome(give(harness, 2, assignment("lab.echo", body=body)))
    assert item["reason"] == "not-serializable"
    assert "plain values only" in item["message"]
    assert errors == ((0, "error", True),)


@pytest.mark.parametrize(("half", "value"), [("3e00", 1.5), ("c000", -2.0), ("0001", 2**-24)])
def test_half_and_single_floats_are_read(harness: Harness, half: str, value: float) -> None:
    joined(harness)
    body = bytes.fromhex("820081f9" + half)
    assert the_outcome(give(harness, 2, assignment("lab.echo", body=body)))[0] == [value]


def test_arguments_are_taken_up_to_the_length_that_was_announced(harness: Harness) -> None:
    _presence, capabilities = harness.connect(SESSION)
    longest = json.loads(capabilities[3])["queue_bytes_max"]
    harness.inbox(message("report", 1))

    def given(length: int, number: int) -> dict[str, Any]:
        around = len(cbor2.dumps([cbor2.dumps([0, ["x" * 500]])])) - 500
        row = assignment("lab.echo", "x" * (length - around), number=number)
        assert len(row["c"]) == length
        return row

    assert refusal(give(harness, 2, given(longest + 1, NUMBER))) == "size"
    item, errors = the_outcome(give(harness, 3, given(longest, NUMBER + 1), seen=2))
    assert (set(item[0]), errors) == ({"x"}, ())


def test_results_about_the_longest_are_sent_or_said_to_be_too_long(harness: Harness) -> None:
    joined(harness)
    n, reasons = 2, []
    for characters in (*range(1_000, 1_040, 3), *range(3_560, 3_600, 3)):
        number = NUMBER + n
        item, _errors = the_outcome(
            give(harness, n, assignment("lab.text", characters, number=number), seen=n - 1)
        )
        reasons.append(item["reason"] if isinstance(item, dict) else "")
        assert reasons[-1] or item == ["x" * characters]
        harness.inbox(message("acknowledge", n + 1, n, r=[[number, [[0, 1]]]]))
        n += 2
    assert set(reasons) == {"", "not-serializable"}
    assert reasons == sorted(reasons), "the longer ones"


def test_a_result_that_no_packet_holds_is_an_error(harness: Harness) -> None:
    joined(harness)
    item, errors = the_outcome(give(harness, 2, assignment("lab.text", 5_000)))
    assert item["reason"] == "not-serializable"
    assert errors == ((0, "error", True),)


def test_an_error_is_final_only_on_the_last_try(harness: Harness) -> None:
    joined(harness)
    more = assignment("org.example.blink", -1, "red", tr=1, options={"re": 2})
    item, errors = the_outcome(give(harness, 2, more))
    assert item == {"reason": "refused", "message": "blink: -1 is no number of times."}
    assert errors == ((0, "error", False),)
    harness.inbox(message("acknowledge", 3, 2, r=[[NUMBER, [[0, 1]]]]))
    last = assignment("org.example.blink", -1, "red", number=NUMBER + 1, tr=2, options={"re": 2})
    assert the_outcome(give(harness, 4, last, seen=2))[1] == ((0, "error", True),)


def test_the_number_of_an_outcome_that_was_forgotten_before_it_was_seen_still_comes(
    harness: Harness,
) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.echo", 7))
    harness.inbox(message("acknowledge", 3, 1, r=[[NUMBER, [[0, 1]]]]))
    assert the_outcome(give(harness, 4, assignment("lab.echo", 8, number=NUMBER + 1))) == ([8], ())
    said = read([item for _ms, item in harness.advance(1_000)])
    [again] = [each for each in said if not isinstance(each, Beat)]
    # Or the controller would wait for it for ever.
    assert again.n == 2


# -- calls that take long ---------------------------------------------------------------------------


def test_beats_go_on_while_a_call_runs_and_until_it_is_acknowledged(harness: Harness) -> None:
    joined(harness)
    [seen] = give(harness, 2, assignment("lab.wait", 3_000, b=1_000))
    assert isinstance(seen, Seen)
    found = harness.advance(3_500)
    beats = [(ms, item) for ms, item in found if isinstance(decode(item[3]), Beat)]
    assert max(ms for ms, _item in beats) > 3_000
    for (_topic, qos, retain, payload), before in zip(
        [item for _ms, item in beats], [0, *(ms for ms, _item in beats)], strict=False
    ):
        assert (qos, retain, len(payload) <= 40) == (0, False, True)
        assert min(ms for ms, _item in [*beats, (5_000, None)] if ms > before) - before <= 1_000
    assert the_outcome(read([item for _ms, item in found])) == ([3_000], ())
    harness.inbox(message("acknowledge", 3, 2, r=[[NUMBER, [[0, 1]]]]))
    assert not harness.advance(5_000)


def test_a_repeat_of_what_runs_is_not_run_again(harness: Harness) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.wait", 1_000))
    for n in (2, 3):
        [seen] = give(harness, n, assignment("lab.wait", 1_000))
        assert isinstance(seen, Seen)
    assert refusal(give(harness, 4, assignment("lab.echo", 1, number=NUMBER + 1))) == "full"
    found = read([item for _ms, item in harness.advance(900)])
    assert not [each for each in found if isinstance(each, Outcomes)]
    assert the_outcome(read([item for _ms, item in harness.advance(150)])) == ([1_000], ())


def test_the_inventory_says_what_runs(harness: Harness) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.wait", 1_000))
    published = harness.inbox(message("report", 3, 1))
    [inventory] = read(published)
    assert isinstance(inventory, DeviceInventory)
    assert inventory.rows == ((NUMBER, TASK, 0, 1, "running"),)
    # Who asks in the midst of a link may have missed who this is.
    assert [topic.rpartition("/")[2] for topic, *_ in published] == [
        *("presence", "capabilities", "lamp-1")
    ]


def test_a_call_that_runs_too_long_is_ended(harness: Harness) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.wait", 60_000, options={"to": 500}))
    item, errors = the_outcome(read([item for _ms, item in harness.advance(900)]))
    assert item["reason"] == "timeout"
    assert errors == ((0, "timeout", True),)


def test_a_forced_cancellation_ends_what_runs_and_another_does_not(harness: Harness) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.wait", 60_000))
    rows = {"a": NUMBER, "r": [[0, 1]]}
    [seen] = read(harness.inbox(message("cancel-assigned", 3, 1, **rows)))
    assert isinstance(seen, Seen)
    item, errors = the_outcome(
        read(harness.inbox(message("cancel-assigned", 4, 1, f=True, **rows)))
    )
    assert item["reason"] == "cancelled"
    assert errors == ((0, "cancelled", True),)


def test_what_is_forgotten_is_dropped_without_a_word(harness: Harness) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.wait", 1_000))
    [seen] = read(harness.inbox(message("forget", 3, 1, a=[NUMBER])))
    assert isinstance(seen, Seen)
    assert not harness.advance(5_000)
    assert the_outcome(give(harness, 4, assignment("lab.echo", 1))) == ([1], ())


def test_a_trim_is_answered_with_all_that_it_has(harness: Harness) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.wait", 1_000))
    [trimmed] = read(harness.inbox(message("trim", 3, 1, r=[[NUMBER, 0]])))
    assert isinstance(trimmed, Trimmed)
    assert trimmed.rows == ((NUMBER, 1),)


def test_a_call_goes_on_through_a_lost_connection(harness: Harness) -> None:
    joined(harness)
    give(harness, 2, assignment("lab.wait", 1_000))
    harness.disconnect()
    assert not harness.advance(2_000)
    harness.connect("00000000000000a7-2")
    inventory, outcomes = read(harness.inbox(message("report", 1, s="00000000000000a7-2")))
    assert isinstance(inventory, DeviceInventory)
    assert inventory.rows == ((NUMBER, TASK, 0, 1, "unacknowledged"),)
    assert the_outcome([outcomes]) == ([1_000], ())
