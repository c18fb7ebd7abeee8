"""The client's core and its controller: hello, welcome, new sessions, what is said again."""

import cbor2
import pytest

from core.client_desk import CLIENT, CONTROLLER, KEY, SESSION, Desk, pages_of, task_id
from forage.core.commands import (
    AnswerReceived,
    ControllerMissing,
    ProtocolRefused,
    Welcomed,
)
from forage.core.events import (
    AttachAsked,
    CallsCancelled,
    CloseAsked,
    QueryAsked,
    QueryDropped,
)
from forage_wire.codec import decode_json, encode
from forage_wire.io import Connected, Disconnected, MessageReceived, Note
from forage_wire.messages import (
    Acknowledged,
    Answer,
    Attach,
    Cancel,
    ClientInventory,
    ClientPresence,
    Code,
    Collected,
    Hello,
    NeedCode,
    Query,
    Released,
    Seen,
    Submit,
    Welcome,
)

OTHER = f"{'e' * 16}-1"


def test_presence_and_hello_go_out_on_connecting_and_wait_for_nobody() -> None:
    desk = Desk(python="3.13")
    desk.connect()
    topic, payload = desk.sent[0]
    assert topic == f"forage/1/client/ann/{CLIENT}/presence"
    assert decode_json(payload, ClientPresence).session == SESSION
    desk.open_and_submit(1)
    hello, code, submit = desk.raw()
    assert (type(hello), type(code), type(submit)) == (Hello, Code, Submit)
    assert [message.n for message in (hello, code, submit)] == [1, 2, 3]
    assert [message.controller for message in (hello, code, submit)] == ["", "", ""]
    assert isinstance(hello, Hello)
    assert hello.python == "3.13"


def test_will_and_goodbye_clear_the_presence() -> None:
    desk = Desk()
    will = desk.core.will(SESSION)
    assert (will.topic, will.payload, will.retain) == (
        f"forage/1/client/ann/{CLIENT}/presence",
        b"",
        True,
    )


def test_the_first_answer_names_the_controller_and_numbering_goes_on() -> None:
    desk = Desk()
    desk.connect()
    desk.read()
    desk.answer(Welcome(minor=0, devices=3))
    assert desk.take(Welcomed) == [Welcomed(controller=CONTROLLER, devices=3)]
    desk.open_and_submit(1)
    messages = desk.raw()
    assert [message.controller for message in messages] == [CONTROLLER, CONTROLLER]
    assert [message.n for message in messages] == [2, 3]


def test_messages_for_another_session_are_dropped_and_counted() -> None:
    desk = Desk()
    desk.welcome()
    stale = encode(Welcome(minor=0), session=f"{'a' * 16}-0", controller=CONTROLLER, epoch=1, n=2)
    desk.tell(MessageReceived(topic=desk.link.topic, payload=stale))
    assert desk.core.dropped == 1
    assert desk.take(Welcomed) == []


def test_messages_of_a_second_controller_are_dropped_until_its_presence_shows_it() -> None:
    desk = Desk()
    desk.welcome()
    payload = encode(Welcome(minor=0), session=SESSION, controller=OTHER, epoch=1, n=1)
    desk.tell(MessageReceived(topic=desk.link.topic, payload=payload))
    assert desk.core.dropped == 1
    desk.presence(OTHER, epoch=2)
    assert [type(message) for message in desk.raw()] == [Hello]


def test_a_controller_of_a_higher_epoch_is_answered_though_its_presence_was_lost() -> None:
    desk = Desk()
    desk.connect()
    # Its predecessor named itself with its first word, and was never heard to welcome us.
    seen = desk.link.unnumbered(Seen(gap=True), qos=1)
    desk.tell(MessageReceived(topic=seen.topic, payload=seen.payload))
    desk.raw()
    payload = encode(Welcome(minor=0), session=SESSION, controller=OTHER, epoch=2, n=1, seen=1)
    desk.tell(MessageReceived(topic=desk.link.topic, payload=payload))
    (hello,) = desk.raw()
    assert (type(hello), hello.controller) == (Hello, OTHER)
    # And no other way round: what the first one still says is dropped.
    late = encode(Welcome(minor=0), session=SESSION, controller=CONTROLLER, epoch=1, n=1)
    desk.tell(MessageReceived(topic=desk.link.topic, payload=late))
    assert desk.core.dropped == 1
    assert desk.raw() == []


def test_a_later_session_of_the_controller_is_answered_though_its_presence_was_lost() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(1)
    desk.raw()
    later = CONTROLLER.replace("-1", "-2")
    payload = encode(Welcome(minor=0), session=SESSION, controller=later, epoch=1, n=1)
    desk.tell(MessageReceived(topic=desk.link.topic, payload=payload))
    messages = desk.raw()
    assert [type(message) for message in messages] == [Hello, ClientInventory, Code, Submit]
    assert {message.controller for message in messages} == {later}


def test_a_controller_that_has_let_the_link_go_is_spoken_to_on_the_next_one() -> None:
    desk = Desk()
    desk.connect()
    desk.open_and_submit(1)
    desk.lose()
    asked = desk.controller_link(CONTROLLER, number=1).unnumbered(Seen(gap=True), qos=1)
    desk.tell(MessageReceived(topic=asked.topic, payload=asked.payload))
    messages = desk.raw()
    assert [type(message) for message in messages] == [Hello, ClientInventory, Code, Submit]
    assert [message.n >> 32 for message in messages] == [1] * 4


def test_an_earlier_session_of_the_controller_is_not_answered() -> None:
    desk = Desk()
    desk.connect()
    later = CONTROLLER.replace("-1", "-2")
    desk.link = desk.controller_link(later)
    desk.read()
    desk.answer(Welcome(minor=0))
    payload = encode(Welcome(minor=0), session=SESSION, controller=CONTROLLER, epoch=1, n=2)
    desk.tell(MessageReceived(topic=desk.link.topic, payload=payload))
    assert desk.core.dropped == 1
    assert desk.raw() == []


def test_a_new_controller_session_gets_hello_inventory_and_unacknowledged_pages() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(3, 1)
    desk.open_and_submit(2, 2)
    desk.read()
    desk.acknowledge((task_id(1), 0))
    desk.resolve(((0, 1),), number=2)
    desk.lose()
    desk.presence(OTHER, epoch=2)
    desk.link = desk.controller_link(OTHER, 1)
    hello, others, inventory, code, submit = desk.read()
    assert type(hello) is Hello
    assert type(code) is Code
    assert isinstance(others, ClientInventory)
    assert isinstance(inventory, ClientInventory)
    assert (others.rows, others.others, others.whole) == ((), (task_id(2),), False)
    assert inventory.whole
    # Of task 2 no page is acknowledged: the page itself tells all of it.
    assert inventory.rows == ((task_id(1), 3, ()),)
    [(header, page)] = pages_of([submit])
    assert (header.task, header.first, header.n) == (task_id(2), 0, 2)
    assert page.collected == ((0, 1),)
    assert page.key == KEY


def test_a_new_connection_says_everything_again_to_whoever_is_there() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(2)
    desk.lose()
    desk.tell(Disconnected())
    desk.now_ms += 500
    desk.session = f"{'a' * 16}-2"
    desk.link = desk.controller_link(CONTROLLER)
    desk.connect(desk.session)
    messages = desk.raw()
    assert [type(message) for message in messages] == [Hello, ClientInventory, Code, Submit]
    assert [message.controller for message in messages] == [""] * 4
    assert [message.n for message in messages] == [1, 2, 3, 4]


def test_a_client_whose_tasks_have_all_ended_says_so_to_the_next_controller() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(1)
    desk.read()
    desk.acknowledge((task_id(1), 0))
    desk.resolve(((0, 1),))
    desk.answer(Released(tasks=(task_id(1),)))
    desk.presence(OTHER, epoch=2)
    desk.link = desk.controller_link(OTHER, 1)
    _hello, inventory = desk.read()
    assert isinstance(inventory, ClientInventory)
    assert (inventory.rows, inventory.others, inventory.whole) == ((), (), True)


def test_a_client_that_never_submitted_has_nothing_to_say_of_its_tasks() -> None:
    desk = Desk()
    desk.welcome()
    desk.presence(OTHER, epoch=2)
    desk.link = desk.controller_link(OTHER, 1)
    assert [type(message) for message in desk.read()] == [Hello]


def test_pages_submitted_without_a_connection_go_out_when_there_is_one() -> None:
    desk = Desk()
    desk.open_and_submit(2)
    assert desk.sent == []
    assert desk.core.next_wakeup_ms() is None
    desk.connect()
    assert [type(message) for message in desk.read()] == [Hello, Code, Submit]


def test_a_controller_that_is_there_and_never_got_hello_gets_another_after_a_second() -> None:
    desk = Desk()
    desk.connect()
    desk.lose()
    desk.now_ms += 200
    desk.presence(CONTROLLER)
    desk.sleep(700)
    assert desk.raw() == []
    desk.sleep(200)
    hello = desk.raw()[-1]
    assert (type(hello), hello.controller, hello.n) == (Hello, CONTROLLER, 2**32 + 1)


def test_presences_that_come_before_the_subscriptions_are_answered_count() -> None:
    desk = Desk(welcome_ms=5_000)
    desk.presence(CONTROLLER)
    desk.connect()
    desk.lose()
    desk.sleep(1_000)
    assert desk.raw()[-1].controller == CONTROLLER


def test_hello_is_repeated_until_it_is_seen() -> None:
    desk = Desk(welcome_ms=60_000)
    desk.connect()
    assert len(desk.raw()) == 1
    desk.sleep(3_500)
    assert [(type(message), message.n) for message in desk.raw()] == [(Hello, 1), (Hello, 1)]


def test_no_welcome_in_time_is_said_once_in_words() -> None:
    desk = Desk(welcome_ms=5_000)
    desk.connect()
    desk.sleep(4_999)
    assert desk.take(ControllerMissing) == []
    desk.sleep(10_000)
    [missing] = desk.take(ControllerMissing)
    assert missing.text == (
        "No controller answered under the root topic 'forage' within 5 s; start one with "
        "`forage controller`, or name its root with --root."
    )


@pytest.mark.parametrize(
    ("state", "words"),
    [("lost", "says it is lost, and no other answered"), ("active", "but did not answer")],
)
def test_a_missing_controller_is_described_by_its_own_presence(state: str, words: str) -> None:
    desk = Desk()
    desk.connect()
    desk.presence(CONTROLLER, state=state)
    desk.sleep(6_000)
    [missing] = desk.take(ControllerMissing)
    assert words in missing.text


def test_the_presence_of_an_older_epoch_does_not_move_the_link() -> None:
    desk = Desk()
    desk.welcome()
    desk.presence(OTHER, epoch=0, name="old")
    assert desk.raw() == []


def test_the_active_controller_of_the_highest_epoch_is_followed() -> None:
    desk = Desk()
    desk.welcome()
    desk.presence(OTHER, epoch=3, name="b")
    assert desk.raw()[0].controller == OTHER
    desk.presence(CONTROLLER, epoch=2, name="a")
    assert desk.raw() == []


def test_a_controller_of_another_version_is_refused_in_words() -> None:
    desk = Desk()
    desk.connect()
    desk.read()
    desk.answer(Welcome(minor=2))
    [refused] = desk.take(ProtocolRefused)
    assert "1.2" in refused.text
    assert desk.take(Welcomed) == []


def test_a_query_is_asked_again_on_a_new_link_until_it_is_answered() -> None:
    desk = Desk()
    desk.welcome()
    desk.tell(QueryAsked(id=7, what="devices"), QueryAsked(id=8, what="tasks"))
    assert [(query.id, query.what) for query in desk.raw() if type(query) is Query] == [
        (7, "devices"),
        (8, "tasks"),
    ]
    desk.tell(QueryDropped(id=8))
    desk.presence(OTHER, epoch=2)
    desk.link = desk.controller_link(OTHER, 1)
    assert [query.id for query in desk.read() if type(query) is Query] == [7]
    desk.answer(Welcome(minor=0), Answer(id=7, body=b"[]"), Answer(id=7, body=b"[]"))
    assert desk.take(AnswerReceived) == [AnswerReceived(id=7, ok=True, body=b"[]")]


def test_an_attachment_is_asked_for_again_on_a_new_link() -> None:
    desk = Desk()
    desk.welcome()
    desk.tell(AttachAsked(task="vvvvvvvvvvvvv-1", calls=4))
    assert [type(message) for message in desk.read()] == [Attach]
    desk.presence(OTHER, epoch=2)
    desk.link = desk.controller_link(OTHER, 1)
    messages = desk.read()
    assert [type(message) for message in messages] == [Hello, Attach]


def test_code_goes_once_on_a_link_before_the_first_page_that_needs_it() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(1, 1)
    desk.open_and_submit(1, 2)
    desk.open_and_submit(1, 3, function=b"\x09" * 32, code=b"other")
    assert [type(message) for message in desk.read()] == [Code, Submit, Submit, Code, Submit]


def test_code_is_sent_again_when_the_controller_lacks_it() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(1)
    desk.read()
    desk.answer(NeedCode(hashes=(b"\x07" * 32, b"\x08" * 32)))
    assert desk.read_one(Code).hash == b"\x07" * 32


def test_pages_wait_until_the_last_part_of_their_code_is_on_its_way() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(1, code=bytes(1_000_000))
    order = []
    for _ in range(20):
        order += [type(message) for message in desk.read()]
        desk.link.send(Seen())
        desk.deliver()
    assert order == [Code, Submit]


def test_named_functions_bring_no_code() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(1, function=("org.app.task", ""), form="named", code=b"")
    [message] = desk.read()
    [(header, _page)] = pages_of([message])
    assert (header.function, header.form) == (("org.app.task", ""), "named")


def test_the_window_holds_back_what_the_controller_has_not_seen() -> None:
    desk = Desk()
    desk.welcome()
    for number in range(1, 20):
        desk.open_and_submit(1, number)
    first = desk.raw()
    # Eight messages: the code, and seven submits of a page each, for each came in a batch of its own.
    assert len(first) == 8
    assert desk.core.waiting_messages == 12
    for message in first:
        desk.link.receive(message, desk.now_ms)
    desk.link.send(Seen())
    desk.deliver()
    rest = pages_of(desk.read())
    assert [header.task for header, _ in rest] == [task_id(number) for number in range(8, 20)]


def test_waiting_pages_of_many_tasks_travel_in_one_message() -> None:
    desk = Desk()
    desk.welcome()
    for number in range(1, 9):
        desk.open_and_submit(1, number)
    for message in desk.raw():
        desk.link.receive(message, desk.now_ms)
    for number in range(1, 5):
        desk.open_and_submit(1, number + 20 if number > 9 else number + 10 - 1)
    assert desk.raw() == []
    desk.link.send(Acknowledged(rows=((task_id(1), 0),)))
    desk.deliver()
    submits = [message for message in desk.read() if type(message) is Submit]
    assert [len(message.pages) for message in submits] == [5]


def test_a_first_outcome_opens_the_window_as_an_acknowledgement_does() -> None:
    desk = Desk()
    desk.welcome()
    for number in range(1, 8):
        desk.open_and_submit(1, number)
    desk.open_and_submit(1, 8)
    assert len(desk.raw()) == 8
    assert desk.core.waiting_messages == 1
    assert not desk.core.is_idle
    # Nothing came from the controller. A device's outcome for page 7 tells that it has all of them.
    desk.resolve(((0, 1),), number=7)
    assert desk.core.waiting_messages == 0
    assert len(pages_of(desk.raw())) == 1


def test_an_outcome_of_a_page_from_an_earlier_link_proves_nothing_of_this_one() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(2)
    desk.read()
    desk.presence(OTHER, epoch=2)
    desk.lose()
    desk.resolve(((0, 1),))
    # The new controller has seen none of this link: hello must be repeated.
    desk.sleep(1_000)
    assert Hello in [type(message) for message in desk.raw()]


def test_idle_means_that_every_page_is_acknowledged_or_has_an_outcome() -> None:
    desk = Desk()
    desk.welcome()
    assert desk.core.is_idle
    desk.open_and_submit(2)
    assert not desk.core.is_idle
    desk.read()
    desk.resolve(((1, 2),))
    assert desk.core.is_idle
    assert desk.core.unacknowledged_pages == 1
    desk.acknowledge((task_id(), 0))
    assert desk.core.unacknowledged_pages == 0
    assert desk.core.unacknowledged_bytes == 0
    desk.open_and_submit(1, 2)
    desk.read()
    desk.acknowledge((task_id(2), 0))
    assert desk.core.is_idle


def test_collected_goes_out_after_200_ms_or_at_once_for_4096_calls() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(5_000)
    desk.read()
    desk.resolve(((0, 10),))
    desk.sleep(199)
    assert [message for message in desk.read() if type(message) is Collected] == []
    desk.sleep(1)
    assert desk.read_one(Collected).rows == ((task_id(), ((0, 10),)),)
    desk.resolve(((10, 4_106),))
    assert desk.read_one(Collected).rows == ((task_id(), ((10, 4_106),)),)


def test_closing_says_what_is_collected_at_once() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(2)
    desk.read()
    desk.resolve(((0, 2),))
    desk.tell(CloseAsked())
    assert desk.read_one(Collected).rows == ((task_id(), ((0, 2),)),)


def test_cancelled_calls_are_taken_back_where_they_were_sent_and_collected() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(3)
    desk.read()
    desk.tell(CallsCancelled(task=task_id(), ranges=((1, 2),)))
    cancel = desk.read_one(Cancel)
    assert (cancel.task, cancel.ranges, cancel.force) == (task_id(), ((1, 2),), False)
    desk.sleep(200)
    assert desk.read_one(Collected).rows == ((task_id(), ((1, 2),)),)


def test_calls_cancelled_before_they_are_sent_go_out_as_collected() -> None:
    desk = Desk()
    desk.welcome()
    desk.open()
    desk.tell(CallsCancelled(task=task_id(), ranges=((0, 1),)))
    desk.submit([b"\x82\x00\x80"] * 2)
    messages = desk.read()
    assert [type(message) for message in messages] == [Code, Submit]
    [(_header, page)] = pages_of(messages)
    assert page.collected == ((0, 1),)


def test_forced_cancellations_are_said_again_on_a_new_link() -> None:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(3)
    desk.read()
    desk.acknowledge((task_id(), 0))
    desk.tell(CallsCancelled(task=task_id(), ranges=((0, 2),), force=True))
    desk.lose()
    desk.presence(OTHER, epoch=2)
    desk.link = desk.controller_link(OTHER, 1)
    cancel = desk.read_one(Cancel)
    assert (cancel.ranges, cancel.force) == (((0, 2),), True)


def test_another_clients_calls_are_cancelled_through_the_controller() -> None:
    desk = Desk()
    desk.welcome()
    desk.tell(CallsCancelled(task="vvvvvvvvvvvvv-1", ranges=((0, 9),), force=True))
    cancel = desk.read_one(Cancel)
    assert (cancel.task, cancel.ranges, cancel.force) == ("vvvvvvvvvvvvv-1", ((0, 9),), True)


def test_bytes_that_are_no_message_are_counted_and_noted_ever_more_rarely() -> None:
    desk = Desk()
    desk.welcome()
    topic = desk.link.topic
    for _ in range(100):
        desk.tell(MessageReceived(topic=topic, payload=b"\xff\x00garbage"))
    desk.tell(MessageReceived(topic="forage/1/to/bob/0123456789abc", payload=b""))
    desk.tell(MessageReceived(topic="elsewhere", payload=b""))
    desk.tell(MessageReceived(topic=desk.topics.controller_presence("x"), payload=b"{"))
    assert desk.core.dropped == 103
    assert len(desk.commands) == 7


def test_a_connection_counts_no_session_before_it_exists() -> None:
    desk = Desk()
    desk.tell(MessageReceived(topic=desk.link.topic, payload=b""))
    assert desk.core.next_wakeup_ms() is None
    desk.tell(Connected(session=SESSION))
    assert desk.core.next_wakeup_ms() is not None


def test_keys_of_a_newer_controller_are_ignored_counted_and_told_of_once() -> None:
    desk = Desk()
    desk.connect()
    desk.read()
    for _ in range(3):
        desk.link.send(Welcome(minor=0))
        for outgoing in desk.link.poll(desk.now_ms):
            payload = cbor2.dumps({**cbor2.loads(outgoing.payload), "zz": 1})
            desk.tell(MessageReceived(topic=outgoing.topic, payload=payload))
    assert desk.core.is_welcome
    assert [note.text for note in desk.take(Note)] == [
        "unknown keys ignored from=the controller keys='Welcome.zz'"
    ]
    assert desk.core.ignored.count == 3


def test_a_cancellation_does_not_overtake_the_parts_of_its_own_page() -> None:
    desk = Desk()
    desk.welcome()
    desk.open()
    desk.submit([bytes(1 << 20)])
    desk.tell(CallsCancelled(task=task_id(), ranges=((0, 1),), force=True))
    before = len(desk.received)
    while not any(isinstance(message, Cancel) for message in desk.received):
        assert desk.now_ms < 60_000
        desk.read()
        desk.sleep(20)
        desk.deliver()
    kinds = [type(message) for message in desk.received[before:]]
    assert kinds.index(Submit) < kinds.index(Cancel)
    # What is not in parts goes at once all the same, and nothing is said twice.
    assert kinds.count(Cancel) == 1


def test_a_cancellation_that_waited_for_parts_is_not_said_on_a_link_that_never_had_them() -> None:
    desk = Desk()
    desk.welcome()
    desk.open()
    desk.submit([bytes(1 << 20)])
    desk.tell(CallsCancelled(task=task_id(), ranges=((0, 1),)))
    desk.lose()
    desk.presence(OTHER, epoch=2)
    desk.link = desk.controller_link(OTHER, 1)
    while not any(isinstance(message, Submit) for message in desk.received):
        assert desk.now_ms < 60_000
        desk.read()
        desk.sleep(20)
        desk.deliver()
    [page] = [page for each in desk.received if isinstance(each, Submit) for page in each.pages]
    assert page.collected == ((0, 1),)
    assert not any(isinstance(message, Cancel) for message in desk.received)
