"""What tests see of processes from outside, by their ids."""

import time
from collections.abc import Callable, Iterable

import psutil

__all__ = ["WAIT_S", "descendants", "is_alive", "until", "until_gone"]

WAIT_S = 20.0
_LOOK_S = 0.01


def is_alive(pid: int) -> bool:
    """Whether it runs or is stopped; a zombie is dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, whatever their sessions."""
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def until(condition: Callable[[], bool], what: str) -> None:
    """Look until it holds, for what cannot be waited for in a better way; fail after WAIT_S."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {WAIT_S:g} s: {what}"
        time.sleep(_LOOK_S)


def until_gone(pids: Iterable[int]) -> None:
    """Wait until none of these processes is alive."""
    left = list(pids)
    assert left, "nothing to wait for"

    def none_left() -> bool:
        left[:] = [pid for pid in left if is_alive(pid)]
        return not left

    until(none_left, f"the end of the processes {left}")
