"""What a worker does with code blobs that are none."""

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forage_wire.errors import DecodeError, VersionMismatch
from forage_wire.values import load
from forage_wire.values.modules import active_bundle

ROW = ["lonely", "lonely.py", False, "def f():\n    return 1\n", "", b"k" * 32]


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(DecodeError):
        load(blob, "source", "3.11")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"modules": 1},
        {"modules": [], "entry": ["math"]},
        {"modules": [], "entry": ["math", 1]},
        {"modules": [], "entry": ["math", "no_such_name"]},
        {"modules": [], "entry": ["math", "pi"]},
        {"modules": [ROW[:5]], "entry": ["lonely", "f"]},
        {"modules": [[*ROW[:5], b"short"]], "entry": ["lonely", "f"]},
        {"modules": [["", *ROW[1:]]], "entry": ["lonely", "f"]},
        {"modules": [], "pickle": "text"},
        {"modules": [], "pickle": b"garbage"},
    ],
)
def test_malformed_blobs_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        load(cbor2.dumps(body), "source", "3.11")


def test_a_text_that_this_python_cannot_read_is_a_version_mismatch() -> None:
    row = [*ROW[:3], "def f() -> !:\n    pass\n", *ROW[4:]]

    with pytest.raises(VersionMismatch, match=r"lonely.*line 1"):
        load(cbor2.dumps({"modules": [row], "entry": ["lonely", "f"]}), "source", "3.11")


def test_what_a_module_raises_while_it_is_imported_is_raised() -> None:
    row = [*ROW[:3], "1 / 0\n", "", b"z" * 32]

    with pytest.raises(ZeroDivisionError):
        load(cbor2.dumps({"modules": [row], "entry": ["lonely", "f"]}), "source", "3.11")


def test_a_function_without_modules_leaves_none_visible() -> None:
    function = load(cbor2.dumps({"modules": [ROW], "entry": ["lonely", "f"]}), "source", "3.11")
    assert function() == 1
    other = load(cbor2.dumps({"modules": [], "entry": ["math", "sqrt"]}), "source", "3.11")
    assert other(4.0) == 2.0

    with pytest.raises(ModuleNotFoundError):
        __import__("lonely")

    assert function() == 1
    bundle = active_bundle()
    assert bundle is not None
    assert list(bundle.texts) == ["lonely"]
