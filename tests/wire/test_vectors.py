"""The golden vectors: the files say what the code does, and the code does what they say.

Runs with either major of cbor2 (see `test_older_cbor2.py`), so it imports no more than that,
pytest and the wire.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import cbor2
import pytest

from forage_wire.codec import (
    cut_calls,
    decode,
    decode_header,
    decode_json,
    encode,
    encode_header,
    encode_json,
    join_calls,
)
from forage_wire.errors import DecodeError
from forage_wire.limits import NESTING_MAX
from forage_wire.messages import CBOR_MESSAGES, JSON_DOCUMENTS, Beat, Linked, Part
from forage_wire.parts import PartAssembler
from forage_wire.strict import load_plain
from forage_wire.topics import Topics
from wire.diagnostic import from_json
from wire.make_vectors import FOLDER, files

MADE = files()


def read(path: str) -> Any:
    return json.loads((FOLDER / path).read_text())


def payload_of(vector: dict[str, Any]) -> bytes:
    return bytes.fromhex(vector["hex"])


def test_the_folder_holds_these_files_and_no_others() -> None:
    assert sorted(MADE) == sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.json"))


@pytest.mark.parametrize("path", MADE)
def test_the_file_is_what_the_code_makes(path: str) -> None:
    """If not: `make_vectors.py --write`, once it is understood what changed the wire and why."""
    assert Path(FOLDER / path).read_text() == MADE[path]


def check_vectors(found: dict[str, Any], decode_it: Any, encode_it: Any) -> None:
    assert found["written"]
    by_name = {}
    for vector in [*found["written"], *found["accepted"]]:
        payload = payload_of(vector)
        assert load_plain(payload) == from_json(vector["wire"])
        by_name[vector["name"]] = decode_it(payload)
    for vector in found["written"]:
        assert encode_it(by_name[vector["name"]]) == payload_of(vector), vector["name"]
    for vector in found["accepted"]:
        assert by_name[vector["name"]] == by_name[vector["same_as"]]
    for vector in found["refused"]:
        with pytest.raises(DecodeError):
            decode_it(payload_of(vector))


@pytest.mark.parametrize("code", CBOR_MESSAGES)
def test_messages_are_read_written_and_refused_as_the_vectors_say(code: str) -> None:
    found = read(f"messages/{code}.json")
    check_vectors(found, decode, encode)
    for vector in found["written"]:
        assert type(decode(payload_of(vector))) is CBOR_MESSAGES[code]


def test_headers_are_read_written_and_refused_as_the_vectors_say() -> None:
    check_vectors(read("header.json"), decode_header, encode_header)


@pytest.mark.parametrize("branch", JSON_DOCUMENTS)
def test_documents_are_read_written_and_refused_as_the_vectors_say(branch: str) -> None:
    found = read(f"documents/{branch}.json")
    document_class = JSON_DOCUMENTS[branch]
    for vector in found["written"]:
        text = vector["text"].encode()
        assert encode_json(decode_json(text, document_class)) == text
    for vector in found["accepted"]:
        assert type(decode_json(vector["text"].encode(), document_class)) is document_class
    for vector in found["refused"]:
        with pytest.raises(DecodeError):
            decode_json(vector["text"].encode(), document_class)


@pytest.mark.parametrize(
    "vector", read("envelope.json")["refused"], ids=lambda vector: vector["name"]
)
def test_envelopes_are_refused_as_the_vectors_say(vector: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode(payload_of(vector))


@pytest.mark.parametrize("vector", read("slice-tag.json")["tags"])
def test_slice_tags_follow_from_their_input(vector: dict[str, Any]) -> None:
    said = [vector[name] for name in ("task", "assignment", "low", "high", "device")]
    data, key, tag = (from_json(vector[name]) for name in ("input", "key", "tag"))
    assert load_plain(data) == said
    assert hashlib.blake2s(data, key=key, digest_size=16).digest() == tag


def test_parts_make_the_whole() -> None:
    found = read("parts.json")
    assembler = PartAssembler()
    whole: bytes | None = None
    for vector in found["parts"]:
        assert whole is None
        assert len(payload_of(vector)) <= found["packet_bytes_max"]
        part = decode(payload_of(vector))
        assert isinstance(part, Part)
        whole = assembler.add(part)
    assert whole is not None
    assert whole == from_json(found["whole"])
    assert encode(decode(whole)) == whole


def test_calls_and_outcomes_are_arrays_of_what_they_hold() -> None:
    found = read("calls.json")
    for form in ("calls", "outcomes"):
        for vector in found[form]:
            assert cbor2.loads(payload_of(vector)) == from_json(vector["wire"])
    calls = cut_calls(from_json(found["array_of_calls"]))
    assert calls == [payload_of(vector) for vector in found["calls"]]
    assert join_calls(calls) == from_json(found["array_of_calls"])
    items = b"".join(payload_of(vector) for vector in found["outcomes"])
    assert from_json(found["array_of_outcomes"]) == bytes([0x80 + len(found["outcomes"])]) + items


# -- the microcontroller's story ------------------------------------------------------------------

STORY = read("mcu.json")["steps"]


def depth(item: Any) -> int:
    if isinstance(item, dict):
        return 1 + max(map(depth, item.values()), default=0)
    if isinstance(item, list):
        return 1 + max(map(depth, item), default=0)
    return 0


def longest_key(item: Any) -> int:
    if isinstance(item, dict):
        return max(*map(len, item), *map(longest_key, item.values()), 0)
    if isinstance(item, list):
        return max(map(longest_key, item), default=0)
    return 0


def messages_in_story() -> list[tuple[str, Linked, dict[str, Any]]]:
    return [(step["from"], decode(payload_of(step)), step) for step in STORY if step.get("hex")]


def test_story_stands_on_known_topics_in_their_form() -> None:
    topics = Topics()
    for step in STORY:
        parsed = topics.parse(step["topic"])
        assert parsed is not None
        if "text" in step:
            assert step["retained"]
            decode_json(step["text"].encode(), JSON_DOCUMENTS[parsed.branch])
        else:
            message = decode(payload_of(step))
            assert encode(message) == payload_of(step)
            assert from_json(step["wire"]) == load_plain(payload_of(step))
            speaker = "controller" if parsed.branch == "inbox" else "device"
            assert step["from"] == speaker


def test_story_keeps_within_the_profile() -> None:
    """Arrays and maps within each other to 5, keys of 8 characters, small packets."""
    for _who, _message, step in messages_in_story():
        raw = load_plain(payload_of(step))
        assert len(payload_of(step)) <= 1_024
        assert depth(raw) <= 5 < NESTING_MAX
        assert longest_key(raw) <= 8


def test_story_numbers_its_messages_as_links_do() -> None:
    sent: dict[tuple[str, str, str], int] = {}
    payloads: dict[tuple[str, str, str, int], str] = {}
    for who, message, step in messages_in_story():
        if isinstance(message, Beat):
            continue
        pair = (message.session, message.controller)
        other = "device" if who == "controller" else "controller"
        mine, theirs = (who, *pair), (other, *pair)
        if message.n and (*mine, message.n) in payloads:
            assert payloads[*mine, message.n] == step["hex"], "a repeat is the same bytes"
            continue
        assert message.seen == sent.get(theirs, 0)
        if message.n:
            assert message.n == sent.get(mine, 0) + 1
            sent[mine] = message.n
            payloads[*mine, message.n] = step["hex"]
