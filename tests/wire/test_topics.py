"""Topics: built and parsed in one place, and nothing else is taken for one."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forage_wire.topics import (
    CLIENT_PATTERN,
    NAME_PATTERN,
    TASK_PATTERN,
    Topics,
    call_name,
    fold_name,
    is_name,
    is_task,
    split_call,
)

NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)
CLIENTS = st.from_regex(CLIENT_PATTERN, fullmatch=True)
TASKS = st.from_regex(TASK_PATTERN, fullmatch=True)
CLIENT = "0c4t2v9k1m7ab"
TASK = CLIENT + "-2g"


@given(NAMES, NAMES, NAMES, CLIENTS, TASKS, NAMES)
@settings(max_examples=60, deadline=None)
def test_every_topic_parses_to_what_it_was_built_from(
    root: str, device: str, user: str, client: str, task: str, controller: str
) -> None:
    topics = Topics(root)
    owner = {"user": user, "client": client}
    for topic, branch, levels in (
        (topics.device_presence(device), "device-presence", {"device": device}),
        (topics.device_capabilities(device), "device-capabilities", {"device": device}),
        (topics.device_load(device), "device-load", {"device": device}),
        (topics.controller_presence(controller), "controller-presence", {"controller": controller}),
        (topics.controller_stats(controller), "controller-stats", {"controller": controller}),
        (
            topics.verdict(controller, device),
            "verdict",
            {"controller": controller, "device": device},
        ),
        (topics.client_presence(user, client), "client-presence", owner),
        (topics.status(user, client, task), "status", {**owner, "task": task}),
        (topics.log(user, client, task, device), "log", {**owner, "task": task, "device": device}),
        (topics.inbox(device), "inbox", {"device": device}),
        (topics.outbox(device), "outbox", {"device": device}),
        (
            topics.task(user, client, task, device),
            "task",
            {**owner, "task": task, "device": device},
        ),
        (
            topics.task(user, client, "-", device),
            "task",
            {**owner, "task": "-", "device": device},
        ),
        (topics.from_client(user, client), "from", owner),
        (topics.to_client(user, client), "to", owner),
        (topics.standby(controller), "standby", {"controller": controller}),
        (topics.replica(controller), "replica", {"controller": controller}),
    ):
        for _ in range(2):  # the second time from memory
            parsed = topics.parse(topic)
            assert parsed is not None
            assert parsed.branch == branch
            for level in ("device", "controller", "user", "client", "task"):
                assert getattr(parsed, level) == levels.get(level, "")
        assert set(topic) <= set(string.ascii_lowercase + string.digits + "_-/")
        assert Topics(root + "x" if len(root) < 32 else "x").parse(topic) is None


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "forage",
        "forage/1",
        "forage/1/",
        "forage/2/inbox/pi",
        "Forage/1/inbox/pi",
        "forage/1/inbox",
        "forage/1/inbox/",
        "forage/1/inbox/Pi",
        "forage/1/inbox/-pi",
        "forage/1/inbox/pi/more",
        "forage/1/inbox/pi\n",
        "forage/1/inbox/" + "p" * 33,
        "forage/1/inbox/" + "p" * 60_000,
        "forage/1/inbox/+",
        "forage/1/device/pi",
        "forage/1/device/pi/",
        "forage/1/device/pi/other",
        "forage/1/controller/main/device/",
        "forage/1/controller/main/device/Pi",
        f"forage/1/client/ann/{CLIENT}",
        f"forage/1/client/ann/{CLIENT[:-1]}/presence",
        f"forage/1/client/ann/{CLIENT}w/presence",
        f"forage/1/status/ann/{CLIENT}/-",
        f"forage/1/log/ann/{CLIENT}/-/pi",
        f"forage/1/task/ann/{CLIENT}/{TASK}",
        f"forage/1/task/ann/{CLIENT}/{TASK}/Pi",
        f"forage/1/task/ann/{CLIENT}/{CLIENT}/pi",
        f"forage/1/from/ann/{CLIENT}/x",
    ],
)
def test_anything_else_is_no_topic_of_ours(topic: str) -> None:
    assert Topics().parse(topic) is None


@given(st.text(max_size=60) | st.text("forage/1inbox-+#", max_size=40).map("forage/1/".__add__))
@settings(max_examples=100, deadline=None)
def test_parsing_never_raises(topic: str) -> None:
    parsed = Topics().parse(topic)
    assert parsed is None or topic.startswith("forage/1/")


def test_the_memory_of_parsed_topics_is_bounded() -> None:
    topics = Topics()
    for number in range(10_000):
        topics.parse(f"forage/1/inbox/pi-{number}")
        topics.parse("forage/1/inbox/" + "x" * 1_000 + str(number))
    assert len(topics._cache) <= 4_096
    assert max(map(len, topics._cache)) < 200


@pytest.mark.parametrize("root", ["", "Forage", "a/b", "+", "#", "-a", "a" * 33, "a b"])
def test_an_unusable_root_is_refused_in_words(root: str) -> None:
    with pytest.raises(ValueError, match="root"):
        Topics(root)


@given(st.text(max_size=50))
@settings(max_examples=200, deadline=None)
def test_any_text_folds_to_a_name(text: str) -> None:
    folded = fold_name(text, "user")
    assert is_name(folded)
    if is_name(text) and not text.endswith(("-", "_")):
        assert folded == text


def test_folding_keeps_what_it_can() -> None:
    assert fold_name("Ann.Example@Host", "user") == "ann-example-host"
    assert fold_name("Ünal", "user") == "nal"
    assert fold_name("日本", "user") == "user"


@given(TASKS, st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_calls_are_named_by_task_and_index(task: str, index: int) -> None:
    assert is_task(task)
    assert split_call(call_name(task, index)) == (task, index)
    assert split_call(task) == (task, None)


@pytest.mark.parametrize(
    "text", ["", "x", TASK + ".", TASK + ".x", TASK + ".-1", CLIENT, "." + TASK]
)
def test_what_names_neither_task_nor_call(text: str) -> None:
    assert split_call(text) is None


def test_names_are_what_every_broker_carries() -> None:
    for expression in (NAME_PATTERN, CLIENT_PATTERN, TASK_PATTERN):
        for character in "./+#$ \n\0é*":
            assert not re.fullmatch(expression, "a" * 12 + character)
