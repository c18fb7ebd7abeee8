"""What the controller's core orders, and the events that are its own."""

from forage_controller.core.feed import (
    CloseSnapshot,
    OpenSnapshot,
    ReadSnapshot,
    SnapshotFailed,
    SnapshotOpened,
    SnapshotRead,
)
from forage_controller.core.operations import (
    CodeLoaded,
    LoadCode,
    LoadOutcomes,
    LoadPage,
    OutcomesLoaded,
    PageLoaded,
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

__all__ = ["Command", "Event", "Exit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """End the process with this code; the reason is for people."""

    code: int
    reason: str


Event = (
    Connected
    | Disconnected
    | MessageReceived
    | PublishAcknowledged
    | BatchEnded
    | SaveCommitted
    | SaveFailed
    | StoreFull
    | StoreHasRoom
    | PageLoaded
    | CodeLoaded
    | OutcomesLoaded
    | SnapshotOpened
    | SnapshotFailed
    | SnapshotRead
)

Command = (
    Publish
    | Save
    | LoadPage
    | LoadCode
    | LoadOutcomes
    | OpenSnapshot
    | ReadSnapshot
    | CloseSnapshot
    | Exit
    | Note
)
