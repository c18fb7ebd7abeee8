"""The controller's core and clients that are said to be gone: some are not."""

from core.desk import TOPICS, Desk, FakeClient, FakeDevice
from core.test_controller_restart import _answer_loads, _state
from forage_wire.codec import decode
from forage_wire.limits import PACKET_BYTES_MIN
from forage_wire.link import link_number
from forage_wire.messages import (
    Attach,
    CancelAssigned,
    ClientInventory,
    Fetch,
    Outcomes,
    Seen,
    Settled,
)


def is_said_to_be_gone(desk: Desk, client: FakeClient) -> None:
    """A will of its comes, of whichever connection: an empty message names none."""
    desk.publish(TOPICS.client_presence(client.user, client.name), b"")
    desk.run()


def is_asked(desk: Desk, client: FakeClient, number: int = 0) -> bool:
    """Whether it was told of a later link than its own."""
    mine = TOPICS.to_client(client.user, client.name)
    told = [decode(publish.payload) for publish in desk.published if publish.topic == mine]
    return any(link_number(message) > number for message in told if type(message) is Seen)


def begins_anew(desk: Desk, client: FakeClient) -> bool:
    """What a client's core does about that."""
    if not is_asked(desk, client):
        return False
    client.hello(controller=client.controller or f"{desk.start}-1")
    client.flush()
    desk.run()
    return True


def test_a_client_that_waits_is_asked_whether_it_is_gone_when_an_old_will_says_so() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    is_said_to_be_gone(desk, client)
    pi.finish(pi.assignments[0])
    desk.advance(2_000)
    assert not client.of(Settled)
    assert begins_anew(desk, client)
    desk.advance(2_000)
    assert client.of(Settled)[-1].rows == ((task, ((0, 1),)),)


def test_a_client_whose_asking_was_lost_is_asked_again_while_it_has_tasks() -> None:
    desk = Desk().begin()
    client = desk.client()
    client.submit(1)
    link, client.link = client.link, None
    desk.clients.remove(client)
    is_said_to_be_gone(desk, client)
    desk.clients.append(client)
    client.link = link
    desk.published.clear()
    desk.advance(60_000)
    assert is_asked(desk, client)


def test_a_link_that_was_given_up_is_not_opened_again_under_its_number() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    assert client.link is not None
    is_said_to_be_gone(desk, client)
    # It speaks before it has read that it must begin anew: numbers would begin at 1 again.
    seen = client.link.unnumbered(Seen(), qos=1)
    desk.publish(seen.topic, seen.payload)
    desk.run()
    pi.finish(pi.assignments[0])
    desk.advance(2_000)
    assert not client.of(Settled)
    assert begins_anew(desk, client)
    desk.advance(2_000)
    assert client.of(Settled)[-1].rows == ((task, ((0, 1),)),)


def test_whoever_is_attached_and_said_to_be_gone_is_asked_too() -> None:
    desk = Desk().begin()
    desk.device("pi1")
    owner = desk.client()
    task = owner.submit(1)
    other = desk.client(name="1" * 13)
    other.hello()
    other.send(Attach(task=task))
    desk.run()
    desk.clients.remove(other)
    is_said_to_be_gone(desk, other)
    desk.clients.append(other)
    desk.advance(60_000)
    assert begins_anew(desk, other)


def test_a_client_is_sent_no_more_than_any_takes_before_its_hello_was_read() -> None:
    every_other = tuple((index, index + 1) for index in range(0, 900, 2))
    desk = Desk(recovered=_state(900, settled=every_other)).begin()
    client = desk.client()
    # The hello is lost; what follows opens the link.
    client.hello()
    assert client.link is not None
    client.link.send(ClientInventory(rows=()))
    _hello, inventory = client.link.poll(desk.now_ms)
    desk.publish(inventory.topic, inventory.payload)
    link, client.link = client.link, None
    desk.clients.remove(client)
    desk.run()
    desk.advance(1_100)
    mine = TOPICS.to_client(client.user, client.name)
    sizes = [len(publish.payload) for publish in desk.published if publish.topic == mine]
    assert len(sizes) > 3
    assert max(sizes) <= PACKET_BYTES_MIN
    assert link.unseen == 2


def _with_an_old_copy() -> tuple[Desk, FakeDevice, FakeClient]:
    """A controller that knows a task whose second call runs on a device, and the task's client."""
    desk = Desk(recovered=_state(2, settled=((0, 1),))).begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.hello()
    desk.run()
    _answer_loads(desk, 2)
    return desk, pi, client


def test_what_a_whole_inventory_does_not_name_is_called_off_and_let_go() -> None:
    """An old copy took over, and knows a task that its client has forgotten."""
    desk, pi, client = _with_an_old_copy()
    [given] = pi.assignments
    assert given.low == 1
    assert client.link is not None
    client.link.send(ClientInventory(rows=(), others=(f"{client.name}-7",)))
    desk.run()
    assert len(desk.core.ledger.tasks) == 1
    client.link.send(ClientInventory(rows=(), whole=True))
    desk.run()
    [cancel] = pi.of(CancelAssigned)
    assert (cancel.assignment, cancel.force) == (given.assignment, True)
    pi.finish(given, errors=((1, "cancelled", True),))
    desk.run()
    assert not desk.core.ledger.tasks


def test_what_an_inventory_names_is_kept() -> None:
    desk, pi, client = _with_an_old_copy()
    [task] = desk.core.ledger.tasks
    assert client.link is not None
    # Each of its messages names some of them.
    client.link.send(ClientInventory(rows=(), others=(task,)))
    client.link.send(ClientInventory(rows=(), whole=True))
    desk.run()
    # What came before the last of one inventory says nothing in the next one.
    assert list(desk.core.ledger.tasks) == [task]
    assert not pi.of(CancelAssigned)
    client.link.send(ClientInventory(rows=(), whole=True))
    desk.run()
    assert len(pi.of(CancelAssigned)) == 1


def test_a_client_that_is_gone_and_has_nothing_here_is_forgotten() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    pi.finish(pi.assignments[0])
    client.collect(task, (0, 1))
    assert not client.of(Outcomes)
    assert not client.of(Fetch)
    is_said_to_be_gone(desk, client)
    assert not desk.core.clients.clients
