"""Real worker processes: what they make of calls, how they die, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forage_agent.core.events import (
    FunctionCode,
    StartWorker,
    TakeBack,
    WorkerExited,
    WorkerLoaded,
    WorkerOutcomes,
    WorkerReturned,
)
from forage_agent.shell.zygote_process import start_zygote, workers_environment
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.values import rebuild_error
from shell.worker_harness import LIMIT_S, WorkerHarness


@pytest.fixture
def bench() -> Iterator[WorkerHarness]:
    harness = WorkerHarness()
    try:
        yield harness
    finally:
        harness.close()


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def kept(path: Path) -> Callable[[], bool]:
    """Whether a file has been written in full: its text ends with a newline."""
    return lambda: path.exists() and path.read_text().endswith("\n")


def test_call_returns_its_value_in_order(bench: WorkerHarness) -> None:
    def square(number: int) -> int:
        return number * number

    bench.start()
    bench.give(square, [(index,) for index in range(300)], may_follow=True)
    bench.until(lambda: len(bench.outcomes()) == 300)
    assert [outcome.value for outcome in bench.outcomes()] == [index**2 for index in range(300)]
    assert len(bench.of(WorkerLoaded)) == 1


def test_quick_calls_share_reports(bench: WorkerHarness) -> None:
    def nothing(number: int) -> int:
        return number

    bench.start()
    bench.run(nothing, 1)
    bench.give(nothing, [(index,) for index in range(1_000)], assignment=9, may_follow=True)
    bench.until(lambda: len(bench.outcomes()) == 1_001)
    assert len(bench.of(WorkerOutcomes)) < 500


def test_exception_is_the_calls_outcome_and_the_worker_lives(bench: WorkerHarness) -> None:
    def fail(text: str) -> None:
        raise LookupError(text)

    pid = bench.start()
    outcome = bench.run(fail, "not here")
    assert not outcome.ok
    error = rebuild_error(outcome.value, "dev", 1)
    assert type(error) is LookupError
    assert error.args == ("not here",)
    assert bench.reasons() == [(0, "error")]
    assert is_alive(pid)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exit_and_interrupt_in_a_task_are_its_error(
    bench: WorkerHarness, kind: type[BaseException]
) -> None:
    def leave(name: str) -> None:
        import builtins

        raise getattr(builtins, name)(3)

    pid = bench.start()
    assert not bench.run(leave, kind.__name__).ok
    assert bench.reasons() == [(0, "error")]
    assert is_alive(pid)


def test_segfault_names_the_signal_and_the_call_and_keeps_earlier_outcomes(
    bench: WorkerHarness,
) -> None:
    def crash(number: int) -> int:
        if number == 5:
            import ctypes

            ctypes.string_at(0)
        # Long enough that its outcome is not held back for the next one's.
        time.sleep(0.005)
        return number

    bench.start()
    bench.give(crash, [(index,) for index in range(8)], assignment=77, low=100, may_follow=True)
    end = bench.next_exit()
    assert (end.signal, end.exit_code, end.assignment, end.index) == ("SIGSEGV", None, 77, 105)
    assert [outcome.value for outcome in bench.outcomes()] == [0, 1, 2, 3, 4]


def test_hard_exit_names_its_code(bench: WorkerHarness) -> None:
    def leave() -> None:
        os._exit(41)

    bench.start()
    bench.give(leave, [()], assignment=3)
    end = bench.next_exit()
    assert (end.signal, end.exit_code, end.assignment) == ("", 41, 3)


def test_kill_from_outside_is_told_as_sigkill(bench: WorkerHarness) -> None:
    def wait(seconds: float) -> None:
        time.sleep(seconds)

    pid = bench.start()
    bench.give(wait, [(60,)])
    os.kill(pid, signal.SIGKILL)
    assert bench.next_exit().signal == "SIGKILL"


def test_endless_loop_is_killed_and_the_slot_goes_on(bench: WorkerHarness) -> None:
    def spin() -> None:
        while True:
            pass

    def add(a: int, b: int) -> int:
        return a + b

    pid = bench.start()
    bench.give(spin, [()], assignment=5)
    bench.until(lambda: bench.of(WorkerLoaded))
    assert bench.kill().assignment == 5
    assert not is_alive(pid)
    bench.start()
    assert bench.run(add, 2, 3).value == 5


def test_kill_takes_everything_that_a_call_has_started(
    bench: WorkerHarness, tmp_path: Path
) -> None:
    def spread(path: str) -> None:
        import subprocess

        with open(path, "w") as file:
            child = subprocess.Popen(["sleep", "60"])
            other = subprocess.Popen(["sleep", "60"], start_new_session=True)
            # A daemon: its parent is gone, and it has its own session.
            detached = subprocess.run(
                ["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"],
                capture_output=True,
                text=True,
                check=True,
            )
            file.write(f"{child.pid} {other.pid} {detached.stdout.strip()}\n")
        time.sleep(60)

    path = tmp_path / "pids"
    bench.start()
    bench.give(spread, [(str(path),)])
    bench.until(kept(path))
    pids = [int(word) for word in path.read_text().split()]
    assert all(map(is_alive, pids))
    bench.kill()
    assert [pid for pid in pids if is_alive(pid)] == []


def test_death_of_a_worker_ends_what_it_had_started(bench: WorkerHarness, tmp_path: Path) -> None:
    def spread_and_crash(path: str) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        with open(path, "w") as file:
            file.write(f"{child.pid}\n")
        os.abort()

    path = tmp_path / "pid"
    bench.start()
    bench.give(spread_and_crash, [(str(path),)])
    assert bench.next_exit().signal == "SIGABRT"
    assert not is_alive(int(path.read_text()))


def test_other_workers_children_survive_a_kill(bench: WorkerHarness, tmp_path: Path) -> None:
    def daemon(path: str) -> None:
        import subprocess

        text = "setsid sleep 60 >/dev/null 2>&1 & echo $!"
        pid = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout
        with open(path, "w") as file:
            file.write(pid)

    bench.start(0)
    bench.start(1)
    path = tmp_path / "pid"
    bench.run(daemon, str(path), slot=1)
    bench.kill(0)
    assert is_alive(int(path.read_text()))


def test_child_of_a_forking_call_reports_nothing(bench: WorkerHarness) -> None:
    def fork() -> int:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return pid

    def after() -> str:
        return "after"

    bench.start()
    assert bench.run(fork).value > 0
    assert bench.run(after).value == "after"
    assert len(bench.outcomes()) == 2


def test_outcomes_are_not_held_while_a_later_call_is_slow(bench: WorkerHarness) -> None:
    def maybe_slow(seconds: float) -> float:
        if seconds:
            time.sleep(seconds)
        return seconds

    bench.start()
    bench.run(maybe_slow, 0)
    bench.give(maybe_slow, [(0,), (0,), (60,), (0,)], assignment=2, may_follow=True)
    bench.until(lambda: len(bench.outcomes()) == 3)
    assert bench.of(WorkerExited) == []


def test_calls_behind_a_slow_one_are_given_back_while_it_runs(
    bench: WorkerHarness, tmp_path: Path
) -> None:
    def wait_for(path: str) -> str:
        while path and not os.path.exists(path):
            time.sleep(0.001)
        return path

    path = str(tmp_path / "go")
    bench.start()
    bench.run(wait_for, "")
    bench.give(wait_for, [("",), (path,), ("",)], assignment=2, low=10, may_follow=True)
    bench.give(wait_for, [("",)] * 4, assignment=3, may_follow=True)
    bench.until(lambda: len(bench.outcomes()) == 2)
    bench.workers.carry_out(TakeBack(slot=0))
    bench.until(lambda: bench.of(WorkerReturned))
    assert bench.of(WorkerReturned) == [WorkerReturned(slot=0, assignment=2, index=11)]
    Path(path).touch()
    bench.until(lambda: len(bench.outcomes()) == 3)
    assert bench.run(wait_for, "").value == ""
    assert len(bench.outcomes()) == 4


def test_idle_worker_asked_to_give_back_has_nothing(bench: WorkerHarness) -> None:
    def nothing() -> None:
        return None

    bench.start()
    bench.give(nothing, [(), ()], may_follow=True)
    bench.until(lambda: len(bench.outcomes()) == 2)
    bench.workers.carry_out(TakeBack(slot=0))
    bench.until(lambda: bench.of(WorkerReturned))
    assert bench.of(WorkerReturned) == [WorkerReturned(slot=0)]


def test_worker_has_one_thread_until_it_gets_several_calls(bench: WorkerHarness) -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    bench.start()
    assert bench.run(threads).value == 1
    bench.give(threads, [(), ()], assignment=9, may_follow=True)
    bench.until(lambda: len(bench.outcomes()) == 3)
    assert bench.outcomes()[-1].value == 2


def test_large_values_pass_both_ways(bench: WorkerHarness) -> None:
    def echo(data: bytes) -> bytes:
        return data

    data = bytes(range(256)) * (8 * 4096)
    bench.start()
    assert bench.run(echo, data).value == data


def test_result_above_the_limit_names_it(bench: WorkerHarness) -> None:
    def large(size: int) -> bytes:
        return bytes(size)

    bench.start()
    outcome = bench.run(large, CALL_BYTES_MAX + 1)
    assert not outcome.ok
    assert str(CALL_BYTES_MAX) in str(rebuild_error(outcome.value, "dev", 1))
    assert bench.reasons() == [(0, "unreadable")]


def test_result_that_cannot_travel_is_an_error_that_names_it(bench: WorkerHarness) -> None:
    def lock() -> object:
        import threading

        return threading.Lock()

    bench.start()
    outcome = bench.run(lock)
    assert "lock" in str(rebuild_error(outcome.value, "dev", 1))
    assert bench.reasons() == [(0, "unreadable")]


def test_pickle_of_another_python_is_a_version_error(bench: WorkerHarness) -> None:
    def nothing() -> None:
        return None

    code = bench.code(eval("lambda: 1"))
    other = FunctionCode(key=code.key, form=code.form, python="3.99", data=code.data)
    bench.start()
    assert not bench.run(other).ok
    assert bench.reasons() == [(0, "version")]


def test_unreadable_code_and_arguments_are_errors(bench: WorkerHarness) -> None:
    bench.start()
    assert not bench.run(FunctionCode(key=b"k", form="pickle", python="3.11", data=b"\xff")).ok
    assert bench.reasons() == [(0, "unreadable")]


def test_named_function_is_found_where_it_is_installed(bench: WorkerHarness) -> None:
    code = FunctionCode(key=b"org.app.join", form="named", python="", data=b"os.path:join")
    bench.start()
    assert bench.run(code, "a", "b").value == "a/b"


def test_missing_named_function_is_the_calls_error(bench: WorkerHarness) -> None:
    code = FunctionCode(key=b"org.app.none", form="named", python="", data=b"not_there:none")
    bench.start()
    assert not bench.run(code).ok
    assert bench.reasons() == [(0, "error")]


def test_two_functions_alternate_in_one_worker(bench: WorkerHarness) -> None:
    def double(number: int) -> int:
        return 2 * number

    def triple(number: int) -> int:
        return 3 * number

    bench.start()
    values = [bench.run(function, 7).value for function in (double, triple, double, triple)]
    assert values == [14, 21, 14, 21]


def test_output_belongs_to_the_call_that_wrote_it(bench: WorkerHarness) -> None:
    def speak(number: int) -> None:
        print("number", number)
        if number == 2:
            print("to err", file=sys.stderr)
        print("no newline", end="")

    bench.start()
    bench.give(speak, [(index,) for index in range(4)], assignment=6, may_follow=True)
    bench.until(lambda: len(bench.outcomes()) == 4 and len(bench.lines()) == 9)
    out = [row for row in bench.lines() if row[2] == "out"]
    assert out == [
        (6, index, "out", text) for index in range(4) for text in (f"number {index}", "no newline")
    ]
    assert [row for row in bench.lines() if row[2] == "err"] == [(6, 2, "err", "to err")]


def test_output_of_other_processes_and_of_c_code_is_read_too(bench: WorkerHarness) -> None:
    def speak() -> None:
        import ctypes
        import subprocess

        subprocess.run(["sh", "-c", "echo from a process; echo and its err >&2"], check=True)
        libc = ctypes.CDLL(None)
        libc.puts(b"from C")
        libc.fflush(None)

    bench.start()
    bench.run(speak)
    bench.until(lambda: len(bench.lines()) == 3)
    assert {(row[2], row[3]) for row in bench.lines()} == {
        ("out", "from a process"),
        ("err", "and its err"),
        ("out", "from C"),
    }


def test_last_words_of_a_dying_worker_are_kept(bench: WorkerHarness) -> None:
    def leave() -> None:
        os.write(1, b"goodbye")
        os._exit(1)

    bench.start()
    bench.give(leave, [()])
    bench.next_exit()
    assert [row[3] for row in bench.lines()] == ["goodbye"]


def test_output_without_end_is_cut_and_does_not_stop_the_call(bench: WorkerHarness) -> None:
    def flood() -> str:
        for _ in range(200_000):
            print("x" * 100)
        return "done"

    bench.start()
    assert bench.run(flood).value == "done"
    bench.kill()
    assert len(bench.lines()) < 200_000
    assert any("lines dropped" in row[3] for row in bench.lines())


def test_worker_has_a_folder_an_empty_stdin_and_a_mark_of_its_own(bench: WorkerHarness) -> None:
    def look() -> list[Any]:
        with open("scratch", "w") as file:
            file.write("x")
        return [os.getcwd(), sys.stdin.read(), os.environ.get("FORAGE_IN_TASK"), os.getsid(0)]

    pid = bench.start()
    folder, stdin, mark, session = bench.run(look).value
    assert os.path.basename(folder).startswith("worker-0-")
    assert (stdin, mark, session) == ("", "1", pid)
    bench.kill()
    assert not os.path.exists(folder)


def test_workers_have_none_of_the_agents_environment_nor_descriptors() -> None:
    environment = {
        **os.environ,
        "FORAGE_BROKER": "mqtt://user:secret@host",
        "NOTIFY_SOCKET": "/x",
        "MARK": "kept",
    }
    harness = WorkerHarness(environment)

    def look() -> list[Any]:
        kinds = []
        for name in os.listdir("/proc/self/fd"):
            try:
                kinds.append(os.readlink(f"/proc/self/fd/{name}").split(":")[0])
            except FileNotFoundError:
                pass  # The descriptor of the listing itself.
        with open("/proc/self/environ") as file:
            text = file.read()
        return [dict(os.environ), kinds, text]

    try:
        harness.start(0)
        harness.start(1)
        found, descriptors, text = harness.run(look, slot=1).value
        assert "secret" not in text
        assert "NOTIFY_SOCKET" not in found
        assert (found["MARK"], found["OMP_NUM_THREADS"]) == ("kept", "1")
        # stdout and stderr; frames and control; and stdin.
        assert descriptors.count("pipe") == 2
        assert descriptors.count("socket") == 2
    finally:
        harness.close()


def test_workers_draw_different_random_numbers(bench: WorkerHarness) -> None:
    def draw() -> float:
        import random

        return random.random()

    bench.start(0)
    bench.start(1)
    assert bench.run(draw, slot=0).value != bench.run(draw, slot=1).value


def test_a_zygote_that_was_started_ahead_is_the_one_that_workers_come_from() -> None:
    ahead = start_zygote(workers_environment(dict(os.environ)))
    assert ahead is not None
    harness = WorkerHarness(zygote=ahead)
    try:
        parent = Path(f"/proc/{harness.start()}/stat").read_text().rpartition(")")[2].split()[1]
        assert int(parent) == ahead.pid == harness.workers.zygote_pid
    finally:
        harness.close()
    assert not is_alive(ahead.pid)


def test_death_of_the_zygote_is_told_and_the_next_worker_gets_a_new_one(
    bench: WorkerHarness,
) -> None:
    def ping() -> str:
        return "pong"

    pid = bench.start()
    os.kill(bench.workers.zygote_pid, signal.SIGKILL)
    bench.next_exit()
    wait_until(lambda: not is_alive(pid))
    bench.start()
    assert bench.run(ping).value == "pong"


def test_worker_that_cannot_be_started_is_told_as_ended() -> None:
    harness = WorkerHarness({**os.environ, "TMPDIR": "/proc/no/such/folder"})
    try:
        harness.workers.carry_out(StartWorker(slot=0))
        assert harness.next_exit().slot == 0
        assert harness.workers.zygote_pid == 0
    finally:
        harness.close()


def test_folder_that_was_cleaned_away_is_made_again(bench: WorkerHarness) -> None:
    def folder() -> str:
        return os.getcwd()

    import shutil

    bench.start(0)
    shutil.rmtree(os.path.dirname(bench.run(folder).value))
    bench.start(1)
    assert os.path.isdir(bench.run(folder, slot=1).value)


def test_close_leaves_no_process_and_no_folder() -> None:
    def folder() -> str:
        return os.getcwd()

    harness = WorkerHarness()
    pids = [harness.start(0), harness.start(1)]
    root = os.path.dirname(harness.run(folder).value)
    pids.append(harness.workers.zygote_pid)
    harness.close()
    assert [pid for pid in pids if is_alive(pid)] == []
    assert not os.path.exists(root)


AGENT = """
import sys
sys.path.insert(0, {tests!r})
from shell.worker_harness import WorkerHarness
def spread(path):
    import subprocess, time
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with open(path, "w") as file:
        file.write(str(child.pid) + "\\n")
    time.sleep(60)
harness = WorkerHarness()
pid = harness.start()
harness.give(spread, [(sys.argv[1],)])
print(harness.workers.zygote_pid, pid, flush=True)
harness.until(lambda: False)
"""


def test_sigkill_of_the_agent_alone_ends_everything(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    script = AGENT.format(tests=str(Path(__file__).parents[1]))
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        pids = [int(word) for word in agent.stdout.readline().split()]
        wait_until(kept(path))
        pids.append(int(path.read_text()))
        assert all(map(is_alive, pids))
        agent.kill()
    wait_until(lambda: not any(map(is_alive, pids)))


def test_many_workers_can_be_started_at_once(bench: WorkerHarness) -> None:
    def own_pid() -> int:
        return os.getpid()

    for slot in range(8):
        bench.workers.carry_out(StartWorker(slot=slot))
    from forage_agent.core.events import WorkerReady

    bench.until(lambda: len(bench.of(WorkerReady)) == 8)
    assert len({bench.run(own_pid, slot=slot).value for slot in range(8)}) == 8
