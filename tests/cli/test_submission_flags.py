"""The flags of `run` and `map` become options of the submission, zeros and refusals too."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from forage.cli.submitting import submission_flags, with_options


class Options:
    """Takes what a client's `options` would be given."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def options(self, **given: Any) -> "Options":
        self.given = given
        return self


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("", {}),
        ("--retries 0 --wait-s 0", {"retries": 0, "wait_s": 0.0}),
        ("--backoff-s 0 --deadline-s 2.5", {"backoff_s": 0.0, "deadline_s": 2.5}),
        ("--exclusive --lease-s 3", {"exclusive": True, "lease_s": 3.0}),
        ("--no-clones", {"clones": False}),
        ("--clones", {"clones": True}),
        ("--at-most-once --device a --device b", {"at_most_once": True, "device": ["a", "b"]}),
    ],
)
def test_flags_are_the_options_that_they_say(line: str, given: dict[str, Any]) -> None:
    client = Options()

    @click.command()
    @submission_flags
    def command(**flags: Any) -> None:
        with_options(client, flags)  # type: ignore[arg-type]

    result = CliRunner().invoke(command, line.split())
    assert result.exit_code == 0, result.output
    assert client.given == given
