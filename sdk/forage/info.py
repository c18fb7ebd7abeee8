"""What a client is told about devices, tasks and attempts: read-only records.

The controller answers in JSON; a field that it does not send has its default here, and one that
this version does not know is left out, so that either side may be the newer one.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from forage.errors import ForageError, NoDevice
from forage_wire.records import columns_of, field, guarded_dataclass

if TYPE_CHECKING:
    from forage.client import Client

__all__ = ["Attempt", "CallCheckpoint", "DeviceInfo", "Explanation", "TaskInfo"]

_Record = TypeVar("_Record")


def _from_row(record_class: type[_Record], row: Mapping[str, Any]) -> _Record:
    known = {column.name for column in columns_of(record_class)}
    return record_class(**{key: value for key, value in row.items() if key in known})


class _Bound:
    """Whose record it is: no field, so it is neither compared, shown, copied nor pickled."""

    __slots__ = ("_client",)
    _client: "Client"


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo(_Bound):
    """One device as the controller knows it at the moment of the question."""

    name: str
    address: str = ""
    """Its own address towards the broker."""
    state: str = "online"
    """Its own word: online, draining, sleeping, offline; `lost` where the controller holds it
    for dead."""
    verdict: str = "alive"
    """The controller's: alive, suspect or dead."""
    session: str = ""
    slots: int = 0
    """Calls it runs at a time; 0 until it has said what it is, right after it came."""
    cpu_strength: float = 1.0
    """Speed of one core relative to a Raspberry Pi 4's."""
    cpu_cores: int = 1
    active_tasks: int = 0
    """Calls that run there now."""
    queued: int = 0
    """Calls that wait there."""
    last_seen_s: float | None = None
    """Seconds since anything was last heard from it; None: not by this start of the controller."""
    network: str = ""
    """Network class, such as WLAN-g or LAN1K."""
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)
    python: str = ""
    """Its Python minor, such as 3.11; empty where it runs none."""
    arch: str = ""
    os: str = ""
    profile: str = "python"
    """`python`, or `mcu` (named functions only)."""
    functions: Mapping[str, str] = field(default_factory=dict)
    """Named functions that are installed there, with their versions."""
    temperature_c: float | None = None
    cpu_percent: float | None = None
    memory_percent: float | None = None

    def has_task(self, name: str) -> bool:
        """Whether the named function `name` is installed there."""
        return name in self.functions

    def perform(
        self,
        name: str,
        arguments: Sequence[Any] | Mapping[str, Any] = (),
        *,
        store: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Run a function that is installed on this device, there, and return its result.

        The same as `client.options(device=self).submit(name, …).result(timeout)`, which is how to
        get a future in its place; the options of the view that gave this record hold.

        Args:
            name: Of the function, such as "org.app.task".
            arguments: A list or tuple of positional arguments, or a mapping of keyword arguments.
            store: True is refused: results that stay on a device are not part of this version.
            timeout: Seconds after which TimeoutError is raised; the call goes on.

        Raises:
            NoDevice: It has no such function, or is not there and does not come back in time.
            Exception: What the function raised.
        """
        if store:
            raise ValueError(
                "store=True would leave the result on the device, which this version cannot; "
                "leave it out to get the result itself."
            )
        if isinstance(arguments, str | bytes | bytearray):
            raise TypeError(
                f"arguments is a list or a mapping of them, not {arguments!r}: write "
                f"perform({name!r}, [{arguments!r}])."
            )
        client = self._owner()
        if not self.has_task(name):
            # Installed since this record was made, perhaps. One that was heard, but has not said
            # what it is yet, has no slots: the controller waits for its word as for the device.
            device = client.device(self.name)
            if device.slots:
                self._check_offers(device, name)
        view = client.options(device=self.name)
        if isinstance(arguments, Mapping):
            return view.submit(name, **arguments).result(timeout)
        return view.submit(name, *arguments).result(timeout)

    def _owner(self) -> "Client":
        try:
            return self._client
        except AttributeError:
            raise ForageError(
                "This record belongs to no client, so nothing can be run through it; take it from "
                "client.devices() or client.device(name)."
            ) from None

    def _check_offers(self, device: "DeviceInfo", name: str) -> None:
        if not device.has_task(name):
            offers = ", ".join(device.functions) or "none"
            why = f"it has no function {name}; those that it has: {offers}"
            raise NoDevice(f"{self.name}: {why}", {self.name: why})

    @classmethod
    def from_row(cls, row: Mapping[str, Any], client: "Client | None" = None) -> "DeviceInfo":
        """The record for one row of the controller's answer, to `client`."""
        info = _from_row(cls, row)
        if info.verdict == "dead" and info.state != "lost":
            info = _from_row(cls, {**row, "state": "lost"})
        if client is not None:
            object.__setattr__(info, "_client", client)
        return info


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class CallProgress:
    """What a running call has said of how far it is, with `forage.progress`."""

    fraction: float
    """0 to 1."""
    text: str = ""


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """One task as the controller knows it at the moment of the question."""

    task: str
    label: str = ""
    """The function's name."""
    user: str = ""
    client: str = ""
    calls: int = 0
    queued: int = 0
    running: int = 0
    """Assigned and not settled."""
    settled: int = 0
    failed: int = 0
    collected: int = 0
    """Outcomes that its client has."""
    state: str = ""
    age_s: float = 0.0
    replicas: int = 1
    """Runs of each call. Above 1, the numbers above but `calls` count runs."""
    quorum: int = 0
    """How many of them must agree; 0: the majority (only from `Client.task`)."""
    blocks: Sequence[int] = ()
    """How the runs are numbered (only from `Client.task`): see `forage_wire.replicas`."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """Calls for each device that had a part in it (only from `Client.task`)."""
    attempts: int = 0
    """Assignments made so far (only from `Client.task`)."""
    progress: Mapping[int, CallProgress] = field(default_factory=dict)
    """What its open calls have said last, by index (only from `Client.task`)."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "TaskInfo":
        """The record for one row of the controller's answer."""
        progress = {
            int(index): CallProgress(fraction=said["permille"] / 1_000, text=said["text"])
            for index, said in row.get("progress", {}).items()
        }
        return _from_row(cls, {**row, "progress": progress})


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One assignment of calls to a device."""

    assignment: int = 0
    device: str = ""
    low: int = 0
    high: int = 0
    """Calls [low, high) of the task."""
    state: str = ""
    age_s: float = 0.0
    """Seconds since it was made."""
    ended_s: float | None = None
    """Seconds since it ended; None while it is open."""
    how: str = ""
    """How it ended."""
    resumed_number: int = 0
    """The checkpoint that it was given to go on from; 0: it began anew."""
    resumed_bytes: int = 0
    """... its size ..."""
    resumed_age_s: float | None = None
    """... and how old it was then; None: older than the controller's present start."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Attempt":
        """The record for one row of the controller's answer."""
        return _from_row(cls, row)


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class CallCheckpoint:
    """The last `forage.checkpoint` of a call that has not ended: its next attempt goes on there."""

    number: int
    """How many lie behind it, in all attempts."""
    bytes: int
    saved: bool = False
    """Whether the controller's store has it: then it outlives the controller, too."""
    device: str = ""
    """Where it was made; empty: before the controller's present start."""
    age_s: float | None = None
    """Seconds since it came to the controller; None: before its present start."""


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a task or call is where it is; `str()` of it is a text for people."""

    name: str
    """The task's id or the call's name."""
    state: str = ""
    reason: str = ""
    """One sentence."""
    attempts: tuple[Attempt, ...] = ()
    """Oldest first."""
    checkpoint: CallCheckpoint | None = None
    """What a call's next attempt would go on from (not of whole tasks)."""
    eligible: Mapping[str, str] = field(default_factory=dict)
    """For each device: "yes", or why it cannot take it."""

    @classmethod
    def from_row(cls, name: str, row: Mapping[str, Any]) -> "Explanation":
        """The record for the controller's answer about `name`."""
        attempts = tuple(Attempt.from_row(item) for item in row.get("attempts") or ())
        kept = row.get("checkpoint")
        checkpoint = None if kept is None else _from_row(CallCheckpoint, kept)
        return _from_row(cls, {**row, "name": name, "attempts": attempts, "checkpoint": checkpoint})

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.state}" + (f" ({self.reason})" if self.reason else "")]
        for attempt in self.attempts:
            end = f"{attempt.how or attempt.state}"
            lines.append(
                f"  {attempt.age_s:8.1f} s ago on {attempt.device}, "
                f"calls {attempt.low} to {attempt.high - 1}: {end}{_resumed(attempt)}"
            )
        if self.checkpoint is not None:
            lines.append(
                f"  checkpoint {self.checkpoint.number}: {self.checkpoint.bytes} bytes"
                f"{_ago(self.checkpoint.age_s)}, for the next attempt"
            )
        lines += [
            f"  {device}: {why}" for device, why in self.eligible.items() if not self.attempts
        ]
        return "\n".join(lines)


def _resumed(attempt: Attempt) -> str:
    if attempt.resumed_number == 0:
        return ""
    age = "" if attempt.resumed_age_s is None else f" taken {attempt.resumed_age_s:.1f} s before"
    return f", went on from a checkpoint of {attempt.resumed_bytes} bytes{age}"


def _ago(age_s: float | None) -> str:
    return "" if age_s is None else f", {age_s:.1f} s ago"
