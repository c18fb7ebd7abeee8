"""One place decides what ends a command: the sentence and the exit code."""

import click
import pytest

from forage import errors
from forage.cli.endings import Ending, Terminated, end, exit_code_of, task_failure
from forage_wire.values import RemoteTraceback

CODES: dict[type[errors.ForageError], int] = {
    errors.ForageError: 1,
    errors.NotConnected: 5,
    errors.NoDevice: 3,
    errors.DeviceLost: 1,
    errors.TaskTimeout: 124,
    errors.TaskCancelled: 130,
    errors.NoQuorum: 1,
    errors.TaskFailed: 1,
    errors.DataLost: 1,
    errors.NotSerializable: 2,
    errors.VersionMismatch: 7,
    errors.Refused: 4,
    errors.WireError: 1,
    errors.DecodeError: 1,
}


def test_every_error_of_forage_has_its_exit_code() -> None:
    tree = [errors.ForageError]
    for kind in tree:
        tree.extend(kind.__subclasses__())
    own = {kind for kind in tree if kind.__module__ == "forage_wire.errors"}
    assert own == CODES.keys()
    assert {kind: exit_code_of(kind("words")) for kind in CODES} == CODES


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (Terminated(), 143),
        (click.UsageError("words"), 2),
        (Ending("words"), 2),
        (Ending("words", 6), 6),
        (BrokenPipeError(), 141),
        (RuntimeError("a defect"), 1),
    ],
)
def test_other_ends_have_theirs(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


def said(error: BaseException, capsys: pytest.CaptureFixture[str]) -> str:
    end(error, debug=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_an_error_that_does_not_say_what_to_type_next_is_given_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said(errors.NotConnected("nobody there"), capsys) == (
        "forage: Nobody there. Start a fleet on this machine with `forage up`, or give your "
        "broker's address with --broker or FORAGE_BROKER.\n"
    )


def test_an_error_that_says_so_itself_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Nobody there; start one with `forage broker`."
    assert said(errors.NotConnected(text), capsys) == f"forage: {text}\n"


def test_no_device_says_why_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.NoDevice("no device may run this", {"pi-1": "it has no camera", "pi-2": "lost"})
    assert said(error, capsys) == (
        "forage: No device may run this. pi-1: it has no camera. pi-2: lost. See what there is "
        "with `forage device ls`.\n"
    )


def test_a_defect_of_ours_asks_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert "A defect in forage: RuntimeError: what now. Please run" in said(
        RuntimeError("what now"), capsys
    )


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    end(RuntimeError("what now"), debug=True)
    assert "RuntimeError: what now" in capsys.readouterr().err


def test_a_users_exception_is_told_with_its_place() -> None:
    error = ValueError("too large\nby far")
    error.__cause__ = RemoteTraceback(
        'Traceback (most recent call last):\n  File "/srv/jobs.py", line 3, in resize\n'
        '    inner(x)\n  File "/srv/jobs.py", line 9, in inner\n    raise ValueError\nValueError'
    )
    error.add_note("forage: on device pi-1, attempt 2")
    failure = task_failure(error, "jobs.py:resize")
    assert exit_code_of(failure) == 1
    assert str(failure) == (
        "jobs.py:resize raised ValueError: too large (jobs.py:9 in inner, on device pi-1, attempt "
        "2). See the whole traceback with --debug."
    )


def test_errors_of_forage_pass_as_they_are() -> None:
    error = errors.TaskTimeout("it took too long")
    assert task_failure(error, "jobs.py:resize") is error
