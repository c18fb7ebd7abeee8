"""`forage device ls|get|drain|undrain`."""

from dataclasses import asdict
from typing import Any

import click

from forage.cli.common import connect, connection_flags, fleet_of, help_without_command, say
from forage.cli.endings import usage_errors
from forage.cli.output import Column, duration, output_flag, print_record, print_rows

__all__ = ["command"]

_COLUMNS: list[Column] = [
    ("name", lambda row: row["name"]),
    ("state", lambda row: _state(row)),
    ("work", lambda row: f"{row['active_tasks']}/{row['slots']}"),
    ("cores", lambda row: row["cpu_cores"]),
    ("strength", lambda row: f"{row['cpu_strength']:.2f}"),
    ("python", lambda row: row["python"] or "-"),
    ("seen", lambda row: duration(row["last_seen_s"])),
    ("address", lambda row: row["address"] or "-"),
    ("labels", lambda row: ",".join(f"{k}={v}" for k, v in row["labels"].items()) or "-"),
]


def _state(row: Any) -> str:
    """The device's own word, and the controller's where it differs."""
    suspect = row["verdict"] == "suspect"
    return f"{row['state']} (suspect)" if suspect else str(row["state"])


@click.group(invoke_without_command=True)
@connection_flags
@click.pass_context
def command(context: click.Context) -> None:
    """The fleet: what devices there are, and which of them take work."""
    help_without_command(context)


@command.command("ls")
@output_flag
@connection_flags
@click.pass_context
def list_devices(context: click.Context, output: str) -> None:
    """List all devices that the controller knows."""
    with connect(fleet_of(context)) as client:
        rows = [asdict(device) for device in client.devices()]
    rows.sort(key=lambda row: row["name"])
    print_rows(rows, _COLUMNS, "name", output)
    if not rows:
        say(
            "No device yet. Make this machine one with `forage agent`, or start some here with "
            "`forage up`."
        )


@command.command("get")
@click.argument("name")
@output_flag
@connection_flags
@click.pass_context
def get_device(context: click.Context, name: str, output: str) -> None:
    """Show one device with everything that is known of it."""
    with connect(fleet_of(context)) as client, usage_errors():
        device = client.device(name)
    print_record(asdict(device), "name", output)


@command.command("drain")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@connection_flags
@click.pass_context
def drain_devices(context: click.Context, names: tuple[str, ...]) -> None:
    """Let devices finish what they run and take nothing new."""
    _drain(context, names, on=True)


@command.command("undrain")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@connection_flags
@click.pass_context
def undrain_devices(context: click.Context, names: tuple[str, ...]) -> None:
    """Let drained devices take work again."""
    _drain(context, names, on=False)


def _drain(context: click.Context, names: tuple[str, ...], *, on: bool) -> None:
    with connect(fleet_of(context)) as client:
        for name in names:
            with usage_errors():
                # Says which name is wrong, where one is, in the words of `device get`.
                client.device(name)
            client.drain(name, on)
            say(f"{name} takes no new work." if on else f"{name} takes work again.")
