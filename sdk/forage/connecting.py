"""`connect`: from an address (or none) to a `Client` that a controller has welcomed."""

import os
import sys

import forage
from forage.client import Client
from forage.config import ClientConfig, read_config
from forage.core.client import ClientCore
from forage.discovery import located
from forage.errors import Refused
from forage.shell.leaving import watch
from forage.shell.line import random_digits
from forage.shell.network import Network
from forage_wire.topics import Topics

__all__ = ["IN_TASK_VARIABLE", "connect", "connect_as"]

IN_TASK_VARIABLE = "FORAGE_IN_TASK"
"""Set by agents in the workers that run users' calls."""


def connect(
    broker: str | None = None,
    *,
    root: str | None = None,
    user: str | None = None,
    insecure: bool = False,
    timeout_s: float = 5,
) -> Client:
    """Connect to a fleet.

    Args:
        broker: `mqtt://host:1883` or `mqtts://user:password@host:8883`; None: the variable
            FORAGE_BROKER, then ./forage.toml, the user's and the system's configuration, then
            this machine, then what announces itself on the network by mDNS (the extra `mdns`);
            with `insecure` the network before this machine.
        root: First topic segment; None: FORAGE_ROOT, configuration, then `forage`.
        user: On whose behalf; None: FORAGE_USER, configuration, the broker login, or the OS user.
        insecure: Allow a broker elsewhere that asks for no credentials.
        timeout_s: How long the broker, and then a controller, may take to answer.

    Returns:
        A client that a controller has welcomed. From now on a broker or controller that goes away
        is waited for: futures stay open until it is back.

    Raises:
        NotConnected: No broker there, or no controller behind it.
        Refused: The broker refuses the login; or this is a task, which must not connect.
        VersionMismatch: The controller speaks another version of the protocol.
        ValueError: The address or another setting is wrong.
    """
    _check_outside_of_tasks()
    config = read_config(broker=broker, root=root, user=user, insecure=insecure)
    return connect_as(config, timeout_s=timeout_s)


def connect_as(config: ClientConfig, *, timeout_s: float = 5) -> Client:
    """As `connect`, with settings that were read before."""
    _check_outside_of_tasks()
    if timeout_s <= 0:
        raise ValueError(f"timeout_s is a number of seconds above 0, not {timeout_s}.")
    config = located(config)
    core = ClientCore(
        user=config.user,
        client=random_digits(13),
        topics=Topics(config.root),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        software=f"forage {forage.__version__}",
        welcome_ms=max(1, round(timeout_s * 1000)),
    )
    network = Network(config.address, core, welcome_s=timeout_s, tls_ca_file=config.tls_ca_file)
    network.start()
    watch(network)
    return Client(network)


def _check_outside_of_tasks() -> None:
    if os.environ.get(IN_TASK_VARIABLE):
        raise Refused(
            "connect() was called inside a task: a call that waits for other calls would hold its "
            "slot while they wait for one; return what is needed and submit from the client."
        )
