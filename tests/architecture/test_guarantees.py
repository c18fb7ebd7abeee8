"""Every test that the page of guarantees names is there, and every guarantee names one."""

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "guarantees.md").read_text()
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)::(\w+)`")
GUARANTEES = [f"G{number}" for number in range(1, 20) if number != 18]


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_named_tests_exist() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 30
    missing = [
        f"{path}::{name}" for path, name in named if name not in functions_of(PROJECT / path)
    ]
    assert not missing


def test_every_guarantee_is_stated_once_and_names_a_test() -> None:
    parts = re.split(r"^\*\*(G\d+)\. ", PAGE, flags=re.MULTILINE)[1:]
    stated = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sorted(parts[::2]) == sorted(GUARANTEES)
    assert not [name for name, text in stated.items() if not NAMED.search(text)]
