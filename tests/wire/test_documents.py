"""The pages for people: what can be checked of them is true."""

import json
import re
from pathlib import Path

import pytest
import yaml

import forage_wire
from forage_wire import limits
from forage_wire.codec import decode_json, encode
from forage_wire.documents import DeviceCapabilities
from forage_wire.messages import CBOR_MESSAGES, SESSION_PATTERN, Beat
from forage_wire.topics import Topics

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = ROOT / "schemas" / "PROTOCOL.md"
FIRMWARE = ROOT / "firmware-notes" / "README.md"
ASYNCAPI = Path(forage_wire.__file__).parent / "asyncapi.yaml"
PAGES = [PROTOCOL, FIRMWARE]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert len(targets) >= 3
    for target in targets:
        assert (page.parent / target).exists(), target


def test_the_table_of_topics_is_the_asyncapi_documents() -> None:
    document = yaml.safe_load(ASYNCAPI.read_text())
    addresses = {
        channel["address"].removeprefix("{root}/1/"): name
        for name, channel in document["channels"].items()
    }
    sends = {
        operation["channel"]["$ref"].rpartition("/")[2]: operation["bindings"]["mqtt"]
        for operation in document["operations"].values()
        if operation["action"] == "send"
    }
    rows = re.findall(
        r"^\| `([^`]+)` \| ([^|]+) \| (JSON|CBOR|text) \| (\d)[^|]* \| ([^|]+) \|$",
        PROTOCOL.read_text(),
        re.M,
    )
    assert {row[0] for row in rows} == addresses.keys()
    for address, writers, form, qos, retained in rows:
        binding = sends[addresses[address]]
        assert binding["qos"] == int(qos), address
        assert binding["retain"] == (retained not in ("no", "never")), address
        assert (form == "JSON") == binding["retain"], address
        # A client's presence is its own; a verdict is the controller's, and so on.
        writer = writers.split()[0]
        operations = document["operations"]
        assert f"{writer}-sends-{addresses[address]}" in operations, address


def test_numbers_in_the_protocols_page_are_the_limits() -> None:
    text = " ".join(PROTOCOL.read_text().split())
    for said in (
        f"pages** of at most {limits.CALLS_PER_PAGE_MAX:,} calls",
        f"At most {limits.DEVICE_WINDOW} messages of a device's link, {limits.CLIENT_WINDOW} of",
        f"bare `seen` {limits.BARE_SEEN_AFTER_MS} ms after",
        f"put early messages in order (up to {limits.REORDER_MAX})",
        f"more than {limits.NESTING_MAX} arrays and maps within each other",
        f"pieces of at most {limits.PART_BYTES // 1024} KiB",
        f"`collected` every {limits.COLLECTED_EVERY_MS} ms or {limits.COLLECTED_EVERY_CALLS:,}",
        f"a line above {limits.LOG_LINE_BYTES_MAX // 1024} KiB is cut",
        f"its worker process died; final at {limits.DEATHS_MAX})",
        f"final at {limits.LOSSES_MAX} on {limits.LOSS_DEVICES_MIN} devices",
        f"after {limits.WAIT_MS_DEFAULT // 1000} s without any",
        f"| {limits.PACKET_BYTES_MAX // 1024} KiB, or less where an end announces less "
        f"({limits.PACKET_BYTES_MIN // 1024} KiB at least) |",
        f"one outcome's value, one checkpoint | {limits.CALL_BYTES_MAX // 2**20} MiB |",
        f"unfinished ones at a receiver | {limits.UNFINISHED_PART_BYTES_MAX // 2**20} MiB |",
        f"ranges in one list | {limits.LIST_ITEMS_MAX:,} (",
    ):
        assert said in text, said
    assert limits.LIST_ITEMS_MAX == limits.RANGES_MAX
    assert (limits.REPEAT_AFTER_MS, limits.REPEAT_AFTER_MS_MAX) == (1_000, 8_000)


def test_the_firmware_page_speaks_of_topics_and_messages_that_exist() -> None:
    text = FIRMWARE.read_text()
    topics = Topics()
    for topic in re.findall(r"^\| `(forage/1/[^`]+)`", text, re.M):
        concrete = topic.replace("+", "main").replace("{user}", "ann")
        concrete = concrete.replace("{client}", "0" * 13).replace("{task}", "0" * 13 + "-0")
        assert topics.parse(concrete) is not None, topic
    table = text.partition("| `t` | you |")[2].partition("\n\n")[0]
    named = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| ([^|]+) \|", table, re.M)))
    assert len(named) >= 7
    for code in named:
        assert code in CBOR_MESSAGES, code
    for session in re.findall(r"`([0-9a-f]{16}-\d+)`", text):
        assert re.fullmatch(SESSION_PATTERN, session)


def test_the_firmware_pages_capabilities_are_taken() -> None:
    example = re.search(r"```json\n(.*?)```", FIRMWARE.read_text(), re.S)
    assert example is not None
    found = decode_json(json.dumps(json.loads(example[1])).encode(), DeviceCapabilities)
    assert found.profile == "mcu"
    assert found.packet_bytes_max >= limits.PACKET_BYTES_MIN


def test_the_firmware_pages_figures_are_true() -> None:
    text = FIRMWARE.read_text()
    shortest = encode(Beat(session="00000000000000a7-1"))
    longest = encode(Beat(session="00000000000000a7-4294967295"))
    assert f"{len(shortest)} bytes for a short session" in text
    assert len(longest) <= 40
    assert "| a beat | 40 bytes |" in text
    assert f"| a session | {len('00000000000000a7-4294967295')} characters |" in text
    assert f"{limits.PACKET_BYTES_MIN:,} at least" in text
