"""What clients ask for, what a worker makes of it, and what must come back.

A call's bytes say all that a worker does with it, so what must come of it is known without
running it. Nothing here depends on which device ran it, or when.
"""

from dataclasses import dataclass, field
from hashlib import blake2s
from random import Random

import cbor2

from forage_wire.messages import Options

__all__ = [
    "CallSpec",
    "ClientSpec",
    "draw_client",
    "LONG_MS",
    "AttachSpec",
    "QuerySpec",
    "TaskSpec",
    "WorkerEnd",
    "draw_task",
    "error_item",
    "read_call",
    "state_of",
    "step_of",
    "value_item",
    "worker_end",
]

LONG_MS = 10_000
"""What a call and its lease last longer where they are to be long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpec:
    """One call: how long it runs and how that ends."""

    nonce: int
    """Makes its bytes, and so its value, its own."""
    run_ms: int = 1
    fails: int = 0
    """It raises while its `tries` are below this; then it returns a value."""
    kills: int = 0
    """Its worker dies while its `deaths` are below this."""
    pad_bytes: int = 0
    """Argument bytes besides; the value is as long."""
    states: int = 0
    """Checkpoints that it makes on its way, at even distances; it goes on from what it is given."""
    state_bytes: int = 0
    """What is in each of them besides."""

    def body(self) -> bytes:
        """The call's bytes."""
        said = [self.nonce, self.run_ms, self.fails, self.kills, bytes(self.pad_bytes)]
        if self.states:
            said += [self.states, self.state_bytes]
        return cbor2.dumps(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task of a client."""

    at_ms: int
    """When it is submitted, after the client's start."""
    function: str
    """Tasks of one function may share code."""
    calls: tuple[CallSpec, ...]
    first_calls: int = 0
    """Not 0: this many calls are submitted first, then the rest."""
    options: Options = field(default_factory=Options)
    settle: str = "direct"
    cancels: tuple[tuple[int, int, bool], ...] = ()
    """(milliseconds after the submission, index, force)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachSpec:
    """One client wants another's outcomes too."""

    at_ms: int
    owner: int
    """Which client's."""
    task: int
    """Which of its tasks; nothing is asked if it has not been submitted by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySpec:
    """A question to the controller."""

    at_ms: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSpec:
    """What one client does."""

    tasks: tuple[TaskSpec, ...] = ()
    attaches: tuple[AttachSpec, ...] = ()
    queries: tuple[QuerySpec, ...] = ()
    packet_bytes_max: int = 128 * 1024


def read_call(body: bytes) -> CallSpec:
    """The call that these bytes say."""
    nonce, run_ms, fails, kills, pad, *states = cbor2.loads(body)
    states, state_bytes = states or (0, 0)
    return CallSpec(
        nonce=nonce,
        run_ms=run_ms,
        fails=fails,
        kills=kills,
        pad_bytes=len(pad),
        states=states,
        state_bytes=state_bytes,
    )


def state_of(body: bytes, step: int) -> bytes:
    """A call's state after so many of its checkpoints: it says whose it is, and which."""
    size = read_call(body).state_bytes
    return bytes(cbor2.dumps([blake2s(body).digest(), step, bytes(size)]))


def step_of(body: bytes, state: bytes | None) -> int | None:
    """How many checkpoints lie behind a state, 0 where there is none; None: it is another call's."""
    if state is None:
        return 0
    whose, step, _rest = cbor2.loads(state)
    return int(step) if whose == blake2s(body).digest() else None


def value_item(body: bytes) -> list[object]:
    """The outcome item of the value that a call with these bytes returns: f(call)."""
    return [blake2s(body).digest() + bytes(read_call(body).pad_bytes)]


def error_item(body: bytes) -> dict[str, object]:
    """The outcome item of the exception that it raises."""
    return {"type": "ValueError", "text": blake2s(body).hexdigest()}


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How one run of a call ends at a worker."""

    run_ms: int
    died: bool
    item: list[object] | dict[str, object]


def worker_end(body: bytes, tries: int, deaths: int) -> WorkerEnd:
    """What a worker makes of a call, given its counters: a pure function."""
    call = read_call(body)
    if deaths < call.kills:
        return WorkerEnd(call.run_ms, True, {})
    if tries < call.fails:
        return WorkerEnd(call.run_ms, False, error_item(body))
    return WorkerEnd(call.run_ms, False, value_item(body))


def draw_task(random: Random, nonce: int, until_ms: int) -> TaskSpec:
    """A task of any kind that users submit, small ones mostly."""
    count = random.choice((1, 1, 1, 2, 2, 3, 5, 8, 20))
    slowest_ms = random.choice((0, 1, 5, 50, 50, 500, 3_000))
    exclusive = random.random() < 0.15
    if exclusive:
        slowest_ms = max(slowest_ms, 500)
    retries = random.choice((0, 0, 1, 3))
    at_most_once = random.random() < 0.15
    timeout_ms = random.choice((0, 0, 0, 1_000))
    # From a stream of their own: what else is drawn stays what it was.
    own = Random(nonce)
    makes_states = own.random() < 0.5
    # One that is still running when a controller that was started anew finds its device silent.
    is_long = exclusive and Random(f"long {nonce}").random() < 0.4
    calls = []
    for index in range(count):
        odd = random.random()
        calls.append(
            CallSpec(
                nonce=nonce * 1_000 + index,
                run_ms=random.randint(0, slowest_ms) + LONG_MS * (is_long and index == 0),
                fails=random.randint(1, 3) if odd < 0.07 else 0,
                kills=random.randint(1, 3) if 0.07 <= odd < 0.12 else 0,
                pad_bytes=random.choice((300, 3_000, 20_000)) if 0.12 <= odd < 0.17 else 0,
                states=own.choice((0, 1, 3, 8)) if makes_states else 0,
                state_bytes=own.choice((0, 0, 300, 9_000)),
            )
        )
    cancels = []
    if random.random() < 0.15:
        for _ in range(random.randint(1, 3)):
            index = random.randrange(count)
            cancels.append((random.randint(0, 3_000), index, random.random() < 0.5))
    settle = random.choice(("direct", "direct", "direct", "direct", "controller"))
    return TaskSpec(
        at_ms=random.randint(0, until_ms),
        function=random.choice(("f", "g", f"h{nonce}")),
        calls=tuple(calls),
        first_calls=random.choice((0, 0, count // 2)),
        options=Options(
            retries=retries,
            at_most_once=at_most_once,
            timeout_ms=timeout_ms,
            priority=random.choice((0, 0, 0, 5)),
            wait_ms=600_000,
            backoff_ms=random.choice((0, 100, 1_000)),
            deadline_ms=random.choice((0, 0, 0, 0, 2_000, 10_000)),
            exclusive=exclusive,
            lease_ms=random.choice((500, 2_000, 5_000)) + LONG_MS * is_long,
        ),
        settle="controller" if exclusive else settle,
        cancels=tuple(sorted(cancels)),
    )


def draw_replicated(nonce: int, until_ms: int) -> list[TaskSpec]:
    """For a few clients, a task whose calls run on several devices.

    Drawn apart from all else, so that worlds without one stay what they were.
    """
    random = Random(f"replicas {nonce} {until_ms}")
    own = Random(f"states of replicas {nonce} {until_ms}")
    if random.random() > 0.2:
        return []
    count = random.choice((1, 2, 5, 12, 40))
    slowest_ms = random.choice((1, 20, 300))
    replicas = random.choice((2, 3, 3, 4))
    return [
        TaskSpec(
            at_ms=random.randint(0, until_ms),
            function="f",
            calls=tuple(
                CallSpec(
                    nonce=nonce * 1_000 + 500 + index,
                    run_ms=random.randint(0, slowest_ms),
                    pad_bytes=3_000 if random.random() < 0.1 else 0,
                    states=own.choice((0, 0, 2, 5)) if slowest_ms > 100 else 0,
                )
                for index in range(count)
            ),
            first_calls=random.choice((0, count // 2)),
            options=Options(replicas=replicas, quorum=random.randint(0, replicas), wait_ms=20_000),
            settle="controller",
            cancels=((random.randint(0, 500), 0, True),) if random.random() < 0.2 else (),
        )
    ]


def draw_client(random: Random, at: int, clients: int, until_ms: int) -> ClientSpec:
    """What client number `at` of several does."""
    tasks = [
        draw_task(random, 10 * at + number, until_ms) for number in range(1, random.randint(2, 4))
    ]
    tasks += draw_replicated(tasks[0].calls[0].nonce, tasks[0].at_ms + until_ms)
    attaches = []
    if clients > 1 and random.random() < 0.5:
        attaches.append(
            AttachSpec(
                at_ms=random.randint(0, until_ms),
                owner=random.choice([other for other in range(clients) if other != at]),
                task=random.randrange(3),
            )
        )
    queries = [
        QuerySpec(at_ms=random.randint(0, until_ms), what=random.choice(("devices", "tasks")))
        for _ in range(random.choice((0, 0, 2)))
    ]
    return ClientSpec(
        tasks=tuple(tasks),
        attaches=tuple(attaches),
        queries=tuple(queries),
        packet_bytes_max=random.choice((128 * 1024, 128 * 1024, 128 * 1024, 4_096)),
    )
