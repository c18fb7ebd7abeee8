"""Writes the vectors into the page for firmware authors, from the golden files.

    python tests/firmware/make_notes.py --write

`test_notes.py` holds that the page has what this makes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cbor2

__all__ = ["PAGE", "page_with", "section"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "firmware-notes" / "README.md"
STORY = ROOT / "schemas" / "forage_wire" / "vectors" / "mcu.json"
BEGIN = "<!-- vectors: python tests/firmware/make_notes.py --write -->\n"
END = "<!-- end of vectors -->\n"
BYTES_PER_LINE = 32
LINE_CHARACTERS = 96
HOLDS_CBOR = ("h", "c", "d")
"""Keys whose byte strings hold CBOR themselves."""


def diagnostic(value: Any, key: str = "") -> str:
    """A value in CBOR's diagnostic notation; byte strings that hold CBOR are opened."""
    if isinstance(value, dict):
        pairs = [f"{json.dumps(name)}: {diagnostic(value[name], name)}" for name in value]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(diagnostic(item, key) for item in value) + "]"
    if isinstance(value, bytes):
        if key in HOLDS_CBOR:
            return "<<" + diagnostic(cbor2.loads(value), "" if key == "h" else key) + ">>"
        return f"h'{value.hex()}'"
    return json.dumps(value, ensure_ascii=False)


def folded(text: str) -> list[str]:
    """A long line in several, broken behind commas outside of texts."""
    lines = [""]
    in_text = False
    for piece in text.split(" "):
        if not in_text and lines[-1] and len(lines[-1]) + len(piece) >= LINE_CHARACTERS:
            lines.append(" ")
        in_text ^= piece.count('"') % 2 == 1
        lines[-1] += (" " if lines[-1].strip() else "") + piece
    return lines


def block(step: dict[str, Any], number_of: dict[str, int]) -> list[str]:
    """What a step publishes, as lines of a code block."""
    if "text" in step:
        return [step["text"]]
    earlier = number_of.get(step["hex"])
    if earlier is not None:
        return [f"the bytes of {earlier}"]
    data = step["hex"]
    width = 2 * BYTES_PER_LINE
    hexadecimal = [data[at : at + width] for at in range(0, len(data), width)]
    return [*hexadecimal, "", *folded(diagnostic(cbor2.loads(bytes.fromhex(data))))]


def section() -> str:
    """The story, a heading and a block for each step."""
    lines: list[str] = []
    number_of: dict[str, int] = {}
    for number, step in enumerate(json.loads(STORY.read_text(encoding="utf-8"))["steps"], 1):
        form = "retained" if step.get("retained") else f"QoS {step.get('qos', 1)}"
        size = f", {len(step['hex']) // 2} bytes" if "hex" in step else ""
        lines += [
            f"**{number}. {step['from']}**: {step['what']}  ",
            f"`{step['topic']}`, {form}{size}",
            "",
            "```",
            *block(step, number_of),
            "```",
            "",
        ]
        if "hex" in step:
            number_of.setdefault(step["hex"], number)
    return "\n".join(lines)


def page_with(text: str) -> str:
    """The page, with its section made anew."""
    before, _, rest = text.partition(BEGIN)
    _old, _, after = rest.partition(END)
    return before + BEGIN + "\n" + section() + END + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it; else say whether it is so")
    found = PAGE.read_text(encoding="utf-8")
    made = page_with(found)
    if parser.parse_args().write:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    return 0 if made == found else 1


if __name__ == "__main__":
    sys.exit(main())
