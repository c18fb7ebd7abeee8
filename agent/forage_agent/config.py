"""The agent's configuration: flag > `FORAGE_*` > TOML > default, as one frozen object.

Every key is a flag (`--state-dir`), an environment variable (`FORAGE_STATE_DIR`) and a key of the
TOML files (`state_dir`). Maps repeat the flag (`--label room=attic --label camera`), are separated
by commas in the environment, and are tables in TOML.
"""

import argparse
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from forage_agent import __version__
from forage_agent.core.settings import NamedFunction
from forage_agent.shell.host import network_class
from forage_wire.address import BrokerAddress, check_allowed, parse_broker_address
from forage_wire.limits import PACKET_BYTES_MAX, PACKET_BYTES_MIN
from forage_wire.texts import check_text
from forage_wire.topics import fold_name, is_name

__all__ = ["Config", "ConfigError", "default_toml", "load_config", "print_config"]

SYSTEM_FILE = "/etc/forage/agent.toml"
SYSTEM_FOLDER = "/etc/forage/agent.d"
LOG_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(ValueError):
    """The configuration cannot be used; one sentence says why and what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that is configured, checked."""

    broker: BrokerAddress
    root: str = "forage"
    name: str
    slots: int = 0
    """0: as many as there are cores."""
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)
    functions: Mapping[str, NamedFunction] = field(default_factory=dict)
    network: str = "auto"
    queue_bytes_max: int = 0
    """0: a sixteenth of the memory."""
    packet_bytes_max: int = PACKET_BYTES_MAX
    state_dir: str
    log_level: str = "info"
    insecure: bool = False
    tls_ca_file: str = ""
    software: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each value came from."""


# -- readers of one value each: from text, or from TOML --------------------------------------------


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("it must be text")
    return raw


def _count(minimum: int, maximum: int) -> Callable[[Any], int]:
    def read(raw: Any) -> int:
        try:
            number = int(raw) if isinstance(raw, str | int) and not isinstance(raw, bool) else -1
        except ValueError:
            number = -1
        if not minimum <= number <= maximum:
            raise ValueError(f"it must be a number from {minimum} to {maximum}")
        return number

    return read


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or not is_name(raw):
        raise ValueError("use 1 to 32 of a-z, 0-9, _ and -, beginning with a letter or digit")
    return raw


def _level(raw: Any) -> str:
    if raw not in LOG_LEVELS:
        raise ValueError(f"it must be one of {', '.join(LOG_LEVELS)}")
    return str(raw)


def _switch(raw: Any) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "0": False,
        "false": False,
        "no": False,
        "": False,
    }
    found = raw if isinstance(raw, bool) else words.get(str(raw).lower())
    if found is None:
        raise ValueError("it must be true or false")
    return found


def _network(raw: Any) -> str:
    text = str(raw)
    if text != "auto":
        network_class(text)
    return text


def _broker(raw: Any) -> BrokerAddress:
    return parse_broker_address(_text(raw))


def _pairs(raw: Any) -> dict[str, Any]:
    """A table, a list of KEY=VALUE, or one text with commas."""
    if isinstance(raw, Mapping):
        return dict(raw)
    rows = [row for row in raw.split(",") if row.strip()] if isinstance(raw, str) else list(raw)
    found: dict[str, Any] = {}
    for row in rows:
        key, _, value = str(row).partition("=")
        if not key.strip():
            raise ValueError(f"{row!r} is not KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def _labels(raw: Any) -> dict[str, str]:
    found = {key: str(value) for key, value in _pairs(raw).items()}
    if len(found) > 64 or any(len(key) > 64 or len(text) > 256 for key, text in found.items()):
        raise ValueError("at most 64 labels, keys to 64 and values to 256 characters")
    for key, value in found.items():
        check_text(f"{key}={value}", f"the label {key!r}")
    return found


def _resources(raw: Any) -> dict[str, int]:
    count = _count(0, 2**53)
    return {check_text(key, f"{key!r}"): count(value) for key, value in _pairs(raw).items()}


def _functions(raw: Any) -> dict[str, NamedFunction]:
    found: dict[str, NamedFunction] = {}
    for name, value in _pairs(raw).items():
        if isinstance(value, Mapping):
            target, release = str(value.get("target", "")), str(value.get("version", "1"))
        else:
            target, _, release = str(value).partition(" ")
        module, colon, attribute = target.partition(":")
        if not (colon and module and attribute) or not 0 < len(name) <= 128:
            raise ValueError(
                f"the function {name!r} must be given as module:attribute, "
                f'such as "org.app.task" = "app.tasks:task"'
            )
        check_text(name, f"the function's name {name!r}")
        found[name] = NamedFunction(target=target, version=release.strip()[:32] or "1")
    return found


@dataclass(frozen=True, slots=True)
class _Key:
    """One thing that can be configured."""

    name: str
    read: Callable[[Any], Any]
    default: Callable[[], Any]
    help: str
    flag: str = ""
    metavar: str = ""

    @property
    def option(self) -> str:
        return f"--{self.flag or self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"FORAGE_{self.name.upper()}"


def _default_state_dir() -> str:
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return given
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "forage")


KEYS = (
    _Key(
        "broker",
        _broker,
        lambda: "mqtt://127.0.0.1:1883",
        "the MQTT broker: mqtt://host:1883, mqtts://user:password@host:8883",
        metavar="URL",
    ),
    _Key("root", _name, lambda: "forage", "first segment of all topics"),
    _Key(
        "name",
        _name,
        lambda: fold_name(socket.gethostname(), "device"),
        "this device's name on the bus (default: the host's)",
    ),
    _Key(
        "slots",
        _count(0, 4_096),
        lambda: 0,
        "calls that run at a time (default: as many as there are cores)",
        metavar="N",
    ),
    _Key(
        "labels",
        _labels,
        dict,
        "what tasks may ask for; may be repeated",
        flag="label",
        metavar="KEY=VALUE",
    ),
    _Key(
        "resources",
        _resources,
        dict,
        "what tasks may ask for a number of; may be repeated",
        flag="resource",
        metavar="KEY=COUNT",
    ),
    _Key(
        "functions",
        _functions,
        dict,
        "a function that this device has by itself; may be repeated",
        flag="function",
        metavar="NAME=MODULE:ATTRIBUTE",
    ),
    _Key(
        "network",
        _network,
        lambda: "auto",
        "class of the network to the broker (LAN100, WLAN-g, …) or bytes a second",
        metavar="CLASS",
    ),
    _Key(
        "queue_bytes_max",
        _count(0, 2**53),
        lambda: 0,
        "arguments held at a time (default: a sixteenth of the memory)",
        metavar="BYTES",
    ),
    _Key(
        "packet_bytes_max",
        _count(PACKET_BYTES_MIN, PACKET_BYTES_MAX),
        lambda: PACKET_BYTES_MAX,
        "the longest message sent or taken in one packet",
        metavar="BYTES",
    ),
    _Key(
        "state_dir",
        _text,
        _default_state_dir,
        "where the agent keeps what it has measured",
        metavar="DIR",
    ),
    _Key("log_level", _level, lambda: "info", "debug, info, warning or error", metavar="LEVEL"),
    _Key(
        "insecure",
        _switch,
        lambda: False,
        "allow a broker on another machine without credentials",
    ),
    _Key(
        "tls_ca_file",
        _text,
        lambda: "",
        "PEM file of the authority that signs the broker's certificate",
        metavar="FILE",
    ),
)


# -- sources --------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="forage agent",
        description="Make this machine a device of the bus: it runs what clients submit.",
        allow_abbrev=False,
    )
    for key in KEYS:
        if key.read is _switch:
            found.add_argument(key.option, dest=key.name, action="store_true", help=key.help)
        elif key.read in (_labels, _resources, _functions):
            found.add_argument(
                key.option, dest=key.name, action="append", metavar=key.metavar, help=key.help
            )
        else:
            metavar = key.metavar or key.name.upper()
            found.add_argument(key.option, dest=key.name, metavar=metavar, help=key.help)
    found.add_argument("--config", metavar="FILE", help=f"in place of {SYSTEM_FILE}")
    found.add_argument(
        "--print-config", action="store_true", help="show each value and where it came from"
    )
    found.add_argument(
        "--write-config",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write a commented default configuration (to stdout without FILE)",
    )
    return found


def _files(config: str | None) -> list[str]:
    if config:
        return [config]
    found = [SYSTEM_FILE] if os.path.exists(SYSTEM_FILE) else []
    if os.path.isdir(SYSTEM_FOLDER):
        names = sorted(name for name in os.listdir(SYSTEM_FOLDER) if name.endswith(".toml"))
        found.extend(os.path.join(SYSTEM_FOLDER, name) for name in names)
    return found


def _read_files(config: str | None) -> dict[str, tuple[Any, str]]:
    """(value, file) by key; later files win, tables are merged."""
    found: dict[str, tuple[Any, str]] = {}
    for path in _files(config):
        # Most agents have flags alone: then this module is not loaded.
        import tomllib

        try:
            with open(path, "rb") as file:
                table = tomllib.load(file)
        except OSError as error:
            raise ConfigError(
                f"The configuration {path} cannot be read: {error.strerror}."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"The configuration {path} is not TOML: {error}.") from None
        known = {key.name for key in KEYS}
        for name, value in table.items():
            if name not in known:
                raise ConfigError(
                    f"The configuration {path} has the key {name!r}, which the agent does not "
                    f"know; it knows {', '.join(sorted(known))}."
                )
            before = found.get(name, (None, ""))[0]
            if isinstance(before, dict) and isinstance(value, dict):
                value = {**before, **value}
            found[name] = (value, path)
    return found


def load_config(
    arguments: argparse.Namespace, environment: Mapping[str, str] | None = None
) -> Config:
    """The configuration that flags, environment and files give together.

    Args:
        arguments: Parsed by `parser`.
        environment: `os.environ` where None.

    Raises:
        ConfigError: A value cannot be used; one sentence.
    """
    environment = os.environ if environment is None else environment
    in_files = _read_files(arguments.config or environment.get("FORAGE_CONFIG") or None)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key in KEYS:
        given = getattr(arguments, key.name)
        if given not in (None, False):
            raw, source = given, key.option
        elif key.variable in environment:
            raw, source = environment[key.variable], key.variable
        elif key.name in in_files:
            raw, source = in_files[key.name]
        else:
            raw, source = key.default(), "default"
        try:
            values[key.name] = key.read(raw)
        except ValueError as error:
            text = str(error)
            # Addresses bring their own sentence, which does not show a password.
            if key.read is _broker or key.read is _network:
                raise ConfigError(f"{text} (from {source})") from None
            raise ConfigError(
                f"The value {raw!r} of {key.name} (from {source}) is not usable: {text.rstrip('.')}."
            ) from None
        sources[key.name] = source
    try:
        check_allowed(values["broker"], values["insecure"])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Config(**values, software=f"forage {__version__}", sources=sources)


# -- for people -----------------------------------------------------------------------------------


def print_config(config: Config) -> str:
    """Each value and where it came from."""
    rows = [(key.name, _shown(getattr(config, key.name)), config.sources[key.name]) for key in KEYS]
    width = max(len(name) for name, _value, _source in rows)
    return "\n".join(f"{name:<{width}} = {value}    # {source}" for name, value, source in rows)


def _shown(value: Any) -> str:
    if isinstance(value, BrokerAddress):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        inner = ", ".join(f'"{key}" = {_shown(one)}' for key, one in value.items())
        return "{" + (f" {inner} " if inner else "") + "}"
    if isinstance(value, NamedFunction):
        return f'"{value.target} {value.version}"'
    return f'"{value}"' if isinstance(value, str) else str(value)


def default_toml() -> str:
    """A configuration in which everything is commented out."""
    lines = [
        "# The agent's configuration. Flags and FORAGE_* variables win over this file.",
        "",
    ]
    for key in KEYS:
        lines.append(f"# {key.help[0].upper()}{key.help[1:]}.")
        if key.read in (_labels, _resources, _functions):
            example = {
                "labels": '{ room = "attic" }',
                "resources": "{ camera = 1 }",
                "functions": '{ "org.app.task" = "app.tasks:task" }',
            }[key.name]
            lines.append(f"# {key.name} = {example}")
        else:
            lines.append(f"# {key.name} = {_shown(key.default())}")
        lines.append("")
    return "\n".join(lines)
