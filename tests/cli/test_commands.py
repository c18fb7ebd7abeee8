"""The commands, on a real fleet: broker, controller and two devices."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import LIMIT_S, Run, begin, finish
from forage import LocalCluster, connect
from integration.observing import until

TASK = re.compile(r"[0-9a-v]{13}-[0-9a-v]+(\.\d+)?")

pytestmark = pytest.mark.usefixtures("broker")


# -- run ----------------------------------------------------------------------------------------


def test_run_prints_the_result_on_stdout_and_nothing_else(run: Run) -> None:
    ended = run("run", "math:factorial", "30")
    assert (ended.code, ended.out, ended.err) == (0, f"{265252859812191058636308480000000}\n", "")


def test_a_file_runs_with_the_files_beside_it(run: Run) -> None:
    assert run("run", "jobs.py:by_helper", "14").out == "42\n"


def test_arguments_are_json_or_text_and_may_be_negative(run: Run) -> None:
    ended = run("run", "jobs.py:echo", "-3", "-0.5", "x", '{"a": [1]}', "--kw", "size=10")
    assert json.loads(ended.out) == [[-3, -0.5, "x", {"a": [1]}], {"size": 10}]


def test_everything_after_two_dashes_is_an_argument(run: Run) -> None:
    ended = run("run", "jobs.py:echo", "1", "--", "--kw", "-x")
    assert json.loads(ended.out) == [[1, "--kw", "-x"], {}]


def test_a_text_is_printed_as_it_is_or_as_json(run: Run) -> None:
    assert run("run", "jobs.py:greet", "ann", "--kw", "loud=true").out == "HELLO ANN\n"
    assert run("run", "-o", "json", "jobs.py:greet", "ann").out == '"hello ann"\n'


def test_none_prints_nothing(run: Run) -> None:
    ended = run("run", "time:sleep", "0")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert run("run", "-o", "json", "time:sleep", "0").out == "null\n"


def test_what_a_function_writes_comes_on_stderr_every_line_once_and_in_order(run: Run) -> None:
    ended = run("run", "jobs.py:write", "200")
    assert ended.out == "200\n"
    lines = ended.err.splitlines()
    assert [line for line in lines if line != "to stderr"] == [f"line {n}" for n in range(200)]
    assert lines.count("to stderr") == 1


# -- map ----------------------------------------------------------------------------------------


def numbers(place: Path, *values: object) -> str:
    file = place / "in.jsonl"
    file.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return str(file)


def test_map_prints_results_in_the_order_of_the_lines(run: Run, own_place: Path) -> None:
    file = numbers(own_place, *range(50))
    ended = run("map", "jobs.py:double", "--from-jsonl", file)
    assert (ended.code, ended.err) == (0, "")
    assert [json.loads(line) for line in ended.out.splitlines()] == [2 * n for n in range(50)]


def test_replicas_vote_on_each_call(run: Run, own_place: Path) -> None:
    assert run("run", "jobs.py:double", "4", "--replicas", "2").out == "8\n"
    file = numbers(own_place, 1, 2)
    ended = run("map", "jobs.py:double", "--from-jsonl", file, "--replicas", "2", "--quorum", "1")
    assert (ended.code, ended.out) == (0, "2\n4\n")


def test_replicas_that_disagree_end_with_who_said_what(run: Run) -> None:
    ended = run("run", "os:getpid", "--replicas", "2")
    assert (ended.code, ended.out) == (1, "")
    assert "No 2 of the 2 replicas of" in ended.err
    assert ended.err.count(" returned ") == 2


def test_a_quorum_above_the_replicas_is_a_wrong_argument(run: Run) -> None:
    ended = run("run", "os:getpid", "--replicas", "2", "--quorum", "3")
    assert ended.code == 2
    assert "can never agree" in ended.err


def test_map_as_completed_says_which_line(run: Run, own_place: Path) -> None:
    file = numbers(own_place, 5, 6, 7)
    ended = run("map", "jobs.py:fail_if_odd", "--from-jsonl", file, "--as-completed")
    assert ended.code == 6
    rows = sorted((json.loads(line) for line in ended.out.splitlines()), key=lambda r: r["line"])
    assert rows[1] == {"line": 2, "result": 6}
    assert "jobs.py:fail_if_odd raised ValueError: 7 is odd" in rows[2]["error"]


def test_a_map_that_partly_failed_keeps_its_lines_in_place(run: Run, own_place: Path) -> None:
    ended = run("map", "jobs.py:fail_if_odd", "--from-jsonl", numbers(own_place, 2, 3, 4))
    assert (ended.code, ended.out) == (6, "2\nnull\n4\n")
    failure, summary = ended.err.splitlines()
    assert failure.startswith("line 2: jobs.py:fail_if_odd raised ValueError: 3 is odd (jobs.py:")
    assert summary == "forage map: 1 of 3 calls failed."


def test_a_map_of_failures_alone_failed(run: Run, own_place: Path) -> None:
    ended = run("map", "jobs.py:fail", "--from-jsonl", numbers(own_place, 1, 2))
    assert (ended.code, ended.out) == (1, "null\nnull\n")


def test_lines_may_hold_all_arguments_of_a_call(run: Run, own_place: Path) -> None:
    file = numbers(own_place, [1, 2], {"a": 3}, 4)
    ended = run("map", "--star", "jobs.py:echo", "--from-jsonl", file)
    assert [json.loads(line) for line in ended.out.splitlines()] == [
        [[1, 2], {}],
        [[], {"a": 3}],
        [[4], {}],
    ]


def test_a_line_that_is_no_json_is_named(run: Run, own_place: Path) -> None:
    (own_place / "in.jsonl").write_text("1\n\nnot json\n")
    ended = run("map", "jobs.py:double", "--from-jsonl", "in.jsonl")
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("forage: in.jsonl, line 3: not JSON")


def test_map_answers_before_its_input_ends() -> None:
    process = begin("map", "math:factorial", "--from-jsonl", "-", stdin=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (3, 5):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            assert process.stdout.readline() == {3: "6\n", 5: "120\n"}[number]
        out, err = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


# -- devices and tasks --------------------------------------------------------------------------


def test_devices_are_listed(run: Run, forage_cluster: LocalCluster) -> None:
    names = [device.name for device in forage_cluster.devices]
    table = run("device", "ls").out.splitlines()
    assert table[0].split()[:3] == ["NAME", "STATE", "WORK"]
    assert [line.split()[0] for line in table[1:]] == names
    assert run("device", "ls", "-o", "name").out.splitlines() == names
    rows = json.loads(run("device", "ls", "-o", "json").out)
    assert [(row["name"], row["state"]) for row in rows] == [(name, "online") for name in names]


def test_a_device_is_shown_with_what_is_known_of_it(run: Run, forage_cluster: LocalCluster) -> None:
    name = forage_cluster.devices[0].name
    row = json.loads(run("device", "get", name, "-o", "json").out)
    assert row["name"] == name
    assert row["python"] == f"3.{sys.version_info.minor}"
    assert f"name            {name}" in run("device", "get", name).out


def test_a_drained_device_takes_no_work_until_it_is_undrained(
    run: Run, forage_cluster: LocalCluster
) -> None:
    name = forage_cluster.devices[1].name
    ended = run("device", "drain", name)
    assert (ended.code, ended.err) == (0, f"{name} takes no new work.\n")
    try:
        ended = run("run", "--device", name, "--wait-s", "0.2", "jobs.py:double", "1")
        assert ended.code == 3
        assert "drain" in ended.sentence
    finally:
        ended = run("device", "undrain", name)
    assert (ended.code, ended.err) == (0, f"{name} takes work again.\n")
    assert run("run", "--device", name, "jobs.py:double", "1").out == "2\n"


def test_a_task_can_be_looked_at_and_cancelled_from_another_terminal(
    run: Run, broker: str, own_place: Path
) -> None:
    process = begin("run", "jobs.py:wait_for", "never")
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        [task] = run("task", "ls", "-o", "name").out.split()
        assert TASK.fullmatch(task)
        row = json.loads(run("task", "get", task, "-o", "json").out)
        assert (row["label"], row["calls"], row["state"]) == ("jobs.wait_for", 1, "running")
        # (That a call runs is said of none that ends within the next moment.)
        until(
            lambda: f"{task}.0 is running: running on" in run("task", "explain", f"{task}.0").out,
            "the word of its start",
        )
        assert run("task", "logs", task).out == "0 out waiting\n"
        ended = run("task", "cancel", "--force", task)
        assert (ended.code, ended.err) == (0, f"{task}: cancelled.\n")
        # Whoever waits for it is told.
        ended = finish(process)
        assert ended.code == 130
        assert ended.sentence == "Cancelled by another client of the same user."
        until(lambda: task not in run("task", "ls", "-o", "name").out, "the end of the task")
        # It is over, and what became of it can still be asked for.
        assert task in run("task", "ls", "--all", "-o", "name").out.split()
        assert run("task", "logs", task).out == "0 out waiting\n"
        ended = run("task", "cancel", task)
        assert (ended.code, ended.sentence) == (2, f"{task} has ended: there is nothing to cancel.")
    finally:
        process.kill()
        process.wait()


def test_an_empty_list_says_what_to_do(run: Run) -> None:
    head = ["TASK", "FUNCTION", "STATE", "DONE", "RUNNING", "FAILED", "AGE"]
    # (What a test before this has collected is listed until the controller has saved it.)
    until(lambda: run("task", "ls").out.split() == head, "an empty list")
    assert "forage run" in run("task", "ls").err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("device", "get", "nobody"), "The controller knows no device 'nobody'"),
        (("device", "drain", "nobody"), "The controller knows no device 'nobody'"),
        (("task", "get", "0123456789abc-1"), "No task or call of this user is named"),
        (("task", "explain", "rubbish"), "'rubbish' is neither a task's id nor a call's name"),
        (("task", "cancel", "0123456789abc-1.5"), "No task or call of this user is named"),
    ],
)
def test_a_wrong_name_is_a_wrong_argument(run: Run, words: tuple[str, ...], sentence: str) -> None:
    ended = run(*words)
    assert ended.code == 2
    assert ended.sentence.startswith(sentence)


# -- watch --------------------------------------------------------------------------------------


def test_watch_shows_what_the_fleet_says(broker: str) -> None:
    process = begin("watch", "from", "-o", "jsonl", "-n", "3")
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Watching forage/1/from/# on mqtt://")
        with connect(broker) as client:
            assert client.submit(pow, 2, 10).result(LIMIT_S) == 1024
        ended = finish(process)
    finally:
        process.kill()
        process.wait()
    assert ended.code == 0
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert {row["topic"].split("/")[2] for row in rows} == {"from"}
    assert rows[0]["kind"] == "hello"
    assert [row["content"]["pages"][0]["calls"] for row in rows if row["kind"] == "submit"] == [
        ["(2, 10)"]
    ]


def test_watch_shows_retained_documents_first_as_text(forage_cluster: LocalCluster) -> None:
    ended = finish(begin("watch", "device/+/presence", "-n", "2"))
    assert ended.code == 0
    lines = sorted(line.split(maxsplit=1)[1] for line in ended.out.splitlines())
    assert [line.split()[0] for line in lines] == [
        f"device/{device.name}/presence" for device in forage_cluster.devices
    ]
    assert all("  state=online session=" in line for line in lines)


def test_ctrl_c_is_the_usual_end_of_a_watch() -> None:
    process = begin("watch", "device")
    try:
        assert process.stdout is not None
        assert "device/" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    finally:
        process.kill()
        process.wait()
    assert ended.code == 130
    assert "Traceback" not in ended.err


def test_a_reader_that_has_enough_ends_a_listing_quietly() -> None:
    process = begin("device", "ls")
    assert process.stdout is not None
    # The reading end goes before anything is written.
    process.stdout.close()
    process.stdout = None
    ended = finish(process)
    assert ended.code == 141
    assert ended.err == ""
