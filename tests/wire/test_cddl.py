"""The code against `forage.cddl`: two statements of one wire, judged by an independent validator."""

import dataclasses
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cddl_verifier import Validator, schema_diagnostics
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import forage_wire
from forage_wire.codec import decode, decode_header, decode_json, encode, encode_header, encode_json
from forage_wire.errors import DecodeError
from forage_wire.kinds import Kind
from forage_wire.messages import CBOR_MESSAGES, JSON_DOCUMENTS, Header, Linked, Options
from forage_wire.table import table_of
from wire.fields import Column, columns_of
from wire.rules import SCHEMA, rule_name, rule_text
from wire.strategies import (
    DOCUMENT_CLASSES,
    MESSAGE_CLASSES,
    PART_CLASSES,
    instances,
    raw_maps,
    raw_of,
    wrong_for,
)

TYPE_CODES = {message_class: code for code, message_class in CBOR_MESSAGES.items()}
EVERY_CLASS = [*MESSAGE_CLASSES, *PART_CLASSES, *DOCUMENT_CLASSES]

few = settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

fewest = settings(few, max_examples=1, phases=[Phase.generate, Phase.shrink])
"""For tests whose one example goes through every field."""


def by_rule(classes: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("message_class", classes, ids=rule_name)


@cache
def validator() -> Validator:
    return Validator(SCHEMA)


def rule_accepts(message_class: type, data: Any) -> bool:
    return bool(validator().validate(data, root_type=rule_name(message_class)))


def decoder_accepts(message_class: type, raw: dict[str, Any]) -> bool:
    """Whether the decoder takes this map as a message, part or document of the class."""
    try:
        if message_class in DOCUMENT_CLASSES:
            # JSON has no byte strings: json.dumps refuses them with a TypeError.
            decode_json(json.dumps(raw).encode(), message_class)
        elif message_class is Header:
            decode_header(cbor2.dumps(raw))
        elif message_class in PART_CLASSES:
            table_of(message_class).decode_map(raw)
        else:
            found = decode(cbor2.dumps(raw))
            return type(found) is message_class
    except (DecodeError, ValueError, TypeError):
        return False
    return True


def wire_form(message_class: type, raw: dict[str, Any]) -> Any:
    """What the validator is to judge: bytes of CBOR, or what JSON says."""
    if message_class not in DOCUMENT_CLASSES:
        return cbor2.dumps(raw)
    try:
        return json.loads(json.dumps(raw))
    except TypeError:
        return raw  # JSON has no byte strings: judged as the value it is.


def typed(message_class: type, raw: dict[str, Any]) -> dict[str, Any]:
    code = TYPE_CODES.get(message_class)
    return raw if code is None else {"t": code, **raw}


def test_schema_has_no_findings() -> None:
    assert schema_diagnostics(SCHEMA) == ()


@by_rule(MESSAGE_CLASSES)
@given(data=st.data())
@few
def test_rule_accepts_what_the_encoder_writes(message_class: type, data: st.DataObject) -> None:
    message = data.draw(instances(message_class))
    payload = encode(message)
    assert decode(payload) == message
    result = validator().validate(payload, root_type=rule_name(message_class))
    assert result.valid, result.format()


@given(header=instances(Header))
@few
def test_rule_accepts_encoded_headers(header: Header) -> None:
    payload = encode_header(header)
    assert decode_header(payload) == header
    assert rule_accepts(Header, payload)


@by_rule(DOCUMENT_CLASSES)
@given(data=st.data())
@few
def test_rule_accepts_encoded_documents(message_class: type, data: st.DataObject) -> None:
    document = data.draw(instances(message_class))
    payload = encode_json(document)
    assert decode_json(payload, message_class) == document
    result = validator().validate(json.loads(payload), root_type=rule_name(message_class))
    assert result.valid, result.format()


def required_keys(message_class: type) -> list[str]:
    keys = [column.key for column in columns_of(message_class) if column.required]
    return ["t", *keys] if message_class in TYPE_CODES else keys


@by_rule([message_class for message_class in EVERY_CLASS if required_keys(message_class)])
@given(data=st.data())
@fewest
def test_rule_and_decoder_refuse_a_missing_key(message_class: type, data: st.DataObject) -> None:
    raw = typed(message_class, data.draw(raw_maps(message_class)))
    for key in required_keys(message_class):
        lacking = {other: value for other, value in raw.items() if other != key}
        assert not decoder_accepts(message_class, lacking)
        assert not rule_accepts(message_class, wire_form(message_class, lacking))


@by_rule(EVERY_CLASS)
@given(data=st.data())
@fewest
def test_rule_and_decoder_refuse_every_kind_of_wrong_value(
    message_class: type, data: st.DataObject
) -> None:
    raw = typed(message_class, data.draw(raw_maps(message_class)))
    for column in columns_of(message_class):
        for mistake in wrong_for(column.kind):
            wrong = {**raw, column.key: data.draw(mistake)}
            form = wire_form(message_class, wrong)
            assert not decoder_accepts(message_class, wrong), (column, wrong)
            assert not rule_accepts(message_class, form), (column, wrong)


def holds_ranges(kind: Kind) -> bool:
    inner = [bound for bound in kind.bounds if isinstance(bound, Kind)]
    if kind.name == "record":
        inner = [column.kind for column in columns_of(kind.bounds[0])]
    return kind.name == "ranges" or any(map(holds_ranges, inner))


EVERY_COLUMN = [column for message_class in EVERY_CLASS for column in columns_of(message_class)]


@given(data=st.data())
@settings(few, max_examples=40)
def test_rule_and_decoder_agree_on_values_from_elsewhere(data: st.DataObject) -> None:
    """A field gets what some other field of any message would take."""
    message_class = data.draw(st.sampled_from(EVERY_CLASS))
    column: Column = data.draw(st.sampled_from(columns_of(message_class)))
    other: Column = data.draw(st.sampled_from(EVERY_COLUMN))
    raw = typed(message_class, data.draw(raw_maps(message_class)))
    raw[column.key] = data.draw(raw_of(other.kind))
    assume(message_class in DOCUMENT_CLASSES or not isinstance(raw[column.key], float))
    form = wire_form(message_class, raw)
    taken = decoder_accepts(message_class, raw)
    if holds_ranges(column.kind):
        # CDDL cannot say that ranges are sorted and disjoint, so the decoder may refuse more.
        assert rule_accepts(message_class, form) or not taken
    else:
        assert rule_accepts(message_class, form) == taken


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@by_rule(MESSAGE_CLASSES)
@given(data=st.data())
@few
def test_unknown_keys_are_ignored(message_class: type, data: st.DataObject) -> None:
    message = data.draw(instances(message_class))
    raw = cbor2.loads(encode(message))
    unknown = {"zz" + data.draw(st.text(max_size=4)): data.draw(PLAIN)}
    payload = cbor2.dumps({**unknown, **raw} if data.draw(st.booleans()) else {**raw, **unknown})
    assert decode(payload) == message
    assert rule_accepts(message_class, payload)


# -- the golden vectors ---------------------------------------------------------------------------

VECTORS = Path(forage_wire.__file__).parent / "vectors"
INEXPRESSIBLE = ("runs backwards", "not in order", "overlap")
"""What CDDL cannot say of ranges."""
VECTOR_FILES = {
    **{f"messages/{code}.json": message_class for code, message_class in CBOR_MESSAGES.items()},
    **{f"documents/{branch}.json": found for branch, found in JSON_DOCUMENTS.items()},
    "header.json": Header,
}


def vector_data(vector: dict[str, Any]) -> Any:
    return bytes.fromhex(vector["hex"]) if "hex" in vector else json.loads(vector["text"])


@pytest.mark.parametrize("path", VECTOR_FILES)
def test_rule_judges_the_vectors_as_they_say(path: str) -> None:
    found, message_class = json.loads((VECTORS / path).read_text()), VECTOR_FILES[path]
    for vector in [*found["written"], *found["accepted"]]:
        assert rule_accepts(message_class, vector_data(vector)), vector["name"]
    for vector in found["refused"]:
        if vector["name"] != "no JSON" and not vector["name"].endswith(INEXPRESSIBLE):
            assert not rule_accepts(message_class, vector_data(vector)), vector["name"]


def test_rule_accepts_the_vectors_of_calls_outcomes_and_tags() -> None:
    found = json.loads((VECTORS / "calls.json").read_text())
    for form, rule in (("calls", "call-body"), ("outcomes", "outcome-item")):
        for vector in found[form]:
            assert validator().validate(vector_data(vector), root_type=rule).valid, vector["name"]
    for name, rule in (("array_of_calls", "calls"), ("array_of_outcomes", "outcome-items")):
        data = bytes.fromhex(found[name]["hex"])
        assert validator().validate(data, root_type=rule).valid
    for vector in json.loads((VECTORS / "slice-tag.json").read_text())["tags"]:
        said = bytes.fromhex(vector["input"]["hex"])
        assert validator().validate(said, root_type="tag-input").valid


# -- the schema's text: keys, names and defaults --------------------------------------------------

LINE = re.compile(r"\s+(\?)? ?(\w+): [^;\n]+(?:; ([^\n]*))?")


def schema_lines(rule: str) -> dict[str, tuple[bool, str]]:
    """Key -> (required, comment) of a rule in the schema's text."""
    found = [match for line in rule_text(rule).splitlines() if (match := LINE.fullmatch(line))]
    return {match[2]: (match[1] is None, match[3] or "") for match in found}


def default_in(comment: str) -> Any:
    text = comment.rpartition("= ")[2]
    return b"" if text == "h''" else json.loads(text)


def check_lines(
    lines: dict[str, tuple[bool, str]], message_class: type, columns: list[Column]
) -> None:
    assert {key: required for key, (required, _) in lines.items()} == {
        column.key: column.required for column in columns
    }
    blank = {field.name: field for field in dataclasses.fields(message_class)}
    for column in columns:
        comment = lines[column.key][1]
        if column.name != column.key:
            assert re.match(rf"{column.name}\b", comment), (column, comment)
        if not column.required:
            field = blank[column.name]
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if default == ():
                default = []
            elif default == Options():
                default = {}
            assert default_in(comment) == default, (column, comment)


@by_rule(EVERY_CLASS)
def test_schema_names_each_key_field_and_default(message_class: type) -> None:
    linked = {column.key for column in columns_of(Linked)}
    lines = schema_lines(rule_name(message_class))
    columns = columns_of(message_class)
    if message_class in TYPE_CODES:
        assert lines.pop("t") == (True, "")
        columns = [column for column in columns if column.key not in linked]
    check_lines(lines, message_class, columns)


def test_schema_names_the_fields_of_every_linked_message() -> None:
    check_lines(schema_lines("linked"), Linked, columns_of(Linked))


@pytest.mark.parametrize("code", CBOR_MESSAGES)
def test_a_rule_accepts_no_other_type(code: str) -> None:
    message_class = CBOR_MESSAGES[code]
    for other in CBOR_MESSAGES:
        if other != code:
            assert not rule_accepts(message_class, {"t": other})
