"""The client's core and outcomes: which count, what is fetched, how tasks end."""

from dataclasses import replace

import cbor2
import pytest

from core.client_desk import CLIENT, CONTROLLER, DEVICE_SESSION, KEY, USER, Desk, pages_of, task_id
from forage.core.commands import NoteAttempts, NoteProgress, NoteStarted, RefuseTask, ResolveCalls
from forage.core.events import AttachAsked, CallsCancelled
from forage_wire.codec import encode
from forage_wire.io import MessageReceived
from forage_wire.messages import (
    Collected,
    Fetch,
    Options,
    Outcomes,
    OutcomeSet,
    Progress,
    Released,
    Settled,
    Started,
    SubmissionRefused,
    Submit,
)
from forage_wire.parts import cut_parts
from forage_wire.tags import slice_tag


def submitted(calls: int) -> Desk:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(calls)
    desk.read()
    return desk


def test_outcomes_resolve_their_calls_once() -> None:
    desk = submitted(4)
    desk.resolve(((0, 2),))
    desk.resolve(((0, 4),), device="pi2")
    desk.resolve(((0, 4),))
    assert desk.take(ResolveCalls) == [
        ResolveCalls(task=task_id(), device="pi1", ranges=((0, 2),), items=[[0], [1]]),
        ResolveCalls(task=task_id(), device="pi2", ranges=((2, 4),), items=[[2], [3]]),
    ]
    assert desk.core.repeated == 6


def test_the_first_outcome_wins_within_gaps_too() -> None:
    desk = submitted(6)
    desk.resolve(((1, 2), (4, 5)))
    desk.resolve(((0, 6),), items=[["late"]] * 6, device="pi2")
    first, second = desk.take(ResolveCalls)
    assert (first.ranges, first.items) == (((1, 2), (4, 5)), [[1], [4]])
    assert second.ranges == ((0, 1), (2, 4), (5, 6))
    assert second.items == [["late"]] * 4


@pytest.mark.parametrize(
    "forged",
    [
        {"tag": bytes(16)},
        {"tag": b""},
        {"assignment": 6},
        {"low": 0, "high": 9},
        {"ranges": ((0, 3),), "data": cbor2.dumps([[0], [1], [2]])},
    ],
    ids=["wrong tag", "no tag", "another assignment", "another slice", "more than was given"],
)
def test_a_device_answers_only_for_what_it_was_given(forged: dict[str, object]) -> None:
    desk = submitted(4)
    outcomes = replace(desk.outcomes(((0, 2),)), **forged)  # type: ignore[arg-type]
    desk.device_says(Outcomes(sets=(outcomes,)))
    assert desk.take(ResolveCalls) == []
    assert desk.core.dropped == 1


def test_a_device_cannot_use_the_tag_of_another() -> None:
    desk = submitted(2)
    outcomes = desk.outcomes(((0, 2),), device="pi1")
    desk.device_says(Outcomes(sets=(outcomes,)), device="pi2")
    assert desk.take(ResolveCalls) == []


def test_indices_beyond_the_task_are_not_believed_even_with_a_valid_tag() -> None:
    desk = submitted(2)
    desk.resolve(((0, 3),))
    assert desk.take(ResolveCalls) == []
    assert desk.core.dropped == 1


def test_errors_that_are_not_final_are_recorded_and_resolve_nothing() -> None:
    desk = submitted(3)
    desk.resolve(((0, 3),), errors=((1, "error", False),), items=[[0], {"reason": "x"}, [2]])
    assert desk.take(NoteAttempts) == [
        NoteAttempts(task=task_id(), device="pi1", rows=((1, "error"),))
    ]
    [resolved] = desk.take(ResolveCalls)
    assert (resolved.ranges, resolved.items) == (((0, 1), (2, 3)), [[0], [2]])
    desk.resolve(((1, 2),), errors=((1, "error", True),), items=[{"reason": "y"}])
    [resolved] = desk.take(ResolveCalls)
    assert (resolved.ranges, resolved.items) == (((1, 2),), [{"reason": "y"}])


def test_a_cancelled_calls_outcome_comes_too_late() -> None:
    desk = submitted(2)
    desk.tell(CallsCancelled(task=task_id(), ranges=((0, 1),)))
    desk.resolve(((0, 2),))
    [resolved] = desk.take(ResolveCalls)
    assert resolved.ranges == ((1, 2),)


def test_started_calls_are_noted_while_they_are_open() -> None:
    desk = submitted(3)
    desk.resolve(((0, 1),))
    ours = [(task_id(), index, 5) for index in (0, 1, 7)]
    rows = (*ours, ("vvvvvvvvvvvvv-1", 0, 5))
    desk.device_says(Started(rows=rows))
    assert desk.take(NoteStarted) == [NoteStarted(device="pi1", rows=((task_id(), 1),))]


def test_progress_is_noted_while_its_call_is_open() -> None:
    desk = submitted(3)
    desk.resolve(((0, 1),))
    said = [Progress(task=task_id(), index=index, permille=500) for index in (0, 1, 7)]
    for message in (*said, Progress(task="vvvvvvvvvvvvv-1", index=1, permille=500)):
        desk.device_says(message)
    [noted] = desk.take(NoteProgress)
    assert (noted.device, noted.said.index, noted.said.permille) == ("pi1", 1, 500)


def test_outcomes_above_a_packet_are_put_together_from_parts() -> None:
    desk = submitted(1)
    item = ["x" * 300_000]
    whole = encode(Outcomes(sets=(desk.outcomes(((0, 1),), items=[item]),)), session=DEVICE_SESSION)
    parts = cut_parts(whole, 3, 128 * 1024)
    assert len(parts) > 2
    for part in [parts[1], parts[0], parts[1], *parts[2:]]:
        assert desk.take(ResolveCalls) == []
        desk.device_says(part)
    [resolved] = desk.take(ResolveCalls)
    assert resolved.items == [item]


def test_parts_of_a_new_session_do_not_mix_with_those_of_the_old_one() -> None:
    desk = submitted(1)
    topic = desk.topics.task(USER, CLIENT, task_id(), "pi1")
    outcomes = desk.outcomes(((0, 1),), items=[["x" * 200_000]])
    whole = encode(Outcomes(sets=(outcomes,)))
    first, *rest = cut_parts(whole, 1, 128 * 1024)
    old, new = f"{'d' * 16}-1", f"{'d' * 16}-2"
    desk.tell(MessageReceived(topic=topic, payload=encode(first, session=old)))
    for part in rest:
        desk.tell(MessageReceived(topic=topic, payload=encode(part, session=new)))
    assert desk.take(ResolveCalls) == []
    desk.tell(MessageReceived(topic=topic, payload=encode(first, session=new)))
    assert len(desk.take(ResolveCalls)) == 1


def test_one_message_may_hold_several_tasks_outcomes() -> None:
    desk = submitted(1)
    desk.open_and_submit(1, 2)
    sets = (desk.outcomes(((0, 1),), number=1), desk.outcomes(((0, 1),), number=2))
    topic = f"forage/1/task/{USER}/{CLIENT}/-/pi1"
    payload = encode(Outcomes(sets=sets), session=DEVICE_SESSION)
    desk.tell(MessageReceived(topic=topic, payload=payload))
    assert [each.task for each in desk.take(ResolveCalls)] == [task_id(1), task_id(2)]


def test_settled_calls_that_are_missing_are_fetched_and_the_archive_answers() -> None:
    desk = submitted(4)
    desk.resolve(((0, 1),))
    desk.answer(Settled(rows=((task_id(), ((0, 3),)),)))
    assert desk.read_one(Fetch).rows == ((task_id(), ((1, 3),)),)
    archived = desk.outcomes(((0, 3),), device="pi2", tag=b"")
    archived = OutcomeSet(
        task=archived.task, ranges=archived.ranges, data=archived.data, device="pi2"
    )
    desk.answer(Outcomes(sets=(archived,)))
    resolved = desk.take(ResolveCalls)
    assert [(each.device, each.ranges) for each in resolved] == [
        ("pi1", ((0, 1),)),
        ("pi2", ((1, 3),)),
    ]


def test_what_is_settled_and_collected_already_is_collected_again() -> None:
    desk = submitted(2)
    desk.resolve(((0, 2),))
    desk.sleep(200)
    assert desk.read_one(Collected).rows == ((task_id(), ((0, 2),)),)
    desk.answer(Settled(rows=((task_id(), ((0, 2),)), (task_id(9), ((0, 5),)))))
    desk.sleep(200)
    rows = [row for message in desk.read() if type(message) is Collected for row in message.rows]
    assert sorted(rows) == [(task_id(), ((0, 2),)), (task_id(9), ((0, 5),))]


def test_outcomes_that_cannot_be_read_are_left_to_the_archive_which_decides() -> None:
    desk = submitted(2)
    desk.resolve(((0, 2),), data=cbor2.dumps([[0]]))
    assert desk.take(ResolveCalls) == []
    assert desk.core.dropped == 1
    broken = OutcomeSet(task=task_id(), ranges=((0, 2),), data=b"\xff", device="pi1")
    desk.answer(Outcomes(sets=(broken,)))
    [resolved] = desk.take(ResolveCalls)
    assert resolved.ranges == ((0, 2),)
    assert [item["reason"] for item in resolved.items] == ["unreadable", "unreadable"]


def test_a_released_task_is_forgotten() -> None:
    desk = submitted(1)
    desk.resolve(((0, 1),))
    desk.acknowledge((task_id(), 0))
    desk.answer(Released(tasks=(task_id(),)))
    assert desk.core.tasks == {}
    assert desk.take(RefuseTask) == []


def test_a_task_released_before_its_end_is_lost_in_words() -> None:
    desk = submitted(3)
    desk.resolve(((0, 1),))
    desk.answer(Released(tasks=(task_id(),)))
    [refused] = desk.take(RefuseTask)
    assert (refused.reason, refused.ranges) == ("data-lost", ((1, 3),))
    assert task_id() in refused.text


def test_a_refused_task_ends_its_calls_and_frees_its_pages() -> None:
    desk = submitted(3)
    assert desk.core.unacknowledged_pages == 1
    desk.answer(SubmissionRefused(task=task_id(), reason="full", text="The disk is full."))
    [refused] = desk.take(RefuseTask)
    assert (refused.text, refused.ranges) == ("The disk is full.", ((0, 3),))
    assert desk.core.unacknowledged_pages == 0
    assert desk.core.is_idle


def test_calls_of_a_refused_task_that_follow_are_refused_too() -> None:
    desk = Desk()
    desk.welcome()
    desk.open()
    desk.submit([b"\x80"] * 2, last=False)
    desk.read()
    desk.answer(SubmissionRefused(task=task_id(), reason="full", text="The disk is full."))
    desk.take(RefuseTask)
    desk.submit([b"\x80"], first=2)
    [refused] = desk.take(RefuseTask)
    assert refused.ranges == ((2, 3),)


def test_an_attached_tasks_outcomes_come_from_the_archive_alone() -> None:
    desk = Desk()
    desk.welcome()
    task = "vvvvvvvvvvvvv-1"
    desk.tell(AttachAsked(task=task, calls=2))
    outcomes = OutcomeSet(
        task=task,
        assignment=5,
        low=0,
        high=2,
        tag=slice_tag(KEY, task, 5, 0, 2, "pi1"),
        ranges=((0, 2),),
        data=cbor2.dumps([["a"], ["b"]]),
        device="pi1",
    )
    desk.device_says(Outcomes(sets=(outcomes,)))
    assert desk.take(ResolveCalls) == []
    desk.answer(Outcomes(sets=(outcomes,)))
    [resolved] = desk.take(ResolveCalls)
    assert (resolved.task, resolved.items) == (task, [["a"], ["b"]])
    desk.sleep(200)
    assert desk.read()[-1].rows == ((task, ((0, 2),)),)  # type: ignore[attr-defined]


def test_large_tasks_are_cut_into_pages_that_fit_a_packet_and_hold_4096_calls() -> None:
    desk = Desk()
    desk.welcome()
    desk.open(options=Options(retries=2))
    desk.submit([b"\x82\x00\x80"] * 5_000 + [bytes(1_000)] * 300)
    pages = pages_of(desk.read())
    while desk.core.waiting_messages:
        desk.link.send(Submit(pages=()))
        desk.deliver()
        pages += pages_of(desk.read())
    edges = [(header.first, header.n) for header, _ in pages]
    assert edges[0] == (0, 4_096)
    assert [first for first, _ in edges[1:]] == [first + n for first, n in edges[:-1]]
    assert sum(n for _, n in edges) == 5_300
    assert [header.last for header, _ in pages] == [False] * (len(pages) - 1) + [True]
    assert all(header.options == Options(retries=2) for header, _ in pages)
    assert all(len(page.calls) + len(page.header) < 128 * 1024 for _, page in pages)


def test_a_call_above_the_packet_has_a_page_of_its_own_and_goes_in_parts() -> None:
    desk = Desk()
    desk.welcome()
    desk.open()
    desk.submit([b"a", bytes(1_000_000), b"b"])
    pages = []
    for _ in range(40):
        pages += pages_of(desk.read())
        desk.link.send(Released(tasks=()))
        desk.deliver()
    # The last one is small and overtakes the parts.
    assert [(header.first, header.n, header.last) for header, _ in pages] == [
        (0, 1, False),
        (2, 1, True),
        (1, 1, False),
    ]


def test_a_lower_packet_limit_of_the_controller_holds_for_pages_made_after_its_welcome() -> None:
    desk = Desk()
    desk.welcome(packet_bytes_max=4_096)
    desk.open()
    desk.submit([bytes(500)] * 20)
    sent = desk.sent
    assert sent
    assert all(len(payload) <= 4_096 for _topic, payload in sent)
    assert {header.packet_bytes_max for header, _ in pages_of(desk.read())} == {4_096}


def test_commands_do_not_depend_on_anything_but_events() -> None:
    def run() -> list[tuple[str, bytes]]:
        desk = Desk()
        desk.welcome()
        for number in range(1, 6):
            desk.open_and_submit(number, number)
        desk.resolve(((0, 2),), number=4)
        desk.sleep(3_000)
        return desk.sent

    assert run() == run()
    assert CONTROLLER
