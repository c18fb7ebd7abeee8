"""Each fault of the proxy does what it says, seen from both ends of real connections.

One end is a bare MQTT client, the other a listening socket that plays the broker and reads the
bytes; where the broker's part matters, a real one stands behind the proxy.
"""

import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from broker.raw_mqtt import Closed, RawMqtt, packet, utf8
from chaos.faults import (
    DOWN,
    UP,
    Corrupt,
    Cut,
    CutAfterBytes,
    Delay,
    Drop,
    Duplicate,
    HalfOpen,
    Point,
    Reorder,
    Rule,
)
from chaos.packets import PUBACK, PUBLISH, Cutter
from chaos.proxy import HOST, Proxies, Proxy
from forage_broker.embedded import EmbeddedBroker

LIMIT_S = 10.0
PATIENCE_S = 0.15
"""How long a test looks whether something comes that must not."""


def publish(topic: str, payload: bytes, message_id: int = 0) -> bytes:
    identity = message_id.to_bytes(2, "big") if message_id else b""
    return packet(0x32 if message_id else 0x30, utf8(topic) + identity + payload)


@dataclass
class Pair:
    """Both ends of one connection through a proxy."""

    proxy: Proxy
    program: socket.socket
    broker: socket.socket

    def ends(self, direction: str) -> tuple[socket.socket, socket.socket]:
        """Who sends and who receives."""
        both = (self.program, self.broker)
        return both if direction == UP else both[::-1]


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    with Proxies(seed=3) as proxies:
        yield proxies


@pytest.fixture
def pair(proxies: Proxies) -> Iterator[Pair]:
    with socket.create_server((HOST, 0)) as listener:
        proxy = proxies.add("one")
        proxy.upstream_port = listener.getsockname()[1]
        with socket.create_connection((HOST, proxy.port), timeout=LIMIT_S) as program:
            broker, _ = listener.accept()
            broker.settimeout(LIMIT_S)
            with broker:
                yield Pair(proxy, program, broker)


def read(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = end.recv(count - len(data))
        assert chunk, f"the end after {data!r}"
        data += chunk
    return data


def read_to_end(end: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := end.recv(1 << 16):
            data += chunk
    except ConnectionResetError:
        pass  # An end like another: of a socket that had not read all that was sent to it.
    return data


def assert_silence(end: socket.socket) -> None:
    end.settimeout(PATIENCE_S)
    with pytest.raises(TimeoutError):
        end.recv(1)
    end.settimeout(LIMIT_S)


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_without_rules_every_byte_passes_in_order(pair: Pair, direction: str) -> None:
    sender, receiver = pair.ends(direction)
    source = random.Random(1)
    stream = b"".join(
        publish(f"topic/{n}", source.randbytes(source.choice([0, 5, 200, 70_000])), n)
        for n in range(1, 40)
    )
    sending = threading.Thread(target=sender.sendall, args=(stream,))
    sending.start()
    assert read(receiver, len(stream)) == stream
    sending.join()


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_an_end_that_closes_closes_the_other(pair: Pair, direction: str) -> None:
    sender, receiver = pair.ends(direction)
    sender.sendall(publish("a", b"last words"))
    sender.close()
    assert read_to_end(receiver) == publish("a", b"last words")


def test_a_delay_holds_back_the_packet_and_all_behind_it(pair: Pair) -> None:
    pair.proxy.add(Rule("delay", Delay(0.3, 0.3), UP, topic="^slow$"))
    packets = [publish("quick", b"1"), publish("slow", b"2"), publish("quick", b"3")]
    began = time.monotonic()
    pair.program.sendall(b"".join(packets))
    assert read(pair.broker, len(packets[0])) == packets[0]
    assert_silence(pair.broker)
    assert read(pair.broker, len(packets[1] + packets[2])) == packets[1] + packets[2]
    assert time.monotonic() - began >= 0.3
    # The other way is not held back.
    pair.broker.sendall(packets[0])
    assert read(pair.program, len(packets[0])) == packets[0]


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_dropped_message_is_acknowledged_and_never_arrives(pair: Pair, direction: str) -> None:
    sender, receiver = pair.ends(direction)
    pair.proxy.add(Rule("drop", Drop(), direction, topic="lost"))
    sender.sendall(publish("lost", b"1", 77) + publish("lost", b"2") + publish("kept", b"3", 78))
    assert read(receiver, len(publish("kept", b"3", 78))) == publish("kept", b"3", 78)
    assert read(sender, 4) == b"\x40\x02\x00\x4d"
    assert_silence(sender)
    assert pair.proxy.proxies.counts == {"drop": 2}


def test_a_dropped_packet_that_is_no_message_passes(pair: Pair) -> None:
    pair.proxy.add(Rule("drop", Drop()))
    pair.program.sendall(b"\xc0\x00")
    assert read(pair.broker, 2) == b"\xc0\x00"


def test_a_duplicate_comes_again_as_a_message_without_id(pair: Pair) -> None:
    pair.proxy.add(Rule("duplicate", Duplicate(copies=2), DOWN, kind=PUBLISH))
    pair.broker.sendall(publish("a/b", b"once", 9))
    expected = publish("a/b", b"once", 9) + 2 * publish("a/b", b"once")
    assert read(pair.program, len(expected)) == expected


def test_a_reordered_message_is_overtaken_and_still_arrives(pair: Pair) -> None:
    pair.proxy.add(Rule("reorder", Reorder(passing=1, limit_s=LIMIT_S), UP, topic="late"))
    pair.program.sendall(publish("late", b"1") + publish("soon", b"2") + publish("soon", b"3"))
    expected = publish("soon", b"2") + publish("late", b"1") + publish("soon", b"3")
    assert read(pair.broker, len(expected)) == expected


def test_a_reordered_message_that_nobody_overtakes_arrives_after_a_time(pair: Pair) -> None:
    pair.proxy.add(Rule("reorder", Reorder(passing=3, limit_s=0.05), UP, topic="late"))
    pair.program.sendall(publish("late", b"1"))
    assert read(pair.broker, len(publish("late", b"1"))) == publish("late", b"1")


def test_a_corrupted_message_keeps_its_topic_and_id_and_loses_its_sense(pair: Pair) -> None:
    pair.proxy.add(Rule("corrupt", Corrupt(), UP, limit=30))
    whole = b"something to say"
    for number in range(1, 31):
        pair.program.sendall(publish("topic", whole, number))
    pair.program.sendall(publish("end", b""))
    cutter, found, is_over = Cutter(), [], False
    while not is_over:
        for one in cutter.feed(pair.broker.recv(1 << 16)):
            is_over = one.topic == "end"
            found.append(one)
    assert [one.message_id for one in found] == [*range(1, 31), 0]
    assert {one.topic for one in found[:-1]} == {"topic"}
    payloads = [one.payload for one in found[:-1]]
    assert whole not in payloads
    # All three ways occur: cut short, noise in its place, noise behind it.
    assert any(whole.startswith(payload) for payload in payloads)
    assert any(payload.startswith(whole) for payload in payloads)
    assert any(payload.startswith(b"\xff") for payload in payloads)


@pytest.mark.parametrize("direction", [UP, DOWN])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_cut_ends_the_connection_at_a_topic(pair: Pair, direction: str, share: float) -> None:
    sender, receiver = pair.ends(direction)
    pair.proxy.add(Rule("cut", Cut(share), direction, topic="^from/"))
    fatal = publish("from/me", b"x" * 50)
    sender.sendall(publish("to/me", b"1") + fatal + publish("to/me", b"2"))
    assert read_to_end(receiver) == publish("to/me", b"1") + fatal[: int(len(fatal) * share)]
    assert read_to_end(sender) == b""


def test_a_cut_at_a_packet_type_of_the_second_time(pair: Pair) -> None:
    pair.proxy.add(Rule("cut", Cut(), DOWN, kind=PUBACK, skip=1))
    acknowledgement = b"\x40\x02\x00\x01"
    pair.broker.sendall(publish("a", b"1") + acknowledgement + publish("a", b"2"))
    expected = publish("a", b"1") + acknowledgement + publish("a", b"2")
    assert read(pair.program, len(expected)) == expected
    pair.broker.sendall(acknowledgement)
    assert read_to_end(pair.program) == b""


def test_a_cut_after_bytes_ends_it_in_the_midst_of_a_packet(pair: Pair) -> None:
    pair.proxy.add(Rule("cut after bytes", CutAfterBytes(30), UP))
    stream = publish("a", b"1" * 20) + publish("a", b"2" * 20)
    pair.program.sendall(stream)
    assert read_to_end(pair.broker) == stream[:30]


def test_a_half_open_connection_is_dead_and_nobody_is_told(pair: Pair) -> None:
    pair.proxy.add(Rule("half-open", HalfOpen(), UP, topic="last"))
    pair.program.sendall(publish("first", b"1") + publish("last", b"2") + publish("more", b"3"))
    assert read(pair.broker, len(publish("first", b"1"))) == publish("first", b"1")
    pair.broker.sendall(publish("answer", b"4"))
    assert_silence(pair.program)
    assert_silence(pair.broker)
    # Not even the end of one is told to the other.
    pair.program.close()
    assert_silence(pair.broker)
    pair.proxy.heal()
    assert read_to_end(pair.broker) == b""


def test_a_point_is_reached_before_its_packet_goes_on(pair: Pair) -> None:
    reached: list[bytes] = []

    def look() -> None:
        pair.broker.settimeout(PATIENCE_S)
        try:
            reached.append(pair.broker.recv(1))
        except TimeoutError:
            reached.append(b"")
        pair.broker.settimeout(LIMIT_S)

    pair.proxy.add(Rule("point", Point(look), UP, topic="here", limit=1))
    pair.program.sendall(publish("here", b"1") + publish("here", b"2"))
    expected = publish("here", b"1") + publish("here", b"2")
    # The point looked while nothing had arrived; only then did both go on.
    while not reached:
        time.sleep(0.005)
    assert read(pair.broker, len(expected)) == expected
    assert reached == [b""]


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_hold_lets_nothing_pass_one_way_until_it_is_healed(pair: Pair, direction: str) -> None:
    sender, receiver = pair.ends(direction)
    pair.proxy.hold(direction)
    sender.sendall(publish("a", b"held"))
    receiver.sendall(publish("b", b"passes"))
    assert read(sender, len(publish("b", b"passes"))) == publish("b", b"passes")
    assert_silence(receiver)
    sender.close()
    assert_silence(receiver)
    pair.proxy.heal()
    assert read_to_end(receiver) == publish("a", b"held")


def test_refused_connections_end_at_once_until_it_is_healed(pair: Pair) -> None:
    pair.proxy.refuse()
    assert read_to_end(pair.broker) == b""
    with socket.create_connection((HOST, pair.proxy.port), timeout=LIMIT_S) as another:
        assert read_to_end(another) == b""
    assert pair.proxy.connections == 0
    pair.proxy.heal()
    with socket.create_connection((HOST, pair.proxy.port), timeout=LIMIT_S):
        while pair.proxy.connections == 0:
            time.sleep(0.005)


def test_the_same_seed_makes_the_same_choices() -> None:
    def choices(seed: int) -> list[bool]:
        with Proxies(seed=seed) as proxies:
            proxy = proxies.add("one")
            rule = Rule("drop", Drop(), probability=0.5)
            [one] = Cutter().feed(publish("a", b"1"))
            return [rule.matches(UP, one, proxy.source) for _ in range(64)]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


def test_a_real_broker_behind_it_serves_as_before_and_sees_a_cut() -> None:
    with EmbeddedBroker() as broker, Proxies() as proxies:
        proxy = proxies.add("one")
        proxy.upstream_port = broker.port
        with (
            RawMqtt.connected(proxy.port, "program", will=("will", b"gone")) as program,
            RawMqtt.connected(broker.port, "watcher") as watcher,
        ):
            assert watcher.subscribe("will", 1) == 1
            assert program.subscribe("topic", 1) == 1
            watcher.publish("topic", b"hello")
            assert program.message().payload == b"hello"
            proxy.add(Rule("cut", Cut(), UP, topic="^last$"))
            with pytest.raises(Closed):
                program.publish("last", b"never arrives")
            assert watcher.message().payload == b"gone"
