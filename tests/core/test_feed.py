"""Operations on their way to a standby: every kind arrives as it was, and nothing else is taken."""

from typing import Any, get_args

import cbor2
import pytest

from forage_controller.core import operations as o
from forage_controller.core.feed import decode_operations, encode_operations, size_of, to_plain
from forage_wire.errors import DecodeError

TASK = "0" * 13 + "-1"
EXAMPLES: list[o.Operation] = [
    o.SaveEpoch(epoch=3),
    o.SaveCode(hash=b"h" * 32, form="source", data=b"code"),
    o.ForgetCode(hash=b"h" * 32),
    o.SavePage(
        user="bob",
        client="0" * 13,
        task=TASK,
        key=b"k" * 16,
        label="f",
        first=0,
        n=2,
        last=True,
        header=b"header",
        calls=b"calls",
    ),
    o.SaveReleased(task=TASK, forget=True),
    o.SaveCheckpoint(task=TASK, index=1, number=3, data=b"state", device="pi1"),
    o.ForgetCheckpoints(task=TASK, indices=(1, 5)),
    o.SaveCollected(task=TASK, ranges=((0, 2), (5, 9))),
    o.SaveOutcomes(
        task=TASK,
        assignment=7,
        device="pi1",
        low=0,
        high=2,
        tag=b"t" * 16,
        ranges=((0, 2),),
        settled=((1, 2),),
        errors=((1, "error", True),),
        run_us=3,
        data=b"items",
    ),
]


@pytest.mark.parametrize("operation", EXAMPLES, ids=lambda one: type(one).__name__)
def test_an_operation_arrives_as_it_was(operation: o.Operation) -> None:
    assert decode_operations(encode_operations([to_plain(operation)])) == [operation]


@pytest.mark.parametrize("kind", get_args(o.Operation), ids=lambda kind: kind.__name__)
def test_every_kind_of_operation_has_a_form_on_the_wire(kind: type[Any]) -> None:
    with pytest.raises(DecodeError, match="fields"):
        decode_operations(cbor2.dumps([[kind.__name__, *["too many"] * 40]]))


@pytest.mark.parametrize(
    "rows",
    [
        5,
        {},
        [5],
        [[]],
        [[5]],
        [["NoSuch", 1]],
        [["SaveEpoch"]],
        [["SaveEpoch", 1, 2]],
        [["SaveEpoch", "1"]],
        [["SaveEpoch", True]],
        [["SaveCollected", TASK, [[0]]]],
        [["SaveCollected", TASK, [[0, b"1"]]]],
        [["SaveCollected", TASK, 5]],
        [["SaveReleased", TASK, 1]],
    ],
)
def test_anything_else_is_refused(rows: Any) -> None:
    with pytest.raises(DecodeError):
        decode_operations(cbor2.dumps(rows))


def test_its_size_is_near_what_it_takes() -> None:
    for operation in EXAMPLES:
        plain = to_plain(operation)
        assert len(encode_operations([plain])) <= size_of(plain) + 32
