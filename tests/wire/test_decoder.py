"""Hostile and broken bytes: only `DecodeError` comes out, and only plain data gets in."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forage_wire import codec
from forage_wire.errors import DecodeError
from forage_wire.limits import NESTING_MAX, PACKET_BYTES_MAX
from forage_wire.messages import (
    JSON_DOCUMENTS,
    Beat,
    DeviceInventory,
    DeviceLoad,
    DevicePresence,
    Header,
    Seen,
    Unusable,
)
from forage_wire.records import replace
from forage_wire.strict import load_plain
from wire.examples import REFUSED_ENVELOPES
from wire.strategies import DOCUMENT_CLASSES, MESSAGE_CLASSES, instances

many = settings(max_examples=120, deadline=None)
some = settings(max_examples=30, deadline=None)


def decode_any_document(payload: bytes) -> object:
    found: object = None
    for document_class in JSON_DOCUMENTS.values():
        try:
            found = codec.decode_json(payload, document_class)
        except DecodeError:
            pass
    return found


DECODERS: dict[str, Callable[[bytes], object]] = {
    "message": codec.decode,
    "header": codec.decode_header,
    "calls": codec.cut_calls,
    "document": decode_any_document,
}


def check_only_decode_errors(payload: bytes) -> None:
    for decoder in DECODERS.values():
        try:
            decoder(payload)
        except DecodeError:
            pass


# -- arbitrary bytes ------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@many
def test_arbitrary_bytes_give_only_decode_errors(payload: bytes) -> None:
    check_only_decode_errors(payload)


@st.composite
def damaged(draw: st.DrawFn, payloads: st.SearchStrategy[bytes]) -> bytes:
    """A valid payload with some bytes changed, put in, or taken out."""
    payload = bytearray(draw(payloads))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(payload)))
        until = draw(st.integers(at, min(at + 3, len(payload))))
        payload[at:until] = draw(st.binary(max_size=3))
    return bytes(payload)


ENCODED = st.sampled_from(MESSAGE_CLASSES).flatmap(instances).map(codec.encode)
ENCODED_DOCUMENTS = st.sampled_from(DOCUMENT_CLASSES).flatmap(instances).map(codec.encode_json)


@given(damaged(ENCODED | ENCODED_DOCUMENTS))
@many
def test_damaged_payloads_give_only_decode_errors(payload: bytes) -> None:
    check_only_decode_errors(payload)


@given(ENCODED)
@some
def test_every_truncation_is_refused(payload: bytes) -> None:
    for length in range(len(payload)):
        with pytest.raises(DecodeError):
            codec.decode(payload[:length])


@given(ENCODED, st.binary(min_size=1, max_size=4))
@some
def test_trailing_bytes_are_refused(payload: bytes, more: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.decode(payload + more)


@given(ENCODED)
@some
def test_what_decodes_encodes_to_the_same_message(payload: bytes) -> None:
    message = codec.decode(payload)
    assert codec.decode(codec.encode(message)) == message


@given(instances(Header), instances(Header))
@some
def test_headers_that_share_what_does_not_change_are_the_same_bytes(
    header: Header, like: Header
) -> None:
    shared = codec.SharedHeader(replace(like, root=None, replica=0))
    expected = replace(
        like,
        root=None,
        task=header.task,
        first=header.first,
        n=header.n,
        last=header.last,
        replica=header.replica,
    )
    encoded = shared.encode(
        task=header.task,
        first=header.first,
        n=header.n,
        last=header.last,
        replica=header.replica,
    )
    assert encoded == codec.encode_header(expected)


# -- the strict reader against a general one ------------------------------------------------------

ANY_CBOR = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=30)
        | st.dictionaries(st.text(max_size=30) | st.integers(), inner, max_size=30)
        | st.tuples(st.integers(0, 2**20), inner).map(lambda pair: cbor2.CBORTag(*pair))
    ),
    max_leaves=20,
)


def is_plain(item: Any, nesting: int = NESTING_MAX) -> bool:
    if type(item) is list:
        return nesting > 0 and all(is_plain(inner, nesting - 1) for inner in item)
    if type(item) is dict:
        return (
            nesting > 0
            and all(type(key) is str for key in item)
            and all(is_plain(inner, nesting - 1) for inner in item.values())
        )
    if type(item) is int:
        return -(2**64) <= item < 2**64
    return item is None or type(item) in (bool, str, bytes)


def reference_load(payload: bytes) -> Any:
    """What a general decoder finds, where it is plain and encodes to the same bytes; else raises."""
    item = cbor2.loads(payload)
    if not is_plain(item) or cbor2.dumps(item) != payload:
        raise ValueError("not plain, or not in its shortest form")
    return item


@given(ANY_CBOR.map(cbor2.dumps) | damaged(ANY_CBOR.map(cbor2.dumps)) | st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_strict_reader_takes_exactly_plain_data_that_encodes_to_itself(payload: bytes) -> None:
    try:
        expected = reference_load(payload)
    # A general decoder raises many things on hostile bytes.
    except Exception:
        with pytest.raises(DecodeError):
            load_plain(payload)
    else:
        found = load_plain(payload)
        assert found == expected
        assert cbor2.dumps(found) == payload


BOUNDARIES = [0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1]


@pytest.mark.parametrize("number", [*BOUNDARIES, *[-1 - number for number in BOUNDARIES]])
def test_integers_are_read_at_each_length_of_head(number: int) -> None:
    assert load_plain(cbor2.dumps(number)) == number
    assert load_plain(cbor2.dumps({"k": [number]})) == {"k": [number]}


@pytest.mark.parametrize("length", [0, 23, 24, 255, 256, 65_535, 65_536])
@pytest.mark.parametrize("make", [lambda n: b"x" * n, lambda n: "x" * n, lambda n: [0] * n])
def test_strings_and_arrays_are_read_at_each_length_of_head(
    length: int, make: Callable[[int], Any]
) -> None:
    for item in (make(length), [make(length)], {"k": make(length)}, {"k" * 30: make(length)}):
        assert load_plain(cbor2.dumps(item)) == item


# -- named attacks --------------------------------------------------------------------------------

SEEN = codec.encode(Seen(n=1))


def around(value: bytes) -> bytes:
    """A message that is right but for an unknown key with this value."""
    return b"\xa2\x61t\x64seen\x62zz" + value


def bignum(length: int) -> bytes:
    return b"\xc2\x5a" + length.to_bytes(4, "big") + b"\xff" * length


COLLIDING = [k * (2**61 - 1) for k in range(2_000)]
"""Integers of equal hash: a table of them costs the square of their number."""

LARGE_ATTACKS = {
    "arrays within arrays": b"\x81" * 100_000 + b"\x00",
    "maps within maps": b"\xa1\x60" * 50_000 + b"\x00",
    "tags within tags": b"\xc1" * 100_000 + b"\x00",
    "indefinite arrays within": around(b"\x9f" * 50_000 + b"\xff" * 50_000),
    "big number": around(bignum(60_000)),
    "fraction of big numbers": around(b"\xd8\x1e\x82" + bignum(30_000) + bignum(30_000)),
    "decimal of a big number": around(b"\xc4\x82\x00" + bignum(60_000)),
    "regular expression": around(b"\xd8\x23\x6d(((a{999}){99"),
    "keys of equal hash": around(cbor2.dumps(dict.fromkeys(COLLIDING))),
    "set of equal hashes": around(cbor2.dumps(cbor2.CBORTag(258, COLLIDING))),
}
ATTACKS = {**REFUSED_ENVELOPES, **{f"{name}, large": data for name, data in LARGE_ATTACKS.items()}}


def test_what_attacks_are_built_around_is_right() -> None:
    assert codec.decode(SEEN) == Seen(n=1)
    assert codec.decode(around(b"\x00")) == Seen()


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_within_little_memory(attack: str) -> None:
    payload = ATTACKS[attack]
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            codec.decode(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(payload) + 64 * 1024
    check_only_decode_errors(payload)


def test_nesting_up_to_the_limit_is_read() -> None:
    deepest = b"\x81" * NESTING_MAX + b"\x00"
    load_plain(deepest)
    with pytest.raises(DecodeError, match="deep"):
        load_plain(b"\x81" + deepest)


def test_a_payload_above_the_packet_limit_is_refused_unread() -> None:
    payload = around(cbor2.dumps(b"x" * PACKET_BYTES_MAX))
    with pytest.raises(DecodeError, match="above the limit"):
        codec.decode(payload)
    assert codec.decode(payload, 2 * PACKET_BYTES_MAX) == Seen()


def test_longest_beat_is_what_the_profile_promises() -> None:
    session = "0123456789abcdef-4294967295"
    assert len(codec.encode(Beat(session=session))) <= 40


@pytest.mark.parametrize(
    "rows",
    [
        [[2, 1]],
        [[1, 1]],
        [[3, 4], [1, 2]],
        [[1, 3], [2, 4]],
        [[0, 2**32 + 1]],
    ],
)
def test_ranges_that_are_not_sorted_and_disjoint_are_refused(rows: list[list[int]]) -> None:
    payload = cbor2.dumps({"t": "cancel", "k": "0123456789abc-1", "r": rows})
    with pytest.raises(DecodeError):
        codec.decode(payload)


def test_lists_are_refused_above_their_limit() -> None:
    row = [1, "0123456789abc-1", 0, 1, "queued"]
    longest = codec.decode(cbor2.dumps({"t": "device-inventory", "r": [row] * 4_096}), 2**20)
    assert isinstance(longest, DeviceInventory)
    with pytest.raises(DecodeError):
        codec.decode(cbor2.dumps({"t": "device-inventory", "r": [row] * 4_097}), 2**20)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"t": "of-a-later-minor"}, "unknown"), ({"t": "attach", "k": 5}, "k"), ({"t": "drain"}, "o")],
)
def test_a_numbered_message_that_cannot_be_used_still_counts_for_its_link(
    fields: dict[str, Any], reason: str
) -> None:
    stamps = {"s": "0123456789abcdef-1", "c": "fedcba9876543210-3", "e": 2, "n": 7, "q": 4}
    found = codec.decode(cbor2.dumps({**fields, **stamps}))
    assert isinstance(found, Unusable)
    assert (found.session, found.controller, found.epoch, found.n, found.seen) == tuple(
        stamps.values()
    )
    assert reason in found.reason
    for unnumbered in ({**stamps, "n": 0}, {**stamps, "s": "?"}, {**stamps, "e": -1}):
        with pytest.raises(DecodeError):
            codec.decode(cbor2.dumps({**fields, **unnumbered}))


# -- calls ----------------------------------------------------------------------------------------


def test_calls_come_apart_as_they_were_joined() -> None:
    calls = [b"", b"x" * 300, [b"body", [["0123456789abc-1", 3]], {"out": 5}]]
    assert codec.cut_calls(codec.join_calls(calls)) == calls


@pytest.mark.parametrize("calls", [1, {}, ["text"], [[b"x"]], [["x", [], {}]], [None], [[]]])
def test_what_is_no_array_of_calls_is_refused(calls: Any) -> None:
    with pytest.raises(DecodeError):
        codec.cut_calls(cbor2.dumps(calls))


# -- JSON -----------------------------------------------------------------------------------------

PRESENCE = {"state": "online", "session": "0123456789abcdef-1"}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"state":"online"}',
        b'{"state":"online","session":""}',
        b'{"state":"online","session":"0123456789abcdef-1","uptime_s":1e3}',
        b'{"state":"online","session":"0123456789abcdef-1","uptime_s":NaN}',
        b'{"state":"online","session":"0123456789abcdef-1","uptime_s":true}',
        b'{"state":"online","session":"0123456789abcdef-1","uptime_s":' + b"9" * 5_000 + b"}",
        b'{"state":"online","session":"0123456789abcdef-1","software":"\\ud800"}',
        b'{"state":"online","session":"0123456789abcdef-1","software":"\xff"}',
        json.dumps(PRESENCE).encode("utf-16"),
        b" " * (PACKET_BYTES_MAX + 1),
    ],
    ids=lambda payload: repr(payload[:70])[2:-1] if payload else "empty",
)
def test_documents_that_are_wrong_are_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.decode_json(payload, DevicePresence)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1e301", "true", '"1"'])
def test_what_is_no_finite_number_is_refused_as_a_measurement(text: str) -> None:
    payload = b'{"session":"0123456789abcdef-1","seq":1,"cpu_percent":' + text.encode() + b"}"
    with pytest.raises(DecodeError):
        codec.decode_json(payload, DeviceLoad)


def test_unknown_keys_of_documents_are_ignored() -> None:
    payload = json.dumps({**PRESENCE, "zz": [1.5, {"a": None}]}).encode()
    assert codec.decode_json(payload, DevicePresence) == DevicePresence(
        state="online", session=PRESENCE["session"]
    )


def test_documents_spell_out_their_defaults() -> None:
    document = DevicePresence(state="online", session=PRESENCE["session"])
    assert json.loads(codec.encode_json(document)) == {
        **PRESENCE,
        "protocol": "1.0",
        "software": "",
        "uptime_s": 0,
    }
