"""What `forage demo` shows: events as lines, and on a terminal a picture of the fleet below them."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import click

from forage.cli.common import is_plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

__all__ = ["DeviceRow", "Screen", "screen"]

_TELL_EVERY = 0.1
"""Of the work: without a terminal, progress is said so often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One device in the picture."""

    name: str
    pid: int
    state: str
    holds: int
    """Calls that it runs or has waiting."""
    done: int
    """Calls whose outcomes came from it."""


class Screen(Protocol):
    """Where the demo says what happens."""

    def event(self, text: str, *, style: str = "") -> None:
        """Something happened; kept on the screen, with the time since the start."""

    def picture(self, title: str, done: int, total: int, devices: Sequence[DeviceRow]) -> None:
        """How far it is now; replaces the picture before. No devices: only the bar."""

    def text(self, line: str = "", *, style: str = "") -> None:
        """A line that is no event."""


class _PlainScreen:
    """Lines, for files, pipes and those who want no colours."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._told = 0.0

    def event(self, text: str, *, style: str = "") -> None:
        del style
        click.echo(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def picture(self, title: str, done: int, total: int, devices: Sequence[DeviceRow]) -> None:
        if not done:
            self._told = 0.0
        part = done / total
        if part < min(1.0, self._told + _TELL_EVERY) or part == self._told:
            return
        self._told = part
        shares = ", ".join(f"{row.name} {row.done:,}" for row in devices)
        self.event(f"{title}: {done:,} of {total:,}" + (f" ({shares})" if shares else ""))

    def text(self, line: str = "", *, style: str = "") -> None:
        del style
        click.echo(line)


_STYLES: Mapping[str, str] = {
    "online": "green",
    "lost": "bold red",
    "killed": "bold red",
    "suspect": "yellow",
}


class _LiveScreen:
    """Events scroll above a picture that is drawn anew."""

    def __init__(self, began: float, console: "Console", live: "Live") -> None:
        self._began = began
        self._console = console
        self._live = live

    def event(self, text: str, *, style: str = "") -> None:
        moment = f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]  "
        self._console.print(
            moment + (f"[{style}]{text}[/{style}]" if style else text), highlight=False
        )

    def picture(self, title: str, done: int, total: int, devices: Sequence[DeviceRow]) -> None:
        from rich.console import Group

        parts: list[RenderableType] = [""]
        if devices:
            parts += [_table(devices), ""]
        parts.append(_bar(title, done, total))
        self._live.update(Group(*parts))

    def text(self, line: str = "", *, style: str = "") -> None:
        self._live.update("")
        self._console.print(
            line, style=style or None, highlight=False, markup=False, soft_wrap=True
        )


def _table(devices: Sequence[DeviceRow]) -> "RenderableType":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("  device")
    table.add_column("pid", justify="right")
    table.add_column("state")
    table.add_column("holds", justify="right")
    table.add_column("files done", justify="right")
    for row in devices:
        style = _STYLES.get(row.state, "")
        state = f"[{style}]{row.state}[/{style}]" if style else row.state
        holds = str(row.holds) if row.holds else "-"
        table.add_row(f"  {row.name}", str(row.pid), state, holds, f"{row.done:,}")
    return table


def _bar(title: str, done: int, total: int) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    line = Table.grid(padding=(0, 2))
    line.add_column(width=2)
    line.add_column()
    line.add_column(width=40)
    line.add_column()
    bar = ProgressBar(total=total, completed=done, width=40)
    line.add_row("", title, bar, f"{done:,} of {total:,}")
    return line


@contextmanager
def screen(began: float) -> Iterator[Screen]:
    """The screen that fits stdout, for as long as the demo runs.

    Args:
        began: `time.monotonic()` of the start.
    """
    if is_plain(sys.stdout):
        yield _PlainScreen(began)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live("", console=console, refresh_per_second=10, transient=True) as live:
        yield _LiveScreen(began, console, live)
