"""What a standby's core orders, and the events that are its own."""

from forage_controller.core.commands import Exit
from forage_controller.core.feed import InstallSnapshot, SnapshotInstalled, WriteSnapshot
from forage_controller.core.operations import (
    Save,
    SaveCommitted,
    SaveFailed,
    StoreFull,
    StoreHasRoom,
)
from forage_wire.io import (
    BatchEnded,
    Connected,
    Disconnected,
    MessageReceived,
    Note,
    Publish,
    PublishAcknowledged,
)
from forage_wire.records import dataclass

__all__ = ["EndHolder", "StandbyCommand", "StandbyEvent", "TakeOver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOver:
    """Rule from our store, as after a restart; nothing more is ordered."""

    epoch: int
    """The highest that anybody has used, as far as we know: ours is to be above it."""
    is_current: bool
    """Whether nothing can have been committed elsewhere yet that our store lacks."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndHolder:
    """End the process that holds the lock of our disk, if it is the one of this start."""

    start: str
    """The random part of its sessions."""
    reason: str


StandbyEvent = (
    Connected
    | Disconnected
    | MessageReceived
    | PublishAcknowledged
    | BatchEnded
    | SaveCommitted
    | SaveFailed
    | StoreFull
    | StoreHasRoom
    | SnapshotInstalled
)

StandbyCommand = (
    Publish | Save | WriteSnapshot | InstallSnapshot | TakeOver | EndHolder | Exit | Note
)
