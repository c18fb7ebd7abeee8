"""Where a service's settings come from: flag > `FORAGE_*` > TOML files > default.

Owns the layers, their order and what is printed about them; a service owns its list of `Setting`s
and the frozen dataclass that it builds from the values. Agent, controller and broker share this.

Every setting is text until its parser has read it, whatever layer it came from: a TOML list becomes
`a,b`, a TOML table `key=value,key=value`, and a repeated flag the same. So each setting has one
parser, and the layers cannot disagree about what a value means.

A service in full::

    DETECT = Setting(key="detect_s", default="auto", parse=seconds(0.1, 3600, "auto"), metavar="SECONDS",
                     help="Silence after which a device counts as dead.")

    config = configure(
        program="forage controller", description="Assigns calls to devices.",
        settings=[*SERVICE_SETTINGS, DETECT], build=build, argv=argv, file_name="controller",
    )
    if isinstance(config, int):
        return config        # everything has been said; this is the exit code
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from forage_wire.address import BrokerAddress, parse_broker_address
from forage_wire.topics import is_name

__all__ = [
    "BROKER",
    "INSECURE",
    "LOG_LEVEL",
    "LOG_LEVELS",
    "ROOT",
    "SERVICE_SETTINGS",
    "TLS_CA_FILE",
    "ConfigurationError",
    "Settings",
    "Setting",
    "boolean",
    "choice",
    "configure",
    "default_file_text",
    "integer",
    "items",
    "name",
    "pairs",
    "path",
    "read_settings",
    "seconds",
    "settings_text",
    "state_directory",
    "text",
]

T = TypeVar("T")
C = TypeVar("C")

ENVIRONMENT_PREFIX = "FORAGE_"
SYSTEM_DIRECTORY = Path("/etc/forage")
EXIT_USAGE = 2

Environment = Mapping[str, str]


class ConfigurationError(Exception):
    """A setting cannot be used; the text is one sentence that says which, where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Generic[T]):
    """One thing that can be set: a flag, a variable and a TOML key of one name.

    Attributes:
        key: As in TOML, with underscores. `detect_s` is also `--detect-s` and `FORAGE_DETECT_S`.
        parse: Text to value; `ValueError` with a phrase such as "must be a whole number, not 'x'".
        help: One line for `--help` and the written file.
        default: As a user would type it, or a function of the environment that gives that; None
            leaves the setting without a value (`T` then includes None).
        default_words: What stands for a computed default in `--help`.
        metavar: What `--help` shows for the value; empty for a switch, which takes none.
        repeated: The flag may be given several times; the texts are joined with commas.
        show: The value as text for `--print-config`, for settings that hold a secret.
    """

    key: str
    parse: Callable[[str], T]
    help: str
    default: str | Callable[[Environment], str] | None = None
    default_words: str = ""
    metavar: str = "TEXT"
    repeated: bool = False
    show: Callable[[T], str] | None = None

    @property
    def flag(self) -> str:
        """The long flag."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    text: str | None
    origin: str
    value: Any


class Settings:
    """The values, typed by their settings: `settings[BROKER]` is a `BrokerAddress`."""

    def __init__(self, found: Mapping[str, _Found], order: Sequence[Setting[Any]]) -> None:
        self._found = dict(found)
        self.order = tuple(order)

    def __getitem__(self, setting: Setting[T]) -> T:
        value: T = self._found[setting.key].value
        return value

    def origin(self, setting: Setting[Any]) -> str:
        """Where the value came from: `--flag`, `$FORAGE_…`, a file's path or `default`."""
        return self._found[setting.key].origin

    def text(self, setting: Setting[Any]) -> str | None:
        """The value as one would type it; secrets are hidden; None: not set."""
        found = self._found[setting.key]
        if found.text is None or setting.show is None:
            return found.text
        return setting.show(found.value)


# ---------------------------------------------------------------------------- parsers


def text(value: str) -> str:
    """Any text."""
    return value


def name(value: str) -> str:
    """A name that may stand in a topic."""
    if not is_name(value):
        raise ValueError(
            f"must be 1 to 32 of a-z, 0-9, - and _, beginning with a letter or digit, not {value!r}"
        )
    return value


def path(value: str) -> Path:
    """A path; `~` is the home directory."""
    return Path(value).expanduser()


def boolean(value: str) -> bool:
    """true or false."""
    folded = value.strip().lower()
    if folded in ("true", "yes", "on", "1"):
        return True
    if folded in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"must be true or false, not {value!r}")


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number of [low, high], both included."""

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return number

    return parse


def seconds(low: float, high: float, *words: str) -> Callable[[str], float | str]:
    """Seconds of [low, high], or one of `words` (such as auto) as it is."""

    def parse(value: str) -> float | str:
        if value in words:
            return value
        try:
            number = float(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            or_words = "".join(f" or {word}" for word in words)
            raise ValueError(f"must be {low:g} to {high:g} seconds{or_words}, not {value!r}")
        return number

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """One of these words."""

    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}, not {value!r}")
        return value

    return parse


def items(value: str) -> tuple[str, ...]:
    """`a,b,c` in order, without empty ones."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def pairs(value: str) -> dict[str, str]:
    """`key=value,key=value`; a later key wins."""
    found: dict[str, str] = {}
    for part in items(value):
        key, equals, content = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"must be KEY=VALUE, not {part!r}")
        found[key.strip()] = content.strip()
    return found


def state_directory(program: str) -> Callable[[Environment], str]:
    """systemd's `StateDirectory=` where it is set, else the user's own place for state."""

    def default(environment: Environment) -> str:
        given = environment.get("STATE_DIRECTORY", "").split(":")[0]
        if given:
            return given
        base = environment.get("XDG_STATE_HOME", "") or "~/.local/state"
        return f"{base}/forage/{program}"

    return default


# ---------------------------------------------------------------------------- shared settings

LOG_LEVELS = ("debug", "info", "warning", "error")

BROKER: Setting[BrokerAddress] = Setting(
    key="broker",
    parse=parse_broker_address,
    default="mqtt://127.0.0.1:1883",
    metavar="URL",
    help="The MQTT broker: mqtt://host:1883 or mqtts://user:password@host:8883.",
    show=str,
)
ROOT: Setting[str] = Setting(
    key="root",
    parse=name,
    default="forage",
    metavar="NAME",
    help="First segment of every topic; all who work together use the same.",
)
INSECURE: Setting[bool] = Setting(
    key="insecure",
    parse=boolean,
    default="false",
    metavar="",
    help="Use a broker elsewhere that asks for no credentials: anybody there can run code.",
)
TLS_CA_FILE: Setting[Path | None] = Setting(
    key="tls_ca_file",
    parse=path,
    metavar="FILE",
    help="PEM file of the authority that signed the broker's certificate.",
)
LOG_LEVEL: Setting[str] = Setting(
    key="log_level",
    parse=choice(*LOG_LEVELS),
    default="info",
    metavar="LEVEL",
    help="What is logged to stderr: debug, info, warning or error.",
)
SERVICE_SETTINGS: tuple[Setting[Any], ...] = (BROKER, ROOT, TLS_CA_FILE, INSECURE, LOG_LEVEL)
"""What every service has."""


# ---------------------------------------------------------------------------- layers


def read_settings(
    settings: Sequence[Setting[Any]],
    *,
    flags: Mapping[str, str],
    environment: Environment,
    files: Sequence[Path],
) -> Settings:
    """Read every layer; for each setting the first one that has it wins.

    Args:
        settings: All there are; a TOML key outside of them is an error.
        flags: Key to text, of those given.
        environment: Usually `os.environ`; an empty variable counts as unset.
        files: TOML files that must be readable; a later one wins.

    Raises:
        ConfigurationError: The first thing that cannot be used.
    """
    by_key = {setting.key: setting for setting in settings}
    from_files: dict[str, tuple[str, str]] = {}
    for file in files:
        for key, value in _toml_texts(file, by_key).items():
            from_files[key] = (value, str(file))
    found: dict[str, _Found] = {}
    for setting in settings:
        variable = environment.get(setting.variable, "")
        content: str | None
        if setting.key in flags:
            content, origin = flags[setting.key], setting.flag
        elif variable:
            content, origin = variable, "$" + setting.variable
        elif setting.key in from_files:
            content, origin = from_files[setting.key]
        else:
            default = setting.default
            content = default(environment) if callable(default) else default
            origin = "default"
        found[setting.key] = _parsed(setting, content, origin)
    return Settings(found, settings)


def _parsed(setting: Setting[Any], content: str | None, origin: str) -> _Found:
    if content is None:
        return _Found(text=None, origin=origin, value=None)
    try:
        return _Found(text=content, origin=origin, value=setting.parse(content))
    except ValueError as error:
        where = origin if origin[0] in "-$" else f"{origin}: {setting.key}"
        raise ConfigurationError(f"{where}: {str(error).rstrip('.')}.") from None


def _toml_texts(file: Path, by_key: Mapping[str, Setting[Any]]) -> dict[str, str]:
    import tomllib  # here, as most starts read no file

    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: is not TOML ({error}).") from None
    texts: dict[str, str] = {}
    for key, value in table.items():
        if key not in by_key:
            hint = _closest(key, by_key)
            raise ConfigurationError(f"{file}: there is no setting {key}{hint}.")
        texts[key] = _toml_text(file, key, value)
    return texts


def _toml_text(file: Path, key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list):
        parts = [_toml_text(file, key, part) for part in value]
    elif isinstance(value, dict):
        parts = [f"{inner}={_toml_text(file, key, part)}" for inner, part in value.items()]
    else:
        raise ConfigurationError(f"{file}: {key}: a date or time means nothing here.")
    if any("," in part for part in parts):
        raise ConfigurationError(f"{file}: {key}: a comma may not stand inside of an item.")
    return ",".join(parts)


def _closest(key: str, known: Mapping[str, object]) -> str:
    import difflib  # here, as only a mistake needs it

    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}" if close else ""


# ---------------------------------------------------------------------------- what is printed


def _quoted(content: str) -> str:
    escaped = content.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def settings_text(settings: Settings) -> str:
    """`--print-config`: TOML, each line with where its value came from."""
    lines: list[tuple[str, str]] = []
    for setting in settings.order:
        content = settings.text(setting)
        line = f"# {setting.key} =" if content is None else f"{setting.key} = {_quoted(content)}"
        origin = settings.origin(setting)
        lines.append((line, "not set" if content is None else origin))
    width = max(len(line) for line, _ in lines)
    return "".join(f"{line:<{width}}  # {origin}\n" for line, origin in lines)


def default_file_text(program: str, settings: Sequence[Setting[Any]]) -> str:
    """`--write-config`: every setting with its meaning, commented out at its default."""
    lines = [f"# Settings of `{program}`. Flags and FORAGE_* variables win over this file."]
    for setting in settings:
        default = setting.default
        lines += ["", f"# {setting.help}", f"# Also {setting.flag} and {setting.variable}."]
        if callable(default):
            lines += [f"# Default: {setting.default_words}", f'# {setting.key} = ""']
        else:
            lines.append(f"# {setting.key} = {_quoted(default or '')}")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------- the command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; `{self.prog} --help` lists the flags.")


def _parser(program: str, description: str, settings: Sequence[Setting[Any]]) -> _Parser:
    parser = _Parser(prog=program, description=description, allow_abbrev=False)
    for setting in settings:
        default = setting.default_words or (
            setting.default if isinstance(setting.default, str) else "not set"
        )
        words = f"{setting.help} Default: {default}.".replace("%", "%%")
        if not setting.metavar:
            parser.add_argument(
                setting.flag, dest=setting.key, action="store_const", const="true", help=words
            )
            parser.add_argument(
                "--no-" + setting.flag[2:],
                dest=setting.key,
                action="store_const",
                const="false",
                help=argparse.SUPPRESS,
            )
        else:
            parser.add_argument(
                setting.flag,
                dest=setting.key,
                action="append" if setting.repeated else "store",
                metavar=setting.metavar,
                help=words,
            )
    own = parser.add_argument_group("configuration")
    own.add_argument("--config", metavar="FILE", help="Read this file in place of the system's.")
    own.add_argument(
        "--print-config", action="store_true", help="Print each value and where it came from."
    )
    own.add_argument(
        "--write-config",
        nargs="?",
        const="-",
        metavar="FILE",
        help="Write a commented file of all settings (to stdout without FILE).",
    )
    return parser


def _system_files(file_name: str, directory: Path) -> list[Path]:
    main = directory / f"{file_name}.toml"
    return ([main] if main.exists() else []) + sorted((directory / f"{file_name}.d").glob("*.toml"))


def _write_default(target: str, content: str) -> None:
    if target == "-":
        sys.stdout.write(content)
        return
    try:
        with open(target, "x", encoding="utf-8") as stream:
            stream.write(content)
    except OSError as error:
        raise ConfigurationError(
            f"--write-config: {target} cannot be written ({error.strerror})."
        ) from None


def configure(
    *,
    program: str,
    description: str,
    settings: Sequence[Setting[Any]],
    build: Callable[[Settings], C],
    argv: Sequence[str] | None,
    file_name: str,
    environment: Environment | None = None,
    directory: Path = SYSTEM_DIRECTORY,
) -> C | int:
    """From the command line to a service's frozen configuration.

    Args:
        program: As users type it: `forage controller`.
        description: One sentence for `--help`.
        settings: All that can be set, in the order in which they are listed.
        build: Makes the service's own configuration; `ValueError` or `ConfigurationError` with a
            sentence where the values do not go together.
        argv: Without the program's name; None: the process's own.
        file_name: `{directory}/{file_name}.toml` and `{file_name}.d/*.toml` are read where they
            exist.
        environment: None: the process's own.
        directory: Of the system's configuration.

    Returns:
        What `build` made, or an exit code when there is nothing to run: 0 after `--help`,
        `--print-config` or `--write-config`; 2 after one sentence on stderr.
    """
    environment = os.environ if environment is None else environment
    parser = _parser(program, description, settings)
    try:
        arguments = vars(parser.parse_args(argv))
        if arguments["write_config"] is not None:
            _write_default(arguments["write_config"], default_file_text(program, settings))
            return 0
        flags = {
            setting.key: ",".join(given) if isinstance(given, list) else given
            for setting in settings
            if (given := arguments[setting.key]) is not None
        }
        given_file = arguments["config"] or environment.get(ENVIRONMENT_PREFIX + "CONFIG", "")
        files = [Path(given_file)] if given_file else _system_files(file_name, directory)
        found = read_settings(settings, flags=flags, environment=environment, files=files)
        if arguments["print_config"]:
            sys.stdout.write(settings_text(found))
            return 0
        return build(found)
    except (ConfigurationError, ValueError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return EXIT_USAGE
    except SystemExit as ended:  # argparse's --help
        return ended.code if isinstance(ended.code, int) else EXIT_USAGE
