"""The page for firmware authors is true: its vectors, its topics, its figures' commands."""

import json
import re

from firmware.boards import FIRMWARE
from firmware.make_notes import BEGIN, END, PAGE, STORY, page_with

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_vectors_of_the_page_are_the_golden_ones() -> None:
    assert page_with(TEXT) == TEXT, "python tests/firmware/make_notes.py --write"


def test_every_payload_of_the_story_stands_in_the_page() -> None:
    written = re.sub(r"\s", "", TEXT.partition(BEGIN)[2].partition(END)[0])
    steps = json.loads(STORY.read_text())["steps"]
    assert len(steps) > 20
    for step in steps:
        assert step.get("hex", re.sub(r"\s", "", step.get("text", ""))) in written


def test_what_the_page_names_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (FIRMWARE / link).exists(), link


def test_the_page_fits_a_terminal() -> None:
    diagrams = TEXT.partition("## Five scenes")[2].partition("## Messages")[0]
    assert max(map(len, diagrams.splitlines())) <= 100
