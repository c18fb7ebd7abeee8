"""`forage watch`: the fleet's messages, live, read for people."""

import queue
from datetime import datetime
from typing import Any

import click

from forage.cli.common import connection_flags, fleet_of, say
from forage.cli.endings import EXIT_INTERRUPTED, Ending, usage_errors
from forage.cli.listening import Listener, Received
from forage.cli.output import to_json
from forage.cli.reading import Reader, Reading, one_line
from forage_wire.texts import check_text
from forage_wire.topics import Topics

__all__ = ["command", "filter_of"]

_LINE_MAX = 400
"""Characters of a message on one line; `--full` shows all."""

_COLOURS = {
    "device": "green",
    "controller": "cyan",
    "client": "magenta",
    "status": "blue",
    "log": "yellow",
    "inbox": "bright_black",
    "outbox": "bright_black",
    "task": "bright_black",
    "from": "bright_black",
    "to": "bright_black",
}
"""By the topic's first level: what people read stands out, work is grey."""


def filter_of(text: str, root: str) -> str:
    """What to subscribe to, for what a user typed.

    A whole filter such as `forage/1/device/#` is taken as it is; `device/#` stands below the
    fleet's root; a branch alone, `device` or `log/anna`, means all below it.

    Raises Ending where it is no MQTT filter.
    """
    levels = text.strip("/").split("/")
    for place, level in enumerate(levels):
        is_hash_inside = "#" in level and (level != "#" or place != len(levels) - 1)
        if is_hash_inside or ("+" in level and level != "+"):
            raise Ending(
                f"{text!r} is not an MQTT topic filter: + stands for one whole level, and # for all "
                "that follow, at the end; for example `forage watch 'device/+/presence'`."
            )
    prefix = Topics(root).prefix
    if levels == [""]:
        return f"{prefix}#"
    if levels[0] == root and len(levels) > 1:
        return "/".join(levels)
    is_whole = "#" in levels or "+" in levels or levels[-1] in ("presence", "capabilities", "load")
    return prefix + "/".join(levels) + ("" if is_whole else "/#")


@click.command("watch")
@click.argument("topic", default="")
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many messages.")
@click.option("--full", is_flag=True, help="Show messages whole, however long.")
@click.option("--new", is_flag=True, help="Leave out what the broker had kept (retained).")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    show_default=True,
    help="How to print.",
)
@connection_flags
@click.pass_context
def command(
    context: click.Context, topic: str, count: int | None, full: bool, new: bool, output: str
) -> int:
    """Show all messages of the fleet, or those of TOPIC, until Ctrl-C.

    \b
    forage watch                     everything
    forage watch device              what devices say of themselves
    forage watch log                 what tasks write
    forage watch 'inbox/+'           the work that devices are given
    """
    config = fleet_of(context).located()
    reader = Reader(Topics(config.root))
    with usage_errors():
        topic_filter = filter_of(check_text(topic, f"The topic {topic!r}"), config.root)
    # Printed by this thread: a terminal that is slow, or a pipe that closes, is no matter of the
    # connection's.
    messages: queue.SimpleQueue[tuple[datetime, Received]] = queue.SimpleQueue()
    left = -1 if count is None else count

    def take(message: Received) -> None:
        if not (new and message.retain):
            messages.put((datetime.now(), message))

    try:
        with Listener(config, [topic_filter], take, on_change=say):
            say(f"Watching {topic_filter} on {config.address}; Ctrl-C ends.")
            while left:
                moment, message = messages.get()
                _print(reader.read(message.topic, message.payload), message, moment, output, full)
                left -= 1
    except KeyboardInterrupt:
        # The usual end of a watch, and nothing to be said about it.
        return EXIT_INTERRUPTED
    return 0


def _print(reading: Reading, message: Received, moment: datetime, output: str, full: bool) -> None:
    if output == "jsonl":
        click.echo(to_json(_row(reading, message, moment)))
        return
    text = reading.content if reading.branch == "log" else one_line(reading.content)
    if reading.problem:
        text = f"{text} ({reading.problem})"
    if not full and len(text) > _LINE_MAX:
        text = f"{text[:_LINE_MAX]}… ({len(message.payload)} bytes)"
    colour = _COLOURS.get(reading.topic.partition("/")[0])
    kept = "*" if message.retain else " "
    # The topic of a document says what it is.
    shows_kind = reading.branch not in ("log", reading.kind) and reading.kind != "verdict"
    kind = f"{click.style(reading.kind, bold=True)} " if shows_kind else ""
    head = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}{kept}"
    for line in text.splitlines() or [""]:
        click.echo(f"{head} {click.style(reading.topic, fg=colour)}  {kind}{line}".rstrip())


def _row(reading: Reading, message: Received, moment: datetime) -> dict[str, Any]:
    row: dict[str, Any] = {
        "time": moment.astimezone().isoformat(timespec="milliseconds"),
        "topic": message.topic,
        "retained": message.retain,
        "bytes": len(message.payload),
        "kind": reading.kind,
        "content": reading.content,
    }
    if reading.link:
        row["link"] = dict(reading.link)
    if reading.problem:
        row["problem"] = reading.problem
    return row
