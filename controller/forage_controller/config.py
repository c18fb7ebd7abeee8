"""The controller's settings: from flags, environment and TOML to one frozen configuration."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forage_controller.core.config import CoreConfig
from forage_wire.address import BrokerAddress, check_allowed
from forage_wire.shell.configuration import (
    BROKER,
    INSECURE,
    LOG_LEVEL,
    ROOT,
    SERVICE_SETTINGS,
    TLS_CA_FILE,
    Setting,
    Settings,
    boolean,
    configure,
    name,
    path,
    seconds,
    state_directory,
)
from forage_wire.topics import fold_name
from forage_wire.version import __version__

__all__ = ["PROGRAM", "ControllerConfig", "read_config"]

PROGRAM = "forage controller"

MAIN = "main"
NAME: Setting[str | None] = Setting(
    key="name",
    parse=name,
    default_words="main, or with --standby this machine's name",
    metavar="NAME",
    help="This controller's name in topics; each of several has its own.",
)
STATE_DIR: Setting[Path] = Setting(
    key="state_dir",
    parse=path,
    default=state_directory("controller"),
    default_words="$STATE_DIRECTORY, else ~/.local/state/forage/controller",
    metavar="DIR",
    help="Where tasks and outcomes are kept; one controller's alone.",
)
DETECT_S: Setting[float | str] = Setting(
    key="detect_s",
    parse=seconds(0.1, 3_600, "auto"),
    default="auto",
    metavar="SECONDS",
    help="Silence after which a device counts as dead, and an active controller to one that stands "
    "by; auto: 0.5 for those on the broker's own machine, else 15.",
)
STANDBY: Setting[bool] = Setting(
    key="standby",
    parse=boolean,
    default="false",
    metavar="",
    help="Stand by while another controller rules, keep a copy of its state, and take over when it "
    "is gone.",
)
SYNCHRONOUS: Setting[bool] = Setting(
    key="synchronous",
    parse=boolean,
    default="false",
    metavar="",
    help="Acknowledge only what every standby that follows has on its disk as well.",
)
SETTINGS: tuple[Setting[Any], ...] = (
    *SERVICE_SETTINGS,
    NAME,
    STATE_DIR,
    DETECT_S,
    STANDBY,
    SYNCHRONOUS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """What one controller process is told at start.

    Attributes:
        core: What the core needs of it.
        broker: Where the broker is, and our credentials.
        tls_ca_file: Authority of the broker's certificate; None: the system's.
        state_dir: Made where it is missing.
        log_level: debug, info, warning or error.
        standby: Whether it stands by while another rules.
    """

    core: CoreConfig
    broker: BrokerAddress
    tls_ca_file: Path | None
    state_dir: Path
    log_level: str
    standby: bool = False


def _machine_name() -> str:
    return fold_name(socket.gethostname().partition(".")[0], "standby")


def _build(settings: Settings) -> ControllerConfig:
    check_allowed(settings[BROKER], settings[INSECURE])
    detect_s = settings[DETECT_S]
    return ControllerConfig(
        core=CoreConfig(
            name=settings[NAME] or (_machine_name() if settings[STANDBY] else MAIN),
            root=settings[ROOT],
            detect_ms=None if isinstance(detect_s, str) else round(detect_s * 1000),
            software=f"forage {__version__}",
            synchronous=settings[SYNCHRONOUS],
        ),
        broker=settings[BROKER],
        tls_ca_file=settings[TLS_CA_FILE],
        state_dir=settings[STATE_DIR],
        log_level=settings[LOG_LEVEL],
        standby=settings[STANDBY],
    )


def read_config(argv: Sequence[str] | None) -> ControllerConfig | int:
    """The configuration, or an exit code where everything has been said."""
    return configure(
        program=PROGRAM,
        description="Assigns calls to devices, and keeps tasks and outcomes until they are "
        "collected.",
        settings=SETTINGS,
        build=_build,
        argv=argv,
        file_name="controller",
    )
