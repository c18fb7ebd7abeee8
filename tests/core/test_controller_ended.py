"""The controller's core: what became of a task that is over can be asked for, for a while."""

import json
from typing import Any

import pytest

from core.desk import TOPICS, Desk, FakeClient
from forage_controller.core.config import Limits
from forage_controller.core.ended import Ended
from forage_controller.core.state import Client, Task
from forage_wire.messages import Answer, Query


def ask(client: FakeClient, what: str, name: str = "", **arguments: str) -> Any:
    """The controller's answer, whether it is one or a refusal."""
    number = len(client.of(Answer)) + 1
    client.send(Query(id=number, what=what, name=name, arguments=arguments))
    client.desk.run()
    return json.loads(client.of(Answer)[-1].body)


def write(desk: Desk, client: FakeClient, task: str, *lines: str) -> None:
    """A device publishes output of a task."""
    topic = TOPICS.log(client.user, client.name, task, "pi1")
    desk.publish(topic, "\n".join(lines).encode())
    desk.run()


def run_through(desk: Desk, client: FakeClient, *lines: str) -> str:
    """A task of one call, submitted, run, collected and released."""
    pi = desk.devices["pi1"]
    task = client.submit(1)
    if lines:
        write(desk, client, task, *lines)
    pi.finish(pi.assignments.pop())
    client.collect(task, (0, 1))
    assert task not in desk.core.ledger.tasks
    return task


def fleet_of_one(**limits: int) -> tuple[Desk, FakeClient]:
    desk = Desk(limits=Limits(**limits)).begin()
    desk.device("pi1")
    return desk, desk.client()


def test_what_became_of_a_task_is_told_after_its_result_was_collected() -> None:
    desk, client = fleet_of_one()
    task = run_through(desk, client, "0 out hello")
    desk.advance(60_000)
    assert ask(client, "logs", f"{task}.0")["lines"] == ["0 out hello"]
    (attempt,) = ask(client, "history", f"{task}.0")["attempts"]
    assert (attempt["device"], attempt["how"]) == ("pi1", "done")
    row = ask(client, "task", task)
    assert (row["state"], row["calls"], row["devices"]) == ("collected", 1, {"pi1": 1})
    explained = ask(client, "explain", f"{task}.0")
    assert (explained["state"], explained["eligible"]) == ("collected", {})
    assert "there is none 1" in ask(client, "task", f"{task}.1")["error"]


def test_output_that_comes_last_is_kept_too() -> None:
    desk, client = fleet_of_one()
    task = run_through(desk, client)
    write(desk, client, task, "0 out late")
    assert ask(client, "logs", task)["lines"] == ["0 out late"]


def test_ended_tasks_are_listed_where_they_are_asked_for() -> None:
    desk, client = fleet_of_one()
    ended = [run_through(desk, client) for _ in range(3)]
    queued = client.submit(1)
    assert [row["task"] for row in ask(client, "tasks")] == [queued]
    rows = ask(client, "tasks", ended="true")
    assert [row["task"] for row in rows] == [*ended, queued]
    assert [row["state"] for row in rows[:3]] == ["collected"] * 3


def test_another_user_is_told_nothing_of_them() -> None:
    desk, client = fleet_of_one()
    task = run_through(desk, client, "0 out secret")
    other = desk.client(user="eve")
    assert ask(other, "tasks", ended="true") == []
    for what in ("logs", "task", "history", "explain"):
        assert set(ask(other, what, task)) == {"error"}


def test_the_oldest_go_first_with_their_output() -> None:
    desk, client = fleet_of_one(ended_tasks=2)
    tasks = [run_through(desk, client, f"0 out {number}") for number in range(2)]
    kept_bytes = desk.core.monitor.logs_bytes
    assert kept_bytes > 0
    tasks += [run_through(desk, client, f"0 out {number}") for number in range(2, 4)]
    desk.advance(2_000)
    for task in tasks[:2]:
        assert "too long ago" in ask(client, "logs", task)["error"]
    assert [ask(client, "logs", task)["lines"] for task in tasks[2:]] == [["0 out 2"], ["0 out 3"]]
    assert desk.core.monitor.logs_bytes == kept_bytes


@pytest.mark.parametrize(("tasks", "pages"), [(3, 100), (100, 6)])
def test_it_is_bounded_by_tasks_and_by_pages(tasks: int, pages: int) -> None:
    ended = Ended(tasks, pages)
    forgotten = []
    for number in range(5):
        task = Task(
            id=f"c-{number}", client=Client(name="c", user="u"), key=b"", label="", made_ms=0
        )
        task.pages = dict.fromkeys(range(2))
        forgotten += [each.id for each in ended.add(task)]
    assert forgotten == ["c-0", "c-1"]
    assert [each.id for each in ended.latest()] == ["c-4", "c-3", "c-2"]
    assert "c-1" not in ended
    assert ended.get("c-4") is not None
    assert ended.get("c-0") is None
