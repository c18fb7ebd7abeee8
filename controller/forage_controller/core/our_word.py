"""What a controller says of itself in public, whatever its role; and the names of others, in words."""

from forage_controller.core.config import CoreConfig
from forage_wire.codec import encode_json
from forage_wire.io import Publish
from forage_wire.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from forage_wire.messages import ControllerPresence
from forage_wire.topics import ParsedTopic, Topics

__all__ = ["our_presence", "sender_of"]


def our_presence(
    config: CoreConfig, topics: Topics, state: str, session: str, *, epoch: int, spread_ms: int
) -> Publish:
    """Our retained word."""
    document = ControllerPresence(
        state=state,
        epoch=epoch,
        session=session,
        protocol=f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}",
        reconnect_spread_ms=spread_ms,
        software=config.software,
    )
    topic = topics.controller_presence(config.name)
    return Publish(topic=topic, payload=encode_json(document), retain=True)


def sender_of(topic: ParsedTopic | None) -> str:
    """Who wrote to a topic, for the log."""
    if topic is None:
        return "unknown"
    return topic.device or topic.controller or f"{topic.user}/{topic.client}"
