"""The broker of forage, but a mosquitto that keeps retained messages on its disk, in this directory.

A program: its arguments are those of `forage_broker`. Whoever restarts it with the file removed
has a broker that forgot everything. CHAOS_MOSQUITTO holds more lines of configuration.
"""

import os
import sys

from forage_broker import mosquitto
from forage_broker.main import main

LASTING = """persistence true
persistence_location {folder}/
autosave_interval 1
autosave_on_changes true
"""
FILE = "mosquitto.db"

_render = mosquitto.render_configuration


def render_lasting(*, host: str, port: int, allow_anonymous: bool) -> str:
    """As forage has it, with a disk."""
    text = _render(host=host, port=port, allow_anonymous=allow_anonymous)
    more = os.environ.get("CHAOS_MOSQUITTO", "").splitlines()
    replaced = {"persistence", *(line.split()[0] for line in more)}
    kept = [line for line in text.splitlines() if line.split(" ")[0] not in replaced]
    return "\n".join([*kept, LASTING.format(folder=os.getcwd()), *more, ""])


if __name__ == "__main__":
    mosquitto.render_configuration = render_lasting
    sys.exit(main())
