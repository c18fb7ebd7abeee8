"""The lowest Python minor whose grammar reads a text.

`ast.parse` with a feature version refuses most newer syntax. It cannot see what the tokenizer
of 3.12 allows in f-strings (PEP 701), so those are looked at here.
"""

import ast
import io
import sys
import tokenize
from functools import lru_cache

from forage_wire.limits import PYTHON_MINOR_MIN

__all__ = ["lowest_minor"]


@lru_cache(maxsize=256)
def lowest_minor(text: str) -> int:
    """The lowest minor, from 11 on, that parses the text; this Python's where none lower does."""
    here = sys.version_info[1]
    for minor in range(PYTHON_MINOR_MIN, here):
        try:
            ast.parse(text, feature_version=(3, minor))
        except SyntaxError:
            continue
        if minor < 12 and _has_new_f_strings(text):
            continue
        return minor
    return here


def _has_new_f_strings(text: str) -> bool:
    """Whether an f-string uses what Python 3.12 first allowed inside its braces."""
    if sys.version_info < (3, 12):
        return False
    lines = text.splitlines(keepends=True)
    # The f-strings around a token: (quotes, line of the opening), innermost last.
    around: list[tuple[str, int]] = []
    previous_end = (1, 0)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        if around and name != "FSTRING_MIDDLE":
            if name == "COMMENT" or _continues(lines, previous_end, token.start):
                return True
            quotes, line = around[-1]
            if len(quotes) == 1 and name != "FSTRING_END" and token.start[0] != line:
                return True
            if name in ("STRING", "FSTRING_START") and _clashes(token.string, around):
                return True
        if name == "FSTRING_START":
            around.append((token.string.lstrip("rRbBfFtTuU"), token.start[0]))
        elif name == "FSTRING_END":
            around.pop()
        previous_end = token.end
    return False


def _continues(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> bool:
    """Whether a backslash joins lines between two tokens."""
    if start[0] >= end[0] or start[0] > len(lines):
        return False
    return lines[start[0] - 1][start[1] :].rstrip().endswith("\\")


def _clashes(string: str, around: list[tuple[str, int]]) -> bool:
    """Whether a string within braces could not stand there before 3.12."""
    body = string.lstrip("rRbBfFtTuU")
    return "\\" in body or any(quotes in body for quotes, _ in around)
