"""What stands on the bus: text for people, nothing binary retained, and garbage harms nobody."""

import itertools
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest

from forage import Client, LocalCluster
from forage_wire.address import parse_broker_address
from forage_wire.topics import Topics
from integration.observing import until
from transport.owner import Owner, Party, now_ms

LIMIT_S = 60.0
CALLS = 400
TOPICS = Topics()


def wait_for(gate: str, number: int) -> int:
    while not Path(gate).exists():
        time.sleep(0.01)
    return number


def increase(number: int) -> int:
    time.sleep(0.002)
    return number + 1


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


def listen(owner: Owner, cluster: LocalCluster, topic_filter: str) -> Party:
    return owner.online(parse_broker_address(cluster.broker_url), [(topic_filter, 1)])


def test_mosquitto_sub_shows_what_the_fleet_is_doing_as_text(
    cluster: LocalCluster, client: Client
) -> None:
    program = shutil.which("mosquitto_sub")
    if program is None:
        pytest.skip("mosquitto_sub is not installed (Debian: apt install mosquitto-clients)")
    address = parse_broker_address(cluster.broker_url)
    command = [program, "-h", address.host, "-p", str(address.port), "-v"]
    command += ["-t", "forage/1/device/#", "-t", "forage/1/controller/#"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        said: dict[str, list[dict[str, object]]] = {}
        wanted = {TOPICS.controller_presence("main")}
        for device in cluster.devices:
            wanted |= {TOPICS.device_presence(device.name), TOPICS.verdict("main", device.name)}
            wanted |= {TOPICS.device_capabilities(device.name), TOPICS.device_load(device.name)}
        killed = cluster.devices[0]
        of_killed = TOPICS.verdict("main", killed.name)
        while not (
            wanted <= said.keys()
            and TOPICS.controller_stats("main") in said
            and said[of_killed][-1]["verdict"] == "dead"
        ):
            line = watching.stdout.readline().decode()
            assert line.isprintable() or line[:-1].isprintable(), line
            topic, _, payload = line.partition(" ")
            said.setdefault(topic, []).append(json.loads(payload))
            if wanted <= said.keys() and killed.is_running:
                killed.kill()
        watching.kill()
    assert said[TOPICS.device_presence(killed.name)][-1]["state"] == "lost"
    assert said[TOPICS.device_presence(cluster.devices[1].name)][-1]["state"] == "online"
    assert said[TOPICS.controller_presence("main")][-1]["state"] == "active"
    assert said[TOPICS.device_capabilities(killed.name)][-1]["slots"] == 1


def test_nothing_that_is_retained_is_binary(
    cluster: LocalCluster, client: Client, owner: Owner, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    batch = client.submit_all(wait_for, [str(gate)] * CALLS, range(CALLS))
    status = TOPICS.status(client.user, client.id, batch.id)
    watch = listen(owner, cluster, status)
    owner.until(lambda: bool(watch.messages))
    fresh = listen(owner, cluster, "#")
    marker = "forage/1/marker"
    watch.connection.publish(marker, b"", qos=1)
    owner.until(lambda: any(message.topic == marker for message in fresh.messages))
    retained = {one.topic: one.payload for one in fresh.messages if one.retain}
    for payload in retained.values():
        assert isinstance(json.loads(payload.decode()), dict)
    assert {
        status,
        TOPICS.client_presence(client.user, client.id),
        TOPICS.controller_presence("main"),
        TOPICS.device_presence("device-1"),
    } <= retained.keys()
    gate.touch()
    assert batch.results(timeout=LIMIT_S) == list(range(CALLS))
    client.shutdown()
    # What told of the client and its task goes with them.
    owner.until(
        lambda: (
            {one.topic for one in fresh.messages if one.payload == b"" and one.topic != marker}
            >= {status, TOPICS.client_presence(client.user, client.id)}
        )
    )


def hostile_topics(client: Client) -> list[str]:
    user, name = client.user, client.id
    task = f"{name}-1"
    return [
        *(TOPICS.device_presence(device) for device in ("device-1", "device-9")),
        *(TOPICS.device_capabilities(device) for device in ("device-1", "device-9")),
        *(TOPICS.device_load(device) for device in ("device-1", "device-9")),
        *(TOPICS.inbox(device) for device in ("device-1", "device-2", "device-9")),
        *(TOPICS.outbox(device) for device in ("device-1", "device-2", "device-9")),
        *(TOPICS.controller_presence(controller) for controller in ("main", "other")),
        TOPICS.controller_stats("main"),
        TOPICS.verdict("main", "device-1"),
        TOPICS.client_presence(user, name),
        TOPICS.from_client(user, name),
        TOPICS.to_client(user, name),
        TOPICS.status(user, name, task),
        *(TOPICS.task(user, name, one, "device-1") for one in (task, "-")),
        TOPICS.log(user, name, task, "device-1"),
        "forage/1/device/device-1/unknown",
        "forage/1/inbox/device-1/deeper",
        "forage/2/inbox/device-1",
        "forage/1/outbox/" + "x" * 500,
        "forage/1/device/No Name/presence",
    ]


def hostile_payloads(source: random.Random) -> list[bytes]:
    return [
        b"",
        b"\x00",
        b"\xff" * 40,
        source.randbytes(200),
        source.randbytes(100_000),
        b"{" * 5_000,
        b"[" * 50_000,
        b'{"state": "online"}',
        b'{"state": 7, "session": [], "protocol": null}',
        b'{"verdict": "alive", "unknown": {"deep": [1, 2, 3]}}',
        cbor2.dumps({}),
        cbor2.dumps({"t": "never-heard-of", "s": "0" * 18}),
        cbor2.dumps({"t": "assign", "s": 5, "c": None, "n": -1}),
        cbor2.dumps({"t": "outcomes", "n": 2**70, "as": []}),
        cbor2.dumps({"t": "hello"}) + b"\x00",
        b"\x9f" * 3_000,
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
    ]


def test_garbage_on_every_topic_stops_nothing(
    cluster: LocalCluster, client: Client, owner: Owner
) -> None:
    assert cluster.broker is not None
    services = [cluster.broker, cluster.controller, *cluster.devices]
    before = [service.pid for service in services]
    sizes = [service.log.stat().st_size for service in services]
    hostile = listen(owner, cluster, TOPICS.controller_stats("main"))
    batch = client.submit_all(increase, range(CALLS))
    source = random.Random(7)
    messages = itertools.product(hostile_topics(client), hostile_payloads(source))
    for count, (topic, payload) in enumerate(messages):
        hostile.connection.publish(topic, payload, qos=count % 2)
        hostile.connection.flush(now_ms())
        if count % 20 == 0:
            owner.until(lambda: hostile.connection.unsent_bytes == 0)
    assert batch.results(timeout=LIMIT_S) == [number + 1 for number in range(CALLS)]
    assert client.submit(pow, 2, 6).result(LIMIT_S) == 64

    def dropped() -> int:
        stats = [json.loads(one.payload) for one in hostile.messages if is_json(one.payload)]
        return max([0, *(one.get("dropped", 0) for one in stats)])

    # What is not usable is counted, and told in a few lines.
    owner.until(lambda: dropped() > 100)
    make_sure_all_are_alive(cluster, client)
    assert [service.pid for service in services] == before
    for service, size in zip(services, sizes, strict=True):
        lines = service.log.read_bytes()[size:].splitlines()
        assert len(lines) < 150, (service.name, lines[:5])
        assert not [line for line in lines if line.startswith(b"Traceback")], service.name


def is_json(payload: bytes) -> bool:
    try:
        return isinstance(json.loads(payload), dict)
    except (ValueError, RecursionError):
        return False


def make_sure_all_are_alive(cluster: LocalCluster, client: Client) -> None:
    names = {device.name for device in cluster.devices}
    until(
        lambda: {row.name for row in client.devices() if row.verdict == "alive"} >= names,
        "all devices alive",
    )
    for name in names:
        assert client.options(device=name).submit(pow, 2, 4).result(LIMIT_S) == 16
