"""Watches the packet boundaries of an inbound MQTT stream and takes out what is too long.

The MQTT library collects a packet of any announced size (256 MiB at most) in memory before it looks
at it. This filter stands in front of it: chunks of the stream go in as they were received, and come
out without the PUBLISH packets above a limit, which are skipped as they arrive and never collected.
A broker, or anybody who may publish, can so neither fill our memory nor end our connection, and a
retained message of absurd size does not end every connection to come.

No sockets, no clock: bytes in, bytes out.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OversizeFilter", "Skipped"]

PUBLISH = 3
# A fixed header is one byte of type and flags and at most four bytes of length.
LENGTH_SHIFT_MAX = 21
# Topic length, the longest topic, message id: what is kept of a skipped packet to answer for it.
LEAD_BYTES_MAX = 2 + 65_535 + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A PUBLISH packet that was taken out; `message_id` is what to acknowledge (None: QoS 0)."""

    topic: str
    packet_bytes: int
    message_id: int | None


class OversizeFilter:
    """Feed it every received chunk, in order, for one connection."""

    def __init__(self, packet_bytes_limit: int) -> None:
        self.skipped: list[Skipped] = []
        # Why the stream is not MQTT, once it is known not to be; nothing is admitted from there on.
        self.malformed: str | None = None
        self._packet_bytes_limit = packet_bytes_limit
        # At most one of these three is in use between two chunks: body bytes of an admitted packet
        # that are still to come, the beginning of a header, body bytes still to be skipped.
        self._admitted_left = 0
        self._held = b""
        self._skip_left = 0
        self._skip_flags = 0
        self._skip_bytes = 0
        self._lead = bytearray()

    def admit(self, chunk: bytes) -> bytes:
        """What the MQTT library may see of `chunk`; the same object where nothing is taken out.

        The stream is `malformed` from a length of more than four bytes on, a packet other than
        PUBLISH above the limit, or a skipped packet shorter than its own topic.
        """
        if self.malformed is not None:
            return b""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        kept: list[bytes] = []
        end = len(chunk)
        start = self._skip(chunk, 0) if self._skip_left else 0
        position = start + self._admitted_left
        while position < end:
            index = position + 1
            length = shift = 0
            while index < end:
                byte = chunk[index]
                index += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
                if shift > LENGTH_SHIFT_MAX:
                    self.malformed = "a packet length of more than four bytes"
                    break
            else:
                self._held = chunk[position:]
                kept.append(chunk[start:position])
                start = position = end
                break
            if length > self._packet_bytes_limit and chunk[position] >> 4 != PUBLISH:
                self.malformed = f"a packet of type {chunk[position] >> 4} with {length} bytes"
            if self.malformed is not None:
                return b"".join([*kept, chunk[start:position]])
            if length > self._packet_bytes_limit:
                self._begin_skip(chunk[position], length)
                kept.append(chunk[start:position])
                start = position = self._skip(chunk, index)
            else:
                position = index + length
        self._admitted_left = position - end
        if start == 0 and not kept:
            return chunk
        kept.append(chunk[start:])
        return b"".join(kept)

    def _begin_skip(self, first_byte: int, length: int) -> None:
        self._skip_left = self._skip_bytes = length
        self._skip_flags = first_byte & 0x0F
        self._lead.clear()

    def _skip(self, chunk: bytes, position: int) -> int:
        """Drop body bytes from `position` on; returns where the rest begins."""
        end = min(len(chunk), position + self._skip_left)
        if len(self._lead) < LEAD_BYTES_MAX:
            self._lead += chunk[position : min(end, position + LEAD_BYTES_MAX - len(self._lead))]
        self._skip_left -= end - position
        if self._skip_left == 0:
            self._finish_skip()
        return end

    def _finish_skip(self) -> None:
        lead = self._lead
        topic_end = 2 + int.from_bytes(lead[:2], "big")
        has_id = bool(self._skip_flags & 0b0110)
        if len(lead) < topic_end + (2 if has_id else 0):
            self.malformed = "a message shorter than its topic"
            return
        message_id = int.from_bytes(lead[topic_end : topic_end + 2], "big") if has_id else None
        topic = lead[2:topic_end].decode(errors="replace")
        self.skipped.append(
            Skipped(topic=topic, packet_bytes=self._skip_bytes, message_id=message_id)
        )
        self._lead = bytearray()
