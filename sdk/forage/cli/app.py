"""The tree of commands, and how one is run.

Owns the root command and its help. Each command's own module is imported when it is run, so that
`forage --version` does not pay for a network stack.
"""

import io
import logging
import os
import platform
import sys
from collections.abc import Sequence
from gettext import gettext
from importlib import import_module
from typing import Any

import click

from forage import __version__
from forage.cli import SERVICES, run_service
from forage.cli.common import connection_flags, ends_on_signals, fleet_of, help_without_command
from forage.cli.endings import end

__all__ = ["run"]

_COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "See it work: real input, three devices here, one killed on the way."),
    "up": ("up", "A broker, a controller and devices on this machine, until Ctrl-C."),
    "run": ("running", "Run one function on a device and print its result."),
    "map": ("mapping", "Run a function for every line of a JSON Lines file."),
    "device": ("devices", "The fleet: ls, get, drain, undrain."),
    "task": ("tasks", "What was submitted: ls, get, logs, cancel, explain."),
    "watch": ("watching", "All messages of the fleet, live and readable."),
    "decode": ("decoding", "One message, readable."),
}
"""The module of each command, and its line in the help."""

_SERVICE_HELP = {
    "broker": "The broker, in the foreground.",
    "controller": "The controller, in the foreground.",
    "agent": "The agent of this machine, which makes it a device; in the foreground.",
}


class _Root(click.Group):
    """Finds commands by name and imports them when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [*_COMMANDS, *SERVICES]

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name in SERVICES:
            return _service(cmd_name)
        if cmd_name not in _COMMANDS:
            return None
        module, _help = _COMMANDS[cmd_name]
        command: click.Command = import_module(f"forage.cli.{module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean `forage {close[0]}`?" if close else ""
            raise click.UsageError(f"{error.format_message()}{hint}", ctx) from None

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        # The lines stand here, as importing every command for its first line would take long.
        with formatter.section(gettext("Commands")):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])
        with formatter.section(gettext("Services")):
            formatter.write_dl(list(_SERVICE_HELP.items()))


def _service(name: str) -> click.Command:
    """A service after flags of the root, as in `forage --root lab agent`."""

    @click.command(
        name,
        help=_SERVICE_HELP[name],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def service(context: click.Context, words: tuple[str, ...]) -> int:
        return run_service(name, [*fleet_of(context).flags(), *words])

    return service


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from forage_wire.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

    click.echo(
        f"forage {__version__} (protocol {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}, "
        f"Python {platform.python_version()})"
    )
    context.exit()


@click.group(
    "forage",
    cls=_Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Completion in the shell: `eval "$(_FORAGE_COMPLETE=bash_source forage)"`; also '
    "zsh_source and fish_source.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions and exit.",
)
@connection_flags
@click.pass_context
def root(context: click.Context) -> None:
    """Run Python functions on a drawer of devices, over MQTT.

    Begin with `forage demo`, then `forage up`. The broker's address comes from --broker,
    FORAGE_BROKER, ./forage.toml, ~/.config/forage/config.toml or /etc/forage/client.toml, in this
    order; else it is mqtt://127.0.0.1:1883.
    """
    context.color = False if os.environ.get("NO_COLOR") else None
    help_without_command(context)


def run(words: Sequence[str]) -> int:
    """Run one command; its exit code. Nothing that is raised leaves it."""
    if completion := os.environ.get("_FORAGE_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(root, {}, "forage", "_FORAGE_COMPLETE", completion)
    # What the terminal or UTF-8 cannot hold appears as an escape, also in JSON, and ends nothing.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Silent until a command says otherwise: what goes wrong is told once, by the error.
    logging.basicConfig(format="forage: %(message)s", stream=sys.stderr)
    logging.getLogger("forage").setLevel(logging.CRITICAL)
    context: click.Context | None = None
    try:
        with ends_on_signals():
            context = root.make_context("forage", list(words))
            with context:
                result: Any = root.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    # Ctrl-C and SIGTERM end here too.
    except BaseException as error:
        debug = "--debug" in words if context is None else fleet_of(context).debug
        return end(error, debug=debug)
