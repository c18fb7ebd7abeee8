"""The work of `forage demo`: measure Python source, and merge what was measured into a report.

`analyse` runs on devices, one file a call, with the file's bytes as its argument: devices share no
disk with the client. `merge` gives the same report whatever the order of its input. Run as a
program (`python -m forage.demo_job`), this module does the same work here, without forage, for
comparison, and writes what it finds on stdout, one JSON document a line.

Everything in it comes from the standard library.
"""

import ast
import gc
import io
import json
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "analyse",
    "analyse_share",
    "chosen_files",
    "library_files",
    "library_folder",
    "merge",
    "name_of",
    "report_lines",
]

_FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__"})
_RANKED = 3
"""How many of the longest and of the most complex functions a report names."""

_TOKEN = re.compile(
    r"""
      \#[^\r\n]*                                              # a comment
    | (?:[rRbBfFuU]|[bB][rR]|[rR][bB]|[fF][rR]|[rR][fF])?    # a string: its prefix, and
      (?: \"{3} [^"\\]* (?: (?:\\.|"(?!"")) [^"\\]* )* \"{3}    # one of four kinds of quotes
        | '{3} [^'\\]* (?: (?:\\.|'(?!'')) [^'\\]* )* '{3}
        | "[^\n"\\]* (?: \\. [^\n"\\]* )* "
        | '[^\n'\\]* (?: \\. [^\n'\\]* )* '
      )
    | (?:\d[\d_]*)? \.\d[\d_]* (?:[eE][+-]?\d[\d_]*)? [jJ]?  # a number: .5 1.5e3
    | \d[\d_]* \.? [eE][+-]?\d[\d_]* [jJ]?                   # 1e3
    | \d[\d_]* \. [jJ]?                                      # 1.
    | \d\w*                                                  # 1, 0xff, 1_000, 1j
    | \w+                                                    # a name
    | \*\*=? | >>=? | <<=? | //=? | -> | \.\.\. | != | :=      # an operator
    | [-+*/%&@|^=<>]=? | [~()\[\]{},:;.]
    """,
    re.DOTALL | re.VERBOSE,
)
_FUNCTIONS = frozenset({ast.FunctionDef, ast.AsyncFunctionDef})
_DECISIONS = frozenset(
    {
        ast.If,
        ast.IfExp,
        ast.For,
        ast.AsyncFor,
        ast.While,
        ast.ExceptHandler,
        ast.Assert,
        ast.match_case,
        ast.comprehension,
    }
)
"""What adds a path through a function: McCabe's cyclomatic complexity is its decisions plus one.

T. J. McCabe, A Complexity Measure, IEEE Transactions on Software Engineering 2 (4), 1976.
"""
_LEAVES = frozenset({ast.Name, ast.Constant, ast.Pass, type(None)})
"""Not looked into: nothing that counts can be in them, and they are most of a tree."""
_OTHER_FIELDS = frozenset(
    [
        "asname",
        "attr",
        "conversion",
        "ctx",
        "id",
        "is_async",
        "kind",
        "level",
        "module",
        "name",
        "names",
        "op",
        "ops",
        "rest",
        "simple",
        "tag",
        "type_comment",
        "type_ignores",
    ]
)
"""Fields of nodes that hold no expression and no statement."""


class _ChildFields(dict[type, tuple[str, ...]]):
    """The fields to look into, by class of node; made when a class is first met."""

    def __missing__(self, kind: type[ast.AST]) -> tuple[str, ...]:
        found = self[kind] = tuple(
            # What is no node, such as the True of a `case True`, has none.
            name
            for name in getattr(kind, "_fields", ())
            if name not in _OTHER_FIELDS
        )
        return found


_CHILD_FIELDS = _ChildFields()


def library_folder() -> Path:
    """Where this Python keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_files(folder: Path) -> list[Path]:
    """Every `.py` file of a standard library, in a fixed order; not what was installed into it."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        # Pruned in place, for what is installed there may be larger than the library itself.
        folders[:] = [name for name in folders if name not in _FOREIGN]
        found += [Path(parent, name) for name in files if name.endswith(".py")]
    return sorted(path for path in found if path.is_file())


def chosen_files(folder: Path, count: int | None) -> list[Path]:
    """All files, or `count` of them evenly spread over their sizes, the largest among them."""
    files = library_files(folder)
    if count is None or count >= len(files):
        return files
    files.sort(key=lambda path: (-path.stat().st_size, path))
    return sorted(files[place * len(files) // count] for place in range(count))


def name_of(path: Path, folder: Path) -> str:
    """A file's name in the report, the same on every machine."""
    return path.relative_to(folder).as_posix()


def analyse(name: str, source: bytes) -> dict[str, Any]:
    """What one file holds.

    Args:
        name: The file's name, for the report.
        source: Its bytes, as they are on the disk.

    Returns:
        Counts of `bytes`, `lines`, `tokens`, `functions`, the sum of their `complexity`, and the
        `longest` and `knottiest` functions as rows (lines or complexity, place). `error` is the
        type of the error where the file is not Python that this Python reads, else empty.
    """
    found: dict[str, Any] = {
        "files": 1,
        "bytes": len(source),
        "lines": source.count(b"\n"),
        "tokens": 0,
        "functions": 0,
        "complexity": 0,
        "longest": [],
        "knottiest": [],
        "unreadable": [],
    }
    # A syntax tree is a million small objects without cycles: looking for garbage among them takes
    # a fifth of the time and finds none.
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            # The library tests its own warnings with sources that deserve them.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        found["tokens"] = _count_tokens(source)
        _count_functions(tree, name, found)
    # Sources that are wrong on purpose are part of the library's tests.
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        found["unreadable"] = [[name, type(error).__name__]]
    finally:
        if collects:
            gc.enable()
    return found


def _count_tokens(source: bytes) -> int:
    """Names, numbers, strings, operators and comments, as the module `tokenize` counts them.

    By one regular expression, as `tokenize` itself takes longer than all the rest together. An
    f-string is one string, as it was for `tokenize` before Python 3.12.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return len(_TOKEN.findall(source.decode(encoding)))


def _count_functions(tree: ast.AST, name: str, found: dict[str, Any]) -> None:
    """Add a module's functions to `found`; one inside of another counts for itself alone."""
    lengths: list[list[Any]] = []
    complexities: list[list[Any]] = []
    roots = [tree]
    for root in roots:
        complexity = _complexity(root, roots)
        if isinstance(root, ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{name}:{root.lineno} {root.name}"
            lengths.append([(root.end_lineno or root.lineno) - root.lineno + 1, place])
            complexities.append([complexity, place])
    found["functions"] = len(lengths)
    found["complexity"] = sum(row[0] for row in complexities)
    found["longest"] = _highest(lengths)
    found["knottiest"] = _highest(complexities)


def _complexity(root: ast.AST, functions: list[ast.AST]) -> int:
    """Decisions below `root`, plus one; functions that are met go to `functions` instead."""
    count = 1
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for name in _CHILD_FIELDS[type(node)]:
            value = getattr(node, name)
            for child in value if type(value) is list else (value,):
                kind = type(child)
                if kind in _LEAVES:
                    continue
                if kind in _FUNCTIONS:
                    functions.append(child)
                    continue
                if kind in _DECISIONS:
                    count += 1
                if kind is ast.BoolOp:
                    count += len(child.values) - 1
                elif kind is ast.comprehension:
                    count += len(child.ifs)
                waiting.append(child)
    return count


def _highest(rows: list[list[Any]]) -> list[list[Any]]:
    return sorted(rows, key=lambda row: (-row[0], row[1]))[:_RANKED]


def merge(findings: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The report on many files: findings (or reports) added up; their order does not matter."""
    report: dict[str, Any] = {
        "files": 0,
        "bytes": 0,
        "lines": 0,
        "tokens": 0,
        "functions": 0,
        "complexity": 0,
        "longest": [],
        "knottiest": [],
        "unreadable": [],
    }
    for found in findings:
        for key in ("files", "bytes", "lines", "tokens", "functions", "complexity"):
            report[key] += found[key]
        for key in ("longest", "knottiest"):
            report[key] = _highest([*report[key], *found[key]])
        report["unreadable"] += found["unreadable"]
    report["unreadable"].sort()
    return report


def report_lines(report: dict[str, Any]) -> list[str]:
    """A report for people."""
    functions = report["functions"]
    average = report["complexity"] / functions if functions else 0.0
    unreadable = len(report["unreadable"])
    lines = [
        f"{report['files']:>11,} files, {report['bytes'] / 1e6:,.1f} MB, {report['lines']:,} lines"
        + (f" ({unreadable} are no Python, on purpose)" if unreadable else ""),
        f"{report['tokens']:>11,} tokens",
        f"{functions:>11,} functions, cyclomatic complexity {average:.2f} on average",
    ]
    for key, title in (("longest", "lines: the longest"), ("knottiest", "paths: the knottiest")):
        for number, place in report[key][:1]:
            lines.append(f"{number:>11,} {title}, {place}")
    return lines


def analyse_share(share: int, shares: int, count: int | None) -> Iterator[dict[str, Any]]:
    """The findings on every `shares`-th of the files, here; see `chosen_files`."""
    folder = library_folder()
    for path in chosen_files(folder, count)[share::shares]:
        yield analyse(name_of(path, folder), path.read_bytes())


def main(argv: list[str]) -> int:
    """Analyse a share of the files, one finding a line on stdout: SHARE SHARES COUNT."""
    share, shares, count = (int(word) for word in argv)
    try:
        for found in analyse_share(share, shares, count or None):
            print(json.dumps(found), flush=True)  # noqa: T201 - read by the parent
    except BrokenPipeError:
        # Nobody listens any more, also not to Python's own last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
