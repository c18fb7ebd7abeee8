"""The QoS 1 messages of a connection that the broker has not acknowledged, and their ids."""

__all__ = ["Unacknowledged"]

MESSAGE_ID_MIN = 256
"""Of ours; the library counts its own, of a few SUBSCRIBEs, from 1 on."""
MESSAGE_ID_MAX = 65_535
MESSAGES_MAX = 65_000


class Unacknowledged:
    """Counts what is under way; one for each connection."""

    __slots__ = ("_confirming", "_last_id", "_sizes", "payload_bytes")

    def __init__(self) -> None:
        self.payload_bytes = 0
        """Of all of them."""
        self._sizes: dict[int, int] = {}
        self._confirming: set[int] = set()
        self._last_id = MESSAGE_ID_MIN - 1

    @property
    def is_full(self) -> bool:
        """There is no room for another message."""
        return len(self._sizes) >= MESSAGES_MAX

    def add(self, payload_bytes: int, *, confirm: bool) -> int:
        """One more message; its id. Not where it `is_full`."""
        message_id = self._last_id
        while True:
            message_id = message_id + 1 if message_id < MESSAGE_ID_MAX else MESSAGE_ID_MIN
            if message_id not in self._sizes:
                break
        self._last_id = message_id
        self._sizes[message_id] = payload_bytes
        self.payload_bytes += payload_bytes
        if confirm:
            self._confirming.add(message_id)
        return message_id

    def acknowledged(self, message_id: int) -> bool:
        """The broker has a message; whether somebody asked to hear of that. Unknown ones pass."""
        self.payload_bytes -= self._sizes.pop(message_id, 0)
        if message_id in self._confirming:
            self._confirming.discard(message_id)
            return True
        return False
