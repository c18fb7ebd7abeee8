"""What the commands share: the flags that say which fleet, how to print, and the connection."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from forage.cli.endings import EXIT_USAGE, Terminated, usage_errors

if TYPE_CHECKING:
    from forage import Client
    from forage.config import ClientConfig

__all__ = [
    "Fleet",
    "connect",
    "connection_flags",
    "ends_on_signals",
    "fleet_of",
    "help_without_command",
    "is_plain",
    "say",
]

_ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(slots=True, kw_only=True)
class Fleet:
    """Which fleet the command speaks to, as far as flags say; the rest is configuration."""

    broker: str | None = None
    root: str | None = None
    insecure: bool = False
    debug: bool = False
    _located: "ClientConfig | None" = None

    def flags(self) -> list[str]:
        """The flags again, for a service or for a command that somebody is to type."""
        words = []
        if self.broker is not None:
            words += ["--broker", self.broker]
        if self.root is not None:
            words += ["--root", self.root]
        if self.insecure:
            words += ["--insecure"]
        return words

    def config(self) -> "ClientConfig":
        """What holds after all layers: flag, FORAGE_*, the files, the defaults."""
        from forage.config import read_config

        with usage_errors():
            return read_config(broker=self.broker, root=self.root, insecure=self.insecure)

    def located(self) -> "ClientConfig":
        """As `config`, with a broker that was looked for where none is named; looked for once."""
        if self._located is None:
            from forage.discovery import located

            with usage_errors():
                self._located = located(self.config())
        return self._located


def fleet_of(context: click.Context) -> Fleet:
    """The one `Fleet` of this run; commands and groups write their flags into it."""
    return context.find_root().ensure_object(Fleet)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    # What was not given must not undo what was given further left.
    if value and parameter.name is not None:
        setattr(fleet_of(context), parameter.name, value)


def connection_flags(command: _Command) -> _Command:
    """The flags --broker, --root, --insecure and --debug, on the left or right of a command."""
    flags = [
        _flag(
            "--broker",
            metavar="URL",
            help="The MQTT broker, mqtt://host:1883 or mqtts://user:password@host.",
        ),
        _flag("--root", metavar="NAME", help="First segment of the fleet's topics."),
        _flag(
            "--insecure",
            is_flag=True,
            help="Allow a broker elsewhere that asks for no credentials.",
        ),
        _flag("--debug", is_flag=True, help="Show tracebacks and the log."),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


def _flag(*names: str, **settings: Any) -> Callable[[_Command], _Command]:
    return click.option(*names, expose_value=False, callback=_remember, **settings)


def help_without_command(context: click.Context) -> None:
    """Of a group that was called without a verb: show what there is, exit code 2."""
    if context.invoked_subcommand is None:
        say(context.get_help())
        context.exit(EXIT_USAGE)


def say(text: str = "") -> None:
    """A message for the user: on stderr, for stdout holds data alone."""
    click.echo(text, err=True)


def is_plain(stream: Any = None) -> bool:
    """Whether to write plain lines: no terminal, or the user asks for no colours, or a CI runs us."""
    stream = sys.stderr if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb":
        return True
    return not stream.isatty()


@contextmanager
def connect(fleet: Fleet) -> Iterator["Client"]:
    """A client of the fleet, closed at the end.

    Open calls are cancelled where the block is left by an exception; a command that ends does not
    wait for work that nobody will look at.
    """
    from forage.connecting import connect_as

    config = fleet.located()
    with usage_errors():
        client = connect_as(config)
    # What it reports before is in the error that it raises; from here on it has news.
    show_log(fleet, logging.WARNING)
    try:
        yield client
    except BaseException:
        client.shutdown(wait=True, cancel_futures=True)
        raise
    client.shutdown(wait=True)


def show_log(fleet: Fleet, level: int) -> None:
    """Let the log of `forage` through from a level on; everything with --debug."""
    logging.getLogger("forage").setLevel(logging.DEBUG if fleet.debug else level)


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that it can put away what it started."""

    def terminate(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = {number: signal.signal(number, terminate) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
