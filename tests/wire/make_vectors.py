"""Makes the golden vectors in `schemas/forage_wire/vectors`, which implementers test against.

    python tests/wire/make_vectors.py --write

`test_vectors.py` holds that the files are what this makes: a vector is made anew only by
somebody who understands what has changed it, for a changed vector is a changed wire.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import forage_wire
from forage_wire.codec import encode, encode_header, encode_json
from forage_wire.kinds import Kind
from forage_wire.limits import PACKET_BYTES_MIN
from forage_wire.messages import CBOR_MESSAGES, JSON_DOCUMENTS, Answer, Header, Linked, Seen
from forage_wire.parts import cut_parts
from forage_wire.tags import slice_tag
from wire import examples
from wire.diagnostic import to_json
from wire.fields import columns_of
from wire.mcu_story import story

__all__ = ["FOLDER", "files"]

FOLDER = Path(forage_wire.__file__).parent / "vectors"

Vector = dict[str, Any]

_STAMPS: dict[str, Any] = {
    "session": examples.SESSION,
    "controller": examples.CONTROLLER,
    "epoch": examples.EPOCH,
    "n": 1,
    "seen": 5,
}
_UNKNOWN = {"zz": {"later": [1, None, "é"]}}


# -- what is wrong with a value -------------------------------------------------------------------


def _wrong_list(kind: Kind, right: list[Any]) -> Iterator[tuple[str, Any]]:
    inner, _maximum = kind.bounds
    if right:
        for label, wrong in _mistakes(inner, right[0]):
            yield f"[0]{label}", [wrong, *right[1:]]


def _wrong_row(kind: Kind, right: list[Any]) -> Iterator[tuple[str, Any]]:
    yield ": an item lacks", right[:-1]
    yield ": an item too many", [*right, 0]
    for place, inner in enumerate(kind.bounds):
        for label, wrong in _mistakes(inner, right[place]):
            yield f"[{place}]{label}", [*right[:place], wrong, *right[place + 1 :]]


def _wrong_record(kind: Kind, right: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from wrong_maps(kind.bounds[0], right)


def _wrong_size(kind: Kind, right: bytes) -> Iterator[tuple[str, Any]]:
    _maximum, sizes = kind.bounds
    if sizes:
        yield ": a byte too many", b"\x55" * (max(sizes) + 1)
        yield ": a byte too few", b"\x55" * (max(sizes) - 1)


def _bounds(kind: Kind, right: int) -> Iterator[tuple[str, Any]]:
    maximum, minimum = kind.bounds
    yield ": below its least", minimum - 1
    yield ": above its most", maximum + 1
    yield ": true is no number", True


def _wrong_ranges(kind: Kind, right: Any) -> Iterator[tuple[str, Any]]:
    yield ": a range of one number", [[0]]
    yield ": an empty range", [[0, 0]]
    yield ": a range that runs backwards", [[2, 1]]
    yield ": ranges not in order", [[3, 4], [1, 2]]
    yield ": ranges that overlap", [[1, 3], [2, 4]]
    yield ": a range beyond the last index", [[0, 2**32 + 1]]


def _wrong_words(kind: Kind, right: Any) -> Iterator[tuple[str, Any]]:
    yield ": not of its form", "!"
    yield ": a line end behind it", f"{right or 'x'}\n"


_WRONG: dict[str, Any] = {
    "unsigned": _bounds,
    "text": lambda kind, right: [(": too long", "x" * (kind.bounds[0] + 1))],
    "pattern": _wrong_words,
    "one_of": lambda kind, right: [(": another word", "other")],
    "data": _wrong_size,
    "list_of": _wrong_list,
    "row": _wrong_row,
    "ranges": _wrong_ranges,
    "name_or_version": lambda kind, right: [
        (": no hash and no name", b"\x55" * 31),
        (": a name alone", ["org.example.mix"]),
        (": an empty name", ["", "1"]),
    ],
    "record": _wrong_record,
}
_LONGEST_TEXT = 256
"""Texts with a higher limit make no vector of a text that is too long."""


def _mistakes(kind: Kind, right: Any) -> Iterator[tuple[str, Any]]:
    """(what is wrong, the wrong value) for a field whose right value is known."""
    if kind.name == "nullable":
        yield from _mistakes(kind.bounds[0], right)
        return
    takes_map = kind.name in ("record", "text_map")
    yield ": of another type", [] if takes_map else {}
    if kind.name == "text" and kind.bounds[0] > _LONGEST_TEXT:
        return
    if kind.name in _WRONG:
        yield from _WRONG[kind.name](kind, right)


_EMPTY: dict[str, Any] = {"text": "", "pattern": "", "record": {}, "text_map": {}, "data": b""}


def wrong_maps(
    record: type, right: dict[str, Any], full: dict[str, Any] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every way in which one field of a map is wrong; `full` has right values for more fields."""
    for column in columns_of(record):
        if column.required:
            lacking = {key: value for key, value in right.items() if key != column.key}
            yield f".{column.key}: missing", lacking
        value = (full or right).get(column.key, _EMPTY.get(column.kind.name, []))
        for label, wrong in _mistakes(column.kind, value):
            yield f".{column.key}{label}", {**right, column.key: wrong}


# -- files ----------------------------------------------------------------------------------------


def _binary(name: str, raw: dict[str, Any]) -> Vector:
    return {"name": name, "hex": cbor2.dumps(raw).hex(), "wire": to_json(raw)}


_LINK_KEYS = {column.key for column in columns_of(Linked)}


def _refused(raw: dict[str, Any], full: dict[str, Any], record: type) -> list[Vector]:
    wrong_link = {f".{key}" for key in _LINK_KEYS} if record not in (Seen, Header) else set()
    return [
        {"name": label.removeprefix("."), "hex": cbor2.dumps(wrong).hex()}
        for label, wrong in wrong_maps(record, raw, full)
        # What is wrong with a link's fields is told once, with `seen`.
        if label.partition(":")[0] not in wrong_link
    ]


def _message_file(code: str, message_class: type[Linked]) -> Vector:
    full = dataclasses.replace(examples.FULL[code], **_STAMPS)
    least = examples.LEAST.get(code, examples.FULL[code])
    least_raw = cbor2.loads(encode(least))
    spelled_out = {"s": "", "c": "", "e": 0, "n": 0, "q": 0}
    other_order = {**_UNKNOWN, **dict(reversed(least_raw.items())), **spelled_out}
    full_raw = cbor2.loads(encode(full))
    full_name = "every field" if code in examples.LEAST else "fields of the link too"
    return {
        "message": code,
        "written": [
            _binary("nothing but what is required", least_raw),
            _binary(full_name, full_raw),
        ],
        "accepted": [
            _binary("unknown key, defaults spelled out, another order", other_order)
            | {"same_as": "nothing but what is required"}
        ],
        "refused": _refused(least_raw, full_raw, message_class),
    }


def _header_file() -> Vector:
    least, full = examples.HEADER_LEAST, examples.HEADER
    least_raw = cbor2.loads(encode_header(least))
    full_raw = cbor2.loads(encode_header(full))
    return {
        "part": "header",
        "written": [
            _binary("nothing but what is required, a named function", least_raw),
            _binary("every field", full_raw),
        ],
        "accepted": [
            _binary("unknown key, another order", {**_UNKNOWN, **dict(reversed(least_raw.items()))})
            | {"same_as": "nothing but what is required, a named function"}
        ],
        "refused": _refused(least_raw, full_raw, Header),
    }


def _document_file(branch: str, document_class: type) -> Vector:
    text = encode_json(examples.DOCUMENTS[branch]).decode()
    found = json.loads(text)
    least = {
        column.key: found[column.key] for column in columns_of(document_class) if column.required
    }
    refused = [
        {"name": label.removeprefix("."), "text": json.dumps(wrong, ensure_ascii=False)}
        for label, wrong in wrong_maps(document_class, least, found)
        if not label.endswith("too long")
    ]
    return {
        "document": branch,
        "written": [{"name": "every field", "text": text}],
        "accepted": [
            {"name": "nothing but what is required", "text": json.dumps(least)},
            {"name": "unknown key", "text": json.dumps({**_UNKNOWN, **found})},
        ],
        "refused": [
            *refused,
            {"name": "no object", "text": "[]"},
            {"name": "no JSON", "text": text[:-1]},
        ],
    }


def _envelope_file() -> Vector:
    return {
        "about": "refused whatever the message: not CBOR, not plain, or not in its one form",
        "refused": [
            {"name": name, "hex": data.hex()} for name, data in examples.REFUSED_ENVELOPES.items()
        ],
    }


def _tag_file() -> Vector:
    vectors = []
    for key, task, assignment, low, high, device in (
        (examples.KEY, examples.TASK, 3 * 2**40 + 17, 0, 2, "pi-1"),
        (examples.KEY, examples.TASK, 3 * 2**40 + 17, 0, 2, "pi-2"),
        (examples.KEY, examples.TASK, 3 * 2**40 + 18, 0, 2, "pi-1"),
        (bytes(16), "0" * 13 + "-0", 0, 0, 0, "a"),
        (b"\xff" * 16, "v" * 13 + "-" + "v" * 13, 2**63 - 1, 2**32 - 1, 2**32, "z" * 32),
    ):
        said = cbor2.dumps([task, assignment, low, high, device])
        tag = slice_tag(key, task, assignment, low, high, device)
        vectors.append(
            {
                "key": {"hex": key.hex()},
                "task": task,
                "assignment": assignment,
                "low": low,
                "high": high,
                "device": device,
                "input": {"hex": said.hex()},
                "tag": {"hex": tag.hex()},
            }
        )
    return {
        "about": "a slice's tag: BLAKE2s of 16 bytes, keyed, over the CBOR of the five",
        "tags": vectors,
    }


def _parts_file() -> Vector:
    message = Answer(id=1, body=bytes(range(256)) * 5)
    whole = encode(message)
    parts = cut_parts(whole, 1, PACKET_BYTES_MIN)
    return {
        "about": "one message and the parts it goes in at a packet limit of 1024 bytes",
        "packet_bytes_max": PACKET_BYTES_MIN,
        "whole": {"hex": whole.hex()},
        "parts": [
            {"hex": encode(dataclasses.replace(part, **{**_STAMPS, "n": n})).hex()}
            for n, part in enumerate(parts, start=1)
        ],
    }


def _calls_file() -> Vector:
    calls = {
        "two positional arguments": [0, [3, "red"]],
        "none": [0, []],
        "keyword arguments": [0, [], {"size": 2}],
        "every plain value": [
            0,
            [None, True, -1, 2**64 - 1, 0.5, "é", b"\x00\xff", [1, []], {"k": {}}],
        ],
    }
    items = {
        "a value": [True],
        "none": [None],
        "a list": [[1, 2.5, "x"]],
        "an error that no user's code raised": dict(examples.ERROR_ITEM),
    }
    return {
        "about": (
            "what byte strings hold: `calls` of pages and assignments, `data` of outcomes; "
            "plain values, which is all that a microcontroller gets and gives"
        ),
        "calls": [_binary(name, call) for name, call in calls.items()],  # type: ignore[arg-type]
        "array_of_calls": {
            "hex": cbor2.dumps([cbor2.dumps(call) for call in calls.values()]).hex()
        },
        "outcomes": [_binary(name, item) for name, item in items.items()],  # type: ignore[arg-type]
        "array_of_outcomes": {"hex": cbor2.dumps(list(items.values())).hex()},
    }


def files() -> dict[str, str]:
    """Path below the vectors' folder -> the file's text."""
    found: dict[str, Vector] = {
        "envelope.json": _envelope_file(),
        "header.json": _header_file(),
        "slice-tag.json": _tag_file(),
        "parts.json": _parts_file(),
        "calls.json": _calls_file(),
        "mcu.json": story(),
    }
    for code, message_class in CBOR_MESSAGES.items():
        found[f"messages/{code}.json"] = _message_file(code, message_class)
    for branch, document_class in JSON_DOCUMENTS.items():
        found[f"documents/{branch}.json"] = _document_file(branch, document_class)
    return {path: _written(content) for path, content in found.items()}


def _written(content: Vector) -> str:
    """JSON with one vector a line, so that a difference shows which vector differs."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list):
            items = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value)
            lines.append(f"  {json.dumps(key)}: [\n{items}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make or check the golden vectors of the wire.")
    parser.add_argument("--write", action="store_true", help="write them (else: list differences)")
    write = parser.parse_args().write
    wanted = files()
    present = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("**/*.json")}
    differing = sorted(present - wanted.keys())
    for path in differing:
        if write:
            (FOLDER / path).unlink()
    for path, text in wanted.items():
        target = FOLDER / path
        if path in present and target.read_text() == text:
            continue
        differing.append(path)
        if write:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    for path in differing:
        print(f"{'written' if write else 'differs'}: {path}")
    return 0 if write or not differing else 1


if __name__ == "__main__":
    sys.exit(main())
