"""`forage run FILE:FUNC [ARGS…]`: one call, its output and progress, its result."""

import concurrent.futures
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from forage import Future
from forage.cli.common import connect, connection_flags, fleet_of, is_plain, say
from forage.cli.endings import task_failure, usage_errors
from forage.cli.output import to_json
from forage.cli.submitting import submission_flags, with_options
from forage.cli.targets import TargetCommand, keywords_of, target_named, value_of
from forage.cli.task_output import TaskOutput

__all__ = ["command"]

_LOOK_EVERY_S = 0.25
_SLOW_S = 2.0
"""Without a terminal, what takes longer than this is said once."""


@click.command("run", cls=TargetCommand)
@click.argument("target", metavar="FILE:FUNC")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
@click.option("--kw", multiple=True, metavar="NAME=VALUE", help="A keyword argument; repeat.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print the result: a text as it is and all else as JSON, or JSON always.",
)
@submission_flags
@connection_flags
@click.pass_context
def command(
    context: click.Context,
    /,
    target: str,
    arguments: tuple[str, ...],
    kw: tuple[str, ...],
    output: str,
    **flags: Any,
) -> None:
    """Run a function on a device and print its result.

    FILE:FUNC is a function of a Python file, MODULE:FUNC one of a module, and ORG.APP.TASK one that
    is installed on devices. Arguments are read as JSON where they are JSON, else as text. What the
    function writes appears on stderr. Ctrl-C cancels.

    \b
    forage run math:factorial 30
    forage run jobs.py:resize photo.jpg 0.5 --kw keep=true
    forage run --timeout-s 60 --requires camera jobs.py:snap
    """
    function = target_named(target)
    values = [value_of(word) for word in arguments]
    keywords = keywords_of(kw)
    fleet = fleet_of(context)
    with connect(fleet) as client:
        chosen = with_options(client, flags)
        with (
            _terminal() as show,
            TaskOutput(
                client, fleet.located(), show.line, live=not flags.get("replicas")
            ) as task_output,
        ):
            with usage_errors():
                future = chosen.submit(function, *values, **keywords)
            try:
                _wait(future, show)
            except BaseException:
                future.cancel(force=True)
                raise
            task_output.finish(future.id)
        try:
            result = future.result()
        except Exception as error:
            raise task_failure(error, target) from error
    _print(result, output)


class _Plain:
    """Messages as lines."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._has_told = False

    def line(self, _index: int, text: str) -> None:
        """A line that the call wrote."""
        say(text)

    def state(self, text: str) -> None:
        """Where the call is; said once, and only of one that takes its time."""
        if not self._has_told and time.monotonic() - self._began > _SLOW_S:
            self._has_told = True
            say(text)


class _Rich:
    """Lines above one that moves."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._row = progress.add_task("sending", total=None)

    def line(self, _index: int, text: str) -> None:
        """A line that the call wrote."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def state(self, text: str) -> None:
        """Where the call is."""
        self._progress.update(self._row, description=text)


@contextmanager
def _terminal() -> Iterator[_Plain | _Rich]:
    if is_plain():
        yield _Plain()
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Rich(progress)


def _wait(future: Future[Any], show: _Plain | _Rich) -> None:
    began = time.monotonic()
    tell: Callable[[str], None] = show.state
    while not concurrent.futures.wait([future], timeout=_LOOK_EVERY_S).done:
        if future.device is None:
            waited = time.monotonic() - began
            hint = f"; see `forage task explain {future.id}`" if waited > _SLOW_S else ""
            tell(f"{future.id} waits for a device{hint}")
        else:
            tell(f"{future.id} runs on {future.device}{_progress_of(future)}")


def _progress_of(future: Future[Any]) -> str:
    """What the call has said of how far it is, as the end of a sentence."""
    said = future.progress
    if said is None:
        return ""
    return f": {said.fraction:.0%}" + (f", {said.text}" if said.text else "")


def _print(result: Any, output: str) -> None:
    if output == "json":
        click.echo(to_json(result))
    elif isinstance(result, str | bytes):
        # Bytes as they are too, for a pipe: click writes them to the binary stream.
        click.echo(result, nl=isinstance(result, str))
    elif result is not None:
        click.echo(to_json(result))
