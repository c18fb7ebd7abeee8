"""The controller core's settings and limits."""

from dataclasses import dataclass

from forage_wire.limits import PACKET_BYTES_MAX

__all__ = ["CoreConfig", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the controller holds at most, and how long it waits; each with what happens then."""

    slot_work_us: int = 80_000
    """Estimated work outstanding for each slot of a device; more waits here."""
    slot_slices: int = 128
    """Slices outstanding for each slot."""
    slice_us: int = 40_000
    """Measured work in one slice at most ..."""
    slice_us_min: int = 2000
    """... and at least, where the backlog has it."""
    unmeasured_us: int = 2_500
    """What a call of a function never measured counts for, until it has run longer."""
    acknowledge_after_ms: int = 20
    """Commits are told this late, many in one message; a microcontroller hears at once."""
    acknowledge_bytes: int = 256 * 1024
    """Outcomes committed and not told to one device; more are told at once."""
    steal_after_ms: int = 20
    """A slot free this long takes unstarted work from another device."""
    first_suspicion_ms: int = 3_000
    """Added to the reconnect spread before silence after a reconnect counts."""
    idle_load_ms: int = 30_000
    """How often an idle device is heard."""
    report_every_ms: int = 60_000
    """How often a device that holds work is asked for its inventory."""
    gone_ms: int = 60_000
    """How long a client may be away before those attached to its tasks collect for it."""
    orphan_ms: int = 60_000
    """How long a device's assignment of an unknown task waits for its client's page."""
    start_wait_ms: int = 150
    """How long a starting controller listens for another one."""
    change_ms: int = 2_000
    """How long a take-over may be on its way to the broker: whoever rules waits that long (and a
    little more) before it goes on without a standby that has fallen silent."""
    doubt_wait_ms: int = 2_000
    """How long one that may have been fenced listens: what says so may be slow, and to be wrong is to
    take the fleet back with an older store."""
    starting_messages: int = 10_000
    """Messages kept while starting; more are dropped (their senders repeat)."""
    starting_bytes: int = 16 * 1024 * 1024
    page_cache_bytes: int = 64 * 1024 * 1024
    """Calls kept in memory; beyond that they are read back from the store."""
    pages_bytes: int = 4 * 1024 * 1024 * 1024
    """Calls of tasks that have not ended, stored; above: new tasks are refused in words, and above
    twice as much further pages too."""
    code_cache_bytes: int = 16 * 1024 * 1024
    """Functions' code in memory ..."""
    codes_bytes: int = 512 * 1024 * 1024
    """... and stored; those that no task uses go first, then tasks with others are refused."""
    codes: int = 65_536
    archive_calls: int = 20_000_000
    """Outcomes that nobody has collected; above: new tasks are refused in words."""
    archive_bytes: int = 1024 * 1024 * 1024
    """Outcomes kept for clients; above: submissions are refused in words."""
    archive_reserve_bytes: int = 64 * 1024 * 1024
    """Beyond `archive_bytes` for tasks already acknowledged; beyond that devices hold."""
    keep_ms: int = 24 * 3_600 * 1_000
    """Uncollected outcomes, and the ids of released tasks."""
    released_ids: int = 65_536
    """Ids of released tasks kept at most; the oldest go first."""
    ended_tasks: int = 500
    """Released tasks of which attempts and output are remembered ..."""
    ended_pages: int = 4_000
    """... and their pages, without the calls."""
    settled_after_ms: int = 1_000
    """A client is told of committed outcomes that it has not collected after this."""
    status_every_ms: int = 1_000
    checkpoint_bytes: int = 64 * 1024 * 1024
    """Checkpoints of all calls; beyond, a newer one is not taken and the former stays."""
    log_bytes: int = 64 * 1024
    """The last output of a task that is kept."""
    logs_bytes: int = 16 * 1024 * 1024
    """Of all tasks; the task that wrote longest ago goes first."""
    attempts_kept: int = 64
    """Attempts of a task that `explain` remembers."""
    storm_devices: int = 8
    """From this fleet on, a quarter gone within one window is the network's fault."""
    client_tasks: int = 100_000
    """Unreleased tasks of one client; more are refused in words."""
    tasks: int = 200_000
    """... and of all clients."""
    devices: int = 20_000
    """Devices known; what others say is dropped. One dead for `keep_ms` is forgotten."""
    clients: int = 50_000
    """Clients known; what others say is dropped."""
    standby_bytes: int = 128 * 1024 * 1024
    """Committed groups that wait for a standby; one further behind begins with a new copy."""
    client_messages: int = 64
    """Messages that may wait for a client to see earlier ones; outcomes beyond are offered to it
    later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """What one controller is told at start."""

    name: str = "main"
    root: str = "forage"
    detect_ms: int | None = None
    """Detection time; None: 500 for a device whose broker is on its own machine, else 15,000."""
    packet_bytes_max: int = PACKET_BYTES_MAX
    reconnect_spread_ms: int = 500
    """Least spread of first reconnects; grows with the fleet (fleet / 500 s)."""
    software: str = ""
    synchronous: bool = False
    """What waits for a commit waits for that of every standby that follows, too."""
    limits: Limits = Limits()
