"""What users' byte strings hold, against the rules for them."""

import datetime
import decimal
from typing import Any

import pytest
from cddl_verifier import Validator

from forage_wire.system_errors import TIMEOUT, system_error
from forage_wire.values import encode_call, encode_error, encode_outcome_value, ship
from wire.rules import SCHEMA

VALIDATOR = Validator(SCHEMA)
VALUES: list[Any] = [
    None,
    True,
    -1,
    2**64 - 1,
    2**80,
    0.5,
    "é",
    b"\xff",
    [1, [2]],
    {"k": {"l": []}},
    {1: 2},
    (1, 2),
    {3, 4},
    datetime.date(2024, 2, 29),
    decimal.Decimal("1.5"),
    ValueError("as a value"),
]


def accepts(rule: str, data: bytes) -> bool:
    return bool(VALIDATOR.validate(data, root_type=rule))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_rules_accept_calls_and_outcomes_as_they_are_written(value: Any) -> None:
    assert accepts("call-body", encode_call((value,), {}))
    assert accepts("call-body", encode_call((), {"key": value}))
    assert accepts("outcome-item", encode_outcome_value(value))


def test_rules_accept_code_and_what_is_tied_to_a_python() -> None:
    def local(number: int) -> int:
        return number + len(VALUES)

    assert accepts("call-body", encode_call((local,), {}))
    assert accepts("outcome-item", encode_outcome_value(local))
    assert accepts("code-blob", ship(local).blob)
    assert accepts("code-blob", ship(accepts).blob)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        try:
            if cause is not None:
                raise cause
        finally:
            raise error
    except BaseException as found:
        return found


@pytest.mark.parametrize(
    "error",
    [
        ValueError("one", 2, (3,)),
        OSError(2, "No such file or directory", "x.txt"),
        raised(KeyError("k"), ZeroDivisionError("division by zero")),
        ExceptionGroup("several", [ValueError(1), TypeError(lambda: 0)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_rules_accept_exceptions_as_they_are_written(error: BaseException) -> None:
    error.add_note("while testing")
    data = encode_error(error)
    assert accepts("outcome-item", data)
    assert accepts("raised-error", data)


def test_rules_accept_errors_that_no_code_raised() -> None:
    data = system_error(TIMEOUT, "The call ran longer than 1 s.", timeout_ms=1_000)
    assert accepts("system-error", data)
    assert accepts("outcome-item", data)
    assert not accepts("raised-error", data)
