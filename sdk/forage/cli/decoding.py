"""`forage decode`: one message, from hexadecimal text, a file or stdin, read for people."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from forage.cli.endings import Ending
from forage.cli.reading import one_line, read_payload
from forage_wire.errors import DecodeError

__all__ = ["command"]

_BYTES_MAX = 128 << 20
_HEX = re.compile(rb"(0[xX])?[0-9A-Fa-f\s:]+")


@click.command("decode")
@click.argument("source", default="-", metavar="[HEX|FILE|-]")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print.",
)
def command(source: str, output: str) -> None:
    """Show one message: hexadecimal text, a file with its bytes, or stdin (-).

    \b
    forage decode a161746462656174
    mosquitto_sub -C 1 -t forage/1/outbox/+ -N | forage decode
    """
    data = _bytes_of(source)
    try:
        kind, content = read_payload(data)
    except DecodeError as error:
        raise Ending(
            f"These {len(data)} bytes are no message of forage ({error}); they begin with "
            f"{data[:16].hex(' ') or 'nothing'}. `forage watch` shows whole messages as they pass."
        ) from None
    if output == "json":
        click.echo(json.dumps({"kind": kind, "content": content}, ensure_ascii=False, indent=2))
        return
    click.secho(kind, bold=True)
    for line in _lines(content, "  "):
        click.echo(line)


def _bytes_of(source: str) -> bytes:
    if source == "-":
        data = sys.stdin.buffer.read(_BYTES_MAX)
    elif _HEX.fullmatch(os.fsencode(source)) and not Path(source).is_file():
        data = source.encode()
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise Ending(
                f"{source!r} is neither hexadecimal text nor a file that can be read "
                f"({error.strerror}); give one of them, or - for stdin."
            ) from None
    # Hexadecimal text is no CBOR map and no JSON: what holds nothing else is meant as that.
    text = data.strip()
    if text and _HEX.fullmatch(text):
        digits = re.sub(rb"^0[xX]|[\s:]", b"", text)
        if len(digits) % 2:
            raise Ending(f"Hexadecimal text has two digits a byte; these are {len(digits)}.")
        return bytes.fromhex(digits.decode())
    return data


def _lines(content: Any, indent: str) -> list[str]:
    """A structure over several lines, as deep as it goes."""
    if not isinstance(content, dict):
        return [f"{indent}{one_line(content)}"]
    lines = []
    for key, value in content.items():
        nested = value if isinstance(value, list) else [value]
        if nested and all(isinstance(item, dict) for item in nested):
            for item in nested:
                lines += [f"{indent}{key}", *_lines(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}  {one_line(value)}")
    return lines
