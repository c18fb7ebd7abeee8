"""Stories of calls with replicas; `DevicesVoteOnce` judges all of them."""

import pytest

from forage_sim.faults import DeviceSpec, Fault, Plan
from forage_sim.workload import CallSpec, ClientSpec, TaskSpec
from forage_sim.world import World, run_world
from forage_wire.messages import Options

SEEDS = range(6)


def plan(
    *faults: Fault, devices: int = 4, calls: int = 40, replicas: int = 3, quorum: int = 2
) -> Plan:
    task = TaskSpec(
        at_ms=1_000,
        function="f",
        calls=tuple(CallSpec(nonce=nonce, run_ms=1 + nonce % 40) for nonce in range(calls)),
        first_calls=calls // 3,
        options=Options(replicas=replicas, quorum=quorum, wait_ms=600_000),
        settle="controller",
    )
    return Plan(
        clients=(ClientSpec(tasks=(task,)),),
        devices=tuple(DeviceSpec(slots=1 + at % 2) for at in range(devices)),
        faults=faults,
        safety_ms=20_000,
        start_ms_max=0,
    )


def fault(kind: str, target: str = "", at_ms: int = 1_200, duration_ms: int = 8_000) -> Fault:
    return Fault(kind=kind, target=target, at_ms=at_ms, duration_ms=duration_ms)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_call_is_decided_by_as_many_devices_as_were_asked_for(seed: int) -> None:
    world = World(seed, plan())
    run_world(world)
    (client,) = world.clients
    assert len(client.ended) == 40
    for (task, call), runs in world.watch.runs.items():
        devices = {run.process.name for run in runs}
        assert len(devices) >= 2, f"{task}.{call}"
        assert len({(run.process.name, run.index) for run in runs}) == len(devices)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["kill", "freeze", "cut"])
def test_a_device_that_is_gone_and_comes_back_has_one_say(seed: int, kind: str) -> None:
    world = World(seed, plan(fault(kind, "device-0")))
    run_world(world)
    assert len(world.clients[0].ended) == 40


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at_ms", [1_050, 1_200, 1_500])
def test_a_controller_that_starts_again_knows_who_has_answered(seed: int, at_ms: int) -> None:
    world = World(seed, plan(fault("kill", "controller", at_ms=at_ms, duration_ms=300), quorum=3))
    run_world(world)
    assert len(world.clients[0].ended) == 40


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_device_too_few_the_quorum_is_enough(seed: int) -> None:
    world = World(seed, plan(devices=2))
    run_world(world)
    assert not any(world.clients[0].votes)
