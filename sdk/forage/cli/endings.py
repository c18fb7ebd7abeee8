"""How a command ends: the one place that turns whatever was raised into a sentence and an exit code.

    0 done                          5 broker or controller unreachable
    1 the task failed               6 partly done
    2 usage or configuration        7 version mismatch
    3 no eligible device            124 timeout
    4 not allowed                   130 interrupted

Errors of forage bring their code with them (`forage_wire.errors`); users' own exceptions are wrapped
in an `Ending` where they appear, so that whatever else arrives here is a defect of ours.
"""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from forage.errors import (
    ForageError,
    NoDevice,
    NotConnected,
    Refused,
    TaskTimeout,
    VersionMismatch,
)

__all__ = [
    "EXIT_DONE",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_NOT_ALLOWED",
    "EXIT_PARTLY_DONE",
    "EXIT_USAGE",
    "Ending",
    "Terminated",
    "end",
    "exit_code_of",
    "sentence_of",
    "task_failure",
    "usage_errors",
]

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_ALLOWED = 4
EXIT_PARTLY_DONE = 6
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_BROKEN_PIPE = 141

_HINTS: dict[type[ForageError], str] = {
    NotConnected: (
        "Start a fleet on this machine with `forage up`, or give your broker's address with "
        "--broker or FORAGE_BROKER."
    ),
    NoDevice: "See what there is with `forage device ls`.",
    Refused: "Check the address and its credentials, --broker mqtt://user:password@host.",
    TaskTimeout: "Give it more time with --timeout-s (to run) or --deadline-s (in all).",
    VersionMismatch: "Compare `forage --version` here with `forage device ls`.",
}
"""What to type next, where an error does not say so itself."""

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$')


class Ending(Exception):
    """A command cannot go on: one sentence for the user, and the exit code."""

    def __init__(self, sentence: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; not an Exception, as KeyboardInterrupt is none."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Where a wrong argument of the user's surfaces as the SDK's own words, exit code 2."""
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:
        # A LookupError's text would be its repr.
        raise Ending(str(error.args[0]) if error.args else repr(error)) from error


def task_failure(error: BaseException, what: str) -> BaseException:
    """What ends a command whose call raised `error`: itself where it is forage's own.

    Args:
        error: As `Future.result` raises it.
        what: The function, for people, such as `jobs.py:resize`.
    """
    if isinstance(error, ForageError):
        return error
    place = _raised_at(error)
    notes = [
        note.removeprefix("forage: ")
        for note in getattr(error, "__notes__", ())
        if note.startswith("forage: ")
    ]
    where = ", ".join([place, *notes] if place else notes)
    text = _first_line(error)
    return Ending(
        f"{what} raised {type(error).__name__}{f': {text}' if text else ''}"
        f"{f' ({where})' if where else ''}. See the whole traceback with --debug.",
        EXIT_FAILED,
    )


def _raised_at(error: BaseException) -> str:
    """The innermost place of a remote traceback, as `file:line in function`; else empty."""
    frames = [_FRAME.match(line) for line in str(error.__cause__ or "").splitlines()]
    found = [frame for frame in frames if frame is not None]
    if not found:
        return ""
    last = found[-1]
    return f"{os.path.basename(last['file'])}:{last['line']} in {last['function']}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def exit_code_of(error: BaseException) -> int:
    """The exit code with which an error ends a command."""
    match error:
        case Ending() | ForageError():
            return error.exit_code
        case click.UsageError():
            return EXIT_USAGE
        case click.ClickException():
            return error.exit_code
        case KeyboardInterrupt() | click.Abort():
            return EXIT_INTERRUPTED
        case Terminated():
            return EXIT_TERMINATED
        case BrokenPipeError():
            return EXIT_BROKEN_PIPE
        case _:
            return EXIT_FAILED


def sentence_of(error: BaseException) -> str:
    """What the user reads; empty where nothing needs to be said."""
    match error:
        case BrokenPipeError():
            # Whoever read our output has enough, as in `forage device ls | head -1`.
            return ""
        case KeyboardInterrupt() | click.Abort():
            return "Interrupted."
        case Terminated():
            return "Terminated."
        case click.UsageError():
            command = error.ctx.command_path if error.ctx is not None else "forage"
            return f"{_closed(error.format_message())} See `{command} --help`."
        case click.ClickException():
            return _closed(error.format_message())
        case Ending():
            return str(error)
        case ForageError():
            return _forage_sentence(error)
        case _:
            return (
                f"A defect in forage: {type(error).__name__}: {_first_line(error)}. Please run the "
                "command again with --debug (`forage --debug …`) and report what it says."
            )


def _forage_sentence(error: ForageError) -> str:
    text = _opened(_closed(str(error) or type(error).__name__))
    if isinstance(error, NoDevice) and not any(name in text for name in error.reasons):
        text += "".join(f" {name}: {_closed(why)}" for name, why in error.reasons.items())
    if "`forage" in text or "--broker" in text or "timeout_s" in text:
        return text
    hint = next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), "")
    return f"{text} {hint}".rstrip()


def _closed(text: str) -> str:
    """A sentence ends with a stop, unless it is a text of several lines such as a log's end."""
    text = text.strip()
    if not text or "\n" in text or text[-1] in ".!?`":
        return text
    return text + "."


def _opened(text: str) -> str:
    """It begins with a capital, unless its first word is a name of something."""
    word = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if word.isalpha() else text


def end(error: BaseException, *, debug: bool) -> int:
    """Say what there is to say on stderr; the exit code."""
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout when it ends, which would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if debug and not isinstance(error, click.UsageError):
        traceback.print_exception(error)
    sentence = sentence_of(error)
    if sentence:
        colour = False if os.environ.get("NO_COLOR") else None
        click.secho("forage: ", err=True, nl=False, bold=True, fg="red", color=colour)
        click.echo(sentence, err=True, color=colour)
    return exit_code_of(error)
