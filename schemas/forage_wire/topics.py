"""The only place that builds or parses topics.

Every topic is `{root}/1/...`: the root is configurable, the 1 is the protocol's major.
Levels hold `[a-z0-9_-]` alone, so every MQTT 3.1.1 broker carries them unchanged.
"""

import re

from forage_wire.limits import PROTOCOL_MAJOR
from forage_wire.records import dataclass

__all__ = [
    "CLIENT_PATTERN",
    "NAME_PATTERN",
    "TASK_PATTERN",
    "ParsedTopic",
    "Topics",
    "call_name",
    "fold_name",
    "is_name",
    "is_task",
    "split_call",
]

NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,31}"
"""Names of devices, users and controllers."""
CLIENT_PATTERN = r"[0-9a-v]{13}"
"""A client: 13 random base-32 characters, drawn by each process."""
TASK_PATTERN = CLIENT_PATTERN + r"-[0-9a-v]{1,13}"
"""A task: its client and a counter in base 32."""

_NAME = re.compile(NAME_PATTERN)
_TASK = re.compile(TASK_PATTERN)
_CALL_PATTERN = rf"({TASK_PATTERN})\.([0-9]{{1,10}})"


def is_name(text: str) -> bool:
    """Whether `text` may name a device, user or controller."""
    return _NAME.fullmatch(text) is not None


def is_task(text: str) -> bool:
    """Whether `text` is a task's id."""
    return _TASK.fullmatch(text) is not None


def fold_name(text: str, fallback: str) -> str:
    """A valid name made from any text, for example an OS user's; `fallback` if nothing is left."""
    folded = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:32]
    return folded if is_name(folded) else fallback


def call_name(task: str, index: int) -> str:
    """The name of one call: `{task}.{index}`."""
    return f"{task}.{index}"


def split_call(text: str) -> tuple[str, int | None] | None:
    """A task's id or a call's name as (task, index or None); None if it is neither."""
    if _TASK.fullmatch(text):
        return text, None
    match = re.fullmatch(_CALL_PATTERN, text)
    return (match[1], int(match[2])) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTopic:
    """What a topic says: the branch, and whose it is. Levels a branch has not are empty.

    Branches: `device-presence`, `device-capabilities`, `device-load`, `controller-presence`,
    `controller-stats`, `verdict`, `client-presence`, `status`, `log`, `inbox`, `outbox`, `task`,
    `from`, `to`, `standby`, `replica`.
    """

    branch: str
    device: str = ""
    controller: str = ""
    user: str = ""
    client: str = ""
    task: str = ""


_DEVICE_BRANCHES = {
    "presence": "device-presence",
    "capabilities": "device-capabilities",
    "load": "device-load",
}


class Topics:
    """Builds and parses the topics under one root.

    Args:
        root: The first segment, `[a-z0-9][a-z0-9_-]{0,31}`; several fleets share a broker by it.
    """

    def __init__(self, root: str = "forage") -> None:
        if not is_name(root):
            raise ValueError(
                f"the root topic {root!r} is not usable: use 1 to 32 of a-z, 0-9, _ and -"
            )
        self.root = root
        self.prefix = f"{root}/{PROTOCOL_MAJOR}/"
        self._cache: dict[str, ParsedTopic | None] = {}
        # task/{user}/{client}/{task}/{device} is the longest branch.
        self._characters_max = len(self.prefix) + len("task////") + 32 + 13 + 27 + 32

    # -- text branches ----------------------------------------------------------------------

    def device_presence(self, device: str) -> str:
        return f"{self.prefix}device/{device}/presence"

    def device_capabilities(self, device: str) -> str:
        return f"{self.prefix}device/{device}/capabilities"

    def device_load(self, device: str) -> str:
        return f"{self.prefix}device/{device}/load"

    def controller_presence(self, controller: str) -> str:
        return f"{self.prefix}controller/{controller}/presence"

    def controller_stats(self, controller: str) -> str:
        return f"{self.prefix}controller/{controller}/stats"

    def verdict(self, controller: str, device: str) -> str:
        return f"{self.prefix}controller/{controller}/device/{device}"

    def client_presence(self, user: str, client: str) -> str:
        return f"{self.prefix}client/{user}/{client}/presence"

    def status(self, user: str, client: str, task: str) -> str:
        return f"{self.prefix}status/{user}/{client}/{task}"

    def log(self, user: str, client: str, task: str, device: str) -> str:
        return f"{self.prefix}log/{user}/{client}/{task}/{device}"

    # -- work branches ----------------------------------------------------------------------

    def inbox(self, device: str) -> str:
        return f"{self.prefix}inbox/{device}"

    def outbox(self, device: str) -> str:
        return f"{self.prefix}outbox/{device}"

    def task(self, user: str, client: str, task: str, device: str) -> str:
        """`task` is `-` where one message holds several tasks' outcomes."""
        return f"{self.prefix}task/{user}/{client}/{task}/{device}"

    def from_client(self, user: str, client: str) -> str:
        return f"{self.prefix}from/{user}/{client}"

    def to_client(self, user: str, client: str) -> str:
        return f"{self.prefix}to/{user}/{client}"

    def standby(self, controller: str) -> str:
        """What the active controller says to the one of this name, which stands by."""
        return f"{self.prefix}standby/{controller}"

    def replica(self, controller: str) -> str:
        """What the controller of this name, which stands by, says to the active one."""
        return f"{self.prefix}replica/{controller}"

    # -- subscriptions ----------------------------------------------------------------------

    def controller_subscriptions(self) -> list[tuple[str, int]]:
        """What a controller listens to: (filter, QoS)."""
        return [
            (f"{self.prefix}controller/+/presence", 1),
            (f"{self.prefix}device/+/presence", 1),
            (f"{self.prefix}device/+/capabilities", 1),
            (f"{self.prefix}device/+/load", 0),
            (f"{self.prefix}client/+/+/presence", 1),
            (f"{self.prefix}outbox/+", 1),
            (f"{self.prefix}task/+/+/+/+", 1),
            (f"{self.prefix}from/+/+", 1),
            (f"{self.prefix}log/+/+/+/+", 0),
            (f"{self.prefix}replica/+", 1),
        ]

    def standby_subscriptions(self, controller: str) -> list[tuple[str, int]]:
        """What a controller listens to while it stands by."""
        return [
            (self.standby(controller), 1),
            (f"{self.prefix}controller/+/presence", 1),
        ]

    def device_subscriptions(self, device: str) -> list[tuple[str, int]]:
        """What a device listens to; its own presence too, to repair a stale will."""
        return [
            (self.inbox(device), 1),
            (f"{self.prefix}controller/+/presence", 1),
            (self.device_presence(device), 1),
        ]

    def client_subscriptions(self, user: str, client: str) -> list[tuple[str, int]]:
        """What a client listens to, subscribed before its first message."""
        return [
            (self.to_client(user, client), 1),
            (f"{self.prefix}task/{user}/{client}/#", 1),
            (f"{self.prefix}controller/+/presence", 1),
        ]

    # -- parsing ----------------------------------------------------------------------------

    def parse(self, topic: str) -> ParsedTopic | None:
        """What `topic` says, or None if it is not one of ours (count it and drop it)."""
        try:
            return self._cache[topic]
        except KeyError:
            pass
        if len(topic) > self._characters_max:
            return None
        parsed = self._parse(topic)
        # A bounded memory: hostile topics must not fill it, and few are used at a time.
        if len(self._cache) >= 4_096:
            self._cache.clear()
        self._cache[topic] = parsed
        return parsed

    def _parse(self, topic: str) -> ParsedTopic | None:
        if not topic.startswith(self.prefix):
            return None
        levels = topic[len(self.prefix) :].split("/")
        match levels:
            case ["device", device, leaf] if leaf in _DEVICE_BRANCHES and is_name(device):
                return ParsedTopic(branch=_DEVICE_BRANCHES[leaf], device=device)
            case ["controller", controller, ("presence" | "stats") as leaf] if is_name(controller):
                return ParsedTopic(branch=f"controller-{leaf}", controller=controller)
            case ["controller", controller, "device", device] if is_name(controller):
                if is_name(device):
                    return ParsedTopic(branch="verdict", controller=controller, device=device)
            case ["client", user, client, "presence"] if _is_client(user, client):
                return ParsedTopic(branch="client-presence", user=user, client=client)
            case ["status", user, client, task] if _is_client(user, client) and is_task(task):
                return ParsedTopic(branch="status", user=user, client=client, task=task)
            case [("log" | "task") as branch, user, client, task, device]:
                known_task = is_task(task) or (branch == "task" and task == "-")
                if _is_client(user, client) and known_task and is_name(device):
                    return ParsedTopic(
                        branch=branch, user=user, client=client, task=task, device=device
                    )
            case [("inbox" | "outbox") as branch, device] if is_name(device):
                return ParsedTopic(branch=branch, device=device)
            case [("standby" | "replica") as branch, controller] if is_name(controller):
                return ParsedTopic(branch=branch, controller=controller)
            case [("from" | "to") as branch, user, client] if _is_client(user, client):
                return ParsedTopic(branch=branch, user=user, client=client)
        return None


_CLIENT = re.compile(CLIENT_PATTERN)


def _is_client(user: str, client: str) -> bool:
    return is_name(user) and _CLIENT.fullmatch(client) is not None
