"""What holds outcomes against promises sees what it is there for, and nothing else."""

from pathlib import Path

import pytest

from chaos.account import Account, play_turns, turns
from chaos.faults import DOWN, UP
from chaos.limits import OLD_STORE, UNCOPIED, excuse
from chaos.packets import PUBLISH, Packet
from chaos.pair import OWN_DISK, SAME_DISK, TOPICS, Obedience, Pair
from chaos.policies import MOMENT_NS, Step, overlap
from chaos.proxy import Proxies
from chaos.work import Problem
from forage_wire.codec import encode, encode_json
from forage_wire.messages import Accepted, Assign, ControllerPresence, Join, Linked, Replicated

MAIN, ATTIC, DEVICE = "a" * 16 + "-1", "b" * 16 + "-1", "d" * 16 + "-1"


def message(topic: str, payload: bytes) -> Packet:
    return Packet(b"", PUBLISH, topic=topic, payload=payload)


# -- never two at a time ----------------------------------------------------------------------------


def steps(run: str, device: str, *at_ms: int) -> list[Step]:
    return [Step(run, device, at * 1_000_000) for at in at_ms]


def test_runs_one_after_the_other_do_not_overlap() -> None:
    assert not overlap([*steps("1", "pi", 0, 10, 20), *steps("2", "pa", 21, 30)], {})


def test_a_step_of_a_run_after_the_next_has_begun_is_an_overlap() -> None:
    found = overlap([*steps("1", "pi", 0, 10, 25), *steps("2", "pa", 21, 30)], {})
    assert found == "1 on pi went on 4.0 ms after 2 on pa had begun"


def test_who_stood_still_meanwhile_and_never_went_on_did_not_overlap() -> None:
    assert not overlap(
        [*steps("1", "pi", 0, 10), *steps("2", "pa", 5_000)], {"pi": [9_000_000_000]}
    )


def test_who_wakes_up_has_a_moment_and_no_more() -> None:
    moment_ms = MOMENT_NS // 1_000_000
    thawed = {"pi": [9_000 * 1_000_000]}
    other = steps("2", "pa", 5_000, 9_100)
    assert not overlap([*steps("1", "pi", 0, 9_001, 9_000 + moment_ms), *other], thawed)
    assert overlap([*steps("1", "pi", 0, 9_001 + moment_ms), *other], thawed)
    assert overlap([*steps("1", "pi", 0, 8_999), *other], thawed), "before it was thawed"
    assert overlap([*steps("1", "po", 0, 9_001), *other], thawed), "another device was frozen"


# -- one is obeyed ------------------------------------------------------------------------------------


def assign(controller: str, epoch: int) -> Packet:
    payload = encode(
        Assign(assignments=()), session=DEVICE, controller=controller, epoch=epoch, n=1
    )
    return message(TOPICS.inbox("pi"), payload)


def accept(controller: str, session: str = DEVICE) -> Packet:
    payload = encode(Accepted(assignments=(1,)), session=session, controller=controller, n=1)
    return message(TOPICS.outbox("pi"), payload)


def obey(*packets: tuple[str, Packet]) -> list[str]:
    one = Obedience("pi")
    for direction, packet in packets:
        one.note(direction, packet)
    return one.problems


BOTH = ((DOWN, assign(MAIN, 1)), (DOWN, assign(ATTIC, 2)))


def test_a_device_that_goes_over_to_the_next_controller_obeys_one() -> None:
    assert not obey(*BOTH, (UP, accept(MAIN)), (UP, accept(ATTIC)), (UP, accept(ATTIC)))


def test_a_device_that_goes_back_obeys_two() -> None:
    [found] = obey(*BOTH, (UP, accept(ATTIC)), (UP, accept(MAIN)))
    assert found.endswith(f"with epoch 1, and had obeyed {ATTIC[:16]} with epoch 2")


def test_a_device_that_obeys_two_with_one_epoch_obeys_two() -> None:
    assert obey((DOWN, assign(MAIN, 2)), BOTH[1], (UP, accept(MAIN)), (UP, accept(ATTIC)))


def test_a_device_that_was_started_anew_is_bound_by_nothing() -> None:
    again = (UP, accept(MAIN, "e" * 16 + "-1"))
    assert not obey(*BOTH, (UP, accept(ATTIC)), again)


# -- who takes over -------------------------------------------------------------------------------------


def say(pair: Pair, role: str, name: str, session: str, state: str, epoch: int) -> None:
    presence = ControllerPresence(
        state=state,
        epoch=epoch,
        session=session,
        protocol="1.0",
        reconnect_spread_ms=200,
        software="test",
    )
    packet = message(TOPICS.controller_presence(name), encode_json(presence))
    pair._note(role, UP, packet)


def ask(pair: Pair, found: Linked) -> None:
    payload = encode(found, session=ATTIC, controller=MAIN, n=1)
    pair._note("standby", UP, message(TOPICS.replica("attic"), payload))


@pytest.mark.parametrize(
    ("kind", "has_copy", "follows"),
    [(OWN_DISK, True, True), (OWN_DISK, False, False), (SAME_DISK, False, True)],
)
def test_a_take_over_is_known_with_what_the_winner_had(
    kind: str, has_copy: bool, follows: bool
) -> None:
    with Proxies() as proxies:
        pair = Pair(proxies, kind, ["pi"])
        say(pair, "controller", "main", MAIN, "active", 1)
        say(pair, "standby", "attic", ATTIC, "standby", 0)
        ask(pair, Join(schema=1, beat_ms=100))
        if kind == OWN_DISK:
            assert pair.present() == (
                "controller",
                "controller rules, and standby has no whole copy",
            )
        if has_copy:
            ask(pair, Replicated(position=1))
            assert pair.present() == ("controller", "")
        say(pair, "standby", "attic", ATTIC, "active", 2)
        [found] = pair.take_overs
        assert (found.role, found.loser, found.follows) == ("standby", MAIN[:16], follows)
        assert list(pair.alive_and_beaten(pair.take_overs)) == ["controller"]
        assert pair.present() == ("standby", "standby rules, and controller is active")
        say(pair, "controller", "main", "c" * 16 + "-1", "standby", 1)
        assert not list(pair.alive_and_beaten(pair.take_overs)), "another process of its name"


def test_of_two_that_began_with_one_epoch_the_one_that_rules_in_the_end_is_not_beaten() -> None:
    with Proxies() as proxies:
        pair = Pair(proxies, OWN_DISK, ["pi"])
        say(pair, "standby", "attic", ATTIC, "active", 3)
        say(pair, "controller", "main", MAIN, "active", 3)
        assert list(pair.alive_and_beaten(pair.take_overs)) == ["standby"]
        say(pair, "standby", "attic", ATTIC, "active", 3)
        assert list(pair.alive_and_beaten(pair.take_overs)) == ["controller"]


# -- what is not promised ---------------------------------------------------------------------------------


def test_a_loss_in_words_is_excused_only_where_a_round_met_a_limit() -> None:
    told = Problem("lost", "a task", is_data_loss=True)
    silent = Problem("lost", "another")
    again = Problem("ran twice", "a call")
    stale = Problem("stale", "a call")
    found = [told, silent, again, stale]
    assert excuse(found, frozenset()) == (found, [])
    assert excuse(found, frozenset([UNCOPIED])) == ([silent, again, stale], [told])
    assert excuse(found, frozenset([OLD_STORE])) == ([silent, stale], [told, again])


# -- many rounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rounds", "jobs"), [(1, 1), (60, 1), (100, 2), (7, 3), (2, 4)])
def test_turns_hold_every_seed_once(rounds: int, jobs: int) -> None:
    found = turns(5, rounds, ["mosquitto", "embedded"], jobs)
    assert [seed for turn in found for seed in turn.seeds] == list(range(5, 5 + rounds))
    assert len(found) >= min(rounds, jobs)
    assert [turn.engine for turn in found[:2]] == ["mosquitto", "embedded"][: len(found)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rounds_side_by_side_are_one_account(tmp_path: Path) -> None:
    account = Account()
    for result in play_turns(turns(0, 4, ["embedded"], 2), tmp_path, 2):
        account.add(result)
    assert account.rounds == 4
    assert account.standbys == {"": 4}
    assert not account.failed, str(account.failed[0])
    assert account.accepted_calls > account.accepted_tasks > 0
    assert not list(tmp_path.iterdir()), "what went well leaves nothing"
