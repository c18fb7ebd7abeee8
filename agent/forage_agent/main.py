"""`forage agent`: wiring and exit codes.

0 after SIGTERM, 2 where the configuration cannot be used or the device is refused, 130 after
Ctrl-C. Without a broker it keeps trying: an agent is a service.
"""

import os
import sys
from collections.abc import Sequence

from forage_agent.config import ConfigError, default_toml, load_config, parser, print_config
from forage_agent.shell.zygote_process import start_zygote, workers_environment
from forage_wire.shell.logs import start_logging

__all__ = ["main"]

USAGE_EXIT_CODE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until it is told to end.

    Args:
        argv: The command line without the program's name; the process's own where None.

    Returns:
        The exit code.
    """
    arguments = parser().parse_args(argv)
    if arguments.write_config:
        return _write_default(arguments.write_config)
    try:
        config = load_config(arguments)
    except ConfigError as error:
        sys.stderr.write(f"forage agent: {error}\n")
        return USAGE_EXIT_CODE
    if arguments.print_config:
        sys.stdout.write(f"{print_config(config)}\n")
        return 0
    start_logging(config.log_level)
    # Neither before the configuration is known to be usable: a wrong flag answers at once.
    zygote = start_zygote(workers_environment(dict(os.environ)))
    from forage_agent.shell.agent import Agent

    def ready() -> None:
        line = f"ready device={config.name} broker={config.broker} pid={os.getpid()}"
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except OSError:
            pass  # Nobody listens any more.

    return Agent(config, ready, zygote).run()


def _write_default(path: str) -> int:
    text = default_toml()
    if path == "-":
        sys.stdout.write(f"{text}\n")
        return 0
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        sys.stderr.write(
            f"forage agent: The configuration {path} cannot be written: {error.strerror}.\n"
        )
        return USAGE_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
