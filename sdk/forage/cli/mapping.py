"""`forage map FILE:FUNC --from-jsonl FILE`: one call for each line, results as JSON lines."""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click

from forage import Client, Future
from forage.cli.common import connect, connection_flags, fleet_of, is_plain, say
from forage.cli.endings import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_PARTLY_DONE,
    Ending,
    exit_code_of,
    sentence_of,
    task_failure,
    usage_errors,
)
from forage.cli.output import to_json
from forage.cli.submitting import submission_flags, with_options
from forage.cli.targets import target_named
from forage.cli.task_output import TaskOutput

__all__ = ["command"]

_WINDOW = 10_000
"""Calls under way at a time, so that an input without end takes memory that has one."""
_READ_BYTES = 65_536
_FAILURES_TOLD = 10

Call = tuple[int, Future[Any]]
"""The input's line, and what came of it."""


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What came out so far."""

    done: int = 0
    failed: int = 0
    codes: set[int] = field(default_factory=set)
    """Exit codes of those that failed."""

    def exit_code(self) -> int:
        """0 all done; 6 some; else what all failures have in common, or 1."""
        if not self.failed:
            return EXIT_DONE
        if self.done:
            return EXIT_PARTLY_DONE
        return next(iter(self.codes)) if len(self.codes) == 1 else EXIT_FAILED


@click.command("map")
@click.argument("target", metavar="FILE:FUNC")
@click.option(
    "--from-jsonl",
    "source",
    required=True,
    metavar="FILE",
    help="JSON Lines: each line is the argument of one call; - is stdin.",
)
@click.option(
    "--star",
    is_flag=True,
    help="A line's array holds positional arguments, its object keyword arguments.",
)
@click.option(
    "--ordered/--as-completed",
    default=True,
    show_default=True,
    help="One result a line in the order of the input (null where a call failed); or "
    '{"line": …, "result" or "error": …} as calls end.',
)
@submission_flags
@connection_flags
@click.pass_context
def command(
    context: click.Context, /, target: str, source: str, star: bool, ordered: bool, **flags: Any
) -> int:
    """Run a function for every line of a JSON Lines file and print the results as JSON lines.

    Results appear while the input is still being read. Exit code 6 where some calls failed.

    \b
    forage map jobs.py:thumbnail --from-jsonl names.jsonl > sizes.jsonl
    seq 100 | forage map math:factorial --from-jsonl - --as-completed
    """
    function = target_named(target)
    fleet = fleet_of(context)
    tally = _Tally()
    with (
        _opened(source) as stream,
        connect(fleet) as client,
        _terminal() as show,
        TaskOutput(client, fleet.located(), show.line, live=not flags.get("replicas")),
    ):
        chosen = with_options(client, flags)
        name = "stdin" if source == "-" else source
        rows = _arguments(_lines(stream), name, star)
        emit = _printer(target, tally, ordered, show)
        for call in _Calls(chosen, function, rows, ordered, show):
            emit(call)
    if tally.failed:
        say(f"forage map: {tally.failed} of {tally.done + tally.failed} calls failed.")
    return tally.exit_code()


# -- reading and submitting ---------------------------------------------------------------------


@contextmanager
def _opened(source: str) -> Iterator[int]:
    """A descriptor to read from."""
    if source == "-":
        yield 0
        return
    try:
        descriptor = os.open(source, os.O_RDONLY)
    except OSError as error:
        raise Ending(
            f"The file {source} cannot be read ({error.strerror}); give a file with one JSON value "
            "a line as --from-jsonl, or - for stdin."
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lines(descriptor: int) -> Iterator[bytes]:
    """Lines as they come; not by a buffered file, whose lock a waiting thread would keep at exit."""
    rest = b""
    while chunk := os.read(descriptor, _READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _arguments(
    lines: Iterable[bytes], name: str, star: bool
) -> Iterator[tuple[int, list[Any], dict[str, Any]]]:
    """(line number, positional, keyword arguments) of each line that is not empty."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise Ending(
                f"{name}, line {number}: not JSON ({error}); write one JSON value a line, text in "
                "double quotes. The calls of the lines before it are cancelled."
            ) from None
        if star and isinstance(value, dict):
            yield number, [], value
        elif star and isinstance(value, list):
            yield number, value, {}
        else:
            yield number, [value], {}


class _Calls:
    """Submits rows in a thread of its own, a window at a time, and hands out calls to print.

    Args:
        client: With the options of the submission.
        function: What each row is for.
        rows: As `_arguments` gives them.
        ordered: Hand out calls as they were submitted; else as they end.
        show: Told of every call submitted.
    """

    def __init__(
        self,
        client: Client,
        function: Callable[..., Any] | str,
        rows: Iterator[tuple[int, list[Any], dict[str, Any]]],
        ordered: bool,
        show: "_Plain | _Rich",
    ) -> None:
        self._client = client
        self._function = function
        self._rows = rows
        self._ordered = ordered
        self._show = show
        self._room = threading.Semaphore(_WINDOW)
        self._queue: queue.SimpleQueue[Call | int | BaseException] = queue.SimpleQueue()
        """Calls to print; then how many calls there were, or why there are no more."""
        self._open: dict[int, Future[Any]] = {}
        self._is_over = False
        self._thread = threading.Thread(target=self._submit, name="forage-map", daemon=True)

    def __iter__(self) -> Iterator[Call]:
        """Each call once; cancels what is open when the iteration is left."""
        self._thread.start()
        total = -1
        handed = 0
        try:
            while handed != total:
                item = self._queue.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, int):
                    total = item
                    continue
                yield item
                del self._open[item[0]]
                handed += 1
                self._room.release()
        finally:
            self._is_over = True
            self._room.release()
            for future in list(self._open.values()):
                future.cancel(force=True)

    def _submit(self) -> None:
        count = 0
        try:
            for number, args, kwargs in self._rows:
                self._room.acquire()
                if self._is_over:
                    return
                with usage_errors():
                    future = self._client.submit(self._function, *args, **kwargs)
                self._open[number] = future
                count += 1
                self._show.submitted()
                if self._ordered:
                    self._queue.put((number, future))
                else:
                    future.add_done_callback(partial(self._put, number))
                if self._is_over:
                    # The iteration was left meanwhile, and may have looked before this one was in.
                    future.cancel(force=True)
                    return
            self._queue.put(count)
        # All that can go wrong here is for the one who prints to say.
        except BaseException as error:
            self._queue.put(error)

    def _put(self, number: int, future: Future[Any]) -> None:
        self._queue.put((number, future))


# -- printing -----------------------------------------------------------------------------------


def _printer(
    target: str, tally: _Tally, ordered: bool, show: "_Plain | _Rich"
) -> Callable[[Call], None]:
    """What writes a call's line on stdout, waiting for it where it is open."""

    def emit(call: Call) -> None:
        number, future = call
        try:
            result = future.result()
        except Exception as error:
            failure = task_failure(error, target)
            tally.failed += 1
            tally.codes.add(exit_code_of(failure))
            sentence = sentence_of(failure)
            if tally.failed <= _FAILURES_TOLD:
                show.message(f"line {number}: {sentence}")
            elif tally.failed == _FAILURES_TOLD + 1:
                show.message("… further failures are counted only.")
            row = None if ordered else {"line": number, "error": sentence}
        else:
            tally.done += 1
            row = result if ordered else {"line": number, "result": result}
        click.echo(to_json(row))
        show.ended()

    return emit


class _Plain:
    """Messages as lines."""

    def line(self, index: int, text: str) -> None:
        """A line that a call wrote."""
        say(f"[{index}] {text}")

    def message(self, text: str) -> None:
        """A message of ours."""
        say(text)

    def submitted(self) -> None:
        """One call more."""

    def ended(self) -> None:
        """One call less."""


class _Rich:
    """A bar on stderr, below messages and beside results."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._row = progress.add_task("calls", total=0)
        self._total = 0

    def line(self, index: int, text: str) -> None:
        """A line that a call wrote."""
        self.message(f"[{index}] {text}")

    def message(self, text: str) -> None:
        """A message of ours."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def submitted(self) -> None:
        """One call more."""
        self._total += 1
        self._progress.update(self._row, total=self._total)

    def ended(self) -> None:
        """One call less."""
        self._progress.advance(self._row)


@contextmanager
def _terminal() -> Iterator[_Plain | _Rich]:
    # Results on the same terminal would tear a bar apart, and they show the progress themselves.
    if is_plain() or sys.stdout.isatty():
        yield _Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Rich(progress)
