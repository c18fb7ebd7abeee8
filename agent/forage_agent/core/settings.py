"""What an agent's core is told once, and its own limits with what happens at each."""

from dataclasses import dataclass, field

from forage_wire.limits import PACKET_BYTES_MAX
from forage_wire.messages import DeviceCapabilities

__all__ = [
    "ACCEPTED_AFTER_MS",
    "ANNOUNCE_AGAIN_AFTER_MS",
    "CHECKPOINTS_AT_ONCE",
    "CHECKPOINT_EVERY_MS",
    "CODE_BYTES_MAX",
    "ENDED_ASSIGNMENTS_MAX",
    "FUNCTIONS_PER_WORKER_MAX",
    "HEADERS_MAX",
    "LOAD_EVERY_MS",
    "LOAD_EVERY_MS_MIN",
    "MAKE_ROOM_EVERY_MS",
    "NEWCOMER_WAIT_US",
    "NOTE_EVERY_MS",
    "OUTCOMES_AFTER_MS",
    "PRESENCE_REPAIR_EVERY_MS",
    "PROGRESS_EVERY_MS",
    "RESTART_AFTER_MS",
    "RESTART_AFTER_MS_MAX",
    "SHORT_US",
    "SPREAD_MIN_US",
    "STARTED_AFTER_MS",
    "UNACKNOWLEDGED_BYTES_MAX",
    "WORKER_REFILL_US",
    "WORKER_WORK_US",
    "NamedFunction",
    "Settings",
]

STARTED_AFTER_MS = 50
"""A call that has run so long is reported as started, and its worker gives back what waits.

Well above what a worker holds of outcomes, and what a loaded machine keeps it from running."""
ACCEPTED_AFTER_MS = 200
"""An assignment that is not through by then is named as accepted; most are, or wait no longer than
a few slices, and their outcomes say as much."""
ANNOUNCE_AGAIN_AFTER_MS = 1_000
"""An announcement that the broker does not confirm in this time is sent again."""
OUTCOMES_AFTER_MS = 40
"""Outcomes wait at most so long for others, while such are expected or earlier ones under way.

Each message costs all processes together about half of a millisecond."""
WORKER_WORK_US = 50_000
"""A worker is given calls up to this much expected work; the rest waits where it can be moved."""
WORKER_REFILL_US = 30_000
"""A worker with less than this gets more, so that it need not wait for us: for longer than it holds
outcomes, and than a loaded machine keeps us from running."""
SHORT_US = 5_000
"""Longer calls are given to a worker one at a time, and go before nobody else's."""
NEWCOMER_WAIT_US = 3_000
"""Calls of a stream with nothing running wait for so much of others' work; for more than that
some worker gives back what it has not begun."""
MAKE_ROOM_EVERY_MS = 10
"""... and at most so often, and the less often the longer the newcomers take."""
WORKER_HOLDS_MS = 25
"""A worker with more to run has said what has ended after this long at most."""
SPREAD_MIN_US = 100
"""Calls longer than this are spread evenly over the slots when few are left."""
LOAD_EVERY_MS = 30_000
LOAD_EVERY_MS_MIN = 1_000
PRESENCE_REPAIR_EVERY_MS = 1_000
PROGRESS_EVERY_MS = 500
"""A slot's call is heard on how far it is at most this often; of more words the latest counts."""
CHECKPOINT_EVERY_MS = 100
"""A call's states leave the device this often on average; of more states the latest counts."""
CHECKPOINTS_AT_ONCE = 10
"""So many of a call go one after the other without that distance, where it was quiet before: a
state that waits is one that a loss of the device takes."""
NOTE_EVERY_MS = 1_000
"""Bad input makes one line in the log for each kind in this time; all of it is counted."""
RESTART_AFTER_MS = 100
"""A worker that died before it was ready is replaced after this, then after twice as long, ..."""
RESTART_AFTER_MS_MAX = 10_000
UNACKNOWLEDGED_BYTES_MAX = 64 * 1024 * 1024
"""Outcomes that no controller has committed. Above: new assignments are refused as `full`."""
CODE_BYTES_MAX = 32 * 1024 * 1024
"""Functions' code; above, what was used longest ago and no assignment needs is dropped."""
FUNCTIONS_PER_WORKER_MAX = 64
"""Functions that a worker keeps loaded; above, it forgets the one used longest ago."""
ENDED_ASSIGNMENTS_MAX = 65_536
"""Numbers of ended assignments remembered; below all of them nothing is started any more."""
HEADERS_MAX = 256
"""Pages' headers kept decoded; above, the one that came first is decoded again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFunction:
    """A function that the device has by itself."""

    target: str
    """`module:attribute`."""
    version: str = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an agent's core is told once."""

    device: str
    root: str = "forage"
    capabilities: DeviceCapabilities
    """With `slots`, `queue_bytes_max`, `packet_bytes_max` and `functions` as they hold; the
    session in it is not used."""
    functions: dict[str, NamedFunction] = field(default_factory=dict)
    """Named functions by name; `capabilities.functions` must say the same."""
    software: str = ""
    packet_bytes_max: int = PACKET_BYTES_MAX
    unacknowledged_bytes_max: int = UNACKNOWLEDGED_BYTES_MAX
    code_bytes_max: int = CODE_BYTES_MAX
