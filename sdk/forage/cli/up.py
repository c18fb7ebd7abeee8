"""`forage up`: a whole fleet on this machine, for as long as the command runs."""

import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import click

from forage import LocalCluster
from forage.cli.common import connection_flags, fleet_of, say
from forage.cli.endings import EXIT_FAILED, EXIT_INTERRUPTED, Ending, usage_errors
from forage.cli.listening import Listener, Received
from forage.config import BROKER_DEFAULT, read_config
from forage_wire.codec import decode_json
from forage_wire.documents import DeviceVerdict
from forage_wire.errors import DecodeError
from forage_wire.topics import Topics

if TYPE_CHECKING:
    from forage.processes import LocalProcess

__all__ = ["command"]

_PORT = 1883
_LOOK_EVERY_S = 0.5


@click.command("up")
@click.option(
    "-n", "--devices", type=click.IntRange(1, 64), default=4, show_default=True, help="How many."
)
@click.option(
    "--slots", type=click.IntRange(1), default=1, show_default=True, help="Calls at a time on each."
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "embedded", "mosquitto"]),
    default="auto",
    show_default=True,
    help="The broker; auto: mosquitto where it is installed.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Of the broker, on 127.0.0.1.  [default: 1883, or a free one where that is taken]",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False),
    help="Keep state and logs there; otherwise they are removed at the end.",
)
@connection_flags
@click.pass_context
def command(
    context: click.Context,
    devices: int,
    slots: int,
    engine: str,
    port: int | None,
    state_dir: str | None,
) -> int:
    """Start a broker, a controller and devices on this machine; Ctrl-C ends them all.

    With --broker the controller and the devices use a broker that is there already.
    """
    fleet = fleet_of(context)
    root = fleet.config().root
    with usage_errors():
        cluster = LocalCluster(
            devices=devices,
            slots=slots,
            engine=engine,
            broker=fleet.broker,
            state_dir=state_dir,
            env={"FORAGE_ROOT": root},
            port=_free_port() if port is None else port,
        )
    say(f"Starting a fleet of {devices} …")
    try:
        with cluster:
            _show(cluster, root, slots)
            _follow(cluster, root)
    except KeyboardInterrupt:
        # The usual end; all has been put away by now.
        say("All of it has ended.")
        return EXIT_INTERRUPTED
    return EXIT_FAILED


def _free_port() -> int:
    """The port where everybody looks for a broker, or 0 (any) where somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _PORT))
        except OSError:
            return 0
    return _PORT


def _show(cluster: LocalCluster, root: str, slots: int) -> None:
    """What runs, and what to do with it; on stdout, as it is what the command is for."""
    devices = cluster.devices
    url = cluster.broker_url
    names = devices[0].name if len(devices) == 1 else f"{devices[0].name} to {devices[-1].name}"
    engine = "" if cluster.broker is None else f" ({cluster.broker.ready_line.split('=')[-1]})"
    click.echo(f"  broker      {url}{engine}")
    click.echo(f"  controller  pid {cluster.controller.pid}")
    click.echo(f"  devices     {names}, {slots} call{'s' if slots > 1 else ''} at a time each")
    click.echo()
    click.secho("Paste into another terminal:", bold=True)
    click.echo()
    for line in _snippet(url, root):
        click.echo(f"    {line}")
    click.echo()
    click.echo("Ctrl-C here ends all of it.")
    sys.stdout.flush()


def _snippet(url: str, root: str) -> list[str]:
    """Commands that work as they stand."""
    lines = []
    if url != BROKER_DEFAULT:
        lines.append(f"export FORAGE_BROKER={url}")
    if root != "forage":
        lines.append(f"export FORAGE_ROOT={root}")
    return [
        *lines,
        "forage device ls",
        "forage run math:factorial 30",
        "python3 - <<'END'",
        "import forage",
        "with forage.connect() as client:",
        "    print(list(client.map(pow, range(10), [2] * 10)))",
        "END",
    ]


def _follow(cluster: LocalCluster, root: str) -> None:
    """Say what becomes of the devices; raises Ending when the fleet cannot go on."""
    topics = Topics(root)

    def take(message: Received) -> None:
        parsed = topics.parse(message.topic)
        try:
            verdict = decode_json(message.payload, DeviceVerdict)
        except DecodeError:
            return
        if parsed is not None and not message.retain:
            why = f" ({verdict.why})" if verdict.why else ""
            say(f"{time.strftime('%H:%M:%S')}  {parsed.device} is {verdict.verdict}{why}")

    config = read_config(broker=cluster.broker_url, root=root)
    ended: set[str] = set()
    with Listener(config, [topics.verdict("+", "+")], take, on_change=say):
        while True:
            time.sleep(_LOOK_EVERY_S)
            for service in (cluster.broker, cluster.controller):
                if service is not None and not service.is_running:
                    raise Ending(service.complaint("has ended"), EXIT_FAILED)
            for device in cluster.devices:
                if not device.is_running and device.name not in ended:
                    ended.add(device.name)
                    say(f"{time.strftime('%H:%M:%S')}  {device.name} has ended ({_how(device)})")
            if len(ended) == len(cluster.devices):
                raise Ending("All devices have ended; start anew with `forage up`.", EXIT_FAILED)


def _how(process: "LocalProcess") -> str:
    code = process.exit_code
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
