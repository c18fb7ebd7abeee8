"""What a call's outcome says when something else than its own end ended it: sentences for people."""

from forage_agent.core.events import WorkerExited
from forage_agent.core.slices import Slice
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.system_errors import (
    CANCELLED,
    DEVICE_LOST,
    NOT_SERIALIZABLE,
    OUT_OF_MEMORY,
    TIMEOUT,
    WORKER_DIED,
    system_error,
)

__all__ = [
    "CANCELLED_BEFORE",
    "CANCELLED_RUNNING",
    "LEASE_OVER",
    "cause_of",
    "death",
    "timeout",
    "too_large",
]


def cause_of(event: WorkerExited) -> str:
    """Why a worker ended, as a clause."""
    if event.signal == "SIGKILL":
        return "it was killed (SIGKILL), probably out of memory"
    if event.signal:
        return f"it died of signal {event.signal}"
    if event.exit_code is None:
        return "it is gone"
    return f"it exited with code {event.exit_code}"


def death(event: WorkerExited, part: Slice) -> bytes:
    """The outcome of a call whose worker died by itself."""
    details: dict[str, object] = {"deaths": part.deaths + 1}
    if event.signal:
        details["signal"] = event.signal
    else:
        details["exit_code"] = event.exit_code
    code = OUT_OF_MEMORY if event.signal == "SIGKILL" else WORKER_DIED
    text = f"The worker process that ran the call ended: {cause_of(event)}."
    return system_error(code, text, **details)


def too_large(size_bytes: int) -> bytes:
    """The outcome of a call whose result is above the limit."""
    text = (
        f"The call's result has {size_bytes} bytes, above the limit of {CALL_BYTES_MAX}; "
        "return less, or write it where the client can read it."
    )
    return system_error(NOT_SERIALIZABLE, text)


def timeout(timeout_ms: int) -> bytes:
    text = (
        f"The call ran longer than its limit of {timeout_ms / 1000:g} s and was ended; "
        "give it more time with timeout_s, or make it shorter."
    )
    return system_error(TIMEOUT, text, timeout_ms=timeout_ms)


CANCELLED_BEFORE = system_error(CANCELLED, "The call was cancelled before it began.")
CANCELLED_RUNNING = system_error(CANCELLED, "The call was cancelled while it ran, and was ended.")
LEASE_OVER = system_error(
    DEVICE_LOST,
    "The device heard nothing from the controller for as long as it may run an exclusive call "
    "without, and ended it.",
)
