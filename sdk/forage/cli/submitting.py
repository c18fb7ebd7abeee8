"""What `run` and `map` share: the flags that become options of a submission."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from forage.cli.endings import usage_errors

if TYPE_CHECKING:
    from forage import Client

__all__ = ["submission_flags", "with_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NAMES = (
    *("device", "requires", "retries", "timeout_s", "wait_s", "priority", "at_most_once"),
    *("replicas", "quorum", "backoff_s", "deadline_s", "exclusive", "lease_s", "clones"),
)


def submission_flags(command: _Command) -> _Command:
    """The flags of `Client.options`; the command gets them by the names there."""
    flags = [
        click.option("--device", multiple=True, metavar="NAME", help="Only this device; repeat."),
        click.option(
            "--requires",
            multiple=True,
            metavar="WHAT",
            help="What a device must have: camera, room=lab, memory_mb>=512; repeat.",
        ),
        click.option("--retries", type=int, metavar="N", help="Runs after a first that fails."),
        click.option("--timeout-s", type=float, metavar="S", help="End a call after so long."),
        click.option(
            "--wait-s", type=float, metavar="S", help="How long to wait for a device; 30."
        ),
        click.option("--priority", type=int, metavar="N", help="-100 to 100; higher goes first."),
        click.option("--at-most-once", is_flag=True, help="Never run again what may have started."),
        click.option(
            "--backoff-s", type=float, metavar="S", help="Before a first retry; then twice that."
        ),
        click.option(
            "--deadline-s", type=float, metavar="S", help="End what has not ended so long after."
        ),
        click.option("--exclusive", is_flag=True, help="Never two attempts of a call at a time."),
        click.option(
            "--lease-s", type=float, metavar="S", help="How long without the controller; 15."
        ),
        click.option(
            "--clones/--no-clones",
            default=None,
            help="Whether a call that takes long may get a second attempt; it may.",
        ),
        click.option(
            "--replicas",
            type=int,
            metavar="N",
            help="Run each call on N devices and believe what most of them say. What they write "
            "is not shown as it comes.",
        ),
        click.option(
            "--quorum", type=int, metavar="M", help="How many of the N must agree; the majority."
        ),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


def with_options(client: "Client", flags: dict[str, Any]) -> "Client":
    """A view of the client with the options that were given."""
    given: dict[str, Any] = {}
    for name in _NAMES:
        value = flags.get(name)
        # Not by equality: 0 is a value, and equal to False.
        is_given = value is not None and value != () and (value is not False or name == "clones")
        if is_given:
            given[name] = list(value) if isinstance(value, tuple) else value
    with usage_errors():
        return client.options(**given)
