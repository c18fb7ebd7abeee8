"""The connection with peers that are no broker, or a strange one."""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from forage_wire.address import BrokerAddress
from forage_wire.shell.dial import words_for
from forage_wire.shell.mqtt import (
    Connected,
    Disconnected,
    MessageReceived,
    MessageTooLong,
    SubscribeDone,
    Will,
)
from transport.mosquitto import free_port
from transport.owner import Owner, Party, now_ms
from transport.peer import CONNACK, PINGRESP, Peer, Session, publish_packet, suback

StartPeer = Callable[[Callable[[Session], None]], Peer]


def connecting(owner: Owner, address: BrokerAddress, **options: Any) -> Party:
    party = owner.party(address, **options)
    party.connection.connect(now_ms())
    return party


def accept_only(session: Session) -> None:
    session.accept()


def say_nothing(session: Session) -> None:
    session.receive(1 << 20)


def test_refused_connect_is_told_in_words(owner: Owner) -> None:
    party = connecting(owner, BrokerAddress(host="127.0.0.1", port=free_port()))
    end = owner.end_of(party)
    assert end == Disconnected(
        reason="connection refused: nothing listens there", kind="unreachable"
    )
    assert party.connection.next_deadline_ms() is None


@pytest.mark.parametrize(
    "banner",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\x15\x03\x03\x00\x02\x02\x46"],
)
def test_other_server_is_not_taken_for_a_broker(
    owner: Owner, start_peer: StartPeer, banner: bytes
) -> None:
    party = connecting(owner, start_peer(lambda session: session.send(banner)).address)
    end = owner.end_of(party)
    assert end == Disconnected(
        reason="what answers there is not an MQTT broker", kind="unreachable"
    )


def test_server_that_hangs_up_is_not_taken_for_a_broker(
    owner: Owner, start_peer: StartPeer
) -> None:
    def hang_up(session: Session) -> None:
        session.packet()
        session.socket.shutdown(socket.SHUT_RDWR)

    end = owner.end_of(connecting(owner, start_peer(hang_up).address))
    assert end == Disconnected(
        reason="it closed the connection without an MQTT answer", kind="unreachable"
    )


def test_server_that_says_nothing_is_given_up(owner: Owner, start_peer: StartPeer) -> None:
    peer = start_peer(say_nothing)
    end = owner.end_of(connecting(owner, peer.address, connect_timeout_ms=200))
    assert end.kind == "unreachable"
    assert "no MQTT answer within 0.2 s" in end.reason


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (1, "MQTT 3.1.1", "refused"),
        (2, "client id", "refused"),
        (3, "not available", "unreachable"),
        (4, "user name or password", "refused"),
        (5, "not authorised", "refused"),
        (77, "code 77", "refused"),
    ],
)
def test_every_refusal_is_told_in_words(
    owner: Owner, start_peer: StartPeer, code: int, words: str, kind: str
) -> None:
    peer = start_peer(lambda session: session.send(CONNACK[:3] + bytes([code])))
    end = owner.end_of(connecting(owner, peer.address))
    assert words in end.reason
    assert end.kind == kind


def test_hanging_name_service_does_not_hold_up_the_loop(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(*_arguments: object, **_options: object) -> list[object]:
        release.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    party = connecting(owner, BrokerAddress(host="broker.test"), connect_timeout_ms=100)
    try:
        end = owner.end_of(party)
        assert not release.is_set()
        assert end.reason == "timed out: no connection within 0.1 s"
    finally:
        release.set()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (socket.EAI_NONAME, "the name broker.test is not known"),
        (socket.EAI_AGAIN, "the name broker.test cannot be looked up now"),
    ],
)
def test_failed_name_lookup_is_told_in_words(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def fail(*_arguments: object, **_options: object) -> list[object]:
        raise socket.gaierror(code, "what the system says")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    end = owner.end_of(connecting(owner, BrokerAddress(host="broker.test")))
    assert words in end.reason
    assert end.kind == "unreachable"


def test_name_with_a_dead_and_a_live_address_is_reached(
    owner: Owner, start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = start_peer(accept_only)
    dead, live = free_port(), peer.address.port

    def two(*_arguments: object, **_options: object) -> list[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
            for port in (dead, live)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    party = connecting(owner, BrokerAddress(host="broker.test"))
    owner.until(lambda: bool(party.of(Connected)))


def test_connect_without_a_descriptor_left_is_told_as_an_event(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> tuple[socket.socket, socket.socket]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", fail)
    end = owner.end_of(connecting(owner, BrokerAddress(host="127.0.0.1")))
    assert end == Disconnected(reason="too many open files", kind="unreachable")


def test_errors_have_words() -> None:
    assert words_for(TimeoutError()) == words_for(OSError(errno.ETIMEDOUT, "x"))
    assert words_for(OSError(errno.EHOSTUNREACH, "x")) == "no route to the host"
    assert words_for(OSError(errno.ENOBUFS, "No buffer space")) == "no buffer space"


def test_abandoned_attempt_leaves_no_connection(owner: Owner, start_peer: StartPeer) -> None:
    """Aborted while it dials, or right after: the peer sees the end either way."""
    ended = threading.Semaphore(0)

    def wait_for_the_end(session: Session) -> None:
        while session.socket.recv(4096):
            pass
        ended.release()

    peer = start_peer(wait_for_the_end)
    party = connecting(owner, peer.address)
    party.connection.abort()
    party.connection.connect(now_ms())
    # The second attempt is seen in any case; the first may have died before it connected.
    owner.until(lambda: party.connection.unsent_bytes == 0 and party.connection._wire is not None)
    party.connection.abort()
    assert ended.acquire(timeout=30)
    assert party.events == []


def test_answer_in_single_bytes_is_understood(owner: Owner, start_peer: StartPeer) -> None:
    def dribble(session: Session) -> None:
        session.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session.packet()
        for byte in CONNACK + publish_packet("t", b"payload"):
            session.send(bytes([byte]))

    party = connecting(owner, start_peer(dribble).address)
    owner.until(lambda: bool(party.messages))
    assert party.events == [
        Connected(session_present=False),
        SubscribeDone(granted={}, refused=()),
        MessageReceived(topic="t", payload=b"payload", retain=False),
    ]


def test_connect_packet_is_mqtt_3_1_1_with_a_clean_session_and_the_will(
    owner: Owner, start_peer: StartPeer
) -> None:
    seen: list[bytes] = []
    peer = start_peer(lambda session: seen.append(session.accept()))
    owner.online(peer.address, will=Will(topic="w", payload=b"gone"), keepalive_s=10)
    owner.until(lambda: bool(seen))
    connect = seen[0]
    assert connect[2:9] == b"\x00\x04MQTT\x04"
    will_flag, will_qos_1, will_retain, clean = 0x04, 0x08, 0x20, 0x02
    assert connect[9] == will_flag | will_qos_1 | will_retain | clean
    assert connect[10:12] == (10).to_bytes(2, "big")
    assert connect.endswith(b"\x00\x01w\x00\x04gone")


def test_refused_subscription_is_asked_for_again_and_granted(
    owner: Owner, start_peer: StartPeer
) -> None:
    requests: list[bytes] = []

    def refuse_twice(session: Session) -> None:
        session.accept()
        for codes in ([1, 0x80], [0x80], [1]):
            requests.append(session.packet())
            session.send(suback(requests[-1], codes))

    party = owner.online(start_peer(refuse_twice).address, [("a", 1), ("b", 1)])
    assert party.of(SubscribeDone) == [SubscribeDone(granted={"a": 1, "b": 1}, refused=())]
    assert [request[4:] for request in requests] == [
        b"\x00\x01a\x01\x00\x01b\x01",
        b"\x00\x01b\x01",
        b"\x00\x01b\x01",
    ]


def test_subscription_refused_three_times_is_tried_at_qos_0(
    owner: Owner, start_peer: StartPeer
) -> None:
    asked: list[int] = []

    def refuse_qos_1(session: Session) -> None:
        session.accept()
        while True:
            request = session.packet()
            asked.append(request[-1])
            session.send(suback(request, [0x80 if request[-1] else 0]))

    party = owner.online(start_peer(refuse_qos_1).address, [("a", 1)])
    assert party.of(SubscribeDone) == [SubscribeDone(granted={"a": 0}, refused=())]
    assert asked == [1, 1, 1, 0]


def test_subscription_refused_at_every_qos_is_reported(owner: Owner, start_peer: StartPeer) -> None:
    def refuse(session: Session) -> None:
        session.accept()
        for _ in range(4):
            session.send(suback(session.packet(), [0x80]))

    party = owner.online(start_peer(refuse).address, [("a", 1)])
    assert party.of(SubscribeDone) == [SubscribeDone(granted={}, refused=("a",))]


def test_answer_that_nobody_asked_for_is_not_a_second_subscribe_done(
    owner: Owner, start_peer: StartPeer
) -> None:
    def answer_twice(session: Session) -> None:
        session.accept()
        answer = suback(session.packet(), [1])
        session.send(answer + answer + publish_packet("t", b"after"))

    party = owner.online(start_peer(answer_twice).address, [("a", 1)])
    owner.until(lambda: bool(party.messages))
    assert len(party.of(SubscribeDone)) == 1


def test_absurdly_long_message_is_skipped_and_acknowledged(
    owner: Owner, start_peer: StartPeer
) -> None:
    puback: list[bytes] = []

    def send_long(session: Session) -> None:
        session.accept()
        session.send(publish_packet("t", b"before"))
        session.send(publish_packet("long", b"x" * 3_000_000, qos=1, message_id=515))
        session.send(publish_packet("t", b"after"))
        puback.append(session.packet())

    party = connecting(owner, start_peer(send_long).address, packet_bytes_limit=1_000)
    owner.until(lambda: len(party.messages) == 2 and bool(puback))
    assert [message.payload for message in party.messages] == [b"before", b"after"]
    assert party.of(MessageTooLong) == [MessageTooLong(topic="long", packet_bytes=3_000_008)]
    assert puback == [b"\x40\x02" + (515).to_bytes(2, "big")]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00",  # No such packet type.
        b"\x30\x02\x00\x09",  # A topic longer than the packet.
        b"\x30\xff\xff\xff\xff\xff",  # A length of five bytes.
        b"\x90\x00",  # A SUBACK without anything.
        b"\x32\x04\x00\x01a\x00",  # Half a message id.
    ],
)
def test_malformed_packet_ends_the_connection_and_nothing_else(
    owner: Owner, start_peer: StartPeer, garbage: bytes
) -> None:
    def send_garbage(session: Session) -> None:
        session.accept()
        session.send(publish_packet("t", b"before") + garbage)

    party = connecting(owner, start_peer(send_garbage).address)
    end = owner.end_of(party)
    assert end.kind == "lost"
    assert "not MQTT" in end.reason
    assert [message.payload for message in party.messages] == [b"before"]
    party.connection.connect(now_ms())
    owner.end_of(party)
    assert len(party.of(Connected)) == 2


def test_topic_that_is_no_text_reaches_the_owner_as_an_unknown_one(
    owner: Owner, start_peer: StartPeer
) -> None:
    def send_bad_topic(session: Session) -> None:
        session.accept()
        session.send(b"\x30\x05\x00\x02\xff\xfeX" + publish_packet("t", b"after"))

    party = connecting(owner, start_peer(send_bad_topic).address)
    owner.until(lambda: len(party.messages) == 2)
    assert [message.topic for message in party.messages] == ["\ufffd", "t"]


def test_idle_connection_is_kept_alive_by_pings(owner: Owner, start_peer: StartPeer) -> None:
    pings: list[bytes] = []

    def answer_pings(session: Session) -> None:
        session.accept()
        while True:
            pings.append(session.packet())
            session.send(PINGRESP)

    party = connecting(owner, start_peer(answer_pings).address, keepalive_s=1)
    owner.until(lambda: len(pings) == 2)
    assert pings == [b"\xc0\x00"] * 2
    assert party.connection.connected


def test_keepalive_counts_from_the_owners_clock_alone(owner: Owner, start_peer: StartPeer) -> None:
    """A loop that stood still for an hour first reads, then pings, and only then judges."""
    peer = start_peer(accept_only)
    party = owner.online(peer.address, keepalive_s=10)
    hour_later = now_ms() + 3_600_000
    assert party.connection.read(hour_later) == []
    assert party.connection.next_deadline_ms() == hour_later + 10_000
    assert party.connection.read(hour_later + 9_999) == []
    ended = party.connection.read(hour_later + 10_000)
    assert [type(event) for event in ended] == [Disconnected]


def test_cut_short_sends_go_on_and_lose_nothing(owner: Owner, start_peer: StartPeer) -> None:
    payloads = [bytes([number]) * (512 * 1024 + number) for number in range(24)]
    may_read = threading.Event()
    received: list[bytes] = []

    def read_late(session: Session) -> None:
        session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        session.accept()
        assert may_read.wait(30)
        while len(received) < len(payloads):
            received.append(session.packet())

    party = connecting(owner, start_peer(read_late).address)
    owner.until(lambda: bool(party.of(Connected)))
    for payload in payloads:
        party.connection.publish("t", payload, qos=0)
    total = party.connection.unsent_bytes
    party.connection.flush(now_ms())
    assert 0 < party.connection.unsent_bytes < total
    may_read.set()
    owner.until(lambda: len(received) == len(payloads))
    assert received == [publish_packet("t", payload) for payload in payloads]
    assert party.connection.unsent_bytes == 0


def test_slow_upload_is_no_sign_of_a_dead_broker(owner: Owner, start_peer: StartPeer) -> None:
    """The ping stands behind our own backlog: the wait for its answer begins when it is sent."""
    read_more = threading.Semaphore(0)

    def read_in_steps(session: Session) -> None:
        session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        session.accept()
        while read_more.acquire(timeout=30):
            session.receive(1 << 20)

    party = connecting(owner, start_peer(read_in_steps).address, keepalive_s=10)
    owner.until(lambda: bool(party.of(Connected)))
    for _ in range(32):
        party.connection.publish("t", b"x" * (1 << 20), qos=0)
    clock_ms = now_ms()
    party.connection.flush(clock_ms)
    steps = 0
    for _ in range(4):
        # Eight seconds a step: together more than twice the keepalive, with no byte received.
        clock_ms += 8_000
        before = party.connection.unsent_bytes
        for _ in range(4):
            read_more.release()
        while party.connection.unsent_bytes == before:
            select.select([party.connection], [], [], 30)
            assert party.connection.read(clock_ms) == []
        steps += 1
    assert steps == 4
    assert party.connection.connected
    assert party.connection.unsent_bytes > 0


def test_publish_refuses_beyond_the_limit_of_unsent_bytes(
    owner: Owner, start_peer: StartPeer
) -> None:
    peer = start_peer(accept_only)
    party = connecting(owner, peer.address, outstanding_bytes_max=1_000_000)
    owner.until(lambda: bool(party.of(Connected)))
    accepted = [party.connection.publish("t", b"x" * 100_000, qos=0) is not None for _ in range(20)]
    assert accepted == [True] * 10 + [False] * 10


def test_publish_refuses_beyond_the_limit_of_unacknowledged_bytes(
    owner: Owner, start_peer: StartPeer
) -> None:
    """A broker that reads and never acknowledges must not make us keep everything."""
    acknowledge = threading.Event()

    def acknowledge_late(session: Session) -> None:
        session.accept()
        packets = [session.packet() for _ in range(11)]
        assert acknowledge.wait(30)
        for packet in packets:
            topic_end = 4 + 2 + 1  # Header with a length of three bytes, topic length, "t".
            session.send(b"\x40\x02" + packet[topic_end : topic_end + 2])
        session.packet()

    party = connecting(owner, start_peer(acknowledge_late).address, outstanding_bytes_max=1_000_000)
    owner.until(lambda: bool(party.of(Connected)))

    def publish() -> bool:
        return party.connection.publish("t", b"x" * 100_000) is not None

    assert all(publish() for _ in range(10))
    owner.until(lambda: party.connection.unsent_bytes == 0)
    assert publish()
    owner.until(lambda: party.connection.unsent_bytes == 0)
    assert not publish()
    acknowledge.set()
    owner.until(publish)


def test_wildcard_topics_and_qos_2_are_a_programmers_error(
    owner: Owner, start_peer: StartPeer
) -> None:
    party = owner.online(start_peer(accept_only).address)
    with pytest.raises(ValueError, match="QoS 2"):
        party.connection.publish("t", b"", qos=2)
    with pytest.raises(ValueError, match="wildcards"):
        party.connection.publish("t/#", b"")


def test_reset_connection_is_told_in_words(owner: Owner, start_peer: StartPeer) -> None:
    def reset(session: Session) -> None:
        session.accept()
        # A linger time of zero turns the close into a reset.
        session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        session.packet()
        session.socket.close()

    party = connecting(owner, start_peer(reset).address)
    owner.until(lambda: bool(party.of(Connected)))
    party.connection.publish("t", b"x")
    end = owner.end_of(party)
    assert end == Disconnected(reason="the broker reset the connection", kind="lost")
