"""What is done to a ground in one round: drawn from a seed before the round begins.

A plan is a list of steps; each submits some work, strikes one blow and lets time pass. The same
seed draws the same plan; how far the programs have come when a blow falls is up to the machine.
"""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from chaos.faults import (
    DOWN,
    UP,
    Action,
    Corrupt,
    Cut,
    CutAfterBytes,
    Delay,
    Drop,
    Duplicate,
    HalfOpen,
    Point,
    Reorder,
    Rule,
)
from chaos.ground import Ground
from chaos.packets import CONNACK, CONNECT, PUBACK, SUBACK, SUBSCRIBE
from chaos.pair import OWN_DISK, SAME_DISK, SYNCHRONOUS

__all__ = ["BY_PROXY", "KINDS", "STANDBYS", "Plan", "Step"]

DEVICES = ("device-1", "device-2", "device-3")
CLIENTS = ("client-a", "client-b", "leaver")
PROCESSES = ("controller", "controller", "broker", "broker", *DEVICES, "leaver")
BEHIND_PROXIES = ("controller", "controller", *DEVICES, *CLIENTS)
ROUNDS_OF_ONE_KIND = 8
STANDBYS = ("", SAME_DISK, "", OWN_DISK, "", SYNCHRONOUS)
"""Which second controller there is, by turns of so many seeds: a ground has one kind of it."""


@dataclass(frozen=True)
class Cast:
    """Who is on the ground, as often as each is to be picked among the others."""

    processes: tuple[str, ...]
    behind_proxies: tuple[str, ...]
    controllers: tuple[str, ...]


ALONE = Cast(PROCESSES, BEHIND_PROXIES, ("controller",))
PAIR = Cast(
    (*PROCESSES, "standby", "standby"),
    (*BEHIND_PROXIES, "standby", "standby"),
    ("controller", "standby"),
)

POINTS = {
    "controller": [
        (DOWN, "/from/"),
        (UP, "/inbox/"),
        (UP, "/to/"),
        (DOWN, "/task/"),
        (DOWN, "/outbox/"),
        (DOWN, "/presence$"),
        (UP, "/controller/[^/]+/presence$"),
        (UP, "/controller/[^/]+/device/"),
    ],
    "device": [
        (DOWN, "/inbox/"),
        (UP, "/outbox/"),
        (UP, "/task/"),
        (UP, "/presence$"),
        (UP, "/capabilities$"),
        (DOWN, "/controller/"),
    ],
    "client": [(UP, "/from/"), (DOWN, "/to/"), (DOWN, "/task/"), (UP, "/presence$")],
    # Whichever of two it is: what is said between them, said or heard.
    "pair": [(UP, "/standby/"), (DOWN, "/standby/"), (UP, "/replica/"), (DOWN, "/replica/")],
}
"""The messages of the protocol, by who sends (UP) or receives them."""


@dataclass(frozen=True)
class Step:
    """One blow, and how long the programs have until the next."""

    kind: str
    text: str
    strike: Callable[[Ground], None]
    pause_s: float
    works: int
    """How much is submitted before it."""
    revives: bool
    """Whether what is dead is started again before it."""


def _point(source: random.Random, cast: Cast) -> tuple[str, str, str]:
    """(role, direction, topic) of one message of the protocol."""
    role = source.choice(cast.behind_proxies)
    if role in cast.controllers:
        points = POINTS["controller"] + (POINTS["pair"] if cast is PAIR else [])
    else:
        points = POINTS["device" if role in DEVICES else "client"]
    return (role, *source.choice(points))


def _two(source: random.Random, cast: Cast) -> list[str]:
    return source.sample(sorted(set(cast.processes)), 2)


Blow = tuple[str, Callable[[Ground], None]]


def _signal_to(roles: list[str], number: signal.Signals) -> Blow:
    def strike(ground: Ground) -> None:
        for role in roles:
            ground.strike(role, number)

    return f"{number.name} {' and '.join(roles)}", strike


def _kill(source: random.Random, cast: Cast) -> Blow:
    return _signal_to([source.choice(cast.processes)], signal.SIGKILL)


def _kill_two(source: random.Random, cast: Cast) -> Blow:
    return _signal_to(_two(source, cast), signal.SIGKILL)


def _freeze(source: random.Random, cast: Cast) -> Blow:
    return _signal_to([source.choice(cast.processes)], signal.SIGSTOP)


def _freeze_two(source: random.Random, cast: Cast) -> Blow:
    return _signal_to(_two(source, cast), signal.SIGSTOP)


def _thaw(source: random.Random, cast: Cast) -> Blow:
    return _signal_to(sorted(set(cast.processes)), signal.SIGCONT)


def _restart(source: random.Random, cast: Cast) -> Blow:
    role = source.choice([role for role in cast.processes if role != "leaver"])

    def strike(ground: Ground) -> None:
        ground.strike(role, signal.SIGKILL)
        ground.revive(role)

    return f"restart {role}", strike


def _restart_broker(keeps_disk: bool) -> Blow:
    def strike(ground: Ground) -> None:
        ground.strike("broker", signal.SIGKILL)
        ground.revive("broker", keeps_disk=keeps_disk)

    return f"restart the broker with{'' if keeps_disk else 'out'} its disk", strike


def _at_point(source: random.Random, cast: Cast, number: signal.Signals) -> Blow:
    place, direction, topic = _point(source, cast)
    role = source.choice(cast.processes) if source.random() < 0.5 else place
    if role in ("client-a", "client-b"):
        role = source.choice(["controller", "broker"])
    roles = [role] if source.random() < 0.7 else sorted({role, source.choice(cast.processes)})
    skip = source.choice([0, 0, 1, 5])
    _, hit = _signal_to(roles, number)
    name = f"{number.name} at a point"

    def strike(ground: Ground) -> None:
        rule = Rule(name, Point(lambda: hit(ground)), direction, topic=topic, skip=skip, limit=1)
        ground.proxy(place).add(rule)

    text = f"{number.name} {' and '.join(roles)} at {topic} {direction} of {place}, after {skip}"
    return text, strike


def _rule(source: random.Random, cast: Cast, name: str, action: Action, **how: object) -> Blow:
    role = source.choice(cast.behind_proxies)
    direction = source.choice([UP, DOWN, ""])
    rule_text = f"{name} {direction or 'both ways'} at {role} {how or ''}".rstrip()

    def strike(ground: Ground) -> None:
        ground.proxy(role).add(Rule(name, action, direction, **how))  # type: ignore[arg-type]

    return rule_text, strike


def _delay(source: random.Random, cast: Cast) -> Blow:
    high_s = source.choice([0.01, 0.1, 0.4])
    return _rule(source, cast, "delay", Delay(0.0, high_s), probability=source.choice([0.05, 0.5]))


def _drop(source: random.Random, cast: Cast) -> Blow:
    return _rule(source, cast, "drop", Drop(), probability=source.choice([0.02, 0.2, 0.6]))


def _duplicate(source: random.Random, cast: Cast) -> Blow:
    action = Duplicate(copies=source.choice([1, 3]))
    return _rule(source, cast, "duplicate", action, probability=source.choice([0.1, 1.0]))


def _reorder(source: random.Random, cast: Cast) -> Blow:
    action = Reorder(passing=source.choice([1, 5]))
    return _rule(source, cast, "reorder", action, probability=source.choice([0.1, 0.5]))


def _corrupt(source: random.Random, cast: Cast) -> Blow:
    return _rule(source, cast, "corrupt", Corrupt(), probability=source.choice([0.02, 0.2]))


def _cut_at_topic(source: random.Random, cast: Cast) -> Blow:
    place, direction, topic = _point(source, cast)
    share, skip = source.choice([0.0, 0.5, 1.0]), source.choice([0, 1, 5])

    def strike(ground: Ground) -> None:
        rule = Rule("cut at topic", Cut(share), direction, topic=topic, skip=skip, limit=2)
        ground.proxy(place).add(rule)

    return f"cut {place} at {topic} {direction}, after {skip}", strike


def _cut_at_type(source: random.Random, cast: Cast) -> Blow:
    kind = source.choice([CONNECT, CONNACK, SUBSCRIBE, SUBACK, PUBACK])
    place = source.choice(cast.behind_proxies)

    def strike(ground: Ground) -> None:
        ground.proxy(place).add(Rule("cut at packet type", Cut(0.5), kind=kind, limit=2))
        if kind != PUBACK:
            # That comes when it connects anew.
            ground.proxy(place).cut()

    return f"cut {place} at packet type {kind}", strike


def _cut_after_bytes(source: random.Random, cast: Cast) -> Blow:
    count = source.choice([1, 100, 5_000, 100_000])
    return _rule(source, cast, "cut after bytes", CutAfterBytes(count))


def _half_open(source: random.Random, cast: Cast) -> Blow:
    return _rule(source, cast, "half-open", HalfOpen(), limit=1)


def _hold(source: random.Random, cast: Cast) -> Blow:
    role = source.choice(cast.behind_proxies)
    directions = source.choice([(UP,), (DOWN,), (UP, DOWN)])

    def strike(ground: Ground) -> None:
        ground.proxies.counts["hold"] += 1
        ground.proxy(role).hold(*directions)

    return f"hold {role} {' and '.join(directions)}", strike


def _refuse(source: random.Random, cast: Cast) -> Blow:
    role = source.choice(cast.behind_proxies)

    def strike(ground: Ground) -> None:
        ground.proxies.counts["refuse"] += 1
        ground.proxy(role).refuse()

    return f"refuse {role}", strike


KINDS: dict[str, Callable[[random.Random, Cast], Blow]] = {
    "SIGKILL": _kill,
    "SIGKILL of two": _kill_two,
    "SIGSTOP": _freeze,
    "SIGSTOP of two": _freeze_two,
    "SIGCONT": _thaw,
    "restart": _restart,
    "broker restart with its disk": lambda source, cast: _restart_broker(True),
    "broker restart without its disk": lambda source, cast: _restart_broker(False),
    "SIGKILL at a point": lambda source, cast: _at_point(source, cast, signal.SIGKILL),
    "SIGSTOP at a point": lambda source, cast: _at_point(source, cast, signal.SIGSTOP),
    "delay": _delay,
    "drop": _drop,
    "duplicate": _duplicate,
    "reorder": _reorder,
    "corrupt": _corrupt,
    "cut at topic": _cut_at_topic,
    "cut at packet type": _cut_at_type,
    "cut after bytes": _cut_after_bytes,
    "half-open": _half_open,
    "hold": _hold,
    "refuse": _refuse,
}
BY_PROXY = frozenset(
    [
        *("SIGKILL at a point", "SIGSTOP at a point", "delay", "drop", "duplicate", "reorder"),
        *("corrupt", "cut at topic", "cut at packet type", "cut after bytes", "half-open"),
        *("hold", "refuse"),
    ]
)
"""These are counted where they happen; the others when they are ordered."""


@dataclass
class Plan:
    """All of a round's decisions."""

    seed: int
    steps: list[Step] = field(default_factory=list)
    has_leaver: bool = False
    standby: str = ""
    """Which second controller the ground has."""
    spares_silent: bool = False
    """Half-open connections stay so after healing: only keepalives find them."""

    @property
    def cast(self) -> Cast:
        """Who may be struck."""
        return PAIR if self.standby else ALONE

    @classmethod
    def draw(cls, seed: int) -> "Plan":
        """The plan of this seed: a few kinds of faults for each round, so that rounds differ."""
        source = random.Random(seed)
        plan = cls(seed, has_leaver=source.random() < 0.5, spares_silent=source.random() < 0.05)
        plan.standby = STANDBYS[seed // ROUNDS_OF_ONE_KIND % len(STANDBYS)]
        kinds = source.sample(sorted(KINDS), source.randint(2, 5))
        for _ in range(source.randint(3, 5)):
            kind = source.choice(kinds)
            text, strike = KINDS[kind](source, plan.cast)
            plan.steps.append(
                Step(
                    kind,
                    text,
                    strike,
                    pause_s=source.choice([0.0, 0.05, 0.2, 0.5, 0.9]),
                    works=source.choice([0, 1, 1, 2]),
                    revives=source.random() < 0.5,
                )
            )
        return plan
