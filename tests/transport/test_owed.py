"""PUBACKs wait for what leaves next, for a few more of them, or for a moment; none is forgotten."""

import select
from collections.abc import Callable

from forage_wire.shell.owed import OWED_MAX, OWED_MS, Owed
from transport.owner import Owner, Party, now_ms
from transport.peer import Peer, Session, publish_packet

StartPeer = Callable[[Callable[[Session], None]], Peer]


def puback(message_id: int) -> bytes:
    return b"\x40\x02" + message_id.to_bytes(2, "big")


def test_one_waits_for_what_leaves_next() -> None:
    owed = Owed()
    assert owed.due_ms is None
    owed.add(7, 1_000)
    assert owed.due_ms == 1_000 + OWED_MS
    assert owed.take(1_000 + OWED_MS - 1, others_leave=False) == b""
    assert owed.take(1_000 + OWED_MS - 1, others_leave=True) == puback(7)
    assert owed.due_ms is None
    assert owed.take(2_000, others_leave=True) == b""


def test_one_alone_leaves_when_its_time_is_up() -> None:
    owed = Owed()
    owed.add(7, 1_000)
    owed.add(8, 1_000 + OWED_MS - 1)
    assert owed.take(1_000 + OWED_MS, others_leave=False) == puback(7) + puback(8)
    owed.add(9, 2_000)
    assert owed.due_ms == 2_000 + OWED_MS


def test_many_leave_at_once() -> None:
    owed = Owed()
    for number in range(OWED_MAX - 1):
        owed.add(number, 1_000)
        assert owed.take(1_000, others_leave=False) == b""
    owed.add(OWED_MAX - 1, 1_000)
    assert owed.take(1_000, others_leave=False) == b"".join(map(puback, range(OWED_MAX)))


class Broker:
    """Sends messages of these ids on its first connection, and keeps all that comes."""

    def __init__(self, *ids: int) -> None:
        self._first = b"".join(publish_packet("t", b"", qos=1, message_id=each) for each in ids)
        self.got: list[bytes] = []

    def __call__(self, session: Session) -> None:
        session.accept()
        session.send(self._first)
        self._first = b""
        while True:
            self.got.append(session.packet())


def online(owner: Owner, start_peer: StartPeer, broker: Broker, count: int) -> tuple[Party, int]:
    """A party that has read so many messages, all at one moment, which is the second answer."""
    party = owner.party(start_peer(broker).address)
    clock_ms = now_ms()
    party.connection.connect(clock_ms)
    while len(party.messages) < count:
        assert select.select([party.connection], [], [], 30)[0]
        party.events += party.connection.read(clock_ms)
    return party, clock_ms


def test_a_publish_takes_them_along(owner: Owner, start_peer: StartPeer) -> None:
    broker = Broker(1, 2)
    party, clock_ms = online(owner, start_peer, broker, 2)
    party.connection.flush(clock_ms + OWED_MS - 1)
    party.connection.publish("x", b"word", qos=0)
    party.connection.flush(clock_ms + OWED_MS - 1)
    owner.until(lambda: len(broker.got) == 3)
    assert broker.got == [publish_packet("x", b"word"), puback(1), puback(2)]


def test_alone_they_leave_by_the_connections_own_deadline(
    owner: Owner, start_peer: StartPeer
) -> None:
    """Whose owner has nothing to say looks when it is told to, and that is enough."""
    broker = Broker(5)
    party, clock_ms = online(owner, start_peer, broker, 1)
    assert party.connection.next_deadline_ms() == clock_ms + OWED_MS
    assert party.connection.read(clock_ms + OWED_MS) == []
    owner.until(lambda: broker.got == [puback(5)])


def test_a_new_connection_owes_nothing_of_the_one_before(
    owner: Owner, start_peer: StartPeer
) -> None:
    broker = Broker(5)
    party, _ = online(owner, start_peer, broker, 1)
    party.connection.connect(now_ms())
    owner.until(lambda: party.connection.connected)
    for topic in ("x", "y"):
        party.connection.publish(topic, b"", qos=0)
        party.connection.flush(now_ms() + OWED_MS)
    owner.until(lambda: publish_packet("y", b"") in broker.got)
    assert broker.got == [publish_packet("x", b""), publish_packet("y", b"")]
