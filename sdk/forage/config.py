"""Where a client's settings come from: argument, environment, configuration files, default.

    argument > FORAGE_BROKER, FORAGE_ROOT, … > ./forage.toml > ~/.config/forage/config.toml
             > /etc/forage/client.toml > what `forage.discovery` finds, else
             mqtt://127.0.0.1:1883; root forage

The files are TOML with the keys `broker`, `root`, `user`, `insecure` and `tls_ca_file`; other keys
are left to other readers.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forage_wire.address import BrokerAddress, check_allowed, parse_broker_address
from forage_wire.records import dataclass
from forage_wire.topics import fold_name, is_name

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BROKER_DEFAULT", "ClientConfig", "configuration_files", "read_config"]

BROKER_DEFAULT = "mqtt://127.0.0.1:1883"
ROOT_DEFAULT = "forage"

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """What a connection needs to know before it is made."""

    address: BrokerAddress
    root: str
    """First topic segment of the fleet."""
    user: str
    """On whose behalf."""
    tls_ca_file: str | None
    """PEM file of the authority that signs the broker's certificate; None: the system's."""
    broker_origin: str
    """Where the broker's address was found, for people."""
    is_default: bool
    """Nobody has named a broker: `forage.discovery.located` may find another."""
    insecure: bool
    """A broker elsewhere that asks for no credentials is allowed."""


def configuration_files(environment: Mapping[str, str]) -> list[str]:
    """The files that are read if they exist, the strongest first."""
    # Texts, as `pathlib` takes its time to import.
    home = os.path.expanduser(environment.get("HOME", "~"))
    user = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    return [
        "forage.toml",
        os.path.join(user, "forage", "config.toml"),
        "/etc/forage/client.toml",
    ]


def read_config(
    *,
    broker: str | None = None,
    root: str | None = None,
    user: str | None = None,
    insecure: bool = False,
    environment: Mapping[str, str] | None = None,
    files: "Sequence[str | Path] | None" = None,
) -> ClientConfig:
    """The settings that hold.

    Args:
        broker: As given to `connect`; None: look further. The other arguments likewise.
        root: First topic segment.
        user: On whose behalf.
        insecure: Allow a broker elsewhere that asks for no credentials.
        environment: In place of this process's.
        files: In place of `configuration_files`.

    Raises:
        ValueError: One sentence that names the setting, where it stands and what is wrong.
    """
    if environment is None:
        environment = os.environ
    layers = _layers(environment, configuration_files(environment) if files is None else files)
    given = {"broker": broker, "root": root, "user": user, "insecure": insecure or None}
    layers.insert(0, ("the argument", {k: v for k, v in given.items() if v is not None}))

    broker_text, broker_origin = _found(layers, "broker", BROKER_DEFAULT)
    root_text, root_origin = _found(layers, "root", ROOT_DEFAULT)
    user_text, user_origin = _found(layers, "user", None)
    insecure_value, insecure_origin = _found(layers, "insecure", False)
    ca_file, _ = _found(layers, "tls_ca_file", None)
    try:
        address = parse_broker_address(_text(broker_text))
        is_insecure = _boolean(insecure_value, insecure_origin)
        check_allowed(address, is_insecure)
        root_name = _text(root_text)
    except ValueError as error:
        raise ValueError(f"{error} (It comes from {broker_origin}.)") from None
    if not is_name(root_name):
        raise ValueError(
            f"The root topic {root_name!r} (from {root_origin}) is not usable: use 1 to 32 of a-z, "
            "0-9, _ and -."
        )
    return ClientConfig(
        address=address,
        root=root_name,
        user=_user(user_text, user_origin, address),
        tls_ca_file=None if ca_file is None else _text(ca_file),
        broker_origin=broker_origin,
        is_default=not any("broker" in values for _origin, values in layers),
        insecure=is_insecure,
    )


def _layers(
    environment: Mapping[str, str], files: "Sequence[str | Path]"
) -> list[tuple[str, Mapping[str, Any]]]:
    variables = {
        name: environment[f"FORAGE_{name.upper()}"]
        for name in ("broker", "root", "user", "insecure", "tls_ca_file")
        if environment.get(f"FORAGE_{name.upper()}")
    }
    layers: list[tuple[str, Mapping[str, Any]]] = [("the environment", variables)]
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        # Parsed by hand of the standard library, which is not cheap to import: only where needed.
        import tomllib

        try:
            layers.append((str(path), tomllib.loads(text)))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"The configuration {path} is not valid TOML: {error}.") from None
    return layers


def _found(layers: list[tuple[str, Mapping[str, Any]]], name: str, default: Any) -> tuple[Any, str]:
    for origin, values in layers:
        if name in values:
            return values[name], origin
    return default, "the default"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text.")
    return value


def _boolean(value: Any, origin: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError(f"insecure is {value!r} in {origin}; write true or false.")


def _user(value: Any, origin: str, address: BrokerAddress) -> str:
    if value is None and address.username is None:
        import getpass

        try:
            login = getpass.getuser()
        except (OSError, KeyError, ImportError):
            # No such user in this container, or no such notion on this system.
            login = ""
        return fold_name(login, "user")
    name = address.username if value is None else value
    if not isinstance(name, str) or not is_name(name):
        whose = f"user (from {origin})" if value is not None else "login of the broker's address"
        raise ValueError(
            f"The {whose} is {name!r}, which cannot stand in a topic: use 1 to 32 of a-z, 0-9, _ "
            "and -, and begin with a letter or digit."
        )
    return name
