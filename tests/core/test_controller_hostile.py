"""The controller's core against whatever peers may say: nothing of it may end the process.

Every message class with random fields, numbered as its link wants it or not at all, from every
kind of topic, at a core in several states. Afterwards the core still works, its books agree with
each other, and all that it said itself keeps the protocol.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.desk import CODE, TOPICS, Connected, Desk, Disconnected, FakeClient, FakeDevice
from core.test_controller_restart import TASK, _assignment, _state
from forage_controller.core.operations import (
    CodeLoaded,
    LoadCode,
    LoadOutcomes,
    LoadPage,
    OutcomesLoaded,
    PageLoaded,
)
from forage_wire.codec import decode, decode_json, encode, encode_json, join_calls
from forage_wire.messages import (
    JSON_DOCUMENTS,
    AssignmentRefused,
    Beat,
    Code,
    ControllerPresence,
    Linked,
    Outcomes,
    Started,
    Submit,
    Unusable,
)
from forage_wire.ranges import RangeSet
from forage_wire.records import replace
from forage_wire.topics import TASK_PATTERN
from wire.strategies import DOCUMENT_CLASSES, MESSAGE_CLASSES, instances

_TASK = re.compile(TASK_PATTERN)
MESSAGES = st.one_of([instances(message_class) for message_class in MESSAGE_CLASSES])
DOCUMENTS = st.one_of([instances(document_class) for document_class in DOCUMENT_CLASSES])


def active() -> Desk:
    """Two devices at work on two tasks, one call settled, one cancelled."""
    desk = Desk().begin()
    pi = desk.device("pi1", slots=2)
    desk.device("pi2", answers=False)
    client = desk.client()
    task = client.submit(80)
    client.submit(3, at_most_once=True, retries=2)
    pi.finish(pi.assignments[0])
    client.collect(task, (0, 1))
    return desk


def full() -> Desk:
    """Nothing is committed, and the device takes nothing more."""
    desk = Desk().begin()
    desk.device("pi1", answers=True)
    client = desk.client()
    desk.commits = False
    client.submit(5)
    client.submit(5, settle="controller", requires=("nothing",))
    return desk


def restarted() -> Desk:
    """A task of before the restart; its device has not come yet."""
    saved = (_assignment(0, 2, "0" * 15 + "1-1"), _assignment(2, 4, "f" * 16 + "-3", "gone"))
    desk = Desk(recovered=_state(6, settled=((4, 5),), assignments=saved)).begin()
    desk.client().hello()
    desk.device("pi1")
    return desk


def starting() -> Desk:
    """Not active yet."""
    desk = Desk()
    desk.device("pi1")
    desk.client().hello()
    return desk


def disconnected() -> Desk:
    """At work, and without a broker."""
    desk = active()
    desk.handle(Disconnected())
    return desk


STATES: list[Callable[[], Desk]] = [active, full, restarted, starting, disconnected]


Draw = Callable[[st.SearchStrategy[Any]], Any]


def known_of(desk: Desk) -> tuple[list[str], list[int], list[str]]:
    """Tasks, assignments and sessions that the core knows."""
    core = desk.core
    tasks = [*core.ledger.tasks, *core.ledger.released, TASK]
    numbers = [*core.assignments.open, 1, 2**63 - 1]
    sessions = [device.session for device in desk.devices.values()]
    return tasks, numbers, [*sessions, *[client.session for client in desk.clients]]


def made_plausible(draw: Draw, value: Any, desk: Desk) -> Any:
    """The same value with some of its tasks, assignments and sessions known to the core."""
    tasks, numbers, sessions = known_of(desk)
    if dataclasses.is_dataclass(value):
        found = {
            field.name: made_plausible(draw, getattr(value, field.name), desk)
            for field in dataclasses.fields(value)
        }
        if "session" in found and draw(st.booleans()):
            found["session"] = draw(st.sampled_from(sessions))
        if "assignment" in found and draw(st.booleans()):
            found["assignment"] = draw(st.sampled_from(numbers))
        if "controller" in found and draw(st.booleans()):
            found["controller"] = f"{desk.start}-1"
        return dataclasses.replace(value, **found)  # type: ignore[type-var]
    if type(value) is tuple:
        row = [made_plausible(draw, item, desk) for item in value]
        if len(row) > 1 and type(row[0]) is int and type(row[1]) is not int and draw(st.booleans()):
            row[0] = draw(st.sampled_from(numbers))
        return tuple(row)
    if type(value) is str and _TASK.fullmatch(value) and draw(st.booleans()):
        return draw(st.sampled_from(tasks))
    return value


def topics_of(desk: Desk) -> list[str]:
    client = desk.clients[0]
    user, name = client.user, client.name
    return [
        TOPICS.outbox("pi1"),
        TOPICS.outbox("pi2"),
        TOPICS.outbox("unknown"),
        TOPICS.task(user, name, TASK, "pi1"),
        TOPICS.task(user, name, "-", "pi2"),
        TOPICS.from_client(user, name),
        TOPICS.from_client("eve", "1" * 13),
    ]


DOCUMENT_TOPICS: list[Callable[[str, FakeClient], str]] = [
    lambda name, client: TOPICS.device_presence(name),
    lambda name, client: TOPICS.device_capabilities(name),
    lambda name, client: TOPICS.device_load(name),
    lambda name, client: TOPICS.controller_presence(name),
    lambda name, client: TOPICS.client_presence(client.user, client.name),
    lambda name, client: TOPICS.log(client.user, client.name, TASK, name),
]


def inject(draw: Draw, desk: Desk) -> None:
    """One thing that a peer says."""
    how = draw(st.sampled_from(["link", "link", "link", "stamped", "document", "wait"]))
    client = desk.clients[0]
    if how == "document":
        document = made_plausible(draw, draw(DOCUMENTS), desk)
        name = draw(st.sampled_from(["pi1", "new"]))
        topic = draw(st.sampled_from(DOCUMENT_TOPICS))(name, client)
        desk.publish(topic, encode_json(document), retain=draw(st.booleans()))
    elif how == "wait":
        desk.advance(draw(st.sampled_from([1, 30, 700, 70_000])))
    else:
        message: Linked = draw(MESSAGES)
        message = made_plausible(draw, message, desk)
        if how == "stamped":
            desk.publish(draw(st.sampled_from(topics_of(desk))), encode(message))
        else:
            peer: FakeDevice | FakeClient = draw(st.sampled_from([*desk.devices.values(), client]))
            if isinstance(peer, FakeClient) and peer.link is None:
                peer.hello()
            if peer.link is not None:
                plain = dataclasses.replace(message, n=0, seen=0)
                peer.link.send(plain)
    desk.run()
    answer_loads(desk)


def answer_loads(desk: Desk) -> None:
    """The store answers, with what may be less than was asked for."""
    while desk.loads:
        load = desk.loads.pop()
        match load:
            case LoadPage():
                task = desk.core.ledger.tasks.get(load.task)
                page = task.pages.get(load.first) if task is not None else None
                calls = join_calls([b""] * page.n) if page is not None else None
                desk.handle(PageLoaded(task=load.task, first=load.first, calls=calls))
            case LoadCode():
                desk.handle(CodeLoaded(hash=load.hash, form="source", data=b"code"))
            case LoadOutcomes():
                desk.handle(OutcomesLoaded(request=load.request, task=load.task, rows=()))
        desk.run()


def check_books(desk: Desk) -> None:
    """What is counted in two places is equal in both."""
    core = desk.core
    for device in core.fleet.devices.values():
        opens = device.assignments.values()
        assert device.work_us == sum(opened.work_us for opened in opens)
        assert device.work_bytes == sum(opened.bytes for opened in opens)
        assert (device.name in core.assignments.busy) == bool(device.assignments)
    assert core.fleet.alive == sum(
        device.verdict != "dead" for device in core.fleet.devices.values()
    )
    given: dict[str, RangeSet] = {}
    for opened in core.assignments.open.values():
        assert opened.low < opened.end <= opened.high
        unreported = (
            opened.end
            - opened.low
            - sum(high - low for low, high in opened.reported.common(opened.low, opened.end))
        )
        assert opened.left == unreported > 0
        assert opened.task.open[opened.number] is opened
        assert core.ledger.tasks[opened.task.id] is opened.task
        taken = given.setdefault(opened.task.id, RangeSet())
        assert taken.add(opened.low, opened.end) == opened.end - opened.low, "given out twice"


def check_words(desk: Desk) -> None:
    """All that the core said can be read by those who get it."""
    for message in desk.published:
        parsed = TOPICS.parse(message.topic)
        assert parsed is not None
        if parsed.branch in JSON_DOCUMENTS:
            if message.payload:
                decode_json(message.payload, JSON_DOCUMENTS[parsed.branch])
            continue
        said = decode(message.payload)
        assert not isinstance(said, Unusable), said


@pytest.mark.timeout(600)  # Half a minute by itself, and machines are shared.
@pytest.mark.parametrize("state", STATES, ids=[state.__name__ for state in STATES])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_nothing_that_a_peer_says_stops_the_controller(
    state: Callable[[], Desk], data: st.DataObject
) -> None:
    desk = state()

    for _ in range(data.draw(st.integers(1, 6))):
        inject(data.draw, desk)
    check_books(desk)
    desk.advance(100)
    answer_loads(desk)
    desk.commits = True
    desk.advance(35_000)
    answer_loads(desk)
    check_books(desk)
    check_words(desk)


def test_an_epoch_that_leaves_none_above_it_is_nobodys() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    epoch = desk.core.epoch
    for state in ("active", "starting", "lost"):
        word = ControllerPresence(state=state, session="9" * 16 + "-1", epoch=2**23 - 1)
        desk.publish(TOPICS.controller_presence("other"), encode_json(word), retain=True)
        desk.publish(TOPICS.controller_presence("other"), encode_json(word))
    pi.send(AssignmentRefused(assignment=1, reason="epoch", epoch_bound=2**23 - 1, holder="x"))
    desk.advance(10_000)
    assert (desk.core.epoch, desk.exits) == (epoch, [])
    assert desk.core.effects.dropped >= 7
    check_words(desk)


@pytest.mark.parametrize("bound", [2**21, 2**21 + 1, 2**22])
def test_no_claim_makes_a_controller_take_an_epoch_that_others_would_not_believe(
    bound: int,
) -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    pi.send(AssignmentRefused(reason="epoch", epoch_bound=bound, holder=f"{'d' * 16}-1"))
    desk.run()
    desk.advance(5_000)
    word = [each for each in desk.published if "/controller/main/presence" in each.topic][-1]
    assert decode_json(word.payload, ControllerPresence).state == "active"
    other = Desk(start="e" * 16)
    other.handle(Connected(session=f"{'e' * 16}-1"))
    other.run()
    other.publish(TOPICS.controller_presence("second"), word.payload)
    other.run()
    other.advance(1_000)
    assert len(other.exits) == 1, "it gives way"


def test_a_device_that_obeys_an_epoch_which_nobody_believes_gets_no_work() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    client = desk.client()
    pi.send(AssignmentRefused(reason="epoch", epoch_bound=2**22 + 1, holder=f"{'d' * 16}-1"))
    desk.run()
    client.submit(1)
    assert pi.assignments == []
    other = desk.device("pi2")
    assert len(other.assignments) == 1


def test_a_page_that_holds_fewer_calls_than_it_says_is_run_by_nobody() -> None:
    desk = Desk().begin()
    pi, client = desk.device("pi1", slots=4), desk.client()
    page = replace(
        client.page(3, collected=((1, 2),)), calls=join_calls([cbor2.dumps([0, ["call 0"]])])
    )
    client.send(Code(hash=CODE, form="source", data=b"code"))
    client.send(Submit(pages=(page,)))
    desk.run()
    desk.advance(10_000)
    assert pi.assignments == []
    [outcomes] = [each for message in client.of(Outcomes) for each in message.sets][-1:]
    assert {reason for _index, reason, _final in outcomes.errors} == {"unreadable"}


def test_a_message_that_names_no_session_is_no_other_device_of_the_name() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    for _ in range(3):
        desk.publish(TOPICS.outbox("pi1"), encode(Beat()))
        desk.run()
    device = desk.core.fleet.devices["pi1"]
    assert (device.session, device.candidate) == (pi.session, "")


def test_keys_of_a_newer_version_are_ignored_counted_and_told_of_once() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2)
    assert pi.link is not None
    for index in (0, 1):
        pi.link.send(Started(rows=((task, index, pi.assignments[0].assignment),)))
        [out] = pi.link.poll(desk.now_ms)
        newer = {**cbor2.loads(out.payload), "zz": [index]}
        desk.publish(TOPICS.task(client.user, client.name, task, "pi1"), cbor2.dumps(newer))
    desk.run()
    assert desk.core.ledger.tasks[task].started.keys() == {0, 1}
    assert desk.core.effects.ignored.count == 2
    assert [text for text in desk.notes if "unknown keys" in text] == [
        "unknown keys ignored from=pi1 keys='Started.zz'"
    ]
    assert desk.core.effects.dropped == 0
