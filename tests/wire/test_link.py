"""Links: everything arrives once and in order over a channel that loses, repeats and reorders."""

import heapq
import random
from dataclasses import dataclass, field

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forage_wire.codec import decode, encode
from forage_wire.limits import (
    BARE_SEEN_AFTER_MS,
    DEVICE_WINDOW,
    PACKET_BYTES_MIN,
    REORDER_MAX,
    REPEAT_AFTER_MS,
    REPEAT_AFTER_MS_MAX,
    SEEN_EVERY,
)
from forage_wire.link import Link, Outgoing, fits_packet
from forage_wire.messages import Answer, Beat, Checkpoint, Linked, Part, Seen
from forage_wire.parts import cut_parts

SESSION = "0123456789abcdef-1"
CONTROLLER = "fedcba9876543210-3"


def new_link(
    topic: str = "a", window: int = DEVICE_WINDOW, packet_bytes_max: int = PACKET_BYTES_MIN
) -> Link:
    return Link(
        session=SESSION,
        controller=CONTROLLER,
        topic=topic,
        window=window,
        packet_bytes_max=packet_bytes_max,
    )


def message(identity: int, size: int = 1) -> Answer:
    return Answer(id=identity, body=b"x" * size)


def decoded(out: list[Outgoing]) -> list[Linked]:
    return [decode(item.payload) for item in out]


def numbers(out: list[Outgoing]) -> list[int]:
    return [found.n for found in decoded(out)]


def seen_from_peer(n: int, *, gap: bool = False) -> Seen:
    return Seen(session=SESSION, controller=CONTROLLER, seen=n, gap=gap)


# -- sending --------------------------------------------------------------------------------------


def test_messages_are_numbered_from_one_and_name_both_sessions() -> None:
    link = Link(session=SESSION, controller=CONTROLLER, topic="inbox", window=4, epoch=7)
    link.send(message(1))
    link.send(message(2), topic="elsewhere")
    out = link.poll(0)
    assert [item.topic for item in out] == ["inbox", "elsewhere"]
    assert decoded(out) == [
        Answer(session=SESSION, controller=CONTROLLER, epoch=7, n=n, id=n, body=b"x")
        for n in (1, 2)
    ]
    assert link.last_sent == 2


def test_messages_above_the_window_wait_until_earlier_ones_are_seen() -> None:
    link = new_link(window=4)
    for identity in range(1, 7):
        link.send(message(identity))
    assert numbers(link.poll(0)) == [1, 2, 3, 4]
    assert link.waiting == 2
    assert not link.has_room
    link.receive(seen_from_peer(3), 5)
    assert numbers(link.poll(5)) == [5, 6]
    assert link.unseen == 3
    assert link.has_room


def test_oldest_unseen_message_is_repeated_after_a_second_and_then_twice_as_long() -> None:
    link = new_link()
    link.send(message(1))
    link.send(message(2))
    first = link.poll(0)[0]
    now, wait, waits = 0, REPEAT_AFTER_MS, []
    for _ in range(6):
        assert link.next_wakeup_ms() == now + wait
        assert link.poll(now + wait - 1) == []
        now += wait
        assert link.poll(now) == [first]
        waits.append(wait)
        wait = min(2 * wait, REPEAT_AFTER_MS_MAX)
    assert waits == [1_000, 2_000, 4_000, 8_000, 8_000, 8_000]


def test_nothing_is_repeated_once_everything_is_seen() -> None:
    link = new_link()
    link.send(message(1))
    link.poll(0)
    link.receive(seen_from_peer(1), 500)
    assert link.next_wakeup_ms() is None
    assert link.poll(60_000) == []


def test_progress_starts_the_wait_anew() -> None:
    link = new_link()
    link.send(message(1))
    link.send(message(2))
    link.poll(0)
    link.receive(seen_from_peer(1), 900)
    assert link.next_wakeup_ms() == 900 + REPEAT_AFTER_MS


def test_gap_reported_twice_repeats_at_once() -> None:
    link = new_link()
    for identity in range(1, 4):
        link.send(message(identity))
    first = link.poll(0)[0]
    link.receive(seen_from_peer(0, gap=True), 10)
    assert link.poll(10) == []
    link.receive(seen_from_peer(0, gap=True), 11)
    assert link.poll(11) == [first]


def test_a_lost_burst_is_repeated_one_by_one_without_a_second_between() -> None:
    """What was sent before a repeat that arrived, and is still not seen, is lost."""
    sender, receiver = new_link(), new_link("b")
    for identity in range(1, 6):
        sender.send(message(identity))
    sender.poll(0)
    now, found = REPEAT_AFTER_MS, list[Linked]()
    for repeated in range(1, 6):
        out = sender.poll(now)
        assert numbers(out) == [repeated]
        found += receiver.receive(decode(out[0].payload), now)
        now += BARE_SEEN_AFTER_MS
        for seen in decoded(receiver.poll(now)):
            sender.receive(seen, now)
    assert [answer.n for answer in found] == [1, 2, 3, 4, 5]
    assert sender.unseen == 0
    assert now == REPEAT_AFTER_MS + 5 * BARE_SEEN_AFTER_MS


def test_tokens_tell_the_number_a_message_got() -> None:
    link = new_link(window=2)
    link.send(message(1), tokens=(11,))
    link.send(message(2, size=1_500), tokens=(12, 13))
    link.send(message(3), tokens=(14,))
    for now in range(10):
        for sent in decoded(link.poll(now)):
            link.receive(seen_from_peer(sent.n), now)
    # The large one is overtaken, and has the number of its last part.
    assert link.numbers == {11: 1, 14: 3, 12: link.last_sent, 13: link.last_sent}
    assert link.last_sent > 4


def test_an_unnumbered_message_needs_no_window_and_says_what_was_seen() -> None:
    link = new_link(window=1)
    link.send(message(1))
    link.poll(0)
    link.receive(encode_decode(message(9), n=1), 0)
    beat = link.unnumbered(Beat())
    assert beat.qos == 0
    assert decode(beat.payload) == Beat(session=SESSION, controller=CONTROLLER, seen=1)
    assert link.unseen == 1


def encode_decode(sent: Linked, n: int, seen: int = 0) -> Linked:
    return decode(encode(sent, session=SESSION, controller=CONTROLLER, n=n, seen=seen))


# -- receiving ------------------------------------------------------------------------------------


def test_bare_seen_follows_when_there_is_nothing_else_to_say() -> None:
    link = new_link()
    link.receive(encode_decode(message(1), n=1), 100)
    link.receive(encode_decode(message(2), n=2), 110)
    assert link.next_wakeup_ms() == 100 + BARE_SEEN_AFTER_MS
    assert link.poll(100 + BARE_SEEN_AFTER_MS - 1) == []
    out = link.poll(100 + BARE_SEEN_AFTER_MS)
    assert decoded(out) == [seen_from_peer(2)]
    assert link.poll(1_000) == []
    assert link.next_wakeup_ms() is None


@pytest.mark.parametrize(
    ("sizes", "enough"),
    [([1] * SEEN_EVERY, SEEN_EVERY), ([10 * PACKET_BYTES_MIN], SEEN_EVERY // 2)],
    ids=["messages", "parts"],
)
def test_what_may_have_filled_the_senders_window_is_said_seen_at_once(
    sizes: list[int], enough: int
) -> None:
    peer, link = new_link(), new_link()
    for identity, size in enumerate(sizes):
        peer.send(message(identity, size))
    arriving = decoded(peer.poll(0))
    for each in arriving[: enough - 1]:
        link.receive(each, 5)
    assert link.poll(5) == []
    link.receive(arriving[enough - 1], 5)
    (said,) = decoded(link.poll(5))
    assert isinstance(said, Seen)
    assert (said.seen, said.gap) == (enough, False)
    assert link.poll(100) == [], "and not a second time"


def test_a_checkpoint_is_said_seen_at_once_for_the_next_one_waits_for_that() -> None:
    link = new_link()
    state = Checkpoint(task="0" * 13 + "-1", index=0, assignment=1, number=1, data=b"state")
    link.receive(encode_decode(state, n=1), 5)
    (said,) = decoded(link.poll(5))
    assert isinstance(said, Seen)
    assert said.seen == 1


def test_a_message_that_goes_out_anyway_carries_seen_instead() -> None:
    link = new_link()
    link.receive(encode_decode(message(1), n=1), 0)
    link.send(message(2))
    assert [found.seen for found in decoded(link.poll(1))] == [1]
    link.receive(seen_from_peer(1), 2)
    assert link.poll(1_000) == []


def test_a_repeat_does_not_count_as_having_said_what_was_seen() -> None:
    """Its bytes are those of the original, with the `seen` of then."""
    link = new_link()
    link.send(message(1))
    link.poll(0)
    link.receive(encode_decode(message(9), n=1), REPEAT_AFTER_MS - 1)
    assert [found.seen for found in decoded(link.poll(REPEAT_AFTER_MS))] == [0]
    out = link.poll(REPEAT_AFTER_MS - 1 + BARE_SEEN_AFTER_MS)
    assert decoded(out) == [seen_from_peer(1)]


def test_duplicates_are_given_once_and_answered_with_seen() -> None:
    link = new_link()
    first = encode_decode(message(1), n=1)
    assert link.receive(first, 0) == [first]
    link.poll(BARE_SEEN_AFTER_MS)
    assert link.receive(first, 1_000) == []
    assert decoded(link.poll(1_000 + BARE_SEEN_AFTER_MS)) == [seen_from_peer(1)]


def test_messages_ahead_of_a_gap_wait_for_it_and_the_gap_is_said_at_once() -> None:
    link = new_link()
    one, two, three = [encode_decode(message(n), n=n) for n in (1, 2, 3)]
    assert link.receive(three, 0) == []
    assert decoded(link.poll(0)) == [seen_from_peer(0, gap=True)]
    assert link.receive(one, 1) == [one]
    assert link.receive(two, 2) == [two, three]
    assert decoded(link.poll(1 + BARE_SEEN_AFTER_MS)) == [seen_from_peer(3)]


def test_a_gap_is_said_beside_other_messages() -> None:
    link = new_link()
    link.receive(encode_decode(message(2), n=2), 0)
    link.send(message(9))
    found = decoded(link.poll(0))
    assert [type(said) for said in found] == [Answer, Seen]
    assert found[1] == seen_from_peer(0, gap=True)


def test_messages_far_ahead_are_dropped_and_counted() -> None:
    link = new_link()
    for n in range(2, REORDER_MAX + 4):
        link.receive(encode_decode(message(n), n=n), 0)
    assert link.dropped == 2
    ready = link.receive(encode_decode(message(1), n=1), 1)
    assert [found.n for found in ready] == list(range(1, REORDER_MAX + 2))


def test_unnumbered_messages_pass_and_bare_seen_does_not() -> None:
    link = new_link()
    beat = Beat(session=SESSION, controller=CONTROLLER)
    assert link.receive(beat, 0) == [beat]
    assert link.receive(seen_from_peer(0), 0) == []
    assert link.next_wakeup_ms() is None


def test_a_message_that_cannot_be_used_does_not_hold_up_those_behind_it() -> None:
    link = new_link()
    payload = cbor2.dumps({"t": "of-a-later-minor", "s": SESSION, "c": CONTROLLER, "n": 1})
    unusable = decode(payload)
    assert link.receive(unusable, 0) == [unusable]
    following = encode_decode(message(2), n=2)
    assert link.receive(following, 0) == [following]
    assert decoded(link.poll(BARE_SEEN_AFTER_MS)) == [seen_from_peer(2)]


def test_a_part_without_a_number_is_dropped_and_counted() -> None:
    link = new_link()
    assert link.receive(Part(message=1, index=0, count=2, data=b"x"), 0) == []
    assert link.dropped == 1


# -- parts ----------------------------------------------------------------------------------------


def test_a_message_above_the_limit_goes_in_parts_of_half_the_window() -> None:
    link = new_link(window=8)
    link.send(message(1, size=20_000))
    out = link.poll(0)
    assert [type(found) for found in decoded(out)] == [Part] * 4
    assert all(len(item.payload) <= PACKET_BYTES_MIN for item in out)


def test_small_messages_overtake_a_parted_one() -> None:
    link = new_link(window=8)
    link.send(message(1, size=20_000))
    link.poll(0)
    link.send(message(2))
    assert [type(found) for found in decoded(link.poll(1))] == [Answer]


def test_a_stream_of_small_messages_does_not_keep_a_parted_one_from_arriving() -> None:
    sender, receiver = new_link(window=8), new_link("b")
    sender.send(message(1, size=20_000))
    found: list[Linked] = []
    for now in range(1_000):
        while sender.has_room:
            sender.send(message(2))
        for sent in decoded(sender.poll(now)):
            found += receiver.receive(sent, now)
        sender.receive(seen_from_peer(receiver.received), now)
        if any(isinstance(answer, Answer) and answer.id == 1 for answer in found):
            return
    pytest.fail("the parted message did not arrive")


def test_a_message_out_of_parts_has_the_stamps_of_its_last_part() -> None:
    link = new_link()
    whole = encode(message(1, size=900))
    parts = cut_parts(whole, 1, PACKET_BYTES_MIN)
    assert len(parts) == 2
    ready: list[Linked] = []
    for n, part in enumerate(parts, start=1):
        ready += link.receive(encode_decode(part, n=n, seen=5), 0)
    assert ready == [
        Answer(session=SESSION, controller=CONTROLLER, n=2, seen=5, id=1, body=b"x" * 900)
    ]


@pytest.mark.parametrize(
    "whole", [b"\xff" * 900, encode(Part(message=1, index=0, count=1, data=b"x" * 900))]
)
def test_parts_that_make_no_message_are_counted_and_the_link_goes_on(whole: bytes) -> None:
    link = new_link()
    parts = cut_parts(whole, 1, PACKET_BYTES_MIN)
    for n, part in enumerate(parts, start=1):
        assert link.receive(encode_decode(part, n=n), 0) == []
    assert link.dropped == 1
    following = encode_decode(message(5), n=len(parts) + 1)
    assert link.receive(following, 0) == [following]


def test_a_topic_with_a_lower_limit_gets_parts_for_it() -> None:
    link = new_link(packet_bytes_max=8_192)
    link.send(message(1, size=3_000))
    link.send(message(2, size=3_000), topic="narrow", packet_bytes_max=PACKET_BYTES_MIN)
    out = link.poll(0)
    assert [len(item.payload) > PACKET_BYTES_MIN for item in out if item.topic == "a"] == [True]
    narrow = [item for item in out if item.topic == "narrow"]
    assert len(narrow) > 1
    assert all(len(item.payload) <= PACKET_BYTES_MIN for item in narrow)


def test_fits_packet_leaves_room_for_the_envelope() -> None:
    for size in (100, 400, 512):
        assert fits_packet(size, PACKET_BYTES_MIN)
        assert len(encode(message(1, size), session=SESSION, n=1)) <= PACKET_BYTES_MIN
    assert not fits_packet(513, PACKET_BYTES_MIN)


# -- both ends over a bad channel -----------------------------------------------------------------


@dataclass
class Channel:
    """Two links, a virtual clock and a channel with faults until it heals."""

    seed: int
    loss: float
    repetition: float
    jitter_ms: int
    healed_ms: int
    window: int
    now_ms: int = 0
    sent: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: {"a": [], "b": []})
    given: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: {"a": [], "b": []})
    flying: list[tuple[int, int, str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.links = {name: new_link(name, self.window) for name in ("a", "b")}
        self.order = 0

    def send(self, side: str, identity: int, size: int) -> None:
        self.links[side].send(message(identity, size))
        self.sent["b" if side == "a" else "a"].append((identity, size))

    def publish(self, side: str, item: Outgoing) -> None:
        to = "b" if side == "a" else "a"
        good = self.now_ms >= self.healed_ms
        if not good and self.random.random() < self.loss:
            return
        copies = 1 if good or self.random.random() >= self.repetition else 2
        for _ in range(copies):
            delay = 3 + (0 if good else self.random.randint(0, self.jitter_ms))
            self.order += 1
            heapq.heappush(self.flying, (self.now_ms + delay, self.order, to, item.payload))

    def poll(self) -> None:
        for side, link in self.links.items():
            for item in link.poll(self.now_ms):
                self.publish(side, item)
            assert link.unseen <= self.window

    def next_ms(self) -> int | None:
        times = [link.next_wakeup_ms() for link in self.links.values()]
        times.append(self.flying[0][0] if self.flying else None)
        return min((time for time in times if time is not None), default=None)

    def advance(self, until_ms: int) -> None:
        """Everything that happens up to a time."""
        while (time := self.next_ms()) is not None and time <= until_ms:
            assert time >= self.now_ms
            self.now_ms = time
            while self.flying and self.flying[0][0] <= self.now_ms:
                _at, _order, to, payload = heapq.heappop(self.flying)
                for found in self.links[to].receive(decode(payload), self.now_ms):
                    assert isinstance(found, Answer)
                    self.given[to].append((found.id, len(found.body)))
            self.poll()
        self.now_ms = until_ms


SIZES = st.sampled_from([1, 1, 1, 300, 1_500, 6_000])
SENDS = st.lists(st.tuples(st.integers(0, 400), st.sampled_from("ab"), SIZES), max_size=40)


@given(
    seed=st.integers(0, 2**32),
    sends=SENDS,
    loss=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    repetition=st.sampled_from([0.0, 0.3]),
    jitter_ms=st.sampled_from([0, 5, 100]),
    healed_ms=st.sampled_from([0, 1_000, 20_000]),
    window=st.sampled_from([2, 8, 16]),
)
@settings(max_examples=200, deadline=None)
def test_everything_arrives_once_and_in_order_after_the_channel_heals(
    seed: int,
    sends: list[tuple[int, str, int]],
    loss: float,
    repetition: float,
    jitter_ms: int,
    healed_ms: int,
    window: int,
) -> None:
    channel = Channel(seed, loss, repetition, jitter_ms, healed_ms, window)
    for identity, (after_ms, side, size) in enumerate(sends):
        channel.advance(channel.now_ms + after_ms)
        channel.send(side, identity, size)
        channel.poll()
    # Once healed: the longest wait for a repeat, then a bare seen for each message lost before.
    lost_before = len(channel.sent["a"]) + len(channel.sent["b"])
    rounds_ms = 16 * lost_before * (BARE_SEEN_AFTER_MS + 6)
    channel.advance(max(channel.now_ms, healed_ms) + 2 * REPEAT_AFTER_MS_MAX + rounds_ms)
    for side in ("a", "b"):
        given, sent = channel.given[side], channel.sent[side]
        assert sorted(given) == sent
        # A parted message is overtaken by small ones; within each kind order is kept.
        for parted in (False, True):
            assert [item for item in given if (item[1] > 600) == parted] == [
                item for item in sent if (item[1] > 600) == parted
            ]
    # Nothing is left to repeat, to say, or to come.
    assert channel.next_ms() is None
    assert all(link.dropped == 0 for link in channel.links.values())
