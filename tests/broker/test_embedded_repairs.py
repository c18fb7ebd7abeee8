"""Each defect of amqtt 0.12.1 that the embedded broker repairs, by the number of the repair.

`forage_broker.amqtt_repaired` lists them. The numbers stand in the names of the sections.
"""

import asyncio
import struct
import time

import pytest
from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broker.raw_mqtt import LIMIT_S, Closed, RawMqtt, packet, utf8
from forage_broker import amqtt_connection, amqtt_repaired
from forage_broker.amqtt_connection import PacketReader
from forage_broker.embedded import EmbeddedBroker

LOST = b"lost"
ONLINE = b"online"


# 1. The keepalive is enforced.


def test_a_silent_client_is_cut_off_and_its_will_published(embedded: EmbeddedBroker) -> None:
    with (
        RawMqtt.connected(embedded.port, "watcher") as watcher,
        RawMqtt.connected(embedded.port, "chatty", keepalive_s=1, will=("w", b"chatty")) as chatty,
    ):
        watcher.subscribe("w")
        silent_since_s = time.monotonic()
        with RawMqtt.connected(
            embedded.port, "silent", keepalive_s=1, will=("w", b"silent")
        ) as silent:
            watcher.socket.settimeout(0.2)
            deadline_s = time.monotonic() + LIMIT_S
            while True:
                chatty.ping()
                try:
                    message = watcher.message()
                    break
                except TimeoutError:
                    assert time.monotonic() < deadline_s
            assert message.payload == b"silent"
            # The standard gives a client one and a half keepalives.
            assert time.monotonic() - silent_since_s >= 1.5
            with pytest.raises(Closed):
                silent.receive()
        chatty.ping()


def test_a_client_without_keepalive_may_be_silent(embedded: EmbeddedBroker) -> None:
    with (
        RawMqtt.connected(embedded.port, "patient", keepalive_s=0) as patient,
        RawMqtt.connected(embedded.port, "silent", keepalive_s=1) as silent,
    ):
        with pytest.raises(Closed):
            silent.receive()
        patient.ping()


def test_each_block_of_a_long_packet_is_a_sign_of_life() -> None:
    async def scenario() -> None:
        stream = asyncio.StreamReader()
        packets = PacketReader(stream)
        whole = packet(0x30, utf8("t") + bytes(300_000))
        reading = asyncio.create_task(packets.next())
        heard: list[float] = []
        for start in range(0, len(whole), 100_000):
            stream.feed_data(whole[start : start + 100_000])
            while stream._buffer:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            if packets.waiting_since_s is not None:
                heard.append(packets.waiting_since_s)
        assert await reading == (0x30, utf8("t") + bytes(300_000))
        assert heard == sorted(set(heard))
        assert len(heard) == 3
        assert packets.waiting_since_s is None

    asyncio.run(scenario())


# 2. Retained messages go to the subscriber alone, when it subscribes.


def test_a_connecting_client_gets_no_retained_message_of_others(embedded: EmbeddedBroker) -> None:
    with RawMqtt.connected(embedded.port, "watcher") as watcher:
        watcher.subscribe("#")
        watcher.publish("presence", ONLINE, qos=0, retain=True)
        assert not watcher.message().retain, "a live message carries no RETAIN"
        with RawMqtt.connected(embedded.port, "stranger") as stranger:
            stranger.ping()  # Fails if anything comes before the answer.
        with RawMqtt.connected(embedded.port, "subscriber") as subscriber:
            subscriber.subscribe("pres/#", packet_id=1)
            subscriber.subscribe("+", packet_id=2)
            message = subscriber.message()
            assert (message.payload, message.retain) == (ONLINE, True)
            subscriber.ping()
        watcher.ping()


def test_an_empty_retained_message_clears_its_topic(embedded: EmbeddedBroker) -> None:
    with RawMqtt.connected(embedded.port, "client") as client:
        client.publish("presence", ONLINE, retain=True)
        client.publish("presence", b"", retain=True)
        client.subscribe("presence")
        client.ping()


# 3 and 4. Takeover of a client id.


@pytest.mark.parametrize("clean", [True, False])
def test_a_takeover_closes_the_old_connection_and_sends_its_will_first(
    embedded: EmbeddedBroker, clean: bool
) -> None:
    with RawMqtt.connected(embedded.port, "watcher") as watcher:
        watcher.subscribe("presence")
        old = RawMqtt.connected(
            embedded.port, "device", clean=clean, will=("presence", b"old is lost")
        )
        new = RawMqtt.connected(
            embedded.port, "device", clean=clean, will=("presence", b"new is lost")
        )
        new.publish("presence", b"new is online", retain=True)
        assert watcher.message().payload == b"old is lost"
        assert watcher.message().payload == b"new is online"
        with pytest.raises(Closed):
            old.receive()
        old.close()

        new.subscribe("inbox")
        watcher.publish("inbox", b"work", packet_id=9)
        assert new.message().payload == b"work"
        watcher.ping()  # No will of the new one, nor a second one of the old.
        new.close()
        assert watcher.message().payload == b"new is lost"


def test_a_kept_session_hands_its_subscriptions_to_the_new_connection(
    embedded: EmbeddedBroker,
) -> None:
    with RawMqtt.connected(embedded.port, "device", clean=False) as old:
        assert not old.session_present
        old.subscribe("inbox")
        with RawMqtt.connected(embedded.port, "device", clean=False) as new:
            assert new.session_present
            new.publish("inbox", b"to myself", qos=0)
            assert new.message().payload == b"to myself"


@pytest.mark.parametrize(("old_clean", "new_clean"), [(True, True), (True, False), (False, True)])
def test_a_clean_session_on_either_side_hands_over_nothing(
    embedded: EmbeddedBroker, old_clean: bool, new_clean: bool
) -> None:
    with RawMqtt.connected(embedded.port, "device", clean=old_clean) as old:
        old.subscribe("inbox")
        with RawMqtt.connected(embedded.port, "device", clean=new_clean) as new:
            assert not new.session_present
            new.publish("inbox", b"to nobody")
            new.ping()


def test_of_many_connections_with_one_id_one_stays_and_all_others_get_their_will(
    embedded: EmbeddedBroker,
) -> None:
    count = 8
    with RawMqtt.connected(embedded.port, "watcher") as watcher:
        watcher.subscribe("lost")
        rivals = [RawMqtt(embedded.port) for _ in range(count)]
        for index, rival in enumerate(rivals):
            rival.send_connect("device", will=("lost", bytes([index])))
        lost = {watcher.message().payload[0] for _ in range(count - 1)}
        assert len(lost) == count - 1
        (winner,) = set(range(count)) - lost
        rivals[winner].expect(0x20)
        rivals[winner].ping()
        watcher.ping()
        for index, rival in enumerate(rivals):
            if index != winner:
                rival.expect_end()
            rival.close()


# 5 and 6. Authentication first; wills obey the rules of publishing.


class RefuseMallory(BaseAuthPlugin):  # type: ignore[misc]
    async def authenticate(self, *, session: Session) -> bool:
        return not session.will_flag or session.will_message != b"mallory"


class RefuseSecret(BaseTopicPlugin):  # type: ignore[misc]
    async def topic_filtering(
        self, *, session: Session | None = None, topic: str = "", action: Action | None = None
    ) -> bool:
        return action is not Action.PUBLISH or topic != "secret"


def test_a_refused_client_does_not_touch_the_one_whose_id_it_names() -> None:
    with (
        EmbeddedBroker(plugins={f"{__name__}.RefuseMallory": {}}) as broker,
        RawMqtt.connected(broker.port, "victim") as victim,
    ):
        victim.subscribe("inbox")
        with RawMqtt(broker.port) as mallory:
            assert mallory.connect("victim", will=("w", b"mallory")) == 5
            with pytest.raises(Closed):
                mallory.receive()
        with RawMqtt(broker.port) as too_new:
            assert too_new.connect("victim", level=6) == 1
        victim.publish("inbox", b"still here", qos=0)
        assert victim.message().payload == b"still here"


def test_wills_and_messages_obey_the_rules_of_publishing() -> None:
    plugins = {
        "amqtt.plugins.authentication.AnonymousAuthPlugin": {},
        f"{__name__}.RefuseSecret": {},
    }
    with (
        EmbeddedBroker(plugins=plugins) as broker,
        RawMqtt.connected(broker.port, "watcher") as watcher,
    ):
        watcher.subscribe("#")
        for topic in ("secret", "open"):
            with RawMqtt.connected(broker.port, topic, will=(topic, LOST)) as client:
                client.publish(topic, ONLINE)
        assert [watcher.message().topic for _ in range(2)] == ["open", "open"]
        watcher.ping()


# 7 and 8. Acknowledgements and sessions.


def test_unacknowledged_messages_hold_nothing_back(embedded: EmbeddedBroker) -> None:
    with RawMqtt.connected(embedded.port, "client") as client:
        client.subscribe("inbox")
        count = 2_000
        publish = packet(0x30, utf8("inbox") + b"q0")
        client.socket.sendall(publish * count)
        assert all(client.message().payload == b"q0" for _ in range(count))
        with RawMqtt.connected(embedded.port, "publisher") as publisher:
            for number in range(count):
                publisher.publish("inbox", str(number).encode())
            messages = [client.message() for _ in range(count)]
        assert [message.payload for message in messages] == [b"%d" % n for n in range(count)]
        assert len({message.packet_id for message in messages}) == count
        client.ping()


def test_a_session_ends_with_its_connection(embedded: EmbeddedBroker) -> None:
    with RawMqtt.connected(embedded.port, "watcher") as watcher:
        watcher.subscribe("w")
        with RawMqtt.connected(embedded.port, "device", clean=False, will=("w", LOST)) as device:
            device.subscribe("inbox")
        assert watcher.message().payload == LOST
        watcher.publish("inbox", b"into the void")
        with RawMqtt.connected(embedded.port, "device", clean=False) as device:
            assert not device.session_present
            device.ping()


# 9. One copy, at the lower QoS.


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_messages_arrive_at_the_lower_qos(
    embedded: EmbeddedBroker, published: int, subscribed: int
) -> None:
    with RawMqtt.connected(embedded.port, "client") as client:
        assert client.subscribe("live", subscribed) == min(subscribed, 1)
        with RawMqtt.connected(embedded.port, "other", will=("live", LOST), will_qos=published):
            pass
        assert client.message().qos == min(published, subscribed, 1)
        client.publish("kept", ONLINE, published, retain=True)
        if published == 2:
            client.expect(0x50)
        client.subscribe("kept", subscribed, packet_id=2)
        assert client.message().qos == min(published, subscribed, 1)


def test_overlapping_subscriptions_give_one_copy_at_the_highest_qos(
    embedded: EmbeddedBroker,
) -> None:
    with RawMqtt.connected(embedded.port, "client") as client:
        for topic_filter, qos in (("a/b", 0), ("a/+", 1), ("#", 0)):
            client.subscribe(topic_filter, qos)
        with RawMqtt.connected(embedded.port, "publisher") as publisher:
            publisher.publish("a/b", b"x")
        assert client.message().qos == 1
        client.ping()


def test_a_second_subscription_replaces_the_first_and_unsubscribe_ends_it(
    embedded: EmbeddedBroker,
) -> None:
    with (
        RawMqtt.connected(embedded.port, "client") as client,
        RawMqtt.connected(embedded.port, "publisher") as publisher,
    ):
        client.subscribe("t", 0)
        client.subscribe("t", 1)
        publisher.publish("t", b"one")
        assert client.message().qos == 1
        client.unsubscribe("t")
        client.unsubscribe("never/subscribed")
        publisher.publish("t", b"two")
        client.ping()


# 10. `$` topics.


def test_shared_subscriptions_are_refused(embedded: EmbeddedBroker) -> None:
    with RawMqtt.connected(embedded.port, "client") as client:
        assert client.subscribe("$share/group/t") == 0x80
        assert client.subscribe("a/#/b") == 0x80
        assert client.subscribe("a+") == 0x80
        assert client.subscribe("t") == 1


def test_publishing_to_a_reserved_topic_does_no_harm(embedded: EmbeddedBroker) -> None:
    with RawMqtt.connected(embedded.port, "client") as client:
        client.subscribe("#")
        client.publish("$SYS/fake", b"x")
        client.publish("t", b"y", qos=0)
        assert client.message().payload == b"y"


# 11. Limits.


def test_a_packet_above_the_limit_ends_its_connection_alone(embedded: EmbeddedBroker) -> None:
    with (
        RawMqtt.connected(embedded.port, "bystander") as bystander,
        RawMqtt.connected(embedded.port, "giant") as giant,
    ):
        giant.socket.sendall(b"\x30\xff\xff\xff\x7f")  # 256 MiB follow, it says.
        with pytest.raises(Closed):
            giant.receive()
        bystander.ping()


def test_a_subscriber_that_reads_nothing_is_cut_off_and_others_go_on(
    embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqtt_connection, "QUEUED_BYTES_MAX", 128 * 1024)
    monkeypatch.setattr(amqtt_connection, "STALL_S", 0.1)
    with (
        RawMqtt.connected(embedded.port, "publisher") as publisher,
        RawMqtt.connected(embedded.port, "frozen", will=("w", LOST)) as frozen,
    ):
        publisher.subscribe("w")
        frozen.subscribe("bulk", 0)
        # More than the sockets of both ends can hold.
        for _ in range(64):
            publisher.send(0x30, utf8("bulk") + bytes(1024 * 1024))
        assert publisher.message().payload == LOST
        publisher.ping()


def test_a_subscriber_that_acknowledges_nothing_is_cut_off(
    embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqtt_connection, "UNACKNOWLEDGED_MAX", 10)
    monkeypatch.setattr(amqtt_connection, "STALL_S", 0.1)
    with (
        RawMqtt.connected(embedded.port, "publisher") as publisher,
        RawMqtt.connected(embedded.port, "mute", will=("w", LOST)) as mute,
        RawMqtt.connected(embedded.port, "polite") as polite,
    ):
        publisher.subscribe("w")
        mute.subscribe("t")
        polite.subscribe("t")
        for _ in range(9):
            publisher.publish("t", b"x")
            polite.acknowledge(polite.message())
        publisher.send(0x32, utf8("t") + struct.pack("!H", 7) + b"one too many")
        assert {publisher.receive()[0] >> 4 for _ in range(2)} == {3, 4}
        assert polite.message().payload == b"one too many"
        polite.ping()


def test_retained_topics_are_limited_in_number(
    embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqtt_repaired, "RETAINED_MAX", 2)
    with RawMqtt.connected(embedded.port, "client") as client:
        for topic in ("a", "b", "c", "a"):
            client.publish(topic, topic.encode(), retain=True)
        client.publish("b", b"", retain=True)
        client.publish("d", b"d", retain=True)
        client.subscribe("#")
        assert [client.message().topic for _ in range(2)] == ["a", "d"]
        client.ping()
