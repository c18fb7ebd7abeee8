"""Tasks that the controller settles: nobody else hears their outcomes, at either end."""

from core.agent_harness import CLIENT as AGENT_CLIENT
from core.agent_harness import CODE_HASH, Harness, assignment
from core.agent_harness import TASK as AGENT_TASK
from core.client_desk import Desk, pages_of
from forage_wire.codec import encode_header
from forage_wire.messages import Assignment, Header, Options, Outcomes, Report


def settled_by_controller(counter: int) -> Assignment:
    """An assignment of one call of such a task."""
    header = Header(
        user="user",
        client=AGENT_CLIENT,
        task=AGENT_TASK,
        function=CODE_HASH,
        form="pickle",
        python="3.11",
        settle="controller",
        options=Options(),
        first=0,
        n=4_096,
        last=True,
    )
    plain = assignment(counter, counter, counter + 1)
    return Assignment(
        assignment=plain.assignment,
        header=encode_header(header),
        low=plain.low,
        high=plain.high,
        tag=plain.tag,
        calls=plain.calls,
        beat_ms=plain.beat_ms,
    )


def outcome_topics(bench: Harness) -> list[str]:
    return [
        topic
        for topic, message in zip(bench.topics_said, bench.said, strict=True)
        if isinstance(message, Outcomes)
    ]


def test_a_device_sends_such_outcomes_on_its_outbox_alone() -> None:
    bench = Harness(slots=2)
    bench.start()
    bench.assign(settled_by_controller(1), assignment(2, 2, 3))
    bench.finish(1, 1)
    bench.finish(2, 2, slot=1)
    topics = outcome_topics(bench)
    assert sorted(topics) == [
        "forage/1/outbox/dev",
        f"forage/1/task/user/{AGENT_CLIENT}/{AGENT_TASK}/dev",
    ]


def test_such_outcomes_go_out_again_there_too() -> None:
    bench = Harness()
    bench.start()
    bench.assign(settled_by_controller(1))
    bench.finish(1, 1)
    bench.send(Report())
    assert set(outcome_topics(bench)) == {"forage/1/outbox/dev"}
    assert len(outcome_topics(bench)) == 2


def test_a_client_says_in_the_pages_who_settles_their_calls() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(1, settle="controller")
    desk.open_and_submit(1, number=2)
    settles = [header.settle for header, _page in pages_of(desk.read())]
    assert settles == ["controller", "direct"]
