"""The embedded broker as a whole: order, bad input, starting and stopping."""

import os
import random
import socket
import struct
import subprocess
import sys

import psutil
import pytest

from broker.raw_mqtt import Closed, RawMqtt, listening_pids, packet, utf8
from forage_broker.embedded import EmbeddedBroker
from forage_broker.listener import PortInUse

CONNECT = packet(0x10, utf8("MQTT") + b"\x04\x02\x00\x00" + utf8("burst"))


def test_packets_of_one_client_are_obeyed_in_their_order(embedded: EmbeddedBroker) -> None:
    subscribe = packet(0x82, b"\0\1" + utf8("t") + b"\1")
    publish = packet(0x30, utf8("t") + b"mine")
    with RawMqtt(embedded.port) as client:
        client.socket.sendall(CONNECT + subscribe + publish + packet(0xC0, b""))
        assert [client.receive()[0] for _ in range(4)] == [0x20, 0x90, 0x30, 0xD0]


def test_a_goodbye_right_behind_connect_leaves_no_will(embedded: EmbeddedBroker) -> None:
    connect = packet(
        0x10, utf8("MQTT") + b"\x04\x06\x00\x00" + utf8("brief") + utf8("w") + utf8("lost")
    )
    with (
        RawMqtt.connected(embedded.port, "watcher") as watcher,
        RawMqtt(embedded.port) as client,
    ):
        watcher.subscribe("w")
        client.socket.sendall(connect + packet(0xE0, b""))
        client.expect(0x20)
        with pytest.raises(Closed):
            client.receive()
        watcher.ping()


def test_a_repeated_qos_2_publish_is_delivered_once(embedded: EmbeddedBroker) -> None:
    with RawMqtt.connected(embedded.port, "client") as client:
        client.subscribe("t", 0)
        body = utf8("t") + struct.pack("!H", 5) + b"x"
        client.send(0x34, body)
        assert client.message().payload == b"x"
        client.expect(0x50)
        client.send(0x3C, body)  # DUP
        client.expect(0x50)
        client.send(0x62, struct.pack("!H", 5))
        client.expect(0x70)
        client.send(0x34, body)  # The id is free again.
        assert client.message().payload == b"x"


@pytest.mark.parametrize(
    ("topic_filter", "matching", "others"),
    [
        ("a/b", ["a/b"], ["a", "a/b/c", "a/c"]),
        ("a/+", ["a/b", "a/"], ["a", "a/b/c", "b/b"]),
        ("a/#", ["a", "a/b", "a/b/c"], ["b", "ab"]),
        ("+/b/+", ["a/b/c", "/b/"], ["a/b", "a/c/c"]),
        ("#", ["a", "a/b", "/"], ["$SYS/x"]),
    ],
)
def test_topic_filters(
    embedded: EmbeddedBroker, topic_filter: str, matching: list[str], others: list[str]
) -> None:
    with (
        RawMqtt.connected(embedded.port, "client") as client,
        RawMqtt.connected(embedded.port, "publisher") as publisher,
    ):
        client.subscribe(topic_filter)
        for topic in [*others, *matching, *others, *matching]:
            publisher.publish(topic, b"x")
        assert [client.message().topic for _ in range(2 * len(matching))] == 2 * matching
        client.ping()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00",
        packet(0x30, utf8("t") + b"before CONNECT"),
        packet(0x10, b""),
        packet(0x10, utf8("MQTT") + b"\x04"),
        packet(0x10, utf8("HTTP") + b"\x04\x02\x00\x00" + utf8("x")),
        packet(0x10, utf8("MQTT") + b"\x04\x06\x00\x00" + utf8("x") + utf8("w/#") + utf8("lost")),
        CONNECT + CONNECT,
        CONNECT + b"\x30\xff\xff\xff\xff\x01",
        CONNECT + packet(0x30, b""),
        CONNECT + packet(0x30, utf8("")),
        CONNECT + packet(0x30, utf8("a/+")),
        CONNECT + packet(0x30, utf8("a\0b")),
        CONNECT + packet(0x30, b"\x00\x02\xff\xfe"),
        CONNECT + packet(0x30, b"\xff\xff short"),
        CONNECT + packet(0x36, utf8("t") + b"\0\1"),
        CONNECT + packet(0x40, b"\1"),
        CONNECT + packet(0x40, b"\0\0"),
        CONNECT + packet(0x62, b""),
        CONNECT + packet(0x82, b"\0\1"),
        CONNECT + packet(0x82, b""),
        CONNECT + packet(0xA2, b""),
        CONNECT + packet(0xF0, b""),
    ],
)
def test_a_malformed_packet_ends_its_connection_alone(
    embedded: EmbeddedBroker, data: bytes
) -> None:
    with RawMqtt.connected(embedded.port, "bystander") as bystander:
        with RawMqtt(embedded.port) as vandal:
            vandal.socket.sendall(data)
            vandal.expect_end()
        bystander.ping()


@pytest.mark.parametrize("data", [b"", b"\x10", b"GET / HTTP/1.1\r\n\r\n", CONNECT + b"\x30\x80"])
def test_a_packet_that_stops_halfway_ends_with_its_connection(
    embedded: EmbeddedBroker, data: bytes
) -> None:
    with RawMqtt.connected(embedded.port, "bystander") as bystander:
        with RawMqtt(embedded.port) as vandal:
            vandal.socket.sendall(data)
            vandal.socket.shutdown(socket.SHUT_WR)
            vandal.expect_end()
        bystander.ping()


def test_random_bytes_do_no_harm(embedded: EmbeddedBroker) -> None:
    source = random.Random(1)
    with RawMqtt.connected(embedded.port, "bystander") as bystander:
        for _ in range(200):
            with RawMqtt(embedded.port) as vandal:
                greeting = CONNECT if source.random() < 0.8 else b""
                vandal.socket.sendall(greeting + source.randbytes(source.randrange(1, 300)))
        bystander.ping()
        bystander.subscribe("t")
        bystander.publish("t", b"still here", qos=0)
        assert bystander.message().payload == b"still here"


def test_accepted_sockets_send_at_once(embedded: EmbeddedBroker) -> None:
    with RawMqtt.connected(embedded.port, "client") as client:
        (other_end,) = (
            entry.fd
            for entry in psutil.net_connections(kind="tcp")
            if entry.pid == os.getpid() and entry.raddr == client.socket.getsockname()
        )
        with socket.fromfd(other_end, socket.AF_INET, socket.SOCK_STREAM) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_stop_closes_connections_and_port_and_a_new_broker_can_take_it_at_once() -> None:
    first = EmbeddedBroker()
    port = first.start()
    client = RawMqtt.connected(port, "client", will=("w", b"lost"))
    client.publish("kept", b"x", retain=True)
    half_open = socket.create_connection(("127.0.0.1", port))
    first.stop()
    first.stop()
    with pytest.raises(Closed):
        client.receive()
    assert listening_pids(port) == set()
    with (
        EmbeddedBroker(port=port) as second,
        RawMqtt.connected(second.port, "client") as again,
    ):
        assert second.port == port
        again.subscribe("#")
        again.ping()  # The new broker is empty.
    half_open.close()
    client.close()


def test_a_port_in_use_is_an_error_of_its_own(embedded: EmbeddedBroker) -> None:
    with pytest.raises(PortInUse, match=f"port {embedded.port} on 127.0.0.1 is in use"):
        EmbeddedBroker(port=embedded.port).start()


def test_it_listens_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    with EmbeddedBroker("::1") as broker, RawMqtt(broker.port, "::1") as client:
        assert client.connect("client") == 0


def test_a_program_may_end_without_stopping_it() -> None:
    program = "from forage_broker.embedded import EmbeddedBroker; EmbeddedBroker().start()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
