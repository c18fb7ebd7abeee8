"""The controller's core: every table has an end, and somebody who is gone leaves nothing behind."""

import json
from itertools import pairwise

from core.desk import CODE, TOPICS, Desk
from forage_controller.core.config import Limits
from forage_controller.core.operations import StoreFull, StoreHasRoom
from forage_wire.codec import encode, encode_json
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.messages import (
    Answer,
    Cancel,
    Code,
    DeviceCapabilities,
    DevicePresence,
    DeviceVerdict,
    Hello,
    NeedCode,
    Progress,
    Query,
    Started,
    SubmissionRefused,
    Submit,
    TaskStatus,
)

DAY_MS = 24 * 3_600 * 1_000


def test_more_devices_than_are_known_are_dropped_and_the_known_go_on() -> None:
    desk = Desk(limits=Limits(devices=3)).begin()
    fleet = [desk.device(f"pi{number}") for number in range(5)]
    assert list(desk.core.fleet.devices) == ["pi0", "pi1", "pi2"]
    assert desk.core.effects.dropped > 0
    desk.client().submit(3)
    assert [len(pi.assignments) for pi in fleet] == [1, 1, 1, 0, 0]


def test_a_device_dead_for_a_day_is_forgotten_with_its_verdict() -> None:
    desk = Desk(limits=Limits(keep_ms=200_000)).begin()
    pi = desk.device("pi1")
    pi.say("lost")
    pi.link = None
    desk.advance(190_000)
    assert "pi1" in desk.core.fleet.devices
    desk.advance(120_000)
    assert "pi1" not in desk.core.fleet.devices
    topic = TOPICS.verdict("main", "pi1")
    assert [message.payload for message in desk.published if message.topic == topic][-1] == b""
    pi.counter = 2
    pi.join()
    desk.client().submit(1)
    assert pi.assignments
    assert desk.documents("verdict", DeviceVerdict)[-1].verdict == "alive"


def test_a_retained_word_of_a_device_that_never_comes_is_forgotten_too() -> None:
    desk = Desk(limits=Limits(keep_ms=100_000)).begin()
    presence = DevicePresence(state="online", session="9" * 16 + "-1")
    desk.publish(TOPICS.device_presence("ghost"), encode_json(presence), retain=True)
    desk.run()
    assert "ghost" in desk.core.fleet.devices
    desk.advance(300_000)
    assert "ghost" not in desk.core.fleet.devices
    assert not desk.core.fleet._checks or desk.core.next_wakeup_ms() is not None


def test_more_clients_than_are_known_are_dropped_until_others_are_gone() -> None:
    desk = Desk(limits=Limits(clients=2)).begin()
    clients = [desk.client(name=f"{number:x}".zfill(13)) for number in range(3)]
    for client in clients:
        client.hello()
        client.flush()
    desk.run()
    assert len(desk.core.clients.clients) == 2
    desk.publish(TOPICS.client_presence("bob", clients[0].name), b"")
    desk.run()
    clients[2].hello()
    clients[2].flush()
    desk.run()
    assert ("bob", clients[2].name) in desk.core.clients.clients


def test_clients_that_say_nothing_valid_leave_nothing() -> None:
    desk = Desk().begin()
    for number in range(50):
        name = f"{number:x}".zfill(13)
        payload = encode(Hello(minor=0), session="a" * 16 + "-1", controller="b" * 16 + "-1", n=1)
        desk.publish(TOPICS.from_client("bob", name), payload)
    desk.run()
    desk.advance(61_000)
    assert not desk.core.clients.clients


def test_a_client_silent_for_a_day_without_tasks_is_forgotten_and_may_come_back() -> None:
    desk = Desk(limits=Limits(keep_ms=100_000)).begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    pi.finish(pi.assignments[0])
    client.collect(task, (0, 1))
    desk.advance(300_000)
    assert not desk.core.clients.clients
    desk.core.effects.dropped = 0
    client.hello(controller=f"{desk.start}-1")
    task = client.submit(1)
    assert task in desk.core.ledger.tasks


def test_more_tasks_than_are_kept_are_refused_in_words() -> None:
    desk = Desk(limits=Limits(tasks=3)).begin()
    client = desk.client()
    for _ in range(5):
        client.submit(1)
    assert [message.reason for message in client.of(SubmissionRefused)] == ["full", "full"]
    assert "3 tasks" in client.of(SubmissionRefused)[0].text


def test_a_full_disk_takes_no_new_tasks_and_goes_on_with_the_others() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1)
    desk.handle(StoreFull(reason="the disk is full."))
    client.submit(1)
    (refused,) = client.of(SubmissionRefused)
    assert (refused.reason, "the disk is full." in refused.text) == ("full", True)
    pi.finish(pi.assignments.pop(0))
    desk.handle(StoreHasRoom())
    client.submit(1)
    assert len(client.of(SubmissionRefused)) == 1
    assert len(pi.assignments) == 1


def test_empty_lines_of_output_count_too() -> None:
    desk = Desk(limits=Limits(log_bytes=1_000)).begin()
    client = desk.client()
    task = client.submit(1)
    topic = TOPICS.log(client.user, client.name, task, "pi1")
    for _ in range(10):
        desk.publish(topic, b"\n" * 10_000)
    desk.run()
    assert len(desk.core.ledger.tasks[task].log) < 100


def test_nothing_is_kept_of_how_an_ended_call_came_to_its_end() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1, retries=3)
    topic = TOPICS.task(client.user, client.name, task, "pi1")
    pi.send(Started(rows=((task, 0, pi.assignments[0].assignment),)), topic)
    pi.send(Progress(task=task, index=0, permille=500, text="half"), topic)
    desk.run()
    assert desk.core.ledger.tasks[task].progress == {0: (500, "half")}
    pi.finish(pi.assignments[0], errors=((0, "error", False),))
    pi.send(Progress(task=task, index=0, permille=500, text="half"), topic)
    pi.finish(pi.assignments[1])
    pi.send(Progress(task=task, index=0, permille=900, text="late"), topic)
    desk.run()
    known = desk.core.ledger.tasks[task]
    for states in (known.started, known.counters, known.lost_on, known.progress):
        assert not states


def test_progress_is_believed_of_the_device_that_has_the_call_and_the_latest_counts() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    other = desk.device("pi2")
    said = desk.core.ledger.tasks[task].progress
    topic = TOPICS.task(client.user, client.name, task, "pi2")
    other.send(Progress(task=task, index=0, permille=900, text="not mine"), topic)
    desk.run()
    assert said == {}
    topic = TOPICS.task(client.user, client.name, task, "pi1")
    for permille in (100, 700):
        pi.send(Progress(task=task, index=0, permille=permille), topic)
    desk.run()
    assert said == {0: (700, "")}
    pi.send(Progress(task=task, index=9, permille=1), topic)
    desk.run()
    assert said == {0: (700, "")}


def test_a_session_that_uses_ever_new_functions_is_remembered_only_so_far() -> None:
    desk = Desk().begin()
    desk.device("pi1")
    device = desk.core.fleet.devices["pi1"]
    shelf = desk.core._codes
    for number in range(10_000):
        shelf.hand_to(device, Code(hash=number.to_bytes(32, "big"), form="source", data=b""))
    assert len(device.codes) == 4_096
    assert number.to_bytes(32, "big") in device.codes


def test_a_device_is_owed_only_so_much_code() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    for start in range(0, 8_000, 4_000):
        hashes = tuple(number.to_bytes(32, "big") for number in range(start, start + 4_000))
        pi.send(NeedCode(hashes=hashes))
    desk.run()
    assert len(desk.core.fleet.devices["pi1"].code_wanted) == 1_024


def test_an_answer_above_what_a_message_may_hold_says_so() -> None:
    desk = Desk().begin()
    labels = {f"{number}": "x" * 256 for number in range(64)}
    for number in range(1_100):
        capabilities = DeviceCapabilities(session="9" * 16 + "-1", slots=1, labels=labels)
        topic = TOPICS.device_capabilities(f"pi{number}")
        desk.publish(topic, encode_json(capabilities), retain=True)
    client = desk.client()
    client.send(Query(id=1, what="devices"))
    desk.run()
    (answer,) = client.of(Answer)
    assert not answer.ok
    assert len(answer.body) < CALL_BYTES_MAX
    assert "more than a message may hold" in json.loads(answer.body)["error"]


def test_what_a_device_never_saw_does_not_pile_up_when_it_is_dead() -> None:
    desk = Desk(detect_ms=1_000).begin()
    desk.advance(10_000)
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(30)
    assert pi.assignments
    del desk.devices["pi1"]
    for index in range(30):
        client.collect(task, (index, index + 1))
    # It is asked whether it lives, for ten seconds.
    desk.advance(15_000)
    assert desk.core.fleet.devices["pi1"].link is None
    assert task not in desk.core.ledger.tasks


def test_the_code_of_this_desk_is_what_its_hash_says() -> None:
    desk = Desk().begin()
    client = desk.client()
    client.send(Code(hash=CODE, form="source", data=b"code"))
    desk.run()
    assert not desk.core.effects.dropped


def test_of_a_task_that_was_refused_no_later_page_is_taken() -> None:
    desk = Desk(limits=Limits(pages_bytes=1)).begin()
    client = desk.client()
    client.submit(50)
    task = client.next_task()
    first = client.page(50, task=task, last=False)
    client.send(Submit(pages=(first,)))
    desk.run()
    assert [message.task for message in client.of(SubmissionRefused)] == [task]
    # There is room again when its second page comes, which was on its way.
    client.collect(f"{client.name}-1", (0, 50))
    client.send(Submit(pages=(client.page(50, task=task, first=50),)))
    desk.run()
    assert task not in desk.core.ledger.tasks
    assert {message.task for message in client.of(SubmissionRefused)} == {task}
    other = client.submit(1)
    assert other in desk.core.ledger.tasks


def test_the_status_of_many_tasks_is_said_in_portions_and_taken_back_when_they_end() -> None:
    desk = Desk().begin()
    client = desk.client()
    tasks = [client.submit(1) for _ in range(150)]
    assert desk.documents("status", TaskStatus) == []
    desk.advance(1_000)
    said = [len(desk.documents("status", TaskStatus))]
    while said[-1] < len(tasks):
        assert len(said) < 20
        desk.advance(250)
        said.append(len(desk.documents("status", TaskStatus)))
    assert max(after - before for before, after in pairwise(said)) <= 64
    desk.advance(10_000)
    assert len(desk.documents("status", TaskStatus)) == len(tasks)
    assert desk.core.next_wakeup_ms() is not None
    client.send(Cancel(task=tasks[0], ranges=((0, 1),), force=False))
    desk.run()
    topic = TOPICS.status(client.user, client.name, tasks[0])
    assert [message.payload for message in desk.published if message.topic == topic][-1] == b""
