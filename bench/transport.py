"""What the shared MQTT connection is worth: ours beside plain paho with its own thread.

Starts a mosquitto of its own on a free loopback port and prints one JSON line a measurement. The
two libraries take turns within one run, so that rows can be compared; between machines or hours
they cannot. At the other end of each measurement is a second process that uses the same library.

    python bench/transport.py [--messages 20000] [--round-trips 2000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from forage_wire.address import BrokerAddress
from forage_wire.shell.loop import Loop
from forage_wire.shell.mqtt import (
    Disconnected,
    MessageReceived,
    MqttConnection,
    PublishAcknowledged,
    SubscribeDone,
)

PAYLOAD = b"x" * 100
TIMEOUT_S = 60.0


class Bus(Protocol):
    """The same small bench on either library."""

    def flood(self, count: int) -> float:
        """Publish to "sink" at QoS 1; seconds until the last PUBACK."""

    def round_trips(self, count: int) -> list[float]:
        """Milliseconds each from a "ping" published to its "pong" received, one at a time."""

    def wait_for(self, topic: str) -> None:
        """Until a message on `topic` has come."""

    def serve(self, sink_count: int) -> None:
        """The other end: answers pings, counts floods and says "done"; ends with "stop"."""

    def publish(self, topic: str) -> None: ...

    def close(self) -> None: ...


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class OurBus:
    """One thread, one selector, corked."""

    def __init__(self, address: BrokerAddress, name: str, topics: list[str]) -> None:
        self._loop = Loop()
        self._seen: Counter[str] = Counter()
        self._connection = MqttConnection(
            address, client_id=name, subscriptions=[(topic, 1) for topic in topics]
        )
        self._loop.register(self._connection, lambda: None)
        self._connection.connect(now_ms())
        while not any(isinstance(event, SubscribeDone) for event in self._step()):
            pass

    def _step(self) -> list[Any]:
        self._connection.flush(now_ms())
        self._loop.poll(1.0)
        events = self._connection.read(now_ms())
        for event in events:
            if isinstance(event, Disconnected):
                raise SystemExit(event.reason)
            if isinstance(event, MessageReceived):
                self._seen[event.topic] += 1
        return events

    def flood(self, count: int) -> float:
        begin = time.perf_counter()
        for number in range(count):
            if self._connection.publish("sink", PAYLOAD, confirm=number == count - 1) is None:
                raise SystemExit("publish refused")
            if number % 100 == 99:
                self._connection.flush(now_ms())
        while not any(isinstance(event, PublishAcknowledged) for event in self._step()):
            pass
        return time.perf_counter() - begin

    def round_trips(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            self._connection.publish("ping", PAYLOAD)
            self.wait_for("pong")
            times.append((time.perf_counter() - begin) * 1000)
        return times

    def wait_for(self, topic: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not self._seen[topic]:
            self._step()
            if time.monotonic() > deadline:
                raise SystemExit(f"no {topic} came")
        self._seen[topic] -= 1

    def serve(self, sink_count: int) -> None:
        sunk = 0
        self.publish("ready")
        while not self._seen["stop"]:
            for event in self._step():
                if not isinstance(event, MessageReceived):
                    continue
                if event.topic == "ping":
                    self._connection.publish("pong", event.payload)
                elif event.topic == "sink":
                    sunk += 1
                    if sunk % sink_count == 0:
                        self._connection.publish("done", b"")

    def publish(self, topic: str) -> None:
        self._connection.publish(topic, b"")
        self._connection.flush(now_ms())

    def close(self) -> None:
        self._connection.disconnect()
        self._connection.close()
        self._loop.close()


class PahoBus:
    """As paho's documentation shows it, with TCP_NODELAY (else each round trip takes 40 ms)."""

    def __init__(self, address: BrokerAddress, name: str, topics: list[str]) -> None:
        self._topics = topics
        self._seen: dict[str, threading.Semaphore] = {
            topic: threading.Semaphore(0) for topic in topics
        }
        self._subscribed = threading.Event()
        self._serving = 0
        self._sunk = 0
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=name)
        self._client.on_socket_open = self._on_socket_open
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect(address.host, address.port, keepalive=10)
        self._client.loop_start()
        if not self._subscribed.wait(TIMEOUT_S):
            raise SystemExit("paho did not subscribe")

    def _on_socket_open(self, _client: Client, _userdata: Any, opened: Any) -> None:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(self, *_: Any) -> None:
        self._client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(self, *_: Any) -> None:
        self._subscribed.set()

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        topic = message.topic
        if self._serving and topic == "ping":
            self._client.publish("pong", message.payload, 1)
        elif self._serving and topic == "sink":
            self._sunk += 1
            if self._sunk % self._serving == 0:
                self._client.publish("done", b"", 1)
        else:
            self._seen[topic].release()

    def flood(self, count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            last = self._client.publish("sink", PAYLOAD, 1)
        last.wait_for_publish(TIMEOUT_S)
        return time.perf_counter() - begin

    def round_trips(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            self._client.publish("ping", PAYLOAD, 1)
            self.wait_for("pong")
            times.append((time.perf_counter() - begin) * 1000)
        return times

    def wait_for(self, topic: str) -> None:
        if not self._seen[topic].acquire(timeout=TIMEOUT_S):
            raise SystemExit(f"no {topic} came")

    def serve(self, sink_count: int) -> None:
        self._serving = sink_count
        self.publish("ready")
        self.wait_for("stop")

    def publish(self, topic: str) -> None:
        self._client.publish(topic, b"", 1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


LIBRARIES: dict[str, Callable[[BrokerAddress, str, list[str]], Bus]] = {
    "forage_wire.shell.mqtt": OurBus,
    "paho loop_start": PahoBus,
}


def serve(library: str, address: BrokerAddress, sink_count: int) -> None:
    """The second process."""
    bus = LIBRARIES[library](address, "bench-server", ["ping", "sink", "stop"])
    bus.serve(sink_count)
    bus.close()


@contextmanager
def broker() -> Iterator[BrokerAddress]:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        raise SystemExit("mosquitto is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "mosquitto.conf")
        configuration.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
            "max_queued_messages 0\nmax_inflight_messages 1000\npersistence false\n"
            + ("user root\n" if os.geteuid() == 0 else "")
        )
        process = subprocess.Popen(
            [program, "-c", str(configuration)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise SystemExit("mosquitto does not listen") from None
                    time.sleep(0.02)
            yield BrokerAddress(host="127.0.0.1", port=port)
        finally:
            process.kill()
            process.wait()


def measure(
    library: str, address: BrokerAddress, messages: int, round_trips: int
) -> dict[str, Any]:
    bus = LIBRARIES[library](address, "bench-caller", ["pong", "done", "ready"])
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(library, address, messages)
    )
    server.start()
    try:
        bus.wait_for("ready")
        bus.round_trips(100)
        cpu = time.process_time()
        times = sorted(bus.round_trips(round_trips))
        round_trip_cpu_ms = (time.process_time() - cpu) * 1000 / round_trips
        cpu = time.process_time()
        begin = time.perf_counter()
        acknowledged_s = bus.flood(messages)
        bus.wait_for("done")
        delivered_s = time.perf_counter() - begin
        publish_cpu_us = (time.process_time() - cpu) * 1e6 / messages
        bus.publish("stop")
        server.join(TIMEOUT_S)
    finally:
        if server.is_alive():
            server.kill()
        bus.close()
    return {
        "library": library,
        "qos1_publishes_per_s": round(messages / acknowledged_s),
        "qos1_delivered_per_s": round(messages / delivered_s),
        "publisher_cpu_us_per_message": round(publish_cpu_us, 1),
        "round_trip_p50_ms": round(times[len(times) // 2], 3),
        "round_trip_p99_ms": round(times[len(times) * 99 // 100], 3),
        "caller_cpu_ms_per_round_trip": round(round_trip_cpu_ms, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--round-trips", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # A terminated bench, too, ends its broker.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows: dict[str, list[dict[str, Any]]] = {library: [] for library in LIBRARIES}
    with broker() as address:
        for _ in range(arguments.rounds):
            for library, results in rows.items():
                row = measure(library, address, arguments.messages, arguments.round_trips)
                results.append(row)
                print(json.dumps(row), flush=True)
    for library, results in rows.items():
        median = {
            key: statistics.median(row[key] for row in results)
            for key in results[0]
            if key != "library"
        }
        print(json.dumps({"library": library, "median_of": arguments.rounds, **median}))


if __name__ == "__main__":
    main()
