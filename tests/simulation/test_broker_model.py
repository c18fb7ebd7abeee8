"""The broker's model does what MQTT says, and each of the wrongs that it is asked for."""

from collections.abc import Sequence

import pytest

from forage_sim.broker import Broker, Conditions, Connection
from forage_sim.clock import Clock
from forage_sim.topic_index import filter_matches
from forage_wire.io import Publish


class Listener:
    """Writes down what a connection tells it."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def on_connected(self) -> None:
        self.seen.append("connected")

    def on_message(self, topic: str, payload: bytes, retain: bool) -> None:
        self.seen.append((topic, payload, retain))

    def on_receipt(self, receipt: int) -> None:
        self.seen.append(("receipt", receipt))

    def on_disconnected(self) -> None:
        self.seen.append("disconnected")

    def payloads(self) -> list[bytes]:
        return [item[1] for item in self.seen if isinstance(item, tuple) and len(item) == 3]


class Bench:
    """A broker and quick ways to use it."""

    def __init__(self, seed: int = 1, **conditions: object) -> None:
        self.clock = Clock(seed)
        self.conditions = Conditions(**conditions)  # type: ignore[arg-type]
        self.happened: list[tuple[str, str]] = []
        self.broker = Broker(
            self.clock, self.conditions, lambda what, who, *_rest: self.happened.append((what, who))
        )

    def join(
        self,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]] = (),
        will: Publish | None = None,
    ) -> tuple[Connection, Listener]:
        listener = Listener()
        connection = self.broker.connect(client_id, listener, subscriptions, will)
        assert connection is not None
        self.settle()
        return connection, listener

    def settle(self, for_ms: int = 500) -> None:
        self.clock.run_until(self.clock.now_ms + for_ms)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+/c", "a/b/c", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/b/+", "a/b", False),
    ],
)
def test_filters_match_as_in_mqtt(topic_filter: str, topic: str, matches: bool) -> None:
    assert filter_matches(topic_filter, topic) is matches


def test_messages_of_one_publisher_arrive_in_order_whatever_each_takes() -> None:
    bench = Bench(delay_ms_max=50, segment_loss=0.3)
    sender, _ = bench.join("sender")
    _, reader = bench.join("reader", [("a/#", 1)])
    for number in range(100):
        sender.publish(Publish(topic="a/b", payload=b"%d" % number))
    bench.settle(100_000)
    assert reader.payloads() == [b"%d" % number for number in range(100)]


def test_retained_messages_reach_later_subscribers_and_an_empty_one_clears() -> None:
    bench = Bench()
    sender, _ = bench.join("sender")
    sender.publish(Publish(topic="a/kept", payload=b"1", retain=True))
    sender.publish(Publish(topic="a/gone", payload=b"2", retain=True))
    sender.publish(Publish(topic="a/gone", payload=b"", retain=True))
    bench.settle()
    _, reader = bench.join("reader", [("a/+", 1)])
    assert reader.seen == ["connected", ("a/kept", b"1", True)]


def test_a_receipt_is_given_once_the_broker_has_the_message() -> None:
    bench = Bench(drop_qos_1=1.0)
    sender, listener = bench.join("sender")
    _, reader = bench.join("reader", [("a", 1)])
    sender.publish(Publish(topic="a", payload=b"x", receipt=7))
    bench.settle()
    assert listener.seen == ["connected", ("receipt", 7)]
    assert reader.payloads() == [], "acknowledged to its publisher, and dropped all the same"


@pytest.mark.parametrize(
    ("wills", "after_100_ms", "after_a_minute"),
    [("prompt", 1, 1), ("late", 0, 1), ("never", 0, 0)],
)
def test_the_will_of_a_dead_process(wills: str, after_100_ms: int, after_a_minute: int) -> None:
    bench = Bench(wills=wills)
    dying, _ = bench.join("dying", will=Publish(topic="will", payload=b"lost"))
    _, reader = bench.join("reader", [("will", 1)])
    dying.abandon()
    bench.settle(100)
    assert len(reader.payloads()) == after_100_ms
    bench.settle(60_000)
    assert len(reader.payloads()) == after_a_minute


def test_a_goodbye_delivers_what_was_sent_and_publishes_no_will() -> None:
    bench = Bench()
    leaving, _ = bench.join("leaving", will=Publish(topic="a", payload=b"lost"))
    _, reader = bench.join("reader", [("a", 1)])
    leaving.publish(Publish(topic="a", payload=b"bye"))
    leaving.disconnect()
    bench.settle(60_000)
    assert reader.payloads() == [b"bye"]


def test_a_machine_without_power_is_noticed_by_its_silence_alone() -> None:
    bench = Bench()
    dying, _ = bench.join("dying", will=Publish(topic="a", payload=b"lost"))
    _, reader = bench.join("reader", [("a", 1)])
    dying.publish(Publish(topic="a", payload=b"on its way"))
    dying.vanish()
    bench.settle(14_000)
    assert reader.payloads() == []
    bench.settle(20_000)
    assert reader.payloads() == [b"lost"]


def test_a_takeover_ends_the_old_connection_and_its_will_comes_first() -> None:
    bench = Bench()
    _, watcher = bench.join("watcher", [("a", 1)])
    _, old = bench.join("same", will=Publish(topic="a", payload=b"old will"))
    new, _ = bench.join("same")
    new.publish(Publish(topic="a", payload=b"new"))
    bench.settle()
    assert old.seen == ["connected", "disconnected"]
    assert watcher.payloads() == [b"old will", b"new"]


def test_a_half_open_connection_swallows_what_its_client_still_sends() -> None:
    bench = Bench()
    _, watcher = bench.join("watcher", [("a", 1)])
    connection, listener = bench.join("unaware", will=Publish(topic="a", payload=b"early will"))
    bench.broker.half_open(connection, unaware_ms=5_000)
    bench.settle(1_000)
    connection.publish(Publish(topic="a", payload=b"nobody hears this"))
    bench.settle(1_000)
    assert listener.seen == ["connected"]
    bench.settle(10_000)
    assert listener.seen == ["connected", "disconnected"]
    assert watcher.payloads() == [b"early will"]


def test_a_restarted_broker_knows_nothing() -> None:
    bench = Bench()
    sender, listener = bench.join("sender", will=Publish(topic="a", payload=b"will"))
    sender.publish(Publish(topic="a", payload=b"kept", retain=True))
    bench.settle()
    bench.broker.restart_empty(downtime_ms=1_000)
    assert bench.broker.connect("early", Listener(), [], None) is None
    bench.settle(2_000)
    assert listener.seen == ["connected", "disconnected"]
    _, reader = bench.join("reader", [("a", 1)])
    bench.settle(60_000)
    assert reader.payloads() == []


def test_a_cut_delays_everything_and_a_long_one_ends_the_connection_at_both_ends() -> None:
    bench = Bench()
    sender, listener = bench.join("sender", will=Publish(topic="a", payload=b"will"))
    _, reader = bench.join("reader", [("a", 1)])
    sender.cut(10_000)
    sender.publish(Publish(topic="a", payload=b"late"))
    bench.settle(9_000)
    assert reader.payloads() == []
    bench.settle(2_000)
    assert reader.payloads() == [b"late"]
    sender.cut(60_000)
    bench.settle(61_000)
    assert listener.seen[-1] == "disconnected"
    assert reader.payloads() == [b"late", b"will"]


def test_a_subscriber_that_is_cut_off_loses_what_is_above_its_queue() -> None:
    bench = Bench(queue_messages_max=10)
    sender, _ = bench.join("sender")
    subscriber, reader = bench.join("reader", [("a", 1)])
    subscriber.cut(5_000)
    for number in range(30):
        sender.publish(Publish(topic="a", payload=b"%d" % number))
    bench.settle(10_000)
    assert reader.payloads() == [b"%d" % number for number in range(10)]
    assert bench.broker.dropped_over_limit == 20


def test_duplicates_losses_and_overtaking_happen_as_often_as_asked() -> None:
    twice = Bench(duplicate=1.0)
    sender, _ = twice.join("sender")
    _, reader = twice.join("reader", [("a", 1)])
    sender.publish(Publish(topic="a", payload=b"x"))
    twice.settle(5_000)
    assert reader.payloads() == [b"x", b"x"]

    lossy = Bench(drop_qos_0=1.0)
    sender, _ = lossy.join("sender")
    _, reader = lossy.join("reader", [("a", 1)])
    sender.publish(Publish(topic="a", payload=b"gone", qos=0))
    sender.publish(Publish(topic="a", payload=b"stays", qos=1))
    lossy.settle()
    assert reader.payloads() == [b"stays"]

    mixed = Bench(overtake=0.5, delay_ms_max=30)
    sender, _ = mixed.join("sender")
    _, reader = mixed.join("reader", [("a", 1)])
    sent = [b"%d" % number for number in range(100)]
    for payload in sent:
        sender.publish(Publish(topic="a", payload=payload))
    mixed.settle(10_000)
    assert reader.payloads() != sent
    assert sorted(reader.payloads()) == sorted(sent)
