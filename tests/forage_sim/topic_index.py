"""Topics and filters so arranged that thousands of clients cost no more than their own messages."""

from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Retained", "Subscriptions", "filter_matches"]

_Client = TypeVar("_Client")


def filter_matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT topic filter (with `+` and `#`) covers a topic."""
    wanted = topic_filter.split("/")
    levels = topic.split("/")
    for at, level in enumerate(wanted):
        if level == "#":
            return True
        if at >= len(levels) or (level != "+" and level != levels[at]):
            return False
    return len(wanted) == len(levels)


class Subscriptions(Generic[_Client]):
    """Who wants what. Clients that match come in the order in which they subscribed."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[_Client, int]] = {}
        self._wild: dict[str, dict[_Client, int]] = {}
        self._order: dict[_Client, int] = {}
        self._count = 0

    def add(self, client: _Client, topic_filter: str, qos: int) -> None:
        """A subscription."""
        if client not in self._order:
            self._count += 1
            self._order[client] = self._count
        is_wild = "+" in topic_filter or "#" in topic_filter
        table = self._wild if is_wild else self._exact
        table.setdefault(topic_filter, {})[client] = qos

    def remove(self, client: _Client, topic_filter: str) -> None:
        """It ends."""
        for table in (self._exact, self._wild):
            clients = table.get(topic_filter)
            if clients is not None:
                clients.pop(client, None)
                if not clients:
                    del table[topic_filter]
        self._order.pop(client, None)

    def clear(self) -> None:
        """All end."""
        self._exact.clear()
        self._wild.clear()
        self._order.clear()

    def of(self, topic: str) -> list[tuple[_Client, int]]:
        """Who gets a message on this topic: each once, at the highest QoS of its filters."""
        found = dict(self._exact.get(topic, ()))
        for topic_filter, clients in self._wild.items():
            if filter_matches(topic_filter, topic):
                for client, qos in clients.items():
                    found[client] = max(qos, found.get(client, 0))
        return sorted(found.items(), key=lambda item: self._order[item[0]])


class _Node:
    __slots__ = ("children", "topic")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.topic = ""


class Retained:
    """The retained messages, by the levels of their topics."""

    def __init__(self, messages: dict[str, bytes] | None = None) -> None:
        self._payloads: dict[str, bytes] = {}
        self._root = _Node()
        for topic, payload in (messages or {}).items():
            self.put(topic, payload)

    def put(self, topic: str, payload: bytes) -> None:
        """Keep the latest; an empty one clears."""
        if not payload:
            self._payloads.pop(topic, None)
            return
        if topic not in self._payloads:
            node = self._root
            for level in topic.split("/"):
                node = node.children.setdefault(level, _Node())
            node.topic = topic
        self._payloads[topic] = payload

    def all(self) -> dict[str, bytes]:
        """Every message by topic."""
        return dict(self._payloads)

    def of(self, topic_filter: str) -> list[tuple[str, bytes]]:
        """Those that a new subscription gets."""
        return [
            (topic, self._payloads[topic])
            for topic in _walk(self._root, topic_filter.split("/"), 0)
            if topic in self._payloads
        ]


def _walk(node: _Node, levels: list[str], at: int) -> Iterator[str]:
    if at == len(levels):
        if node.topic:
            yield node.topic
        return
    level = levels[at]
    if level == "#":
        if node.topic:
            yield node.topic
        for child in node.children.values():
            yield from _walk(child, levels, at)
    elif level == "+":
        for child in node.children.values():
            yield from _walk(child, levels, at + 1)
    elif level in node.children:
        yield from _walk(node.children[level], levels, at + 1)
