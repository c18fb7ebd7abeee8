"""How listings are printed: as a table for people, or as JSON, JSON Lines or names for programs.

A row is a record's fields by name; a column is a title and how to read its cell from a row.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

__all__ = [
    "Column",
    "duration",
    "output_flag",
    "print_record",
    "print_rows",
    "to_json",
]

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], object]]

FORMATS = ("table", "json", "jsonl", "name")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def output_flag(command: _Command) -> _Command:
    """The flag -o; the command gets it as `output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to print.",
    )(command)


def to_json(value: Any) -> str:
    """One line of JSON; what JSON cannot hold appears as Python writes it."""
    return json.dumps(value, ensure_ascii=False, default=repr)


def print_rows(rows: Sequence[Row], columns: Sequence[Column], name: str, output: str) -> None:
    """Print a listing on stdout.

    Args:
        rows: What there is.
        columns: Of the table.
        name: The field that names a row.
        output: One of `table`, `json`, `jsonl`, `name`.
    """
    match output:
        case "json":
            click.echo(json.dumps(rows, ensure_ascii=False, indent=2, default=repr))
        case "jsonl":
            for row in rows:
                click.echo(to_json(row))
        case "name":
            for row in rows:
                click.echo(row[name])
        case _:
            _print_table(rows, columns)


def _print_table(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Aligned columns. Never cut and never wrapped: a table is also read by programs."""
    cells = [[str(read(row)) for _, read in columns] for row in rows]
    titles = [title.upper() for title, _ in columns]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    click.secho(_line(titles, widths), bold=True)
    for line in cells:
        click.echo(_line(line, widths))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def print_record(row: Row, name: str, output: str) -> None:
    """Print one thing: as a table, a field a line."""
    match output:
        case "json":
            click.echo(json.dumps(row, ensure_ascii=False, indent=2, default=repr))
        case "jsonl":
            click.echo(to_json(row))
        case "name":
            click.echo(row[name])
        case _:
            width = max(map(len, row))
            for key, value in row.items():
                click.echo(f"{click.style(f'{key:<{width}}', bold=True)}  {_cell(value)}".rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def duration(seconds: float | None) -> str:
    """Seconds for people: 0.4 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, size, unit in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
