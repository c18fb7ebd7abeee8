"""What comes while a controller is not active yet: kept within bounds, read once it is."""

from forage_controller.core.config import Limits
from forage_wire.io import MessageReceived

__all__ = ["Early"]


class Early:
    """Messages in the order in which they came; those beyond the limits are repeated by their
    senders."""

    __slots__ = ("_bytes", "_limits", "_messages")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._messages: list[MessageReceived] = []
        self._bytes = 0

    def keep(self, event: MessageReceived) -> None:
        """Keep one, where there is room."""
        size = self._bytes + len(event.payload)
        if len(self._messages) < self._limits.starting_messages and (
            size <= self._limits.starting_bytes
        ):
            self._messages.append(event)
            self._bytes = size

    def take(self) -> list[MessageReceived]:
        """All that were kept; nothing is kept any more."""
        messages, self._messages = self._messages, []
        self._bytes = 0
        return messages
