"""`connect` and what can be wrong: every error in one sentence, and soon."""

import socket
import threading
import time

import pytest

import forage
from forage_broker.embedded import EmbeddedBroker
from forage_wire.address import BrokerAddress
from sdk.fleet import WAIT_S, Fleet
from sdk.functions import add


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_nobody_listening_is_said_at_once() -> None:
    began = time.monotonic()
    port = closed_port()
    with pytest.raises(forage.NotConnected) as caught:
        forage.connect(f"mqtt://127.0.0.1:{port}", timeout_s=WAIT_S)
    assert time.monotonic() - began < WAIT_S
    assert str(caught.value).startswith(
        f"There is no broker at mqtt://127.0.0.1:{port}: connection refused"
    )
    assert "forage broker" in str(caught.value)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(forage.NotConnected, match=r"nowhere\.invalid"):
        forage.connect("mqtt://u:secret@nowhere.invalid", timeout_s=WAIT_S)


def test_a_port_that_speaks_something_else_is_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(forage.NotConnected, match="not an MQTT broker"):
            forage.connect(f"127.0.0.1:{server.getsockname()[1]}", timeout_s=WAIT_S)
        thread.join(WAIT_S)


def test_a_port_that_says_nothing_is_no_broker_after_the_timeout() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(forage.NotConnected, match=r"within 0\.2 s"),
    ):
        forage.connect(f"127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2)


def test_a_broker_without_a_controller_is_said_in_words(broker: BrokerAddress, root: str) -> None:
    with pytest.raises(forage.NotConnected) as caught:
        forage.connect(str(broker), root=root, timeout_s=0.3)
    assert str(caught.value) == (
        f"No controller answered under the root topic '{root}' within 0.3 s; start one with "
        f"`forage controller`, or name its root with --root. (The broker is {broker}.)"
    )


def test_a_controller_that_says_it_is_there_but_does_not_answer_is_named(
    broker: BrokerAddress, root: str
) -> None:
    with (
        Fleet(broker, root=root, silent=True) as silent,
        pytest.raises(forage.NotConnected, match="The controller main says it is active"),
    ):
        silent.connect(timeout_s=0.3)


def test_a_failed_connect_leaves_no_thread(broker: BrokerAddress, root: str) -> None:
    with pytest.raises(forage.NotConnected):
        forage.connect(str(broker), root=root, timeout_s=0.1)
    assert [each.name for each in threading.enumerate() if each.name == "forage-network"] == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://host", "speaks mqtt and mqtts"),
        ("mqtt://host:port", "not a number from 1 to 65535"),
        ("mqtt://192.0.2.1", "carries no credentials"),
        ("mqtt://No%20Name:x@127.0.0.1", "cannot stand in a topic"),
    ],
)
def test_a_wrong_address_is_explained(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        forage.connect(address)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"root": "Not/A/Root"}, "root topic 'Not/A/Root'"),
        ({"user": "Ann Smith"}, "the argument"),
        ({"timeout_s": 0}, "above 0"),
    ],
)
def test_a_wrong_setting_is_explained(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        forage.connect("mqtt://127.0.0.1", **settings)  # type: ignore[arg-type]


def test_connecting_inside_a_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORAGE_IN_TASK", "1")
    with pytest.raises(forage.Refused, match="inside a task"):
        forage.connect("mqtt://127.0.0.1")


def test_the_address_is_found_in_the_environment(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORAGE_BROKER", str(fleet.address))
    monkeypatch.setenv("FORAGE_ROOT", fleet.root)
    monkeypatch.setenv("FORAGE_USER", "somebody")
    with forage.connect() as client:
        assert client.user == "somebody"
        assert client.broker_url == str(fleet.address)
        assert client.submit(add, 1, 2).result(WAIT_S) == 3


def test_futures_wait_for_a_controller_that_comes_back(broker: BrokerAddress, root: str) -> None:
    with Fleet(broker, root=root, holds=True) as first:
        # It commits nothing, so the next one is told everything.
        first.delays_acknowledgements = True
        client = first.connect()
        future = client.submit(add, 1, 2)
        first.wait(lambda: future.id in first.calls)
    with Fleet(broker, root=root) as second:
        assert future.result(WAIT_S) == 3
        assert second.calls
        client.shutdown()


def test_futures_wait_for_a_broker_that_comes_back(root: str) -> None:
    with EmbeddedBroker() as broker:
        port = broker.port
        address = BrokerAddress(host="127.0.0.1", port=port)
        first = Fleet(address, root=root, holds=True)
        first.delays_acknowledgements = True
        first.__enter__()
        client = first.connect()
        before = client.submit(add, 1, 2)
        first.wait(lambda: before.id in first.calls)
    during = client.submit(add, 3, 4)
    first.stop()
    assert not before.done()
    with EmbeddedBroker(port=port), Fleet(address, root=root):
        assert before.result(WAIT_S) == 3
        assert during.result(WAIT_S) == 7
        client.shutdown()


def test_a_broker_that_goes_and_comes_back_is_told_of_once_for_each_reason(
    root: str, caplog: pytest.LogCaptureFixture
) -> None:
    def texts() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name == "forage.shell.line"]

    broker = EmbeddedBroker()
    port = broker.start()
    with Fleet(BrokerAddress(host="127.0.0.1", port=port), root=root) as fleet:
        client = fleet.connect()
        line = client._network._line
        broker.stop()
        # Three attempts that fail in the same way, at the least.
        deadline_s = time.monotonic() + WAIT_S
        tried: dict[int | None, None] = {}
        while len(tried) < 5:
            assert time.monotonic() < deadline_s
            tried[line._reconnect_due_ms] = None
            time.sleep(0.01)
        with EmbeddedBroker(port=port):
            while not texts() or not texts()[-1].endswith("is back"):
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            client.shutdown(wait=False, cancel_futures=True)
            client.shutdown()
    assert len(texts()) == len(set(texts()))
    assert all("trying again" in text for text in texts()[:-1])
