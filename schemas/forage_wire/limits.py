"""Every limit of the protocol in one place, with what happens at the limit.

All are known before anything is sent: nothing goes out to see whether it fits.
"""

__all__ = [
    "BACKOFF_MS_DEFAULT",
    "BACKOFF_MS_MAX",
    "BARE_SEEN_AFTER_MS",
    "CALLS_PER_PAGE_MAX",
    "CALLS_PER_SUBMIT_TASK_MAX",
    "CALL_BYTES_MAX",
    "CLIENT_WINDOW",
    "COLLECTED_EVERY_CALLS",
    "COLLECTED_EVERY_MS",
    "DEATHS_MAX",
    "DEVICE_WINDOW",
    "ENVELOPE_BYTES",
    "LEASE_MS_DEFAULT",
    "HEADER_BYTES_MAX",
    "LEASE_MS_MIN",
    "LIST_ITEMS_MAX",
    "LOG_LINE_BYTES_MAX",
    "LOSSES_MAX",
    "LOSS_DEVICES_MIN",
    "NESTING_MAX",
    "PACKET_BYTES_MAX",
    "PACKET_BYTES_MIN",
    "PARTS_MAX",
    "PART_BYTES",
    "PROTOCOL_MAJOR",
    "PROTOCOL_MINOR",
    "PYTHON_MINOR_MIN",
    "RANGES_MAX",
    "REORDER_MAX",
    "REPEAT_AFTER_MS",
    "REPEAT_AFTER_MS_MAX",
    "REPLICAS_MAX",
    "SEEN_EVERY",
    "TASK_CALLS_MAX",
    "TEXT_CHARACTERS_MAX",
    "UNFINISHED_PART_BYTES_MAX",
    "WAIT_MS_DEFAULT",
]

PROTOCOL_MAJOR = 1
"""Stands in every topic; another major is another bus."""
PROTOCOL_MINOR = 0
PYTHON_MINOR_MIN = 11
"""forage runs on Python 3.11 and newer."""
"""One minor of difference works both ways; more is refused in words."""

PACKET_BYTES_MAX = 128 * 1024
"""The largest MQTT payload anybody sends, unless an end announced less. Above: parts."""
PACKET_BYTES_MIN = 1024
"""An end that announces less than this is refused: a part's envelope and as much data fit."""
ENVELOPE_BYTES = 512
"""What a message needs around its data; data is cut so that both fit the packet."""
HEADER_BYTES_MAX = 16 * 1024
"""Of a page; its options, names and label."""
NESTING_MAX = 8
"""Arrays and maps within each other, in an envelope; deeper is refused."""

PART_BYTES = 64 * 1024
"""Data in one part (less where the packet limit is lower): small messages overtake it."""
CALL_BYTES_MAX = 16 * 1024 * 1024
"""One call's arguments or one outcome's value. Above: an error that names the limit."""
UNFINISHED_PART_BYTES_MAX = 64 * 1024 * 1024
"""What a receiver holds of unfinished parted messages; more is dropped and counted."""
PARTS_MAX = UNFINISHED_PART_BYTES_MAX // (PACKET_BYTES_MIN - ENVELOPE_BYTES)
"""Parts of one message: as many as the smallest packets need for the largest message."""

EPOCH_CREDIBLE_MAX = 2**21
"""Epochs begin at 1 and rise by one with each start. Whoever says a higher one than this has made it
up, and no controller goes above that because of it ..."""
EPOCH_BELIEVED_MAX = 2**22
"""... but is believed up to here: who has gone above the former is heard for two million starts
more. What is higher is nobody's."""
DEVICE_WINDOW = 16
"""Messages sent and not seen, to a device and from it; more wait at the sender."""
CLIENT_WINDOW = 8
"""Messages with pages sent and not seen, from a client; more wait at the client."""
REORDER_MAX = 64
"""Messages kept that arrived ahead of a missing one; later ones are dropped (repeated)."""
REPEAT_AFTER_MS = 1_000
"""The oldest unseen message is sent again after this, then after twice as long, ..."""
REPEAT_AFTER_MS_MAX = 8_000
BARE_SEEN_AFTER_MS = 20
"""A receiver with nothing to say reports what it has seen after this."""
SEEN_EVERY = 4
"""It does so at once after so many messages: half of the smallest window."""

CALLS_PER_PAGE_MAX = 4_096
CALLS_PER_SUBMIT_TASK_MAX = 1_000
"""A burst of submits is sealed at this many calls."""
TASK_CALLS_MAX = 2**32 - 1
RANGES_MAX = 4_096
"""Ranges in one list of a message; a longer list is cut and the rest follows."""
LIST_ITEMS_MAX = 4_096
TEXT_CHARACTERS_MAX = 4_096
"""Of a text that has no limit of its own."""
LOG_LINE_BYTES_MAX = 8 * 1024
"""A longer line of a task's output is cut, and says so."""

COLLECTED_EVERY_MS = 200
COLLECTED_EVERY_CALLS = 4_096

DEATHS_MAX = 3
"""A call whose worker died this often is a final error that names the cause."""
LOSSES_MAX = 5
LOSS_DEVICES_MIN = 3
"""A call that ran on this many devices (or all of a smaller fleet) that were lost,
LOSSES_MAX times in all, is a final error."""
BACKOFF_MS_DEFAULT = 100
"""A call that raised is run again after this at most, then after twice as long, ..."""
BACKOFF_MS_MAX = 60_000
LEASE_MS_DEFAULT = 15_000
"""How long a device may run an exclusive call without having heard that it still may."""
LEASE_MS_MIN = 200
REPLICAS_MAX = 16
"""Devices that one call may be run on."""
WAIT_MS_DEFAULT = 30_000
"""How long calls wait while no eligible device is alive, before `NoDevice`."""
