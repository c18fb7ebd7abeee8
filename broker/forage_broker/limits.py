"""What a broker of ours takes, in one place, with what happens at each limit."""

__all__ = [
    "BACKLOG",
    "CONNECT_TIMEOUT_S",
    "PACKET_BYTES_MAX",
    "QUEUED_BYTES_MAX",
    "QUEUED_MESSAGES_BYTES_MAX",
    "QUEUED_MESSAGES_MAX",
    "RETAINED_MAX",
    "STALL_S",
    "UNACKNOWLEDGED_MAX",
    "UNACKNOWLEDGED_MOSQUITTO_MAX",
]

# Both engines.

PACKET_BYTES_MAX = 32 * 1024 * 1024
"""A longer packet ends its connection. Ours are 128 KiB at most; others use this broker too."""
BACKLOG = 1_024
"""Connections not yet looked at: a whole fleet reconnects at once."""

# The embedded engine.

QUEUED_BYTES_MAX = 32 * 1024 * 1024
"""Bytes waiting for one subscriber's socket; with more, whoever publishes to it waits."""
UNACKNOWLEDGED_MAX = 32_768
"""QoS 1 messages on their way to one subscriber; with more, whoever publishes to it waits."""
STALL_S = 5.0
"""A subscriber that others wait for and that takes nothing for so long is cut off."""
RETAINED_MAX = 50_000
"""Retained messages; further topics are not retained. Fits the packet ids of one connection."""
CONNECT_TIMEOUT_S = 10.0
"""A connection that has not been accepted after this is cut off."""

# mosquitto, which drops what it cannot queue, although it has acknowledged it.

QUEUED_MESSAGES_MAX = 100_000
"""Messages queued for one subscriber. At the default of 1,000, a burst lost half of itself, and a
fleet's retained presence did not fit either."""
QUEUED_MESSAGES_BYTES_MAX = 256 * 1024 * 1024
"""Bytes queued for one subscriber, whichever of the two limits comes first."""
UNACKNOWLEDGED_MOSQUITTO_MAX = 100
"""QoS 1 messages on their way to one subscriber; the rest is queued."""
