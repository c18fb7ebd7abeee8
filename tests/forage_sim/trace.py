"""What happened in a run: a digest of everything, the last lines in words, and counters."""

import hashlib
from collections import Counter, deque

from forage_sim.clock import Clock
from forage_wire.codec import decode
from forage_wire.errors import DecodeError

__all__ = ["Trace", "message_type"]

LINES_KEPT = 4_000


def message_type(payload: bytes) -> str:
    """The type of a CBOR message without decoding it; "" for anything else.

    `t` is the first key that the codec writes, and its text is short.
    """
    if payload[1:3] != b"at" or len(payload) < 4:
        return ""
    return payload[4 : 4 + (payload[3] & 0x1F)].decode(errors="replace")


class Trace:
    """Collects what happens; cheap until somebody asks for words."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._digest = hashlib.blake2b(digest_size=16)
        self._lines: deque[tuple[int, str, str, str, bytes]] = deque(maxlen=LINES_KEPT)
        self.counters: Counter[str] = Counter()
        """How often each kind of thing happened: faults, messages, recoveries."""

    def add(self, what: str, who: str = "", about: str = "", payload: bytes = b"") -> None:
        """Note that something happened.

        Args:
            what: The kind of thing; counted.
            who: The process or MQTT client id.
            about: A topic, or words.
            payload: A message's bytes.
        """
        now_ms = self._clock.now_ms
        self._digest.update(f"{now_ms}|{what}|{who}|{about}|".encode())
        self._digest.update(payload)
        self._lines.append((now_ms, what, who, about, payload))
        self.counters[what] += 1
        kind = message_type(payload)
        if kind:
            self.counters[f"{what} {kind}"] += 1

    def digest(self) -> str:
        """A hash of everything that happened, in order."""
        return self._digest.hexdigest()

    def last(self, lines: int, containing: str = "") -> list[str]:
        """The last lines, for people."""
        words = (
            f"{now_ms:>8} ms  {what:<12} {who:<12} {about} {_say(payload)}".rstrip()
            for now_ms, what, who, about, payload in self._lines
        )
        return [line for line in words if containing in line][-lines:]


def _say(payload: bytes) -> str:
    if not payload:
        return ""
    if payload[:1] == b"{":
        return payload.decode(errors="replace")[:240]
    try:
        return repr(decode(payload, 1 << 26))[:600]
    except DecodeError:
        return payload[:40].hex()
