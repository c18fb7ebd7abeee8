"""`asyncapi.yaml` against the code: the same topics, messages, readers and qualities of service."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import forage_wire
from forage_wire.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from forage_wire.messages import CBOR_MESSAGES, JSON_DOCUMENTS
from forage_wire.topics import Topics
from wire.rules import rule_name, rule_text

DOCUMENT = Path(forage_wire.__file__).parent / "asyncapi.yaml"
TOPICS = Topics("bus")
LEVELS = {
    "root": "bus",
    "device": "pi-1",
    "controller": "main",
    "user": "ann",
    "client": "0c4t2v9k1m7ab",
    "task": "0c4t2v9k1m7ab-2g",
}
BUILT = {
    "device-presence": TOPICS.device_presence("pi-1"),
    "device-capabilities": TOPICS.device_capabilities("pi-1"),
    "device-load": TOPICS.device_load("pi-1"),
    "controller-presence": TOPICS.controller_presence("main"),
    "controller-stats": TOPICS.controller_stats("main"),
    "verdict": TOPICS.verdict("main", "pi-1"),
    "client-presence": TOPICS.client_presence("ann", LEVELS["client"]),
    "status": TOPICS.status("ann", LEVELS["client"], LEVELS["task"]),
    "log": TOPICS.log("ann", LEVELS["client"], LEVELS["task"], "pi-1"),
    "inbox": TOPICS.inbox("pi-1"),
    "outbox": TOPICS.outbox("pi-1"),
    "task": TOPICS.task("ann", LEVELS["client"], LEVELS["task"], "pi-1"),
    "from": TOPICS.from_client("ann", LEVELS["client"]),
    "to": TOPICS.to_client("ann", LEVELS["client"]),
    "standby": TOPICS.standby("main"),
    "replica": TOPICS.replica("main"),
}
MESSAGES: dict[str, type] = {**CBOR_MESSAGES, **JSON_DOCUMENTS}
RULE_OF_CHANNEL = {
    "inbox": "inbox-message",
    "outbox": "outbox-message",
    "task": "task-message",
    "from": "from-client-message",
    "to": "to-client-message",
    "standby": "standby-message",
    "replica": "replica-message",
}


@cache
def document() -> dict[str, Any]:
    found = yaml.safe_load(DOCUMENT.read_text())
    assert isinstance(found, dict)
    return found


def resolved(reference: str) -> Any:
    assert reference.startswith("#/")
    found: Any = document()
    for step in reference[2:].split("/"):
        found = found[step]
    return found


def references(item: Any) -> list[str]:
    if isinstance(item, dict):
        inner = [found for value in item.values() for found in references(value)]
        return [*inner, item["$ref"]] if "$ref" in item else inner
    if isinstance(item, list):
        return [found for value in item for found in references(value)]
    return []


def test_it_is_an_asyncapi_3_document_of_this_protocol() -> None:
    assert document()["asyncapi"] == "3.0.0"
    assert document()["info"]["title"] == "forage"
    assert document()["info"]["version"] == f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    assert set(document()) == {
        *("asyncapi", "info", "defaultContentType", "servers", "channels"),
        *("operations", "components"),
    }
    for server in document()["servers"].values():
        assert {"host", "protocol"} <= server.keys()
    for operation in document()["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert operation.keys() <= {"action", "channel", "tags", "bindings"}
        assert operation["channel"].keys() == {"$ref"}
    for channel in document()["channels"].values():
        assert channel.keys() == {"address", "description", "parameters", "messages"}


def test_every_reference_leads_somewhere() -> None:
    found = references(document())
    assert len(found) > 100
    for reference in found:
        assert resolved(reference)


def test_channels_are_the_branches_of_topics() -> None:
    assert document()["channels"].keys() == BUILT.keys()


@pytest.mark.parametrize("branch", BUILT)
def test_an_address_is_the_topic_that_is_built_and_parses_back(branch: str) -> None:
    channel = document()["channels"][branch]
    parameters = re.findall(r"{(\w+)}", channel["address"])
    assert parameters == list(channel["parameters"])
    topic = channel["address"].format_map(LEVELS)
    assert topic == BUILT[branch]
    parsed = TOPICS.parse(topic)
    assert parsed is not None
    assert parsed.branch == branch
    for name, level in LEVELS.items():
        if name != "root":
            assert getattr(parsed, name) == (level if name in parameters else "")


def test_every_message_is_named_with_its_form_and_its_rule() -> None:
    found = document()["components"]["messages"]
    assert found.keys() == {*MESSAGES, "log-lines"}
    for key, message_class in MESSAGES.items():
        message = found[key]
        assert message["name"] == message_class.__name__
        form = "cbor" if key in CBOR_MESSAGES else "json"
        assert message["contentType"] == f"application/{form}"
        assert message["payload"]["schema"] == f"forage.cddl#{rule_name(message_class)}"
        assert rule_text(rule_name(message_class))


def test_every_message_stands_on_some_channel() -> None:
    used = {key for channel in document()["channels"].values() for key in channel["messages"]}
    assert used == document()["components"]["messages"].keys()


@pytest.mark.parametrize("branch", BUILT)
def test_a_channel_carries_what_the_schema_says(branch: str) -> None:
    keys = list(document()["channels"][branch]["messages"])
    for key in keys:
        reference = document()["channels"][branch]["messages"][key]["$ref"]
        assert reference == f"#/components/messages/{key}"
    if branch in RULE_OF_CHANNEL:
        choices = re.split(r"\s*/\s*", rule_text(RULE_OF_CHANNEL[branch]))
        assert [rule_name(CBOR_MESSAGES[key]) for key in keys] == choices
    elif branch == "log":
        assert keys == ["log-lines"]
    else:
        assert keys == [branch]


def operations(program: str, action: str) -> dict[str, dict[str, Any]]:
    """Channel -> MQTT binding of what a program sends or receives."""
    verb = {"send": "sends", "receive": "receives"}[action]
    found = {}
    for name, operation in document()["operations"].items():
        if operation["tags"] == [{"name": program}] and operation["action"] == action:
            channel = operation["channel"]["$ref"].removeprefix("#/channels/")
            assert name == f"{program}-{verb}-{channel}"
            found[channel] = operation["bindings"]["mqtt"]
    return found


def test_programs_receive_what_they_subscribe_to() -> None:
    subscriptions = {
        "controller": TOPICS.controller_subscriptions(),
        "device": TOPICS.device_subscriptions("pi-1"),
        "client": TOPICS.client_subscriptions("ann", LEVELS["client"]),
        "standby": TOPICS.standby_subscriptions("main"),
    }
    for program, filters in subscriptions.items():
        received = {
            branch: next(qos for pattern, qos in filters if matches(pattern, topic))
            for branch, topic in BUILT.items()
            if any(matches(pattern, topic) for pattern, _qos in filters)
        }
        found = operations(program, "receive")
        assert {channel: binding["qos"] for channel, binding in found.items()} == received


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT filter takes a topic."""
    expression = re.escape(pattern).replace(r"\+", "[^/]+").replace(r"\#", ".*")
    return re.fullmatch(expression, topic) is not None


def test_text_branches_alone_are_read_by_monitors_and_retained() -> None:
    text = {"log", *JSON_DOCUMENTS}
    assert operations("monitor", "receive").keys() == text
    assert operations("monitor", "send") == {}
    sent: dict[str, bool] = {}
    for program in ("device", "controller", "standby", "client"):
        for channel, binding in operations(program, "send").items():
            assert channel not in sent, "one program writes each branch"
            sent[channel] = binding["retain"]
    assert sent == {channel: channel in JSON_DOCUMENTS for channel in BUILT}
