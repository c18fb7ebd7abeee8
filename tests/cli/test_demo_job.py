"""The demo's work: what it measures is right, and merging is the same in any order."""

import ast
import io
import json
import subprocess
import sys
import tokenize
import warnings
from pathlib import Path
from random import Random

import pytest

from forage.demo_job import (
    analyse,
    analyse_share,
    chosen_files,
    library_files,
    library_folder,
    merge,
    name_of,
    report_lines,
)

FOLDER = library_folder()
COUNTED = {tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP, tokenize.COMMENT}

SOURCE = b"""
def plain():
    return 1

def knotty(a, b):
    if a and b or a:
        for _ in range(3):
            pass
    elif b:
        return [x for x in a if x]
    def inner():
        while True:
            assert b
    try:
        return inner
    except ValueError:
        return 1 if a else 2

class Thing:
    async def method(self):
        match self:
            case 1: pass
            case _: pass
"""


def test_a_file_is_measured() -> None:
    found = analyse("x.py", SOURCE)
    assert found["functions"] == 4
    assert found["lines"] == SOURCE.count(b"\n")
    assert found["longest"][0] == [13, "x.py:5 knotty"]
    # knotty: if, and, or, for, elif, comprehension with its if, except, conditional expression.
    assert found["knottiest"] == [
        [1 + 9, "x.py:5 knotty"],
        [1 + 2, "x.py:11 inner"],
        [1 + 2, "x.py:20 method"],
    ]
    assert found["complexity"] == 10 + 3 + 3 + 1


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tokenize splits f-strings since 3.12")
def test_tokens_are_counted_as_tokenize_does() -> None:
    for path in chosen_files(FOLDER, 60):
        source = path.read_bytes()
        found = analyse(path.name, source)
        if found["unreadable"]:
            continue
        tokens = tokenize.tokenize(io.BytesIO(source).readline)
        assert found["tokens"] == sum(token.type in COUNTED for token in tokens), path


def paths_through(root: ast.AST) -> int:
    """Cyclomatic complexity as its definition has it, without regard to speed."""
    count = 1
    for node in ast.walk(root):
        if isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
        elif isinstance(node, DECISIONS):
            count += 1
    return count


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DECISIONS = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert,
    ast.match_case,
)  # fmt: skip


def test_complexity_is_counted_as_its_definition_has_it() -> None:
    for path in [*chosen_files(FOLDER, 60), FOLDER / "test" / "test_patma.py"]:
        if not path.exists():
            continue
        source = path.read_bytes()
        found = analyse(path.name, source)
        if found["unreadable"]:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
        assert found["functions"] == len(functions), path
        # A function inside of another is in the other's count too, in this simple one.
        expected = sum(
            paths_through(function)
            - sum(paths_through(inner) - 1 for inner in outermost_inside(function))
            for function in functions
        )
        assert found["complexity"] == expected, path


def outermost_inside(function: ast.AST) -> list[ast.AST]:
    """The functions inside of one that are inside of no other there."""
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(function):
        found += [child] if isinstance(child, FUNCTIONS) else outermost_inside(child)
    return found


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"print 'hello'\n", "SyntaxError"),
        (b"# coding: no-such-one\n", "SyntaxError"),
        (b"x = '\xff'\n", "SyntaxError"),
        (b"x = 1\0\n", "SyntaxError"),
    ],
)
def test_what_is_no_python_is_counted_as_that(source: bytes, error: str) -> None:
    found = analyse("bad.py", source)
    assert found["unreadable"] in ([["bad.py", error]], [["bad.py", "ValueError"]])
    assert (found["files"], found["functions"]) == (1, 0)


def test_merging_gives_the_same_report_in_any_order_and_in_any_groups() -> None:
    findings = [
        analyse(name_of(path, FOLDER), path.read_bytes()) for path in chosen_files(FOLDER, 40)
    ]
    report = merge(findings)
    random = Random(7)
    for _ in range(5):
        random.shuffle(findings)
        cut = random.randrange(len(findings))
        assert merge(findings) == report
        assert merge([merge(findings[:cut]), merge(findings[cut:])]) == report


def test_the_library_is_taken_without_what_was_installed_into_it() -> None:
    files = library_files(FOLDER)
    assert len(files) == len(set(files)) > 100
    assert not [path for path in files if "site-packages" in path.parts]
    assert FOLDER / "ast.py" in files


def test_a_choice_of_files_holds_large_ones_and_small_ones() -> None:
    sizes = [path.stat().st_size for path in library_files(FOLDER)]
    chosen = [path.stat().st_size for path in chosen_files(FOLDER, 30)]
    assert len(chosen) == 30
    assert max(chosen) == max(sizes)
    assert min(chosen) < sorted(sizes)[len(sizes) // 10]


def test_shares_are_the_whole() -> None:
    together = [found for share in range(3) for found in analyse_share(share, 3, 30)]
    assert merge(together) == merge(analyse_share(0, 1, 30))


def test_it_runs_as_a_program_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forage.demo_job", "0", "1", "25"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert merge(findings) == merge(analyse_share(0, 1, 25))
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_report_is_short() -> None:
    lines = report_lines(merge([analyse("x.py", SOURCE)]))
    assert len(lines) == 5
    assert lines[2].strip() == "4 functions, cyclomatic complexity 4.25 on average"
    assert report_lines(merge([]))


def test_the_work_brings_nothing_but_the_standard_library() -> None:
    text = Path(sys.modules["forage.demo_job"].__file__ or "").read_text()
    imports = [line.split()[1] for line in text.splitlines() if line.startswith(("import", "from"))]
    assert {name.partition(".")[0] for name in imports} <= sys.stdlib_module_names
