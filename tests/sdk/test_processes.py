"""The client and its process: its end, its forks, and what importing it costs."""

import os
import subprocess
import sys
import textwrap

import pytest

from sdk.fleet import WAIT_S, Fleet

PROLOGUE = """
import os, sys, threading
import forage
client = forage.connect(sys.argv[1], root=sys.argv[2], user="tester")
"""


def run(fleet: Fleet, script: str) -> subprocess.CompletedProcess[str]:
    """A program of its own that is connected to the fleet."""
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(script), str(fleet.address), fleet.root],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def test_an_interpreter_that_ends_hands_over_its_submissions_and_names_its_tasks(
    holding: Fleet,
) -> None:
    done = run(
        holding,
        """
        futures = [client.submit(pow, number, 2) for number in range(300)]
        batch = client.submit_all(pow, range(500), range(500))
        print(batch.id)
        """,
    )
    assert done.returncode == 0
    holding.wait(lambda: len(holding.calls) == 800)
    first, *lines = done.stderr.splitlines()
    assert first.startswith("forage: this program ended before its calls did.")
    batch = done.stdout.strip()
    assert f"  forage.connect().attach('{batch}')  # pow, 500 of 500 calls open" in lines
    assert {name.split(".")[0] for name in holding.calls} == {line.split("'")[1] for line in lines}


def test_an_interpreter_that_ends_with_nothing_open_says_nothing(fleet: Fleet) -> None:
    done = run(fleet, "print(client.submit(pow, 2, 5).result())")
    assert (done.returncode, done.stdout, done.stderr) == (0, "32\n", "")


def test_an_end_by_an_error_hands_over_too_and_keeps_its_exit_code(holding: Fleet) -> None:
    done = run(holding, "client.submit(pow, 2, 5); client.submit(pow, 2, 6); sys.exit(7)")
    assert done.returncode == 7
    holding.wait(lambda: len(holding.calls) == 2)
    assert "attach('" in done.stderr


def test_what_no_controller_took_is_said_not_to_be_handed_over(holding: Fleet) -> None:
    holding.delays_acknowledgements = True
    done = run(
        holding,
        """
        import forage.shell.leaving
        forage.shell.leaving.FLUSH_S = 0.2
        client.submit(pow, 2, 5)
        """,
    )
    assert done.returncode == 0
    assert "not handed over, for no controller took it  # pow, 1 of 1 calls open" in done.stderr


def test_shutdown_in_the_background_is_finished_by_the_end_of_the_interpreter(
    holding: Fleet,
) -> None:
    done = run(holding, "client.submit(pow, 2, 5); client.shutdown(wait=False)")
    assert done.returncode == 0
    assert "1 of 1 calls open" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_is_told_to_connect_itself_and_leaves_the_parent_alone(
    fleet: Fleet,
) -> None:
    done = run(
        fleet,
        """
        pending = client.submit_all(pow, range(5), range(5))
        pid = os.fork()
        if not pid:
            for use in (
                lambda: client.submit(pow, 1, 1),
                lambda: client.submit_all(pow, [1], [1]),
                lambda: client.devices(),
            ):
                try:
                    use()
                except RuntimeError as error:
                    print(error)
            sys.stdout.flush()
            del client
            sys.exit(0)  # With everything that runs at an interpreter's end.
        assert os.waitpid(pid, 0)[1] == 0
        print(sum(pending.results(timeout=20)), client.submit(pow, 2, 5).result(20))
        client.shutdown()
        """,
    )
    assert done.stderr == ""
    *said, last = done.stdout.splitlines()
    assert last == "289 32"
    assert len(said) == 3
    assert all("call forage.connect() in the child" in line for line in said)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_may_connect_itself(fleet: Fleet) -> None:
    done = run(
        fleet,
        """
        client.submit(pow, 2, 2).result(20)
        pid = os.fork()
        if not pid:
            with forage.connect(sys.argv[1], root=sys.argv[2], user="tester") as own:
                future = own.submit(pow, 2, 5)
                done = threading.Event()
                future.add_done_callback(lambda _: done.set())
                assert done.wait(20)
                print(future.result(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        client.shutdown()
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "32\n", "")


def test_interrupting_a_wait_raises_in_the_caller(holding: Fleet) -> None:
    done = run(
        holding,
        """
        import signal
        main = threading.main_thread().ident
        future = client.submit(pow, 2, 5)
        threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
        try:
            future.result()
        except KeyboardInterrupt:
            print("interrupted", future.cancel())
        """,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted True\n")


def test_importing_forage_loads_nothing_but_its_version() -> None:
    script = """
    import sys
    before = set(sys.modules)
    import forage
    print(sorted(set(sys.modules) - before))
    print(forage.__version__, forage.Future.__name__, "connect" in dir(forage))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    loaded, names = done.stdout.splitlines()
    assert loaded == "['forage', 'forage_wire', 'forage_wire.version']"
    assert names.endswith("Future True")


def test_every_public_name_is_there() -> None:
    import forage

    for name in forage.__all__:
        assert getattr(forage, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = forage.nothing  # type: ignore[attr-defined]
