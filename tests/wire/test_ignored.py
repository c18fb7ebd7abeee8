"""Keys that nobody knows are ignored, counted, and told of once."""

import cbor2
import pytest

from forage_wire.codec import decode, decode_json, encode, encode_json
from forage_wire.ignored import KEYS_IGNORED, IgnoredKeys, note_ignored
from forage_wire.messages import DevicePresence, Submit, Trim
from wire.examples import DOCUMENTS, FULL


@pytest.mark.parametrize("name", sorted(FULL))
def test_a_message_of_our_own_version_has_no_unknown_key(name: str) -> None:
    decode(encode(FULL[name]))
    assert KEYS_IGNORED == {}


def test_keys_are_met_in_messages_in_what_they_are_made_of_and_in_documents() -> None:
    raw = cbor2.loads(encode(FULL["submit"]))
    raw["zz"] = 1
    raw["p"][0]["yy"] = [1]
    message = decode(cbor2.dumps(raw))
    assert isinstance(message, Submit)
    document = encode_json(DOCUMENTS["device-presence"])
    decode_json(document[:-1] + b',"mood":"good"}', DevicePresence)
    assert KEYS_IGNORED == {"Submit.zz": 1, "Page.yy": 1, "DevicePresence.mood": 1}


def test_each_kind_of_key_is_told_of_once_for_each_sender_and_counted_always() -> None:
    ignored = IgnoredKeys()
    raw = {**cbor2.loads(encode(Trim(rows=()))), "zz": 1}
    for _ in range(3):
        decode(cbor2.dumps(raw))
    assert ignored.take("pi1") == "unknown keys ignored from=pi1 keys='Trim.zz'"
    decode(cbor2.dumps(raw))
    assert ignored.take("pi1") == ""
    decode(cbor2.dumps(raw))
    assert "from=pi2" in ignored.take("pi2")
    assert ignored.count == 5
    assert KEYS_IGNORED == {}


def test_whoever_invents_ever_new_keys_fills_neither_memory_nor_log() -> None:
    ignored = IgnoredKeys()
    told = 0
    for number in range(2_000):
        note_ignored("Trim", f"{number:x}" * 100)
        if number % 400 == 0:
            told += bool(ignored.take("pi1"))
    assert len(KEYS_IGNORED) <= 256
    assert told == 2
    assert "\n" not in ignored.take("pi1")
