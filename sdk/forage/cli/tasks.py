"""`forage task ls|get|logs|cancel|explain`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import click

from forage import Attempt, Explanation, Refused
from forage.cli.common import connect, connection_flags, fleet_of, help_without_command, say
from forage.cli.endings import Ending, usage_errors
from forage.cli.output import Column, duration, output_flag, print_record, print_rows

__all__ = ["command"]

_COLUMNS: list[Column] = [
    ("task", lambda row: row["task"]),
    ("function", lambda row: row["label"] or "-"),
    ("state", lambda row: row["state"]),
    ("done", lambda row: f"{row['settled']}/{row['calls'] * row['replicas']}"),
    ("running", lambda row: row["running"]),
    ("failed", lambda row: row["failed"]),
    ("age", lambda row: duration(row["age_s"])),
]


@contextmanager
def _names() -> Iterator[None]:
    """What the user named is not there, or is no name of a task at all: exit code 2."""
    try:
        with usage_errors():
            yield
    except Refused as error:
        text = str(error)
        raise Ending(f"{text[:1].upper()}{text[1:].rstrip('.')}.") from error


@click.group(invoke_without_command=True)
@connection_flags
@click.pass_context
def command(context: click.Context) -> None:
    """What you submitted: tasks, and the calls in them (TASK.INDEX)."""
    help_without_command(context)


@command.command("ls")
@click.option("--all", "-a", "ended", is_flag=True, help="Also those that ended lately.")
@output_flag
@connection_flags
@click.pass_context
def list_tasks(context: click.Context, ended: bool, output: str) -> None:
    """List your tasks that have not ended, or whose results nobody has collected yet."""
    with connect(fleet_of(context)) as client:
        rows = [asdict(task) for task in client.tasks(ended=ended)]
    rows.sort(key=lambda row: -row["age_s"])
    print_rows(rows, _COLUMNS, "task", output)
    if not rows:
        which = "task" if ended else "open task (--all shows those that ended lately)"
        say(f"No {which}. Submit one with `forage run FILE:FUNC`.")


@command.command("get")
@click.argument("name", metavar="TASK")
@output_flag
@connection_flags
@click.pass_context
def get_task(context: click.Context, name: str, output: str) -> None:
    """Show one task with its counts."""
    with connect(fleet_of(context)) as client, _names():
        task = client.task(name)
    print_record(asdict(task), "task", output)


@command.command("logs")
@click.argument("name", metavar="TASK[.INDEX]")
@connection_flags
@click.pass_context
def show_logs(context: click.Context, name: str) -> None:
    """Print the last 64 KiB of what a task's code wrote: call index, stream, line."""
    with connect(fleet_of(context)) as client, _names():
        lines = client.logs(name)
    for line in lines:
        click.echo(line)
    if not lines:
        say(f"{name} has written nothing.")


@command.command("cancel")
@click.argument("names", nargs=-1, required=True, metavar="TASK[.INDEX]...")
@click.option("--force", is_flag=True, help="Also end calls that run: their workers are killed.")
@connection_flags
@click.pass_context
def cancel_tasks(context: click.Context, names: tuple[str, ...], force: bool) -> None:
    """Cancel the calls of tasks that have not started."""
    with connect(fleet_of(context)) as client:
        for name in names:
            with _names():
                # Asked first: a cancellation itself is not answered.
                if client.task(name).state == "collected":
                    raise Ending(f"{name} has ended: there is nothing to cancel.")
                client.cancel(name, force=force)
            say(f"{name}: cancelled" + ("." if force else ", but for what runs (see --force)."))


@command.command("explain")
@click.argument("name", metavar="TASK[.INDEX]")
@output_flag
@connection_flags
@click.pass_context
def explain_task(context: click.Context, name: str, output: str) -> None:
    """Show a task's attempts as a timeline, or why it isn't running."""
    with connect(fleet_of(context)) as client, _names():
        explanation = client.explain(name)
    if output != "table":
        print_record(asdict(explanation), "name", output)
        return
    for line in timeline(explanation):
        click.echo(line)


def timeline(explanation: Explanation) -> list[str]:
    """An explanation for people: where it is, every attempt in its time, and who could take it."""
    reason = f": {explanation.reason}" if explanation.reason else ""
    lines = [f"{explanation.name} is {explanation.state}{reason}"]
    if explanation.attempts:
        lines += ["", *_attempt_lines(explanation.attempts)]
    unable = {name: why for name, why in explanation.eligible.items() if why != "yes"}
    able = [name for name, why in explanation.eligible.items() if why == "yes"]
    if explanation.eligible and (unable or not explanation.attempts):
        lines.append("")
        if able:
            lines.append(f"  can run on {', '.join(able)}")
        lines += [f"  cannot run on {name}: {why}" for name, why in unable.items()]
    return lines


def _attempt_lines(attempts: Sequence[Attempt]) -> list[str]:
    """One line an attempt, oldest first, with a bar for its part of the time since the first."""
    oldest_s = max(attempt.age_s for attempt in attempts) or 1e-9
    width = 32
    names = max(len(attempt.device) for attempt in attempts)
    lines = []
    for attempt in attempts:
        ended_s = attempt.ended_s if attempt.ended_s is not None else 0.0
        low = round((oldest_s - attempt.age_s) / oldest_s * width)
        high = max(low + 1, round((oldest_s - ended_s) / oldest_s * width))
        bar = (" " * min(low, width - 1) + "━" * (high - low))[:width]
        calls = (
            f"call {attempt.low}"
            if attempt.high == attempt.low + 1
            else f"calls {attempt.low}-{attempt.high - 1}"
        )
        end = attempt.how or attempt.state or "open"
        lines.append(
            f"  {duration(attempt.age_s):>8} ago  {attempt.device:<{names}}  {bar:<{width}}  "
            f"{calls}: {end}"
        )
    return lines
