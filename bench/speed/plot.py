"""The figures against their floors, as a picture that any browser shows."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from speed.floors import FLOORS

__all__ = ["write_plot"]

ROW = 22
LEFT = 340
WIDTH = 420
DECADES = 1.0
"""Of ratio shown on either side of the floor."""
COLOURS = {"mosquitto": "#2a6f97", "embedded": "#c77d31"}


def write_plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """How many times better than its floor each figure is, on a logarithmic scale.

    Args:
        rows: Of one run: engine, figure, value.
        path: Of the SVG file.
    """
    shown = [row for row in rows if row["figure"] in FLOORS]
    height = ROW * (len(shown) + 2)
    middle = LEFT + WIDTH / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 90}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height - ROW}" stroke="#888"/>',
        f'<text x="{middle}" y="{height - 6}" text-anchor="middle">floor (right is better)</text>',
    ]
    for number, row in enumerate(shown):
        bounds = FLOORS[row["figure"]]
        value = max(float(row["value"]), 1e-9)
        ratio = value / bounds.floor if bounds.more_is_better else bounds.floor / value
        length = max(-1.0, min(1.0, math.log10(ratio) / DECADES)) * WIDTH / 2
        top = ROW * number + 4
        parts += [
            f'<text x="{LEFT - 8}" y="{top + 12}" text-anchor="end">{escape(row["figure"])}</text>',
            f'<rect x="{middle + min(0.0, length):.1f}" y="{top}" width="{abs(length):.1f}" '
            f'height="{ROW - 7}" fill="{COLOURS[row["engine"]]}"/>',
            f'<text x="{LEFT + WIDTH + 6}" y="{top + 12}">{ratio:.2f} {row["engine"][:4]}</text>',
        ]
    path.write_text("\n".join([*parts, "</svg>", ""]))
