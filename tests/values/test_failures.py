"""Exceptions as data: described on a device, made again at a client."""

import sys
import traceback
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forage_wire import errors, system_errors
from forage_wire.system_errors import system_error
from forage_wire.values import RemoteTraceback, encode_error, rebuild_error


class Custom(Exception):
    """A user's exception with a constructor of its own."""

    constructed = 0

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint
        Custom.constructed += 1


class Outer:
    class Inner(KeyError):
        pass


class CustomOSError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def travel(exception: BaseException, device: str = "pi", attempt: int = 2) -> BaseException:
    try:
        raise exception
    except BaseException as error:
        item = cbor2.loads(encode_error(error))
    return rebuild_error(item, device, attempt)


@pytest.mark.parametrize(
    "exception",
    [
        ValueError("x", 1, (2.5, None)),
        KeyError("k"),
        KeyboardInterrupt(),
        SystemExit(3),
        StopIteration(7),
        StopAsyncIteration(8),
        GeneratorExit(),
        ZeroDivisionError("division by zero"),
        AssertionError(),
        RecursionError("deep"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
        SyntaxError("bad", ("file.py", 1, 2, "text", 1, 3)),
        MemoryError("much"),
        Outer.Inner("k"),
    ],
)
def test_builtins_and_imported_classes_come_back_as_themselves(exception: BaseException) -> None:
    found = travel(exception)

    assert type(found) is type(exception)
    assert found.args == exception.args
    assert str(found) == str(exception)


def test_what_a_builtin_keeps_outside_its_arguments_comes_back() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("/no/such/file").read_text()
    missing = travel(caught.value)
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.filename) == (2, "/no/such/file")
    assert str(missing) == str(caught.value)

    renamed = travel(OSError(5, "bad", "one", None, "two"))
    assert isinstance(renamed, OSError)
    assert (renamed.filename, renamed.filename2) == ("one", "two")

    own = travel(CustomOSError("/x"))
    assert isinstance(own, CustomOSError)
    assert (own.errno, own.strerror, own.filename) == (2, "gone", "/x")

    lost = travel(ModuleNotFoundError("No module named 'x'", name="x"))
    assert isinstance(lost, ModuleNotFoundError)
    assert lost.name == "x"
    attribute = travel(AttributeError("no", name="y", obj=1))
    assert isinstance(attribute, AttributeError)
    assert attribute.name == "y"
    exit_ = travel(SystemExit("why"))
    assert isinstance(exit_, SystemExit)
    assert exit_.code == "why"
    stop = travel(StopIteration(9))
    assert isinstance(stop, StopIteration)
    assert stop.value == 9


def test_a_users_exception_keeps_its_attributes_and_no_constructor_runs() -> None:
    original = Custom(7, hint="look")
    before = Custom.constructed

    found = travel(original)

    assert type(found) is Custom
    assert (found.code, found.hint, str(found)) == (7, "look", "code 7")
    assert Custom.constructed == before


def test_a_class_that_is_not_imported_here_becomes_task_failed() -> None:
    item = {"type": "Odd", "module": "no_such_module", "message": "why", "traceback": "Trace"}

    found = rebuild_error(item, "pi", 1)

    assert isinstance(found, errors.TaskFailed)
    assert str(found) == "no_such_module.Odd: why"
    assert found.type_name == "no_such_module.Odd"
    assert "no_such_module" not in sys.modules


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("antigravity", "Anything"),
        ("builtins", "print"),
        ("builtins", "int"),
        ("os", "system"),
        ("os", "path.join"),
        ("sys", "modules"),
        ("", ""),
        ("builtins", "Exception.__init__"),
    ],
)
def test_nothing_but_imported_exception_classes_is_made(module: str, name: str) -> None:
    before = set(sys.modules)

    found = rebuild_error({"type": name, "module": module, "args": [["x"]]}, "pi", 1)

    assert isinstance(found, errors.TaskFailed)
    assert set(sys.modules) == before


def test_traceback_note_and_chain_come_along() -> None:
    def inner() -> None:
        raise KeyError("first")

    try:
        try:
            inner()
        except KeyError as first:
            error = ValueError("second")
            error.add_note("a note of the user's")
            raise error from first
    except ValueError as second:
        found = rebuild_error(cbor2.loads(encode_error(second)), "shed", 3)

    assert isinstance(found.__cause__, RemoteTraceback)
    remote = str(found.__cause__)
    assert "The above exception was the direct cause" in remote
    assert "in inner" in remote
    assert 'raise KeyError("first")' in remote
    assert found.__notes__ == ["a note of the user's", "forage: on device shed, attempt 3"]
    assert type(found.__context__) is KeyError
    assert found.__context__.args == ("first",)
    shown = "".join(traceback.format_exception(found))
    assert "in inner" in shown
    assert "on device shed, attempt 3" in shown


def test_a_given_traceback_is_used_and_a_long_one_is_cut() -> None:
    item = cbor2.loads(encode_error(ValueError("x"), traceback_text="mine"))
    assert item["traceback"] == "mine"

    long = cbor2.loads(encode_error(ValueError("x"), traceback_text="a" * 10**6 + "end"))
    assert len(long["traceback"]) < 70_000
    assert long["traceback"].endswith("end")
    assert "characters left out" in long["traceback"]


def test_groups_come_back_with_their_errors() -> None:
    group = ExceptionGroup("many", [ValueError(1), ExceptionGroup("inner", [Custom(2, hint="h")])])

    found = travel(group)

    assert type(found) is ExceptionGroup
    assert found.message == "many"
    assert [type(one) for one in found.exceptions] == [ValueError, ExceptionGroup]
    match, _ = found.split(Custom)
    assert match is not None


def test_arguments_that_cannot_travel_are_described() -> None:
    found = travel(ValueError(object, "\ud800", 1))

    assert type(found) is ValueError
    assert repr(found.args[0]) == "<class 'object'>"
    assert "ud800" in repr(found.args[1])
    assert found.args[2] == 1


def test_broken_exceptions_do_not_hide_the_failure() -> None:
    found = travel(Broken(Broken()))

    assert type(found) is Broken
    assert "failed: RuntimeError" in repr(found.args[0])
    looped = ValueError("loop")
    looped.__context__ = other = KeyError("k")
    other.__context__ = looped
    assert type(rebuild_error(cbor2.loads(encode_error(looped)), "pi", 1)) is ValueError


def test_a_long_chain_is_cut() -> None:
    error: BaseException = ValueError("last")
    for number in range(100):
        above = ValueError(number)
        above.__cause__ = error
        error = above

    item = cbor2.loads(encode_error(error, traceback_text=""))

    depth = 0
    while "cause" in item:
        item, depth = item["cause"], depth + 1
    assert depth == 8


SYSTEM = [
    (system_errors.CANCELLED, errors.TaskCancelled, 130),
    (system_errors.TIMEOUT, errors.TaskTimeout, 124),
    (system_errors.DEVICE_LOST, errors.DeviceLost, 1),
    (system_errors.NO_DEVICE, errors.NoDevice, 3),
    (system_errors.DATA_LOST, errors.DataLost, 1),
    (system_errors.REFUSED, errors.Refused, 4),
    (system_errors.VERSION_MISMATCH, errors.VersionMismatch, 7),
    (system_errors.NOT_SERIALIZABLE, errors.NotSerializable, 2),
    (system_errors.WORKER_DIED, errors.TaskFailed, 1),
    (system_errors.OUT_OF_MEMORY, errors.TaskFailed, 1),
    ("a-reason-of-a-later-version", errors.TaskFailed, 1),
]


@pytest.mark.parametrize(("reason", "kind", "exit_code"), SYSTEM)
def test_system_errors_become_their_class(
    reason: str, kind: type[errors.ForageError], exit_code: int
) -> None:
    found = rebuild_error(cbor2.loads(system_error(reason, "because")), "pi", 1)

    assert type(found) is kind
    assert str(found) == "because"
    assert kind.exit_code == exit_code


def test_system_errors_carry_their_details() -> None:
    died = system_error(system_errors.WORKER_DIED, "its worker died", signal=11, deaths=3)
    found = rebuild_error(cbor2.loads(died), "", 0)
    assert isinstance(found, errors.TaskFailed)
    assert (found.reason, found.details) == ("worker-died", {"signal": 11, "deaths": 3})
    assert not hasattr(found, "__notes__")

    nobody = system_error(system_errors.NO_DEVICE, "nobody", reasons={"pi": "is full"})
    refused = rebuild_error(cbor2.loads(nobody), "", 0)
    assert isinstance(refused, errors.NoDevice)
    assert refused.reasons == {"pi": "is full"}


def test_the_tree_is_what_users_catch() -> None:
    assert issubclass(errors.TaskTimeout, TimeoutError)
    assert issubclass(errors.TaskCancelled, CancelledError)
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.ForageError)


texts = st.text(max_size=12)
keys = st.sampled_from(
    [
        *("type", "module", "message", "args", "attributes", "notes", "traceback"),
        *("cause", "context", "errors", "reason", "details", "suppress"),
    ]
)
classes = st.sampled_from(
    [
        *("ValueError", "OSError", "UnicodeDecodeError", "ExceptionGroup", "SystemExit"),
        *("SyntaxError", "ImportError", "KeyError", "int", "BaseExceptionGroup", "StopIteration"),
    ]
)
things = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | classes | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys | st.sampled_from(["errno", "__class__", "x"]), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(st.dictionaries(keys, things), classes, texts)
@settings(max_examples=150)
def test_any_map_becomes_some_exception(item: dict[str, Any], name: str, device: str) -> None:
    for found in (item, {**item, "type": name, "module": "builtins"}):
        error = rebuild_error(found, device, 1)
        assert isinstance(error, BaseException)
        # Showing it must not fail either.
        "".join(traceback.format_exception(error))
