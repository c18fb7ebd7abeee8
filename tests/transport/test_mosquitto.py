"""The connection with a real broker."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from forage_wire.shell.mqtt import (
    Connected,
    Disconnected,
    MessageReceived,
    PublishAcknowledged,
    SubscribeDone,
    Will,
)
from transport.mosquitto import Mosquitto
from transport.owner import Owner, now_ms

StartMosquitto = Callable[[Sequence[str]], Mosquitto]


def test_connect_subscribe_and_echo_come_in_this_order(owner: Owner, mosquitto: Mosquitto) -> None:
    party = owner.party(mosquitto.address, [("echo/#", 1), ("other", 0)])
    assert party.connection.publish("echo/early", b"") is None
    party.connection.connect(now_ms())
    owner.until(lambda: bool(party.of(SubscribeDone)))
    assert party.connection.publish("echo/a", b"\x00\xffpayload", qos=1) is not None
    owner.until(lambda: bool(party.messages))
    assert party.events == [
        Connected(session_present=False),
        SubscribeDone(granted={"echo/#": 1, "other": 0}, refused=()),
        MessageReceived(topic="echo/a", payload=b"\x00\xffpayload", retain=False),
    ]


def test_message_published_on_connected_follows_the_subscriptions(
    owner: Owner, mosquitto: Mosquitto
) -> None:
    party = owner.party(mosquitto.address, [("echo", 1)])
    party.connection.connect(now_ms())
    owner.until(lambda: bool(party.of(Connected)))
    assert party.connection.publish("echo", b"at once") is not None
    owner.until(lambda: bool(party.messages))
    assert party.messages[0].payload == b"at once"


def test_retained_message_says_so(owner: Owner, mosquitto: Mosquitto) -> None:
    writer = owner.online(mosquitto.address)
    written = writer.connection.publish("kept", b"1", retain=True, confirm=True)
    assert written is not None
    owner.until(lambda: bool(writer.of(PublishAcknowledged)))
    reader = owner.online(mosquitto.address, [("kept", 1)])
    owner.until(lambda: bool(reader.messages))
    assert reader.messages == [MessageReceived(topic="kept", payload=b"1", retain=True)]


def test_only_the_message_asked_about_is_reported_as_acknowledged(
    owner: Owner, mosquitto: Mosquitto
) -> None:
    party = owner.online(mosquitto.address, [("t", 1)])
    party.connection.publish("t", b"0", qos=0, confirm=True)
    party.connection.publish("t", b"1")
    wanted = party.connection.publish("t", b"2", confirm=True)
    party.connection.publish("t", b"3")
    assert wanted is not None
    owner.until(lambda: len(party.messages) == 4 and bool(party.of(PublishAcknowledged)))
    assert party.of(PublishAcknowledged) == [PublishAcknowledged(message_id=wanted)]


def test_five_thousand_messages_each_way_arrive_complete_and_in_order(
    owner: Owner, mosquitto: Mosquitto
) -> None:
    count = 5_000
    one = owner.online(mosquitto.address, [("to/one", 1)])
    other = owner.online(mosquitto.address, [("to/other", 1)])
    payloads = [b"%d " % number + b"x" * (number % 300) for number in range(count)]
    last: list[int | None] = []
    for party, topic in ((one, "to/other"), (other, "to/one")):
        for payload in payloads[:-1]:
            assert party.connection.publish(topic, payload) is not None
        last.append(party.connection.publish(topic, payloads[-1], confirm=True))
    owner.until(lambda: len(one.messages) == count and bool(one.of(PublishAcknowledged)))
    owner.until(lambda: len(other.messages) == count and bool(other.of(PublishAcknowledged)))
    for party, message_id in zip((one, other), last, strict=True):
        assert [message.payload for message in party.messages] == payloads
        assert [event.message_id for event in party.of(PublishAcknowledged)] == [message_id]


@pytest.mark.parametrize("qos", [0, 1])
def test_large_payload_arrives_whole_between_small_ones(
    owner: Owner, mosquitto: Mosquitto, qos: int
) -> None:
    large = bytes(range(256)) * 4096  # 1 MiB.
    reader = owner.online(mosquitto.address, [("t", 1)])
    writer = owner.online(mosquitto.address)
    for payload in (b"before", large, b"after"):
        writer.connection.publish("t", payload, qos=qos)
    owner.until(lambda: len(reader.messages) == 3)
    assert [message.payload for message in reader.messages] == [b"before", large, b"after"]


def test_killed_broker_is_noticed_and_its_empty_successor_is_joined(
    owner: Owner, mosquitto: Mosquitto
) -> None:
    party = owner.online(mosquitto.address, [("echo", 1)])
    descriptor = party.connection.fileno()
    mosquitto.kill()
    assert owner.end_of(party).kind == "lost"
    assert not party.connection.connected
    assert party.connection.publish("echo", b"into the void") is None
    assert party.connection.next_deadline_ms() is None

    party.connection.connect(now_ms())
    assert owner.end_of(party).kind == "unreachable"

    mosquitto.start()
    party.connection.connect(now_ms())
    owner.until(lambda: len(party.of(SubscribeDone)) == 2)
    party.connection.publish("echo", b"again")
    owner.until(lambda: bool(party.messages))
    assert [message.payload for message in party.messages] == [b"again"]
    assert party.connection.fileno() == descriptor


def test_message_unacknowledged_on_one_connection_is_not_sent_again_on_the_next(
    owner: Owner, mosquitto: Mosquitto
) -> None:
    party = owner.online(mosquitto.address, [("echo", 1)])
    mosquitto.freeze()
    party.connection.publish("echo", b"old")
    party.connection.flush(now_ms())
    mosquitto.kill()
    owner.end_of(party)
    mosquitto.start()
    party.connection.connect(now_ms())
    owner.until(lambda: len(party.of(SubscribeDone)) == 2)
    party.connection.publish("echo", b"new")
    owner.until(lambda: bool(party.messages))
    assert [message.payload for message in party.messages] == [b"new"]


def test_abort_lets_the_will_speak(owner: Owner, mosquitto: Mosquitto) -> None:
    watcher = owner.online(mosquitto.address, [("presence", 1)])
    party = owner.online(mosquitto.address, will=Will(topic="presence", payload=b"lost"))
    party.connection.abort()
    assert not party.connection.connected
    owner.until(lambda: bool(watcher.messages))
    assert watcher.messages[0].payload == b"lost"
    assert party.of(Disconnected) == []


def test_will_is_chosen_anew_for_each_connection(owner: Owner, mosquitto: Mosquitto) -> None:
    watcher = owner.online(mosquitto.address, [("presence", 1)])
    party = owner.online(mosquitto.address, will=Will(topic="presence", payload=b"session 1"))
    party.connection.connect(now_ms(), will=Will(topic="presence", payload=b"session 2"))
    owner.until(lambda: len(party.of(SubscribeDone)) == 2)
    party.connection.abort()
    owner.until(lambda: len(watcher.messages) == 2)
    assert [message.payload for message in watcher.messages] == [b"session 1", b"session 2"]


def test_disconnect_delivers_what_was_published_and_drops_the_will(
    owner: Owner, mosquitto: Mosquitto
) -> None:
    watcher = owner.online(mosquitto.address, [("presence", 1), ("bulk", 1)])
    party = owner.online(
        mosquitto.address, [("bulk", 1)], will=Will(topic="presence", payload=b"lost")
    )
    # Its own echo is unread input at the moment of closing: it must not reset the connection.
    for _ in range(50):
        party.connection.publish("bulk", b"x" * 10_000)
    party.connection.publish("presence", b"goodbye")
    party.connection.disconnect(timeout_s=10)
    owner.until(lambda: b"goodbye" in [message.payload for message in watcher.messages])
    assert len(watcher.messages) == 51
    # What the broker would say of the dead comes before what a newcomer says.
    herald = owner.online(mosquitto.address)
    herald.connection.publish("presence", b"herald")
    owner.until(lambda: watcher.messages[-1].payload == b"herald")
    assert b"lost" not in [message.payload for message in watcher.messages]


def test_frozen_broker_is_noticed_by_its_silence(owner: Owner, mosquitto: Mosquitto) -> None:
    party = owner.online(mosquitto.address, keepalive_s=1)
    mosquitto.freeze()
    end = owner.end_of(party)
    assert end.kind == "lost"
    assert "no sign of life" in end.reason


def test_frozen_broker_is_noticed_while_we_go_on_publishing(
    owner: Owner, mosquitto: Mosquitto
) -> None:
    """The kernel takes what we send; that is no sign of the broker's life."""
    party = owner.online(mosquitto.address, keepalive_s=1)
    mosquitto.freeze()

    def ended_after_one_more() -> bool:
        party.connection.publish("beat", b"x", qos=0)
        return bool(party.of(Disconnected))

    owner.until(ended_after_one_more)
    assert "no sign of life" in party.of(Disconnected)[0].reason


def test_credentials_are_sent_and_their_refusal_is_told_in_words(
    owner: Owner, start_mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("mosquitto_passwd is not installed")
    passwords = tmp_path / "passwords"
    subprocess.run(
        [program, "-b", "-c", str(passwords), "ada", "right"],
        check=True,
        timeout=30,
        capture_output=True,
    )
    broker = start_mosquitto(["allow_anonymous false", f"password_file {passwords}"])
    right = replace(broker.address, username="ada", password="right")
    owner.online(right)

    wrong = owner.party(replace(right, password="wrong"))
    wrong.connection.connect(now_ms())
    end = owner.end_of(wrong)
    assert end.kind == "refused"
    assert "password" in end.reason
    assert "no user name was given" not in end.reason

    nameless = owner.party(broker.address)
    nameless.connection.connect(now_ms())
    end = owner.end_of(nameless)
    assert end.kind == "refused"
    assert "no user name was given" in end.reason


def test_flush_from_another_thread_is_continued_by_the_waiting_one(
    owner: Owner, mosquitto: Mosquitto
) -> None:
    """A submitting thread publishes more than the kernel takes while the loop waits."""
    reader = owner.online(mosquitto.address, [("t", 0)])
    writer = owner.online(mosquitto.address)
    large = b"y" * (3 << 20)
    lock = threading.Lock()
    owner.parties.remove(writer)  # Driven below, and only under the lock.

    def locked_read() -> None:
        with lock:
            writer.read()

    def submit() -> None:
        with lock:
            for _ in range(4):
                writer.connection.publish("t", large, qos=0)
            writer.connection.flush(now_ms())

    owner.loop.register(writer.connection, locked_read)
    submitter = threading.Thread(target=submit)
    submitter.start()
    owner.until(lambda: len(reader.messages) == 4)
    submitter.join()
    owner.parties.append(writer)
    assert [len(message.payload) for message in reader.messages] == [len(large)] * 4


# ---------------------------------------------------------------------------- TLS


@pytest.fixture
def tls_broker(start_mosquitto: StartMosquitto, tmp_path: Path) -> tuple[Mosquitto, Path]:
    """A broker with a certificate of its own for `localhost`, and that certificate's file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        f"{program} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
        f" -keyout {key} -out {certificate}".split(),
        check=True,
        timeout=60,
        capture_output=True,
    )
    broker = start_mosquitto(["allow_anonymous true", f"certfile {certificate}", f"keyfile {key}"])
    return broker, certificate


def test_tls_carries_many_messages_and_large_ones(
    owner: Owner, tls_broker: tuple[Mosquitto, Path]
) -> None:
    broker, certificate = tls_broker
    address = replace(broker.address, tls=True)
    party = owner.online(address, [("t", 1)], tls_ca_file=str(certificate))
    payloads = [b"%d" % number for number in range(500)] + [bytes(range(256)) * 8192]
    for payload in payloads:
        party.connection.publish("t", payload)
    owner.until(lambda: len(party.messages) == len(payloads))
    assert [message.payload for message in party.messages] == payloads
    party.connection.disconnect(timeout_s=10)


def test_certificate_of_an_unknown_authority_is_refused_in_words(
    owner: Owner, tls_broker: tuple[Mosquitto, Path]
) -> None:
    party = owner.party(replace(tls_broker[0].address, tls=True))
    party.connection.connect(now_ms())
    end = owner.end_of(party)
    assert end.kind == "refused"
    assert "certificate" in end.reason


def test_plain_broker_at_a_tls_address_is_told_in_words(owner: Owner, mosquitto: Mosquitto) -> None:
    party = owner.party(replace(mosquitto.address, tls=True), connect_timeout_ms=3_000)
    party.connection.connect(now_ms())
    end = owner.end_of(party)
    assert end.kind == "unreachable"
    assert "TLS" in end.reason


def test_missing_authority_file_is_named(owner: Owner, tls_broker: tuple[Mosquitto, Path]) -> None:
    party = owner.party(replace(tls_broker[0].address, tls=True), tls_ca_file="/no/such/ca.pem")
    party.connection.connect(now_ms())
    assert "/no/such/ca.pem" in owner.end_of(party).reason


def test_socket_sends_small_packets_at_once(owner: Owner, mosquitto: Mosquitto) -> None:
    """Without TCP_NODELAY a ping-pong waits 40 ms for the other end's delayed TCP ACK."""
    party = owner.online(mosquitto.address)
    wire = party.connection._wire
    assert wire is not None
    with socket.socket(fileno=socket.dup(wire.fileno())) as same:
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
