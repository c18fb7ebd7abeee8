"""From what is typed to a function and its arguments."""

import math
import sys
from pathlib import Path

import pytest

from cli.conftest import Run
from forage.cli.endings import Ending
from forage.cli.targets import keywords_of, target_named, value_of


@pytest.fixture(autouse=True)
def forgotten() -> None:
    for name in ("jobs", "helpers", "broken", "forage_file_json"):
        sys.modules.pop(name, None)


def test_a_function_of_a_file_is_found_with_the_files_beside_it() -> None:
    function = target_named("jobs.py:by_helper")
    assert callable(function)
    assert function(5) == 15
    assert function.__module__ == "jobs"


def test_a_function_of_a_module_is_found() -> None:
    assert target_named("math:factorial") is math.factorial
    assert target_named("os.path:basename") is __import__("os").path.basename


def test_a_module_of_the_working_directory_is_found() -> None:
    function = target_named("helpers:triple")
    assert callable(function)
    assert function(2) == 6


def test_a_name_with_dots_is_a_function_on_devices() -> None:
    assert target_named("org.app.task") == "org.app.task"


def test_a_file_with_a_name_of_the_library_does_not_take_its_place(own_place: Path) -> None:
    (own_place / "json.py").write_text("def dumps(x):\n    return 'mine'\n")
    function = target_named("json.py:dumps")
    assert callable(function)
    assert function(1) == "mine"
    assert sys.modules["json"].dumps(1) == "1"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("jobs.py", "write FILE:FUNC, such as `forage run jobs.py:main`"),
        ("nofile.py:main", "The file nofile.py does not exist"),
        ("nomodule:main", "There is no module 'nomodule' here"),
        ("jobs.py:nothing", "jobs.py has no function 'nothing'; it has by_helper, die, double"),
        ("jobs.py:NUMBER", "jobs.py:NUMBER is int, not a function"),
        (":main", "is not FILE:FUNC"),
        ("broken.py:main", "broken.py, line 3: loading it raised ZeroDivisionError: division by"),
        ("syntax.py:main", "syntax.py, line 2: loading it raised SyntaxError"),
        ("exits.py:main", "exits.py, line 1: loading it raised SystemExit: 3"),
    ],
)
def test_what_cannot_be_found_is_said_with_the_reason(
    own_place: Path, typed: str, words: str
) -> None:
    (own_place / "broken.py").write_text("x = 1\n\nx / 0\n")
    (own_place / "syntax.py").write_text("x = 1\nx = = 2\n")
    (own_place / "exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(Ending) as caught:
        target_named(typed)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("3", 3),
        ("-2.5e3", -2500.0),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("photo.jpg", "photo.jpg"),
        ("[not json", "[not json"),
        ("", ""),
    ],
)
def test_arguments_are_json_where_they_are_json(typed: str, value: object) -> None:
    assert value_of(typed) == value
    assert type(value_of(typed)) is type(value)


def test_keywords_are_read_alike() -> None:
    assert keywords_of(["a=1", "b=x=y", "c="]) == {"a": 1, "b": "x=y", "c": ""}


@pytest.mark.parametrize("typed", ["a", "=1", "1a=2"])
def test_a_keyword_without_a_name_is_refused(typed: str) -> None:
    with pytest.raises(Ending, match="--kw takes NAME=VALUE"):
        keywords_of([typed])


def test_a_keyword_given_twice_is_refused() -> None:
    with pytest.raises(Ending, match="twice"):
        keywords_of(["a=1", "a=2"])


def test_an_unknown_flag_is_no_argument(run: Run) -> None:
    ended = run("run", "jobs.py:double", "--brokr", "x")
    assert ended.code == 2
    assert "No such option" in ended.sentence
