"""Values to bytes and back: exact, each in its kind, and deaf to hostile bytes."""

import datetime
import enum
import math
import pickle
import sqlite3
import sys
import zoneinfo
from collections import OrderedDict, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import cbor2
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from forage_wire.errors import DecodeError, NotSerializable, VersionMismatch
from forage_wire.values import (
    KIND_CBOR,
    KIND_CODE,
    KIND_PICKLE,
    KIND_PLAIN,
    decode_call,
    decode_outcome_item,
    encode_call,
    encode_outcome_value,
    read_plain_calls,
)

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def same(one: Any, other: Any) -> bool:
    """Equal in type, content and order, to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or one.hex() == other.hex()
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and all(any(same(a, b) for b in other) for a in one)
    if isinstance(one, numpy.ndarray | numpy.generic):
        return (
            one.dtype == other.dtype
            and one.dtype.str == other.dtype.str
            and one.shape == other.shape
            and bool(one.tobytes() == other.tobytes())
        )
    if isinstance(one, datetime.datetime | datetime.time):
        return repr(one) == repr(other) and one.fold == other.fold
    return repr(one) == repr(other) if isinstance(one, Decimal) else bool(one == other)


def through_call(value: Any) -> tuple[int, Any]:
    body = encode_call((value,), {})
    (found,), kwargs = decode_call(body)
    assert kwargs == {}
    return cbor2.loads(body)[0], found


def through_outcome(value: Any) -> tuple[int, Any]:
    item = cbor2.loads(encode_outcome_value(value))
    outcome = decode_outcome_item(item)
    assert outcome.ok
    return (item[0] if len(item) > 1 else KIND_PLAIN), outcome.value


# -- what hypothesis makes ------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
plain_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats()
    | text
    | st.binary(max_size=50)
)
plain_values = st.recursive(
    plain_scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
zones = (
    st.none()
    | st.timezones()
    | st.builds(
        datetime.timezone,
        st.timedeltas(
            datetime.timedelta(hours=-23, minutes=-59), datetime.timedelta(hours=23, minutes=59)
        ),
    )
    | st.builds(datetime.timezone, st.just(datetime.timedelta(hours=1)), text)
)
tagged_scalars = (
    plain_scalars
    | st.integers()
    | st.integers(2**64, 2**300)
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.dates()
    | st.timedeltas()
    | st.datetimes(timezones=zones)
    | st.times()
    | st.builds(range, st.integers(), st.integers(), st.integers(1))
)
hashable = st.recursive(
    # Not NaN, which is in a set or a dict by identity alone, nor a sNaN, which has no hash.
    tagged_scalars.filter(lambda value: "sNaN" not in repr(value) and value == value),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
tagged_values = st.recursive(
    tagged_scalars | st.binary(max_size=9).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(hashable, max_size=3)
        | st.frozensets(hashable, max_size=3)
    ),
    max_leaves=10,
)
dtypes = (
    numpy_st.integer_dtypes(endianness="?")
    | numpy_st.unsigned_integer_dtypes(endianness="?")
    | numpy_st.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | numpy_st.complex_number_dtypes(endianness="?", sizes=(64, 128))
    | numpy_st.boolean_dtypes()
    | numpy_st.datetime64_dtypes(endianness="?")
    | numpy_st.timedelta64_dtypes(endianness="?")
    | numpy_st.byte_string_dtypes(endianness="?", min_len=1)
    | numpy_st.unicode_string_dtypes(endianness="?", min_len=1)
)
arrays = dtypes.flatmap(
    lambda dtype: numpy_st.arrays(dtype, numpy_st.array_shapes(min_dims=0, min_side=0))
)


@given(plain_values)
def test_plain_values_come_back_exactly_and_are_plain_cbor(value: Any) -> None:
    for kind, found in (through_call(value), through_outcome(value)):
        assert kind == KIND_PLAIN
        assert same(found, value)
    assert same(cbor2.loads(encode_outcome_value(value)), [value])


@given(tagged_values)
def test_tagged_values_come_back_exactly(value: Any) -> None:
    for kind, found in (through_call(value), through_outcome(value)):
        assert same(found, value)
        assert kind in (KIND_PLAIN, KIND_CBOR, KIND_PICKLE)


@given(arrays)
def test_arrays_come_back_exactly_and_writable(array: Any) -> None:
    for value in (array, array.T, [array]):
        kind, found = through_call(value)
        assert kind == KIND_CBOR
        if value is not array.T:
            assert same(found, value)
        got = found[0] if isinstance(found, list) else found
        assert got.flags.writeable
        assert got.flags.owndata


@given(arrays.filter(lambda array: array.size and array.dtype.kind not in "SU"))
def test_numpy_scalars_keep_their_type(array: Any) -> None:
    scalar = array.reshape(-1)[0]
    kind, found = through_outcome(scalar)

    assert kind == KIND_CBOR
    assert same(found, scalar)


@given(st.lists(plain_scalars, max_size=30), st.dictionaries(text, tagged_values, max_size=3))
def test_calls_come_back_exactly(args: list[Any], kwargs: dict[str, Any]) -> None:
    found_args, found_kwargs = decode_call(encode_call(tuple(args), kwargs))

    assert same(found_args, tuple(args))
    assert same(found_kwargs, kwargs)


@given(st.lists(plain_scalars, max_size=30))
def test_short_calls_are_byte_for_byte_what_cbor2_writes(args: list[Any]) -> None:
    assert encode_call(tuple(args), {}) == cbor2.dumps([0, args])


@given(
    st.lists(
        st.tuples(
            st.lists(tagged_values, max_size=3).map(tuple),
            st.dictionaries(text, plain_scalars, max_size=1),
        ),
        max_size=9,
    )
)
def test_calls_read_together_are_what_each_is_by_itself(
    given_calls: list[tuple[tuple[Any, ...], dict[str, Any]]],
) -> None:
    bodies = [encode_call(args, kwargs) for args, kwargs in given_calls]
    for body, found in zip(bodies, read_plain_calls(bodies), strict=True):
        if found is not None:
            assert same((found, {}), decode_call(body))


@given(st.lists(st.lists(plain_scalars, max_size=5).map(tuple), max_size=9))
def test_calls_with_scalars_alone_are_all_read_together(arguments: list[tuple[Any, ...]]) -> None:
    bodies = [encode_call(args, {}) for args in arguments]
    assert same(read_plain_calls(bodies), arguments)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", [b"\x82\x00\x80", [], {}], cbor2.dumps([False, [1]]), cbor2.dumps([0, [[1]]])],
)
def test_a_call_that_is_not_plain_is_left_to_be_read_by_itself(body: Any) -> None:
    assert read_plain_calls([encode_call((1,), {}), body])[1] is None


@given(tagged_values)
def test_outcomes_are_canonical(value: Any) -> None:
    data = encode_outcome_value(value)

    assert cbor2.dumps(cbor2.loads(data)) == data


# -- kinds ----------------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")


class Number(int):
    pass


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        Point(1, 2),
        Colour.RED,
        True.__class__,
        OrderedDict(a=1),
        "\ud800",
        ["\udfff"],
        {"\ud800": 1},
        object,
        ValueError("x"),
        numpy.array([None, 1]),
        numpy.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        numpy.longdouble(1),
        numpy.ma.masked_array([1, 2], [True, False]),
        numpy.str_("a\0"),
        slice(1, 2),
        Ellipsis,
    ],
)
def test_what_cbor_does_not_hold_exactly_is_pickled(value: Any) -> None:
    kind, found = through_outcome(value)

    assert kind == KIND_PICKLE
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_references_to_one_container_stay_references_to_one() -> None:
    shared = [1]
    cycle: list[Any] = []
    cycle.append(cycle)
    array: Any = numpy.zeros(3)

    kind, (one, two) = through_outcome([shared, shared])
    assert kind == KIND_PICKLE
    assert one is two
    assert through_outcome(cycle)[0] == KIND_PICKLE
    (first, second), _ = decode_call(encode_call((array, array), {}))
    assert first is second
    (first, second), _ = decode_call(encode_call((shared, shared), {}))
    assert first is second
    _, kwargs = decode_call(encode_call((), {"a": shared, "b": shared}))
    assert kwargs["a"] is kwargs["b"]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_deep_values_are_pickled() -> None:
    assert through_outcome(nested(60)) == (KIND_PLAIN, nested(60))
    assert through_outcome(nested(70)) == (KIND_PICKLE, nested(70))


def test_order_of_maps_is_kept() -> None:
    value = {"b": 1, "a": 2, "aa": 3, "": {(2,): 1, (1,): 2}}

    _, found = through_outcome(value)

    assert list(found) == ["b", "a", "aa", ""]
    assert list(found[""]) == [(2,), (1,)]


def test_zones_are_the_same_objects() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    value = [datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=berlin)]
    value.append(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))

    kind, found = through_outcome(value)

    assert kind == KIND_CBOR
    assert found[0].tzinfo is berlin
    assert found[0].fold == 1
    assert found[1].tzinfo is datetime.UTC


def test_arrays_are_rfc_8746_typed_arrays() -> None:
    rows = encode_outcome_value(numpy.array([[1, 2], [3, 4]], dtype="<i2"))
    flat = encode_outcome_value(numpy.array([1.5], dtype=">f4"))

    typed = cbor2.CBORTag(77, bytes([1, 0, 2, 0, 3, 0, 4, 0]))
    assert rows == cbor2.dumps([1, cbor2.CBORTag(40, [[2, 2], typed])])
    assert flat == cbor2.dumps([1, cbor2.CBORTag(81, b"\x3f\xc0\0\0")])


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_data_comes_back_exactly(order: Any) -> None:
    array: Any = numpy.arange(300_000, dtype="f8").reshape(300, 1_000, order=order)
    value = [array, {"part": array[::2, 1:], "n": 1}, b"x" * 200_000, ("y" * 200_000, array[5])]

    kind, found = through_outcome(value)

    assert kind == KIND_CBOR
    assert same(found[0], array)
    assert found[0].flags.f_contiguous == (order == "F")
    assert same(found[1]["part"], numpy.ascontiguousarray(array[::2, 1:]))
    assert same(found[2:], value[2:])
    assert cbor2.dumps(cbor2.loads(encode_outcome_value(value))) == encode_outcome_value(value)


def test_code_is_told_from_data() -> None:
    def local() -> int:
        return 5

    kind, found = through_outcome(local)

    assert kind == KIND_CODE
    assert found() == 5
    assert through_outcome(math.sqrt) == (KIND_PICKLE, math.sqrt)
    item = cbor2.loads(encode_outcome_value(local))
    assert item[0] == KIND_CODE
    assert item[2] == HERE


def test_code_of_another_minor_is_refused_at_both_ends() -> None:
    class Local:
        pass

    with pytest.raises(VersionMismatch, match="Local"):
        encode_outcome_value(Local(), client_python="3.99")
    with pytest.raises(VersionMismatch, match=r"3\.99"):
        decode_outcome_item([3, pickle.dumps(1), "3.99"])
    with pytest.raises(VersionMismatch, match=r"3\.99"):
        decode_call(cbor2.dumps([3, pickle.dumps(((), {})), "3.99"]))
    assert encode_outcome_value([1], client_python="3.99") == cbor2.dumps([[1]])


# -- errors ---------------------------------------------------------------------------------------


def test_an_argument_that_cannot_travel_is_named() -> None:
    connection = sqlite3.connect(":memory:")

    def query(table: str, conn: Any, *more: Any, flag: Any = None) -> None:
        """Only its signature matters."""

    pattern = r"argument 2 \(`conn`, a sqlite3\.Connection\) cannot be pickled: .*Connection"
    with pytest.raises(NotSerializable, match=pattern):
        encode_call(("t", connection), {}, query)
    with pytest.raises(NotSerializable, match=r"the argument \(`flag`, a sqlite3"):
        encode_call(("t", 1), {"flag": connection}, query)
    with pytest.raises(NotSerializable, match=r"argument 3 \(`\*more`, a list\)"):
        encode_call(("t", 1, [connection]), {}, query)
    with pytest.raises(NotSerializable, match=r"argument 1 \(a sqlite3"):
        encode_call((connection,), {})
    with pytest.raises(NotSerializable, match=r"the result, a sqlite3\.Connection,"):
        encode_outcome_value(connection)
    connection.close()


# Well-formed CBOR of every sort, with the tags that mean something to us or to cbor2.
tag_numbers = st.sampled_from(
    [
        *(0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 40, 100, 256, 258, 260, 261),
        *(1004, 1040, 43000, 55799),
        *range(64, 88),
        *range(61600, 61616),
    ]
)
hostile_items = st.recursive(
    plain_scalars | st.just(cbor2.undefined) | st.builds(cbor2.CBORSimpleValue, st.just(40)),
    lambda inner: (
        st.lists(inner, max_size=9)
        | st.dictionaries(plain_scalars, inner, max_size=3)
        | st.builds(cbor2.CBORTag, tag_numbers, inner | st.lists(inner, max_size=9))
    ),
    max_leaves=12,
)


def refuse_or_answer(data: bytes) -> None:
    """Nothing but DecodeError comes out of hostile bytes."""
    try:
        decode_call(data)
    except DecodeError:
        pass
    try:
        item = cbor2.loads(data)
    # What cbor2 itself raises is for those who load a message's items.
    except Exception:
        return
    try:
        decode_outcome_item(item)
    except DecodeError:
        pass


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_arbitrary_bytes_raise_nothing_but_decode_errors(data: bytes) -> None:
    refuse_or_answer(data)
    refuse_or_answer(b"\x82\x01\x81" + data)
    refuse_or_answer(b"\x82\x01" + data)


@given(hostile_items)
@settings(max_examples=300)
def test_arbitrary_items_raise_nothing_but_decode_errors(item: Any) -> None:
    for kind in (0, 1):
        refuse_or_answer(cbor2.dumps([kind, [item]]))
        refuse_or_answer(cbor2.dumps([kind, [1], {"a": item}]))
        refuse_or_answer(cbor2.dumps([kind, item]))
    refuse_or_answer(cbor2.dumps([item]))


@given(tagged_values, st.data())
@settings(max_examples=200)
def test_damaged_bodies_raise_nothing_but_decode_errors(value: Any, data: Any) -> None:
    body = bytearray(encode_call((value, 1), {}))
    if body[1] > KIND_CBOR:
        # Damaged pickles may do anything; they come from those whose code is run anyway.
        return
    position = data.draw(st.integers(2, len(body) - 1))
    body[position] = data.draw(st.integers(0, 255))
    refuse_or_answer(bytes(body))


@pytest.mark.parametrize(
    "item",
    [
        [],
        7,
        "text",
        [5, 1],
        [4, b""],
        [2, "text"],
        [3, b""],
        [1, cbor2.CBORTag(61613, "1_0")],
        [1, cbor2.CBORTag(61614, [2, 4])],
        [1, cbor2.CBORTag(61614, [1, 0])],
        [1, cbor2.CBORTag(61603, [1, 1])],
        [1, cbor2.CBORTag(61608, [1, 2, 1, 3])],
        [1, cbor2.CBORTag(61608, [1])],
        [1, cbor2.CBORTag(40, [[2, 2], cbor2.CBORTag(64, b"123")])],
        [1, cbor2.CBORTag(61600, ["|O", [1], False, b"12345678"])],
        [1, cbor2.CBORTag(61600, ["|b1", [1], False, b"\2"])],
        [1, cbor2.CBORTag(86, b"1234567")],
        [1, cbor2.CBORTag(61607, [0, 1, 0])],
        [cbor2.CBORTag(61602, [1])],
        [{1: 2}],
    ],
)
def test_malformed_items_are_refused(item: Any) -> None:
    with pytest.raises(DecodeError):
        decode_outcome_item(cbor2.loads(cbor2.dumps(item)))


def test_what_cbor2_makes_of_native_tags_is_refused() -> None:
    for tag, content in (
        (35, "a+"),
        (37, b"0" * 16),
        (4, [1, 2]),
        (258, [1]),
        (1004, "2024-01-01"),
    ):
        body = cbor2.dumps([1, [cbor2.CBORTag(tag, content)]])
        with pytest.raises(DecodeError):
            decode_call(body)


def test_a_small_message_cannot_unfold_without_end() -> None:
    # 28 marks a value, 29 refers to one: each level holds the one below twice.
    data = b"\xd8\x1c\x81\x01"
    for level in range(60):
        data = b"\xd8\x1c\x82" + data + b"\xd8\x1d" + cbor2.dumps(59 - level)
    for head in (b"\x82\x00\x81", b"\x82\x01\x81"):
        with pytest.raises(DecodeError):
            decode_call(head + data)


def test_a_pickle_that_cannot_be_loaded_says_why() -> None:
    missing = b"\x80\x05cno_such_module_here\nThing\n."

    with pytest.raises(DecodeError, match="No module named 'no_such_module_here'"):
        decode_call(cbor2.dumps([2, missing]))
    with pytest.raises(DecodeError, match="the result cannot be unpickled here"):
        decode_outcome_item([2, b"garbage"])
    with pytest.raises(DecodeError, match="not \\(args, kwargs\\)"):
        decode_call(cbor2.dumps([2, pickle.dumps(1)]))


def test_fractions_and_decimals_keep_every_digit() -> None:
    for value in (Decimal("-0.00"), Decimal("sNaN12"), Decimal("1E+999"), Fraction(-7, 2**80)):
        kind, found = through_outcome(value)
        assert kind == KIND_CBOR
        assert same(found, value)
