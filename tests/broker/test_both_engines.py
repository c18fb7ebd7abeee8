"""What forage relies on in any broker of ours, judged on the embedded one and on mosquitto."""

import subprocess
import sys

import paho.mqtt.client
import pytest

from broker.raw_mqtt import LIMIT_S, Closed, RawMqtt, packet, utf8
from forage_broker.limits import PACKET_BYTES_MAX

DEVICE = """
import sys, time
from paho.mqtt.client import CallbackAPIVersion, Client
client = Client(CallbackAPIVersion.VERSION2, client_id="device")
client.will_set("presence", b"lost", qos=1, retain=True)
client.on_connect = lambda *_: client.publish("presence", b"online", qos=1, retain=True)
client.on_publish = lambda *_: print("online", flush=True)
client.connect("127.0.0.1", int(sys.argv[1]), keepalive=60)
client.loop_forever()
"""


def test_the_will_of_a_killed_process_is_published_and_retained(port: int) -> None:
    with RawMqtt.connected(port, "watcher") as watcher:
        watcher.subscribe("presence")
        device = subprocess.Popen(
            [sys.executable, "-c", DEVICE, str(port)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert device.stdout is not None
            assert device.stdout.readline() == "online\n"
            assert watcher.message().payload == b"online"
        finally:
            device.kill()
            device.communicate(timeout=LIMIT_S)
        assert watcher.message().payload == b"lost"
        with RawMqtt.connected(port, "latecomer") as latecomer:
            latecomer.subscribe("+")
            kept = latecomer.message()
            assert (kept.topic, kept.payload, kept.retain) == ("presence", b"lost", True)


def test_a_goodbye_publishes_no_will(port: int) -> None:
    with (
        RawMqtt.connected(port, "watcher") as watcher,
        RawMqtt.connected(port, "device", will=("presence", b"lost")) as device,
    ):
        watcher.subscribe("presence")
        device.goodbye()
        with pytest.raises(Closed):
            device.receive()
        watcher.ping()


def test_a_takeover_with_a_clean_session_ends_the_old_one_before_the_new_speaks(port: int) -> None:
    with (
        RawMqtt.connected(port, "watcher") as watcher,
        RawMqtt.connected(port, "device", will=("presence", b"lost")) as old,
    ):
        watcher.subscribe("presence")
        with RawMqtt.connected(port, "device") as new:
            new.publish("presence", b"online")
            assert [watcher.message().payload for _ in range(2)] == [b"lost", b"online"]
            with pytest.raises(Closed):
                old.receive()
            new.ping()


def test_a_burst_into_a_client_that_does_not_read_is_kept_whole_and_in_order(port: int) -> None:
    count = 5_000
    with (
        RawMqtt.connected(port, "subscriber") as subscriber,
        RawMqtt.connected(port, "publisher") as publisher,
    ):
        subscriber.subscribe("inbox")
        for number in range(count):
            publisher.send(
                0x32, utf8("inbox") + (number + 1).to_bytes(2, "big") + b"%05d" % number + bytes(99)
            )
        for number in range(count):
            assert publisher.expect(0x40) == (number + 1).to_bytes(2, "big")
        for number in range(count):
            message = subscriber.message()
            assert message.payload[:5] == b"%05d" % number
            subscriber.acknowledge(message)


def test_large_payloads_arrive_whole(port: int) -> None:
    payload = bytes(range(256)) * (4 * 1024 * 16)  # 16 MiB
    with RawMqtt.connected(port, "client") as client:
        client.subscribe("bulk")
        with RawMqtt.connected(port, "publisher") as publisher:
            publisher.publish("bulk", payload)
            assert client.message().payload == payload


def test_a_packet_above_the_limit_ends_its_connection(port: int) -> None:
    with RawMqtt.connected(port, "giant") as giant:
        whole = packet(0x30, utf8("bulk") + bytes(PACKET_BYTES_MAX))
        try:
            giant.socket.sendall(whole)
        except ConnectionError:
            return
        with pytest.raises(Closed):
            giant.receive()


def test_a_library_client_gets_along(port: int) -> None:
    client = paho.mqtt.client.Client(
        paho.mqtt.client.CallbackAPIVersion.VERSION2, protocol=paho.mqtt.client.MQTTv311
    )
    received: list[bytes] = []

    def on_connect(*_: object) -> None:
        client.subscribe("t/#", 1)

    def on_subscribe(*_: object) -> None:
        for number in range(100):
            client.publish(f"t/{number}", str(number), number % 3)

    def on_message(_: object, __: object, message: paho.mqtt.client.MQTTMessage) -> None:
        received.append(message.payload)
        if len(received) == 100:
            client.disconnect()

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.loop_forever(retry_first_connection=False)
    assert sorted(map(int, received)) == list(range(100))
