"""What a client asks its controller: devices, tasks, history, logs, attach."""

import dataclasses
import json
import pickle
from functools import partial
from typing import Any

import cbor2
import pytest

import forage
from forage_wire.codec import encode
from forage_wire.messages import Attach, Cancel, Outcomes, OutcomeSet, Query
from forage_wire.topics import Topics
from sdk.fleet import WAIT_S, Fleet
from sdk.functions import add

OTHER = "vvvvvvvvvvvvv-1"


def answers(fleet: Fleet, what: str, body: Any) -> None:
    fleet.answers[what] = lambda _query: json.dumps(body).encode()


def test_devices_are_records_and_lost_where_the_verdict_is_dead(
    fleet: Fleet, client: forage.Client
) -> None:
    row = {
        "name": "pi1",
        "state": "online",
        "verdict": "alive",
        "address": "10.0.0.7",
        "slots": 4,
        "cpu_strength": 1.5,
        "cpu_cores": 4,
        "active_tasks": 2,
        "last_seen_s": 0.5,
        "network": "WLAN-g",
        "labels": {"room": "lab"},
        "functions": {"org.app.task": "2"},
        "something_newer": True,
    }
    answers(fleet, "devices", [row, {"name": "pi2", "state": "online", "verdict": "dead"}])
    first, second = client.devices()
    assert isinstance(first, forage.DeviceInfo)
    assert (first.name, first.address, first.state) == ("pi1", "10.0.0.7", "online")
    assert (first.cpu_strength, first.cpu_cores, first.active_tasks) == (1.5, 4, 2)
    assert (first.last_seen_s, first.network, first.labels) == (0.5, "WLAN-g", {"room": "lab"})
    assert first.has_task("org.app.task")
    assert not first.has_task("org.app.other")
    assert (second.name, second.state) == ("pi2", "lost")
    assert client.device("pi2") == second
    with pytest.raises(LookupError, match="pi3"):
        client.device("pi3")


def test_history_logs_and_explanation_of_a_future(holding: Fleet, held: forage.Client) -> None:
    asked: list[Query] = []

    def note(body: Any) -> Any:
        def answer(query: Query) -> bytes:
            asked.append(query)
            return json.dumps(body).encode()

        return answer

    attempt = {"assignment": 5, "device": "pi1", "low": 0, "high": 2, "how": "lost", "age_s": 3.0}
    explained = {"state": "queued", "reason": "no slot is free", "eligible": {"pi1": "yes"}}
    holding.answers["history"] = note({"attempts": [attempt]})
    holding.answers["logs"] = note({"lines": ["0 out hello"], "dropped": 0})
    holding.answers["explain"] = note(explained)
    future = held.submit(add, 1, 2)
    [found] = future.history()
    assert (found.device, found.low, found.high, found.how) == ("pi1", 0, 2, "lost")
    assert future.logs() == ["0 out hello"]
    explanation = future.explain()
    assert (explanation.state, explanation.eligible) == ("queued", {"pi1": "yes"})
    assert str(explanation) == f"{future.id}: queued (no slot is free)\n  pi1: yes"
    assert [query.name for query in asked] == [future.id] * 3


def test_a_refusal_comes_in_the_controllers_words(fleet: Fleet, client: forage.Client) -> None:
    fleet.refuses["task"] = "There is no such task."
    with pytest.raises(forage.Refused, match="There is no such task"):
        client.task(OTHER)


@pytest.mark.parametrize("name", ["", "x", "vvvvvvvvvvvvv", "vvvvvvvvvvvvv-1.x", None])
def test_names_of_tasks_are_checked_before_anybody_is_asked(held: forage.Client, name: str) -> None:
    for ask in (held.task, held.history, held.explain, held.logs, held.attach, held.cancel):
        with pytest.raises(ValueError, match="neither a task's id nor a call's name"):
            ask(name)


def test_attaching_gives_a_batch_of_the_archives_outcomes(
    holding: Fleet, held: forage.Client
) -> None:
    answers(holding, "task", {"task": OTHER, "calls": 3, "label": "add"})
    batch = held.attach(OTHER)
    assert len(batch) == 3
    assert batch.id == OTHER
    holding.wait(lambda: holding.messages(Attach))
    sets = (OutcomeSet(task=OTHER, ranges=((0, 2),), data=cbor2.dumps([[10], [11]]), device="pi1"),)
    holding.send_to(held.id, Outcomes(sets=sets))
    assert batch[1].result(WAIT_S) == 11
    assert not batch[2].done()
    assert held.attach(f"{OTHER}.1").results(timeout=WAIT_S) == [11]
    holding.wait(lambda: holding.collected(OTHER) == {0, 1})


def test_a_task_can_be_attached_to_again_after_its_end(holding: Fleet, held: forage.Client) -> None:
    def asked(times: int) -> bool:
        return len(holding.messages(Attach)) == times

    answers(holding, "task", {"task": OTHER, "calls": 1})
    sets = (OutcomeSet(task=OTHER, ranges=((0, 1),), data=cbor2.dumps([[10]]), device="pi1"),)
    for times in (1, 2):
        batch = held.attach(OTHER)
        holding.wait(partial(asked, times))
        holding.send_to(held.id, Outcomes(sets=sets))
        assert batch.results(timeout=WAIT_S) == [10]


def test_attaching_to_a_call_gives_a_batch_of_it_alone(holding: Fleet, held: forage.Client) -> None:
    answers(holding, "task", {"task": OTHER, "calls": 3})
    batch = held.attach(f"{OTHER}.2")
    assert len(batch) == 1
    assert batch[0].id == f"{OTHER}.2"
    with pytest.raises(ValueError, match="has 3 calls"):
        held.attach(f"{OTHER}.3")


def test_an_attachments_end_leaves_the_task_to_its_owner(holding: Fleet) -> None:
    answers(holding, "task", {"task": OTHER, "calls": 3})
    client = holding.connect()
    batch = client.attach(OTHER)
    client.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in batch)
    assert holding.messages(Cancel) == []


def test_another_clients_task_is_cancelled_by_name(holding: Fleet, held: forage.Client) -> None:
    answers(holding, "task", {"task": OTHER, "calls": 3})
    held.cancel(OTHER)
    held.cancel(f"{OTHER}.1", force=True)
    holding.wait(lambda: len(holding.messages(Cancel)) == 2)
    assert holding.cancelled == [(f"{OTHER}.{n}", False) for n in range(3)] + [(f"{OTHER}.1", True)]


def test_a_task_of_ones_own_is_cancelled_by_name_with_its_futures(held: forage.Client) -> None:
    batch = held.submit_all(add, range(3))
    held.cancel(f"{batch.id}.1")
    assert [future.cancelled() for future in batch] == [False, True, False]
    held.cancel(batch.id)
    assert all(future.cancelled() for future in batch)


def test_draining_is_asked_of_the_controller(fleet: Fleet, client: forage.Client) -> None:
    asked: list[Query] = []
    fleet.answers["drain"] = lambda query: asked.append(query) or b"{}"  # type: ignore[func-returns-value]
    client.drain("pi1")
    client.drain("pi1", on=False)
    assert [(query.name, query.arguments) for query in asked] == [
        ("pi1", {"on": "true"}),
        ("pi1", {"on": "false"}),
    ]


def test_a_refused_task_fails_its_futures_in_the_controllers_words(
    holding: Fleet, held: forage.Client
) -> None:
    future = held.submit(add, 1, 2)
    holding.wait(lambda: future.id in holding.calls)
    holding.refuse(future.id.split(".")[0], "full", "The archive is full.")
    with pytest.raises(forage.Refused, match="The archive is full"):
        future.result(WAIT_S)


def test_garbage_on_its_topics_does_not_stop_a_client(fleet: Fleet, client: forage.Client) -> None:
    topics = Topics(fleet.root)
    for topic in (
        topics.to_client("tester", client.id),
        topics.task("tester", client.id, f"{client.id}-1", "pi1"),
        topics.controller_presence("main"),
    ):
        for payload in (b"", b"\xff" * 100, b"{}", encode(Query(id=1, what="tasks"))):
            fleet.publish(topic, payload)
    assert client.submit(add, 1, 2).result(WAIT_S) == 3


# -- functions that devices have by themselves ------------------------------------------------------


def offering(fleet: Fleet, **functions: str) -> None:
    """One device that has these."""
    names = {name.replace("__", "."): version for name, version in functions.items()}
    answers(fleet, "devices", [{"name": "pi1", "slots": 1, "profile": "mcu", "functions": names}])


def test_a_device_performs_what_it_has(fleet: Fleet, client: forage.Client) -> None:
    fleet.named["org.app.task"] = lambda value, times=2: value * times
    offering(fleet, org__app__task="1")
    device = client.device("pi1")
    assert device.perform("org.app.task", [3, 2], store=False) == 6
    assert device.perform("org.app.task", (4,)) == 8
    assert device.perform("org.app.task", {"value": 5, "times": 3}) == 15
    [options] = {call.header.options for call in fleet.calls.values()}
    assert options.devices == ("pi1",)
    assert {call.header.form for call in fleet.calls.values()} == {"named"}


def test_performing_keeps_the_options_of_the_view_that_it_came_from(
    fleet: Fleet, client: forage.Client
) -> None:
    fleet.named["org.app.task"] = abs
    offering(fleet, org__app__task="1")
    [device] = client.options(at_most_once=True, retries=3).devices()
    assert device.perform("org.app.task", [-1]) == 1
    [call] = fleet.calls.values()
    assert (call.header.options.at_most_once, call.header.options.retries) == (True, 3)


def test_what_a_device_lacks_is_said_at_once_with_what_it_has(
    fleet: Fleet, client: forage.Client
) -> None:
    offering(fleet, org__app__task="1", org__app__other="1")
    device = client.device("pi1")
    with pytest.raises(forage.NoDevice, match=r"org\.app\.task, org\.app\.other") as caught:
        device.perform("org.app.misspelt")
    assert "no function org.app.misspelt" in caught.value.reasons["pi1"]
    assert not fleet.calls


def test_a_function_installed_since_the_record_was_made_is_performed(
    fleet: Fleet, client: forage.Client
) -> None:
    offering(fleet)
    device = client.device("pi1")
    fleet.named["org.app.task"] = abs
    offering(fleet, org__app__task="1")
    assert device.perform("org.app.task", [-1]) == 1


def test_a_device_that_has_not_said_what_it_has_yet_performs_when_it_has(
    fleet: Fleet, client: forage.Client
) -> None:
    fleet.named["org.app.task"] = abs
    answers(fleet, "devices", [{"name": "pi1", "verdict": "alive"}])
    device = client.device("pi1")
    assert (device.slots, device.functions) == (0, {})
    assert device.perform("org.app.task", [-1]) == 1


def test_what_performing_does_not_take_is_an_error_that_says_so(
    fleet: Fleet, client: forage.Client
) -> None:
    offering(fleet, org__app__task="1")
    device = client.device("pi1")
    with pytest.raises(ValueError, match="store=True would leave the result on the device"):
        device.perform("org.app.task", [1], store=True)
    with pytest.raises(TypeError, match=r"perform\('org\.app\.task', \['text'\]\)"):
        device.perform("org.app.task", "text")
    with pytest.raises(forage.ForageError, match="belongs to no client"):
        forage.DeviceInfo(name="pi1", functions={"org.app.task": "1"}).perform("org.app.task")
    assert not fleet.calls


def test_a_record_is_equal_and_shown_whoever_asked_for_it(
    fleet: Fleet, client: forage.Client
) -> None:
    offering(fleet, org__app__task="1")
    device = client.device("pi1")
    row = {"name": "pi1", "slots": 1, "profile": "mcu", "functions": {"org.app.task": "1"}}
    assert device == forage.DeviceInfo.from_row(row)
    assert pickle.loads(pickle.dumps(device)) == device
    assert "client" not in repr(device)
    assert "client" not in dataclasses.asdict(device)
