"""Marks in a worker's output that say which call the text after them is of.

A mark is NUL, `assignment.index` or nothing, newline. Text after an empty mark is nobody's by
name: it came from C code or from another process, and the time it came must tell.
"""

__all__ = ["END_MARK", "NUL", "mark"]

NUL = "\0"
END_MARK = "\0\n"


def mark(assignment: int, index: int) -> str:
    """The mark before a call's text."""
    return f"\0{assignment}.{index}\n"
