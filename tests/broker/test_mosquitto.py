"""mosquitto as our child process: its configuration, its start, its death."""

import os
import queue
import re
import signal
import socket

import psutil
import pytest

from broker.conftest import NEEDS_MOSQUITTO
from broker.raw_mqtt import LIMIT_S, RawMqtt
from forage_broker.listener import PortInUse
from forage_broker.mosquitto import BrokerFailed, MosquittoBroker, render_configuration


def test_every_line_of_the_configuration_has_its_reason() -> None:
    text = render_configuration(host="127.0.0.1", port=1884, allow_anonymous=True)
    lines = text.splitlines()
    assert all(line.startswith("# ") and line.endswith((".", ",")) for line in lines[::2])
    assert all(re.fullmatch(r"[a-z_]+ \S.*", line) for line in lines[1::2])
    assert "listener 1884 127.0.0.1" in lines
    assert "persistence false" in lines
    assert "set_tcp_nodelay true" in lines
    assert "max_queued_messages 100000" in lines


def test_anonymous_clients_are_let_in_on_request_only() -> None:
    closed = render_configuration(host="0.0.0.0", port=1, allow_anonymous=False).splitlines()
    opened = render_configuration(host="127.0.0.1", port=1, allow_anonymous=True).splitlines()
    assert "allow_anonymous false" in closed
    assert "allow_anonymous true" in opened


@NEEDS_MOSQUITTO
def test_it_ends_with_stop_and_leaves_nothing(mosquitto: MosquittoBroker) -> None:
    process = psutil.Process(mosquitto.pid)
    (configuration,) = (part for part in process.cmdline() if part.endswith(".conf"))
    assert not os.path.exists(configuration)
    mosquitto.stop()
    mosquitto.stop()
    assert not process.is_running()
    with pytest.raises(ConnectionRefusedError):
        RawMqtt(mosquitto.port)


@NEEDS_MOSQUITTO
def test_a_new_one_takes_the_same_port_at_once_and_is_empty(mosquitto: MosquittoBroker) -> None:
    with RawMqtt.connected(mosquitto.port, "client") as client:
        client.publish("kept", b"x", retain=True)
        mosquitto.stop()
    with (
        MosquittoBroker(port=mosquitto.port) as second,
        RawMqtt.connected(second.port, "client") as client,
    ):
        client.subscribe("#")
        client.ping()


@NEEDS_MOSQUITTO
def test_its_death_is_told_with_the_cause() -> None:
    deaths: queue.SimpleQueue[str] = queue.SimpleQueue()
    with MosquittoBroker(on_death=deaths.put) as broker:
        os.kill(broker.pid, signal.SIGKILL)
        assert (
            deaths.get(timeout=LIMIT_S) == f"mosquitto (process {broker.pid}) died with signal 9."
        )
    assert deaths.empty()


@NEEDS_MOSQUITTO
def test_a_wanted_end_is_no_death() -> None:
    deaths: queue.SimpleQueue[str] = queue.SimpleQueue()
    with MosquittoBroker(on_death=deaths.put):
        pass
    assert deaths.empty()


@NEEDS_MOSQUITTO
def test_a_port_in_use_is_an_error_of_its_own(mosquitto: MosquittoBroker) -> None:
    with pytest.raises(PortInUse):
        MosquittoBroker(port=mosquitto.port).start()


@NEEDS_MOSQUITTO
def test_a_start_that_fails_shows_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "forage_broker.mosquitto.render_configuration", lambda **_: "listener nonsense\n"
    )
    broker = MosquittoBroker()
    with pytest.raises(BrokerFailed, match=r"ended at its start\. Its log:\n.*Error"):
        broker.start()
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(broker.pid)


@NEEDS_MOSQUITTO
def test_a_client_that_is_not_let_in_is_told_so() -> None:
    with (
        MosquittoBroker(allow_anonymous=False) as broker,
        RawMqtt(broker.port) as client,
    ):
        assert client.connect("client") == 5


@NEEDS_MOSQUITTO
def test_it_listens_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    with MosquittoBroker("::1") as broker, RawMqtt(broker.port, "::1") as client:
        assert client.connect("client") == 0
