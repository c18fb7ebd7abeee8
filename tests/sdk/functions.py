"""Functions that tests submit."""

import time
from typing import Any

__all__ = ["Keeps", "add", "divide", "identity", "size_of", "slowly"]


def add(left: int, right: int = 0) -> int:
    return left + right


def divide(left: int, right: int) -> float:
    return left / right


def identity(value: Any) -> Any:
    return value


def size_of(value: bytes) -> int:
    return len(value)


def slowly(value: int, seconds: float) -> int:
    time.sleep(seconds)
    return value


class Keeps:
    """A value that can be referred to weakly; travels as a pickle."""

    def __init__(self, number: int) -> None:
        self.number = number
