"""What the sweep has found, told again with no more than it takes: each of these once failed."""

import pytest

from forage_sim.faults import DeviceSpec, Fault, Plan
from forage_sim.nodes import USER, ClientProcess
from forage_sim.workload import AttachSpec, CallSpec, ClientSpec, TaskSpec
from forage_sim.world import World, run, run_world
from forage_wire.io import Publish
from forage_wire.messages import Options
from forage_wire.topics import Topics

SEEDS = range(3)


def client(
    calls: int, *, run_ms: int = 5, at_ms: int = 1_000, at_most_once: bool = False
) -> ClientSpec:
    """A client with one task."""
    return ClientSpec(
        tasks=(
            TaskSpec(
                at_ms=at_ms,
                function="f",
                calls=tuple(CallSpec(nonce=nonce, run_ms=run_ms) for nonce in range(calls)),
                options=Options(wait_ms=600_000, at_most_once=at_most_once),
            ),
        )
    )


def plan(*faults: Fault, clients: tuple[ClientSpec, ...] = (), **settings: object) -> Plan:
    fields: dict[str, object] = {
        "clients": clients or (client(5),),
        "faults": faults,
        "safety_ms": 10_000,
        "start_ms_max": 0,
        **settings,
    }
    return Plan(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at_ms", range(1_150, 1_450, 30))
def test_a_release_that_was_told_and_not_saved_left_a_task_nobody_would_collect(
    seed: int, at_ms: int
) -> None:
    run(seed, plan(Fault(at_ms=at_ms, kind="disk-fails")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_device_heard_again_after_its_death_took_its_new_link_for_the_old_one(
    seed: int,
) -> None:
    away = Fault(at_ms=1_300, kind="freeze", target="device-0", duration_ms=8_000)
    run(seed, plan(away, clients=(client(20, run_ms=100),), detect_ms=500))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("start_ms_max", [400, 1_000, 2_000])
def test_a_client_that_was_there_before_its_controller_knocked_twice_and_was_never_heard(
    seed: int, start_ms_max: int
) -> None:
    both = (client(5, at_ms=10), client(5, at_ms=700))
    run(seed, plan(clients=both, start_ms_max=start_ms_max))


@pytest.mark.parametrize("seed", SEEDS)
def test_work_called_off_on_a_device_given_up_too_early_told_its_client_it_had_cancelled(
    seed: int,
) -> None:
    no_beats = Fault(at_ms=1_000, kind="drop-qos-0", duration_ms=9_000, amount=0.3)
    calls = (client(30, run_ms=700, at_most_once=True),)
    run(seed, plan(no_beats, clients=calls, detect_ms=500, devices=(DeviceSpec(slots=2),) * 2))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [0.3, 0.5, 0.9])
def test_a_controllers_first_word_that_was_lost_left_clients_with_a_dead_one(
    seed: int, loss: float
) -> None:
    death = Fault(at_ms=1_500, kind="kill", target="controller", duration_ms=100)
    deaf = Fault(at_ms=1_400, kind="drop-qos-1", duration_ms=1_500, amount=loss)
    run(seed, plan(death, deaf, clients=(client(20, run_ms=100),)))


@pytest.mark.parametrize("seed", range(6))
def test_a_devices_first_words_that_were_lost_left_it_unknown_or_without_capabilities(
    seed: int,
) -> None:
    deaf = Fault(at_ms=0, kind="drop-qos-1", duration_ms=300, amount=0.6)
    run(seed, plan(deaf))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at_ms", range(1_100, 2_000, 150))
def test_outcomes_kept_for_a_client_thought_gone_were_not_offered_when_it_was_back(
    seed: int, at_ms: int
) -> None:
    gone = Fault(at_ms=at_ms, kind="half-open", target="client-0", duration_ms=3_000)
    run(seed, plan(gone, clients=(client(40, run_ms=50),)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at_ms", range(1_020, 1_200, 30))
def test_code_that_a_device_lacks_was_forgotten_where_its_page_came_later(
    seed: int, at_ms: int
) -> None:
    full = Fault(at_ms=at_ms, kind="disk-fails")
    tiny = (DeviceSpec(code_bytes_max=5), DeviceSpec(code_bytes_max=5))
    tasks = tuple(
        TaskSpec(
            at_ms=900 + 40 * number,
            function=f"f{number}",
            calls=(CallSpec(nonce=number, run_ms=30),) * 3,
            options=Options(wait_ms=600_000),
        )
        for number in range(6)
    )
    run(seed, plan(full, clients=(ClientSpec(tasks=tasks),), devices=tiny, commit_ms_max=40))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_will_of_a_connection_before_silenced_a_client_that_waited(seed: int) -> None:
    # What it waits for only the controller can tell it: that its call is lost with its device.
    death = Fault(at_ms=3_000, kind="kill", target="device-0", duration_ms=100)
    waiting = client(1, run_ms=20_000, at_most_once=True)
    world = World(seed, plan(death, clients=(waiting,), devices=(DeviceSpec(),)))

    def late_will() -> None:
        process = world.clients[0].process
        assert isinstance(process, ClientProcess)
        topic = Topics().client_presence(USER, process.client)
        world.broker.publish(Publish(topic=topic, payload=b"", retain=True))

    world.clock.at(2_000, late_will)
    run_world(world)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("away_ms", [400, 1_500, 4_000])
def test_outcomes_collected_by_another_were_lost_to_an_owner_whose_connection_broke(
    seed: int, away_ms: int
) -> None:
    away = Fault(at_ms=1_600, kind="half-open", target="client-0", duration_ms=away_ms)
    other = ClientSpec(attaches=(AttachSpec(at_ms=1_500, owner=0, task=0),))
    run(seed, plan(away, clients=(client(40, run_ms=50), other)))


@pytest.mark.parametrize("seed", range(8))
def test_a_client_whose_hello_was_lost_was_sent_more_than_it_takes_and_blocked(seed: int) -> None:
    task = TaskSpec(
        at_ms=1_000,
        function="f",
        calls=tuple(CallSpec(nonce=nonce, run_ms=500, pad_bytes=20_000) for nonce in range(4)),
        options=Options(wait_ms=600_000),
        settle="controller",
    )
    small = ClientSpec(tasks=(task,), packet_bytes_max=4_096)
    deaf = Fault(at_ms=1_300, kind="drop-qos-1", duration_ms=1_700, amount=0.5)
    again = Fault(at_ms=1_300, kind="reset", target="client-0")
    death = Fault(at_ms=1_200, kind="kill", target="controller", duration_ms=100)
    run(seed, plan(death, again, deaf, clients=(small,)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("loss", [0.3, 0.6])
def test_a_client_did_not_follow_its_controllers_later_session_when_its_presence_was_lost(
    seed: int, loss: float
) -> None:
    again = Fault(at_ms=1_500, kind="reset", target="controller")
    deaf = Fault(at_ms=1_450, kind="drop-qos-1", duration_ms=1_500, amount=loss)
    run(seed, plan(again, deaf, clients=(client(20, run_ms=100), client(5, at_ms=1_400))))


@pytest.mark.parametrize("seed", SEEDS)
def test_an_old_connection_of_an_earlier_start_took_a_devices_name(seed: int) -> None:
    # The start before this one had connected twice; its first connection speaks again, and what
    # asks the present one for a sign of life is lost.
    faults = (
        Fault(at_ms=1_200, kind="reset", target="device-0"),
        Fault(at_ms=3_000, kind="kill", target="device-0", duration_ms=200),
        Fault(at_ms=4_500, kind="drop-qos-1", duration_ms=3_000, amount=0.9),
        Fault(at_ms=4_600, kind="forged-stale", target="device-0", duration_ms=500, amount=0.3),
    )
    run(seed, plan(*faults, clients=(client(4, run_ms=2_000),), detect_ms=15_000))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_will_told_of_a_death_where_the_broker_had_but_lost_its_patience(seed: int) -> None:
    # A broker ends a silent connection after 15 to 30 s, whatever the detection time is.
    away = Fault(at_ms=1_300, kind="cut", target="device-0", duration_ms=45_000)
    calls = (client(20, run_ms=2_500),)
    run(seed, plan(away, clients=calls, detect_ms=60_000, safety_ms=60_000))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_controller_started_anew_knew_nothing_of_leases_of_what_had_been_given_up(
    seed: int,
) -> None:
    # The other device is away until the call can be given out again.
    faults = (
        Fault(at_ms=1_500, kind="cut", target="device-0", duration_ms=8_500),
        Fault(at_ms=4_000, kind="half-open", target="device-1", duration_ms=6_000),
        Fault(at_ms=5_500, kind="kill", target="controller", duration_ms=50),
    )
    options = Options(wait_ms=600_000, exclusive=True, lease_ms=12_000)
    call = CallSpec(nonce=1, run_ms=10_000)
    task = TaskSpec(at_ms=2_500, function="f", calls=(call,), options=options, settle="controller")
    run(seed, plan(*faults, clients=(ClientSpec(tasks=(task,)),), detect_ms=500))


@pytest.mark.parametrize("seed", range(6))
def test_what_a_device_had_run_for_a_task_that_was_over_kept_its_slot_for_ever(seed: int) -> None:
    # The deadline of the first task's calls passes while the device finds a new connection.
    faults = (
        Fault(at_ms=2_800, kind="freeze", target="controller", duration_ms=500),
        Fault(at_ms=3_100, kind="reset", target="device-0"),
    )
    late = TaskSpec(
        at_ms=1_000,
        function="f",
        calls=(CallSpec(nonce=1, run_ms=4_000),),
        options=Options(wait_ms=600_000, at_most_once=True, deadline_ms=2_000),
    )
    next_one = TaskSpec(
        at_ms=1_200,
        function="f",
        calls=(CallSpec(nonce=2, run_ms=5),),
        options=Options(wait_ms=600_000, at_most_once=True),
    )
    calls = (ClientSpec(tasks=(late, next_one)),)
    run(seed, plan(*faults, clients=calls, devices=(DeviceSpec(slots=1),)))
