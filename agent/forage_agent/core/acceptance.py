"""Which assignments a device takes, and why it refuses the others."""

from forage_agent.core.holdings import Holdings
from forage_agent.core.outbox import Outbox
from forage_agent.core.presence import PublicWord
from forage_agent.core.settings import HEADERS_MAX, Settings
from forage_agent.core.slices import assigned_bytes
from forage_wire.codec import decode_header
from forage_wire.limits import LIST_ITEMS_MAX
from forage_wire.messages import Assignment, Header

__all__ = ["Acceptance"]


class Acceptance:
    """Judges an assignment by what the device is, says it is, holds and has still to tell."""

    __slots__ = ("_headers", "_holdings", "_outbox", "_settings", "_word")

    def __init__(
        self, settings: Settings, word: PublicWord, holdings: Holdings, outbox: Outbox
    ) -> None:
        self._settings = settings
        self._word = word
        self._holdings = holdings
        self._outbox = outbox
        self._headers: dict[bytes, Header] = {}

    def header(self, data: bytes) -> Header:
        """A page's header; all its slices come with the same bytes. Raises DecodeError."""
        header = self._headers.get(data)
        if header is None:
            header = decode_header(data)
            if len(self._headers) >= HEADERS_MAX:
                del self._headers[next(iter(self._headers))]
            self._headers[data] = header
        return header

    def why_not(self, assignment: Assignment, header: Header) -> str:
        """The reason for which an assignment is not taken; empty: it is."""
        size = assigned_bytes(assignment)
        queue_bytes_max = self._settings.capabilities.queue_bytes_max
        if self._holdings.is_expired(assignment.assignment):
            return "expired"
        if self._word.state != "online":
            return "draining"
        if assignment.low >= assignment.high or size > queue_bytes_max:
            return "size"
        if not isinstance(header.function, bytes):
            name, version = header.function
            own = self._settings.functions.get(name)
            if own is None or (version and own.version != version):
                return "function"
        if (
            self._holdings.call_bytes + size > queue_bytes_max
            or self._outbox.bytes > self._settings.unacknowledged_bytes_max
            or len(self._holdings) >= LIST_ITEMS_MAX
        ):
            return "full"
        return ""
