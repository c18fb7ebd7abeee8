"""The functions that the benchmarks run on devices."""

import time

__all__ = ["busy_ms", "echo", "note_start", "same"]


def same(value: object) -> object:
    """The cheapest call."""
    return value


def echo(data: bytes) -> bytes:
    """What it was given."""
    return data


def busy_ms(milliseconds: float) -> float:
    """Work of so many milliseconds; how long it really took, in seconds."""
    began = time.perf_counter()
    end = began + milliseconds / 1_000
    while time.perf_counter() < end:
        pass
    return time.perf_counter() - began


def note_start(path: str, hold_s: float) -> float:
    """Write down when it began (the machine's monotonic clock), then wait."""
    with open(path, "a") as stream:
        stream.write(f"{time.monotonic()}\n")
    time.sleep(hold_s)
    return hold_s
