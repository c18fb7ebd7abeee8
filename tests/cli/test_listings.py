"""Listings as tables for people, and as JSON, lines or names for programs."""

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from forage import Attempt, Explanation
from forage.cli.decoding import command as decode_command
from forage.cli.endings import Ending
from forage.cli.output import Column, duration, print_record, print_rows
from forage.cli.task_output import missing
from forage.cli.tasks import timeline
from forage.cli.watching import filter_of

ROWS: list[dict[str, Any]] = [
    {"name": "pi-1", "labels": {"room": "attic"}, "seen": 0.5},
    {"name": "a-longer-name", "labels": {}, "seen": None},
]
COLUMNS: list[Column] = [
    ("name", lambda row: row["name"]),
    ("seen", lambda row: duration(row["seen"])),
    ("labels", lambda row: ",".join(row["labels"]) or "-"),
]


def printed(output: str, capsys: pytest.CaptureFixture[str]) -> str:
    print_rows(ROWS, COLUMNS, "name", output)
    return capsys.readouterr().out


def test_a_table_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("table", capsys).splitlines() == [
        "NAME           SEEN   LABELS",
        "pi-1           0.5 s  room",
        "a-longer-name  -      -",
    ]


def test_json_holds_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed("json", capsys)) == ROWS


def test_json_lines_hold_one_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert [json.loads(line) for line in printed("jsonl", capsys).splitlines()] == ROWS


def test_names_are_for_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("name", capsys) == "pi-1\na-longer-name\n"


def test_a_record_is_shown_a_field_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_record(ROWS[0], "name", "table")
    assert capsys.readouterr().out.splitlines() == [
        "name    pi-1",
        "labels  room=attic",
        "seen    0.5",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0.04, "0.0 s"), (9.94, "9.9 s"), (45, "45 s"), (300, "5 min"),
     (7_300, "2 h"), (200_000, "2 d")],
)  # fmt: skip
def test_durations_are_short(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_a_timeline_shows_each_attempt_in_its_time() -> None:
    lines = timeline(
        Explanation(
            name="t.0",
            state="running",
            reason="running on pi-2",
            attempts=(
                Attempt(device="pi-1", low=0, high=4, state="ended", age_s=8.0, ended_s=4.0,
                        how="its connection broke"),
                Attempt(device="pi-2", low=0, high=1, state="open", age_s=4.0),
            ),
            eligible={"pi-1": "dead", "pi-2": "yes"},
        )
    )  # fmt: skip
    assert lines == [
        "t.0 is running: running on pi-2",
        "",
        f"     8.0 s ago  pi-1  {'━' * 16}{' ' * 16}  calls 0-3: its connection broke",
        f"     4.0 s ago  pi-2  {' ' * 16}{'━' * 16}  call 0: open",
        "",
        "  can run on pi-2",
        "  cannot run on pi-1: dead",
    ]


def test_an_explanation_without_attempts_says_who_could() -> None:
    explanation = Explanation(name="t", state="queued", eligible={"a": "yes", "b": "no camera"})
    assert timeline(explanation) == [
        "t is queued", "", "  can run on a", "  cannot run on b: no camera",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "topic_filter"),
    [
        ("", "forage/1/#"),
        ("device", "forage/1/device/#"),
        ("/device/", "forage/1/device/#"),
        ("log/ann", "forage/1/log/ann/#"),
        ("inbox/+", "forage/1/inbox/+"),
        ("device/pi-1/presence", "forage/1/device/pi-1/presence"),
        ("forage/1/device/#", "forage/1/device/#"),
        ("#", "forage/1/#"),
    ],
)
def test_a_topic_may_be_typed_short(typed: str, topic_filter: str) -> None:
    assert filter_of(typed, "forage") == topic_filter


@pytest.mark.parametrize("typed", ["device/#/presence", "dev+", "a#"])
def test_what_is_no_filter_is_refused(typed: str) -> None:
    with pytest.raises(Ending, match="is not an MQTT topic filter"):
        filter_of(typed, "forage")


@pytest.mark.parametrize(
    ("seen", "kept", "rest"),
    [
        ([], [], []),
        ([], ["a", "b"], ["a", "b"]),
        (["a", "b"], ["a", "b"], []),
        (["a"], ["a", "b"], ["b"]),
        (["a", "b", "c"], ["c", "d"], ["d"]),
        (["a", "b"], ["d"], ["d"]),
        (["x", "x"], ["x", "x", "x"], ["x"]),
        (["a", "b"], ["b"], []),
    ],
)
def test_output_that_was_missed_is_added_once(
    seen: list[str], kept: list[str], rest: list[str]
) -> None:
    assert missing(seen, kept) == rest


def decoded(*words: str, data: bytes = b"") -> Result:
    return CliRunner().invoke(decode_command, list(words), input=data)


def test_a_message_is_decoded_from_hexadecimal_text_from_a_file_and_from_stdin(
    own_place: object,
) -> None:
    assert decoded("a161746462656174").output == "beat\n"
    assert decoded("a1 61 74 64 62 65 61 74").output == "beat\n"
    assert decoded("0xA161746462656174").output == "beat\n"
    with open("message", "wb") as file:
        file.write(bytes.fromhex("a161746462656174"))
    assert decoded("message").output == "beat\n"
    assert decoded("-", data=b"a161746462656174\n").output == "beat\n"
    assert decoded(data=bytes.fromhex("a161746462656174")).output == "beat\n"


def test_a_decoded_message_is_json_where_that_is_asked_for() -> None:
    result = decoded("a261746462656174617372303132333435363738396162636465662d31", "-o", "json")
    assert json.loads(result.output) == {
        "kind": "beat",
        "content": {"session": "0123456789abcdef-1"},
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["zz"], "'zz' is neither hexadecimal text nor a file that can be read"),
        (["a1f"], "two digits a byte; these are 3"),
        (["a1"], "These 1 bytes are no message of forage (not CBOR: it ends too early)"),
        ([], "These 0 bytes are no message of forage"),
    ],
)
def test_what_cannot_be_decoded_is_said(words: list[str], sentence: str) -> None:
    result = decoded(*words)
    assert isinstance(result.exception, Ending)
    assert sentence in str(result.exception)
    assert not isinstance(result.exception, click.ClickException)
