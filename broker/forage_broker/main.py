"""`forage broker`: run a broker in the foreground until it is told to stop.

Owns the flags, the choice of the engine, the ready line, signals and exit codes. On stdout there is
one line, once clients may connect: `ready mqtt://HOST:PORT engine=ENGINE`. All else is on stderr.
"""

import argparse
import logging
import os
import queue
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from forage_broker.announcing import Announcement, announced_addresses, can_announce
from forage_broker.listener import PortInUse
from forage_broker.mosquitto import BrokerFailed, MosquittoBroker, find_mosquitto
from forage_wire.address import PORT_DEFAULT, BrokerAddress, is_loopback_host
from forage_wire.shell.notify import sd_notify
from forage_wire.topics import is_name

__all__ = ["main"]

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_BROKER_FAILED = 5
EXIT_INTERRUPTED = 130

ENGINES = ("auto", "embedded", "mosquitto")
LOG_LEVELS = ("debug", "info", "warning", "error")

logger = logging.getLogger("forage_broker")


class _Engine(Protocol):
    name: str
    host: str
    port: int

    def start(self) -> int: ...
    def stop(self) -> None: ...


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="forage broker",
        description="Run an MQTT broker for forage in the foreground.",
        epilog="Each flag but --insecure and --announce is also an environment variable: FORAGE_BROKER_ENGINE, "
        "FORAGE_BROKER_HOST, FORAGE_BROKER_PORT, FORAGE_ROOT, FORAGE_LOG_LEVEL.",
        allow_abbrev=False,
    )
    environment = os.environ.get
    # A default that is text passes through `type`, so a variable is checked as its flag is.
    parser.add_argument(
        "--engine",
        type=_one_of(ENGINES),
        default=environment("FORAGE_BROKER_ENGINE", "auto"),
        metavar="|".join(ENGINES),
        help="auto: the system's mosquitto where it is installed, else embedded (default: auto)",
    )
    parser.add_argument(
        "--host",
        default=environment("FORAGE_BROKER_HOST", "127.0.0.1"),
        help="the name or address to listen on (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=environment("FORAGE_BROKER_PORT", str(PORT_DEFAULT)),
        help=f"the port to listen on; 0 takes a free one (default: {PORT_DEFAULT})",
    )
    parser.add_argument(
        "--root",
        type=_root,
        default=environment("FORAGE_ROOT", "forage"),
        metavar="NAME",
        help="the first segment of topics, for the hint that is logged (default: forage)",
    )
    parser.add_argument(
        "--log-level",
        type=_one_of(LOG_LEVELS),
        default=environment("FORAGE_LOG_LEVEL", "info"),
        metavar="|".join(LOG_LEVELS),
        help="what to tell on stderr (default: info)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="listen on a host that others can reach, although anybody may then run code on "
        "the devices",
    )
    parser.add_argument(
        "--announce",
        action="store_true",
        help="tell the local network by mDNS, so that clients find this broker without its address",
    )
    return parser.parse_args(argv)


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return check


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)


def _root(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name of 1 to 32 characters of a-z, 0-9, _ and -"
        )
    return text


def _build(arguments: argparse.Namespace, on_death: Callable[[str], None]) -> _Engine:
    name = arguments.engine
    if name == "auto":
        name = "embedded" if find_mosquitto() is None else "mosquitto"
    if name == "mosquitto":
        return MosquittoBroker(arguments.host, arguments.port, on_death=on_death)
    # Imported where it is used: mosquitto's supervisor stays small.
    from forage_broker.embedded import EmbeddedBroker

    return EmbeddedBroker(arguments.host, arguments.port, on_death=on_death)


def _set_up_log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    if level != "debug":
        # They tell at "info" what interests only those who look for an error in them.
        for noisy in ("amqtt", "transitions", "asyncio"):
            logging.getLogger(noisy).setLevel(logging.WARNING)


def _fail(code: int, sentence: str) -> int:
    print(f"forage broker: {sentence}", file=sys.stderr)  # noqa: T201 - the terminal's error line
    return code


def _start(engine: _Engine, host: str, port: int) -> int:
    """Start the engine; its exit code, 0 if it runs."""
    try:
        engine.start()
    except PortInUse:
        return _fail(
            EXIT_USAGE,
            f"port {port} on {host} is in use by another program, perhaps another broker; stop "
            "that one, or choose another port with --port (0 takes a free one).",
        )
    except BrokerFailed as error:
        return _fail(EXIT_BROKER_FAILED, str(error))
    except (socket.gaierror, UnicodeError):
        return _fail(
            EXIT_USAGE, f"the host {host!r} is unknown; give an address of this machine as --host."
        )
    except OSError as error:
        return _fail(
            EXIT_USAGE,
            f"cannot listen on {host} port {port}: {error.strerror}; give an address of this "
            "machine as --host and a port that you may open as --port.",
        )
    return EXIT_DONE


def main(argv: list[str] | None = None) -> int:
    """Run a broker until SIGTERM (exit code 0), Ctrl-C (130) or its death (5).

    Args:
        argv: The flags; None takes the process's.

    Returns:
        The exit code; 2 for a wrong flag, a port in use, or an open host without `--insecure`.

    Raises:
        SystemExit: With 2 for a wrong flag, with 0 after `--help`.
    """
    arguments = _arguments(argv)
    _set_up_log(arguments.log_level)
    if not (is_loopback_host(arguments.host) or arguments.insecure):
        return _fail(
            EXIT_USAGE,
            f"the host {arguments.host!r} can be reached by others, and this broker asks nobody "
            "for credentials, so anybody on the network could run code on the devices; listen on "
            "127.0.0.1, or pass --insecure if that is what you want.",
        )
    if arguments.announce:
        sentence = _why_not_announced(arguments.host)
        if sentence:
            return _fail(EXIT_USAGE, sentence)
    if arguments.engine == "mosquitto" and find_mosquitto() is None:
        return _fail(
            EXIT_USAGE,
            "mosquitto is not installed; install it (Debian: apt install mosquitto), or pass "
            "--engine embedded.",
        )
    # What ends us, in the order of its coming: a signal's number, or why the engine died.
    # A SimpleQueue may be filled from a signal handler.
    ends: queue.SimpleQueue[int | str] = queue.SimpleQueue()

    def note_signal(number: int, _: FrameType | None) -> None:
        ends.put(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note_signal)
    engine = _build(arguments, ends.put)
    code = _start(engine, arguments.host, arguments.port)
    if code != EXIT_DONE:
        return code
    announcement: Announcement | None = None
    try:
        _say_ready(engine, arguments.root)
        if arguments.announce:
            announcement = _announce(engine)
        return _wait(ends)
    finally:
        if announcement is not None:
            announcement.stop()
        engine.stop()


def _why_not_announced(host: str) -> str:
    """Why a broker on this host cannot be announced; empty where it can."""
    if is_loopback_host(host):
        return (
            f"--announce tells others of this broker, but nobody else can reach {host!r}; listen on "
            "an address of the network with --host (and --insecure, for it asks nobody for "
            "credentials), or leave --announce out."
        )
    if not can_announce():
        return (
            "--announce needs the package zeroconf, which is not installed; install it with "
            "pip install 'forage-mqtt[mdns]'."
        )
    return ""


def _announce(engine: _Engine) -> Announcement | None:
    """Tell the network; a broker that cannot be announced is none the worse for it."""
    try:
        announcement = Announcement(engine.port, announced_addresses(engine.host))
        announcement.start()
    except OSError as error:
        logger.error(
            "the broker runs but cannot be announced (%s); give clients its address.",
            error.strerror or error,
        )
        return None
    logger.info("announced by mDNS as %r", announcement.name)
    return announcement


def _say_ready(engine: _Engine, root: str) -> None:
    address = BrokerAddress(host=engine.host, port=engine.port)
    try:
        print(f"ready {address} engine={engine.name}", flush=True)  # noqa: T201 - the ready line
    except OSError:
        pass  # Nobody reads it: a supervisor that went away is no reason to stop.
    sd_notify("READY=1")
    logger.info(
        "watch the fleet: mosquitto_sub -h %s -p %d -v -t '%s/1/device/#' -t '%s/1/controller/#'",
        engine.host,
        engine.port,
        root,
        root,
    )


def _wait(ends: "queue.SimpleQueue[int | str]") -> int:
    """Wait for the end; the exit code."""
    end = ends.get()
    if isinstance(end, str) and not ends.empty():
        end = ends.get()  # Ctrl-C reaches mosquitto too, which may be quicker to end than we.
    sd_notify("STOPPING=1")
    if isinstance(end, str):
        return _fail(EXIT_BROKER_FAILED, f"{end} Start `forage broker` again.")
    return EXIT_INTERRUPTED if end == signal.SIGINT else EXIT_DONE
