"""What tasks write to stdout and stderr, as text messages on their log topics."""

from collections.abc import Callable, Iterable

from forage_agent.core.slices import Slice
from forage_wire.io import Publish
from forage_wire.limits import PART_BYTES
from forage_wire.topics import Topics

__all__ = ["log_messages"]


def log_messages(
    rows: Iterable[tuple[int, int, str, str]],
    held: Callable[[int], Slice | None],
    current: tuple[Slice, int] | None,
    topics: Topics,
    device: str,
) -> list[Publish]:
    """One message for each task (more where they would be long), lines in their order.

    Args:
        rows: (assignment or 0, index, `out` or `err`, line).
        held: The slice of an assignment, while it is held.
        current: The call that lines without an assignment belong to.
        topics: Where they go.
        device: This device's name.
    """
    texts: dict[tuple[str, str, str], list[bytes]] = {}
    for number, index, stream, line in rows:
        part = held(number)
        if part is None:
            if number or current is None:
                continue
            part, index = current
        header = part.header
        text = f"{index} {stream} {line}".encode(errors="replace")
        texts.setdefault((header.user, header.client, header.task), []).append(text)
    return [
        Publish(topic=topics.log(*task, device), payload=payload, qos=0)
        for task, lines in texts.items()
        for payload in _joined(lines)
    ]


def _joined(lines: list[bytes]) -> list[bytes]:
    """Lines as few payloads, each of about a part's size at most."""
    found: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and size + len(line) >= PART_BYTES:
            found.append(b"\n".join(batch))
            batch, size = [], 0
        batch.append(line)
        size += len(line) + 1
    found.append(b"\n".join(batch))
    return found
