"""Controllers that another has followed: who is fenced, and what the follower never got."""

import pytest

from core.desk import CODE, TOPICS, Desk
from core.pair import START, Pair, presence
from forage_controller.core.commands import Command, Exit
from forage_controller.core.config import CoreConfig, Limits
from forage_controller.core.controller import ControllerCore
from forage_controller.core.operations import RecoveredState, Save, SaveCommitted, SavePage
from forage_wire.codec import encode
from forage_wire.io import BatchEnded, Connected, Disconnected, Publish
from forage_wire.messages import (
    AssignmentRefused,
    ClientInventory,
    Code,
    SubmissionRefused,
    Submit,
)


def pages(pair: Pair) -> list[str]:
    return [one.task for one in pair.standby.operations if isinstance(one, SavePage)]


def refusal(desk: Desk, name: str) -> None:
    pi = desk.devices[name]
    message = AssignmentRefused(
        session=pi.session,
        controller=f"{desk.start}-1",
        reason="epoch",
        epoch_bound=2,
        holder=f"{START}-2",
    )
    desk.publish(TOPICS.outbox(name), encode(message))
    desk.run()


def test_a_frozen_one_that_wakes_up_is_fenced_and_says_so() -> None:
    desk = Desk().begin()
    desk.device("pi1")
    desk.client().submit(1)
    # What lay in its socket, at once: another took over.
    desk.publish(*presence("starting", epoch=1, session=f"{START}-2", name="attic"))
    desk.publish(*presence("active", epoch=2, session=f"{START}-2", name="attic"))
    desk.run()
    [exit_] = desk.exits
    assert exit_.code == 2
    assert exit_.reason.startswith("fenced: controller attic")
    assert desk.presence[-1] == "offline"


def test_one_that_is_refused_asks_first_and_is_fenced_by_the_answer() -> None:
    desk = Desk().begin()
    desk.device("pi1")
    refusal(desk, "pi1")
    assert desk.presence[-1] == "starting"
    desk.publish(*presence("active", epoch=2, session=f"{START}-2", name="attic"))
    desk.run()
    desk.advance(3_000)
    assert desk.exits[0].reason.startswith("fenced")
    assert desk.core.epoch == 1, "it took no other"


def test_one_that_asks_assigns_nothing_until_it_knows() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    other = desk.device("pi2")
    refusal(desk, "pi1")
    desk.client().submit(1)
    desk.advance(1_900)
    assert not pi.assignments
    assert not other.assignments
    desk.advance(200)
    assert desk.core.epoch == 3
    assert pi.assignments or other.assignments


def test_one_that_was_away_asks_when_the_broker_has_a_higher_one_as_active() -> None:
    desk = Desk().begin()
    topic, payload = presence("active", epoch=7, session=f"{START}-2", name="attic")
    desk.publish(topic, payload, retain=True)
    desk.run()
    assert desk.presence[-1] == "starting"
    desk.advance(2_100)
    assert desk.core.epoch == 8, "nobody answered: that one is gone"


@pytest.mark.parametrize("state", ["standby", "lost", "offline"])
def test_one_that_stands_by_disturbs_nobody(state: str) -> None:
    desk = Desk().begin()
    desk.publish(*presence(state, epoch=9, session=f"{START}-1", name="attic"))
    desk.run()
    desk.advance(500)
    assert not desk.exits
    assert desk.presence[-1] == "active"
    assert desk.core.epoch == 1


# -- what was not replicated ----------------------------------------------------------------------


def test_a_task_acknowledged_by_another_and_known_to_nobody_ends_in_words() -> None:
    desk = Desk().begin()
    client = desk.client()
    client.hello(controller=f"{desk.start}-1")
    task = f"{client.name}-7"
    client.send(ClientInventory(rows=((task, 3, ()),), acknowledged=((task, ((0, 3),)),)))
    desk.run()
    [refused] = client.of(SubmissionRefused)
    assert (refused.task, refused.reason) == (task, "data-lost")


def test_a_task_of_which_a_page_was_lost_ends_in_words_and_not_never() -> None:
    desk = Desk().begin()
    client = desk.client()
    task = client.next_task()
    client.send(Code(hash=CODE, form="source", data=b"code"))
    client.send(Submit(pages=(client.page(4, task=task, last=False),)))
    desk.run()
    # Its second page was acknowledged by a controller that is gone.
    client.hello(controller=f"{desk.start}-1")
    client.send(ClientInventory(rows=((task, 8, ()),), acknowledged=((task, ((0, 8),)),)))
    desk.run()
    [refused] = client.of(SubmissionRefused)
    assert refused.reason == "data-lost"
    assert "submit it again" in refused.text
    desk.advance(100)
    assert task not in desk.core.ledger.tasks


def test_a_task_whose_pages_are_here_or_still_to_come_goes_on() -> None:
    desk = Desk().begin()
    client = desk.client()
    task = client.next_task()
    client.send(Code(hash=CODE, form="source", data=b"code"))
    client.send(Submit(pages=(client.page(4, task=task, last=False),)))
    desk.run()
    client.hello(controller=f"{desk.start}-1")
    client.send(ClientInventory(rows=((task, 8, ()),), acknowledged=((task, ((0, 4),)),)))
    client.send(Submit(pages=(client.page(4, task=task, first=4),)))
    desk.run()
    assert not client.of(SubmissionRefused)
    assert desk.core.ledger.tasks[task].total == 8


LATEST_MS = Limits().change_ms


def take_over(connected_after_ms: int) -> tuple[ControllerCore, list[Command]]:
    """A core that is to rule with a copy that lacked nothing when it was made, and reaches the broker
    so much later."""
    core = ControllerCore(CoreConfig(), RecoveredState(epoch=3), START, took_over_ms=50_000)
    now_ms = 50_000 + connected_after_ms
    return core, core.handle(Connected(session=f"{START}-1"), now_ms)


def test_a_take_over_that_reaches_the_broker_soon_rules() -> None:
    core, commands = take_over(LATEST_MS)
    assert not [one for one in commands if isinstance(one, Exit)]
    for _ in range(2):
        due_ms = core.next_wakeup_ms()
        assert due_ms is not None
        for command in core.handle(BatchEnded(), due_ms):
            if isinstance(command, Save):
                core.handle(SaveCommitted(number=command.number), due_ms)
    assert (core.active, core.epoch) == (True, 4)
    # Whatever breaks later is no take-over any more.
    core.handle(Disconnected(), 300_000)
    again = core.handle(Connected(session=f"{START}-2"), 300_000)
    assert not [one for one in again if isinstance(one, Exit)]


def test_a_take_over_that_was_cut_off_itself_is_called_off() -> None:
    """Whoever ruled went on alone meanwhile, and may have died with what it did."""
    core, commands = take_over(LATEST_MS + 1)
    [exit_] = [one for one in commands if isinstance(one, Exit)]
    assert exit_.code == 2
    assert exit_.reason.startswith("the take-over is called off")
    assert not [one for one in commands if isinstance(one, Publish)]
    assert not core.active
