"""Named stories, each with the one thing that goes wrong; the oracles judge all of them."""

from dataclasses import replace

import pytest

from forage_sim.faults import DeviceSpec, Fault, Plan
from forage_sim.workload import AttachSpec, CallSpec, ClientSpec, QuerySpec, TaskSpec
from forage_sim.world import Report, World, run_world
from forage_wire.messages import Options

SEEDS = range(4)
"""Each story is told with several timings of everything else."""


def task(
    calls: int = 20,
    *,
    run_ms: int = 20,
    at_ms: int = 1_000,
    cancels: tuple[tuple[int, int, bool], ...] = (),
    pad_bytes: int = 0,
    fails: int = 0,
    kills: int = 0,
    **options: object,
) -> TaskSpec:
    """A task of equal calls; it waits ten minutes for a device unless told otherwise."""
    return TaskSpec(
        at_ms=at_ms,
        function="f",
        calls=tuple(
            CallSpec(nonce=nonce, run_ms=run_ms, pad_bytes=pad_bytes, fails=fails, kills=kills)
            for nonce in range(calls)
        ),
        cancels=cancels,
        options=Options(**{"wait_ms": 600_000, **options}),  # type: ignore[arg-type]
    )


def story(*faults: Fault, tasks: tuple[TaskSpec, ...] = (), **settings: object) -> Plan:
    """A plan with these faults, two devices of one slot and one client."""
    plan = Plan(
        clients=(ClientSpec(tasks=tasks or (task(),)),),
        faults=faults,
        safety_ms=20_000,
        start_ms_max=0,
    )
    return replace(plan, **settings)  # type: ignore[arg-type]


def told(seed: int, plan: Plan) -> tuple[World, Report]:
    """The story's end, and what it came to."""
    world = World(seed, plan)
    return world, run_world(world)


def runs(world: World) -> int:
    """Calls started, all together."""
    return sum(len(each) for each in world.watch.runs.values())


def runs_on(world: World, device: str) -> int:
    """Calls started on one device."""
    return sum(run.process.name == device for each in world.watch.runs.values() for run in each)


def fault(kind: str, target: str = "", at_ms: int = 1_300, duration_ms: int = 10_000) -> Fault:
    return Fault(at_ms=at_ms, kind=kind, target=target, duration_ms=duration_ms, amount=1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_faults_every_call_runs_once_on_some_device(seed: int) -> None:
    world, report = told(seed, story(tasks=(task(50),)))
    assert runs(world) == 50
    assert runs_on(world, "device-0") > 0
    assert runs_on(world, "device-1") > 0
    assert report.counters["publish settled"] == 0, "outcomes were collected within a second"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["kill", "power", "freeze", "cut"])
def test_work_of_a_device_that_is_gone_is_done_by_the_other(seed: int, kind: str) -> None:
    gone = fault(kind, "device-0", at_ms=2_000, duration_ms=18_000)
    world, _report = told(seed, story(gone, tasks=(task(60, run_ms=100),)))
    assert runs_on(world, "device-0") > 0
    assert runs_on(world, "device-1") > 30
    assert runs(world) > 60, "what ran there was run again"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_device_that_restarts_at_once_loses_what_it_had_and_works_on(seed: int) -> None:
    restart = fault("kill", "device-0", duration_ms=100)
    world, _report = told(seed, story(restart, tasks=(task(60, run_ms=100),)))
    starts = {
        run.process.start_part
        for each in world.watch.runs.values()
        for run in each
        if run.process.name == "device-0"
    }
    assert len(starts) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_controller_that_dies_before_its_commit_gets_the_page_again(seed: int) -> None:
    slow = Fault(at_ms=500, kind="slow-disk", duration_ms=2_000, amount=3.0)
    death = fault("kill", "controller", at_ms=1_150, duration_ms=1_000)
    world, report = told(seed, story(slow, death))
    assert world.disk.lost_operations > 0
    assert report.counters["publish submit"] >= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_controller_that_dies_after_its_commit_goes_on_where_it_was(seed: int) -> None:
    death = fault("kill", "controller", at_ms=2_500, duration_ms=3_000)
    world, report = told(seed, story(death, tasks=(task(60, run_ms=100, at_ms=1_500),)))
    assert world.disk.state.epoch == 2
    assert report.counters["publish submit"] == 1, "an acknowledged page is not sent again"
    assert runs(world) <= 64, "what devices held was adopted, not run again"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_broker_that_comes_back_empty_costs_nothing_but_time(seed: int) -> None:
    amnesia = fault("broker-restart", at_ms=2_000, duration_ms=2_000)
    world, report = told(seed, story(amnesia, tasks=(task(60, run_ms=100),)))
    assert report.counters["broker connect"] == 8, "everybody came back"
    assert runs(world) == 60, "devices went on with what they had"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("force", [False, True])
def test_a_cancelled_call_ends_and_with_force_its_worker_too(seed: int, force: bool) -> None:
    cancels = tuple((1_500, index, force) for index in range(10))
    world, report = told(seed, story(tasks=(task(10, run_ms=5_000, cancels=cancels),)))
    assert len(world.clients[0].cancelled) == 10
    assert report.counters["publish cancel"] > 0
    assert len(world.watch.killed) >= (2 if force else 0)
    assert force or not world.watch.killed
    assert runs(world) < 6, "what had not begun hardly did"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_device_that_stands_idle_takes_work_back_from_another(seed: int) -> None:
    away = fault("kill", "device-1", at_ms=0, duration_ms=2_500)
    # Tasks of several functions, each short: one device gets windows full of them.
    world, report = told(seed, story(away, tasks=(task(8, run_ms=2_000, at_ms=1_500),)))
    assert report.counters["publish trim"] > 0
    assert runs_on(world, "device-1") > 1
    assert runs(world) == 8


@pytest.mark.parametrize("seed", SEEDS)
def test_a_late_will_of_an_earlier_session_ends_nothing(seed: int) -> None:
    late = fault("wills-late", at_ms=1_000)
    reset = fault("reset", "device-0", at_ms=1_500)
    world, report = told(seed, story(late, reset, tasks=(task(6, run_ms=12_000),)))
    assert report.counters["broker will"] == 1
    assert runs(world) == 6, "nothing was taken away from the device that had reconnected"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_device_of_one_name_is_sent_away_with_exit_code_2(seed: int) -> None:
    twin = fault("twin", "device-0", at_ms=2_000)
    world, report = told(seed, story(twin, tasks=(task(60, run_ms=100),)))
    assert report.counters["exit 2"] == 1
    assert report.counters["publish device-refused"] >= 1
    assert world.twins[0].process is not None
    assert world.devices[0].running, "the first one stays"
    assert runs(world) == 60


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lost_page_is_sent_again(seed: int) -> None:
    loss = fault("drop-qos-1", at_ms=990, duration_ms=100)
    world, report = told(seed, story(loss))
    assert report.counters["broker lost submit"] >= 1
    assert runs(world) == 20


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_outcomes_are_offered_and_fetched(seed: int) -> None:
    # A third of all copies is lost for a while: what reached the controller is not sent again.
    loss = Fault(at_ms=1_100, kind="drop-qos-1", duration_ms=3_000, amount=0.3)
    _world, report = told(seed, story(loss, tasks=(task(300, run_ms=20),)))
    assert report.counters["broker lost outcomes"] >= 1
    assert report.counters["publish settled"] >= 1
    assert report.counters["publish fetch"] >= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_dies_leaves_the_others_alone(seed: int) -> None:
    death = fault("kill", "client-0", at_ms=1_500)
    both = (ClientSpec(tasks=(task(60, run_ms=50),)), ClientSpec(tasks=(task(60, run_ms=50),)))
    world, _report = told(seed, story(death, clients=both))
    (lost,) = world.clients[0].submitted
    (mine,) = world.clients[1].submitted
    assert lost in world.disk.state.tasks, "its outcomes are kept for whoever attaches"
    assert mine in world.disk.state.ever_released


@pytest.mark.parametrize("seed", SEEDS)
def test_a_call_that_raises_is_tried_as_often_as_its_task_allows(seed: int) -> None:
    tasks = (task(3, fails=2, retries=2), task(3, fails=2, retries=1))
    world, report = told(seed, story(tasks=tasks))
    assert runs(world) == 3 * 3 + 3 * 2
    assert report.counters["outcome error"] == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_call_that_kills_its_workers_ends_as_an_error_after_three(seed: int) -> None:
    world, report = told(seed, story(tasks=(task(2, kills=9), task(10))))
    assert report.counters["outcome out-of-memory"] == 2
    assert runs(world) == 2 * 3 + 10


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_call_is_ended_at_its_time_limit(seed: int) -> None:
    _world, report = told(seed, story(tasks=(task(4, run_ms=3_000, timeout_ms=1_000),)))
    assert report.counters["outcome timeout"] == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_an_at_most_once_call_of_a_lost_device_is_lost_and_said_to_be(seed: int) -> None:
    death = fault("power", "device-0", at_ms=2_000, duration_ms=15_000)
    tasks = (task(40, run_ms=200, at_most_once=True),)
    world, report = told(seed, story(death, tasks=tasks))
    assert report.counters["outcome device-lost"] == 1, "only the one that ran there"
    assert runs(world) == 40


@pytest.mark.parametrize("seed", SEEDS)
def test_values_above_the_packet_limit_travel_in_parts(seed: int) -> None:
    small = (DeviceSpec(packet_bytes_max=4_096), DeviceSpec(packet_bytes_max=4_096))
    _world, report = told(seed, story(tasks=(task(10, pad_bytes=20_000),), devices=small))
    assert report.counters["publish part"] >= 10 * 2 * 5


@pytest.mark.parametrize("seed", SEEDS)
def test_an_early_will_takes_no_outcome_and_no_name_from_a_device(seed: int) -> None:
    early = fault("half-open", "device-0", at_ms=2_000, duration_ms=5_000)
    world, report = told(seed, story(early, tasks=(task(60, run_ms=100),)))
    assert report.counters["broker will"] == 1
    assert report.counters["exit 2"] == 0
    assert runs_on(world, "device-1") > 30


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_fails_ends_the_controller_and_nothing_acknowledged_is_lost(seed: int) -> None:
    full = fault("disk-fails", at_ms=2_000)
    world, report = told(seed, story(full, tasks=(task(60, run_ms=100),)))
    assert report.counters["exit 1"] == 1
    assert world.disk.state.epoch == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_full_disk_ends_nothing_and_what_was_handed_over_is_kept_when_there_is_room(
    seed: int,
) -> None:
    full = fault("full-disk", at_ms=2_000, duration_ms=3_000)
    world, report = told(seed, story(full, tasks=(task(60, run_ms=100),)))
    assert report.counters["fault full-disk"] == 1
    assert report.counters["exit 1"] == 0
    assert world.disk.state.epoch == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_attaches_to_a_dead_clients_task_gets_every_outcome(seed: int) -> None:
    death = fault("kill", "client-0", at_ms=1_500)
    owner = ClientSpec(tasks=(task(40, run_ms=50),))
    heir = ClientSpec(attaches=(AttachSpec(at_ms=4_000, owner=0, task=0),))
    world, _report = told(seed, story(death, clients=(owner, heir)))
    (lost,) = world.clients[0].submitted
    assert len(world.clients[1].ended) == 40
    assert lost in world.disk.state.tasks, "its owner may come back"
    world.run_until(world.clock.now_ms + 150_000)
    assert lost in world.disk.state.ever_released, "collected by its heir, and let go"


@pytest.mark.parametrize("seed", SEEDS)
def test_questions_are_answered_over_a_restart_of_the_controller(seed: int) -> None:
    death = fault("kill", "controller", at_ms=1_500, duration_ms=2_000)
    queries = tuple(QuerySpec(at_ms=at_ms, what="devices") for at_ms in (1_000, 1_499, 2_500))
    asking = ClientSpec(tasks=(task(5),), queries=queries)
    _world, report = told(seed, story(death, clients=(asking,)))
    assert report.counters["answer"] >= 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["main", "other"])
def test_a_second_controller_goes_away_before_it_does_anything(seed: int, name: str) -> None:
    world = World(seed, story(tasks=(task(60, run_ms=100),)))
    world.clock.at(2_000, lambda: world.start_rival(name))
    report = run_world(world)
    assert report.counters["exit 2"] == 1
    assert world.controller.running
    assert world.disk.state.epoch == 1
    assert runs(world) == 60, "nobody noticed"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_controller_that_was_cut_off_gives_way_to_the_one_that_took_over(seed: int) -> None:
    away = fault("cut", "controller", at_ms=2_000, duration_ms=18_000)
    world = World(seed, story(away, clients=(ClientSpec(),), safety_ms=60_000))
    world.clock.at(3_000, lambda: world.start_rival("other"))
    world.begin()
    world.run_until(60_000)
    rival = world.controllers[1]
    assert rival.running
    assert rival.disk.state.epoch > world.disk.state.epoch
    assert not world.controller.running
    assert world.trace.counters["exit 2"] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_work_of_a_task_that_nobody_repeats_is_forgotten(seed: int) -> None:
    # The page was assigned and never committed; then its client and the controller die.
    slow = Fault(at_ms=500, kind="slow-disk", duration_ms=2_000, amount=3.0)
    deaths = (
        fault("kill", "client-0", at_ms=1_150),
        fault("kill", "controller", at_ms=1_160, duration_ms=1_000),
    )
    world, report = told(seed, story(slow, *deaths, tasks=(task(20, run_ms=20_000),)))
    assert report.counters["publish forget"] >= 1
    assert not world.disk.state.tasks
    assert runs(world) < 20


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", ["device-0", "controller", "client-0"])
def test_a_session_that_is_taken_over_by_its_own_process_goes_on(seed: int, target: str) -> None:
    world, report = told(seed, story(fault("takeover", target), tasks=(task(60, run_ms=100),)))
    assert report.counters["fault takeover"] == 1
    assert report.counters["broker end"] == 1
    assert runs(world) >= 60


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", ["device-0", "controller", "client-0"])
def test_a_clock_that_jumps_kills_nobody_and_loses_nothing(seed: int, target: str) -> None:
    jump = Fault(at_ms=2_000, kind="clock-jump", target=target, amount=0.3)
    world, report = told(seed, story(jump, tasks=(task(60, run_ms=100),)))
    assert report.counters["fault clock-jump"] == 1
    assert runs(world) == 60


@pytest.mark.parametrize("seed", SEEDS)
def test_a_broker_that_comes_back_with_what_it_had_saved_long_ago_costs_only_time(
    seed: int,
) -> None:
    stale = fault("broker-rollback", at_ms=500, duration_ms=2_000)
    world, _report = told(seed, story(stale, tasks=(task(60, run_ms=100),)))
    assert runs(world) == 60


@pytest.mark.parametrize("seed", SEEDS)
def test_a_task_that_the_controller_settles_is_told_by_the_controller_alone(seed: int) -> None:
    once = replace(task(20), settle="controller")
    away = fault("half-open", "device-0", duration_ms=5_000)
    world, report = told(seed, story(away, tasks=(once,)))
    assert runs(world) >= 20
    assert report.counters["broker lost outcomes"] == 0
    assert len(world.clients[0].ended) == 20


@pytest.mark.parametrize("seed", SEEDS)
def test_what_nobody_collects_is_released_when_its_time_is_up(seed: int) -> None:
    death = fault("kill", "client-0", at_ms=1_500)
    world, _report = told(seed, story(death, tasks=(task(20, run_ms=50),), keep_ms=90_000))
    (lost,) = world.clients[0].submitted
    assert lost in world.disk.state.ever_released
