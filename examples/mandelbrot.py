"""A picture of the Mandelbrot set, computed in tiles and written as PNG.

    python examples/mandelbrot.py mandelbrot.png
    python examples/mandelbrot.py seahorses.png --centre -0.7436 0.1318 --width 0.008 --depth 500

The tiles take very different times, some of them a hundred times as long as others: that is what a
fleet's scheduler has to even out. They are put in place as they come. Without --broker, devices are
started on this machine for the while. Nothing but the standard library is needed.
"""

import argparse
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forage

TILE = 40
"""Pixels a side."""


def tile(real: float, imaginary: float, step: float, columns: int, rows: int, depth: int) -> bytes:
    """Grey values of one tile, row by row. Runs on a device.

    Args:
        real: Of the upper left pixel.
        imaginary: Likewise; it falls from row to row.
        step: From pixel to pixel.
        columns: Of the tile.
        rows: Of the tile.
        depth: Iterations after which a point counts as inside (0, black).
    """
    grey = bytearray()
    for row in range(rows):
        y = imaginary - row * step
        for column in range(columns):
            point = complex(real + column * step, y)
            z = 0j
            for count in range(depth):
                if z.real * z.real + z.imag * z.imag > 4:
                    grey.append(255 - 215 * count // depth)
                    break
                z = z * z + point
            else:
                grey.append(0)
    return bytes(grey)


def png(width: int, height: int, grey: bytes) -> bytes:
    """A PNG of 8-bit grey values, row by row (ISO/IEC 15948)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    lines = b"".join(b"\0" + grey[at : at + width] for at in range(0, width * height, width))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def picture(
    client: forage.Client, columns: int, rows: int, centre: complex, width: float, depth: int
) -> bytes:
    """All grey values, row by row."""
    step = width / columns
    left = centre.real - width / 2
    top = centre.imag + step * rows / 2
    places = [(x, y) for y in range(0, rows, TILE) for x in range(0, columns, TILE)]
    sizes = [(min(TILE, columns - x), min(TILE, rows - y)) for x, y in places]
    batch = client.submit_all(
        tile,
        [left + x * step for x, _ in places],
        [top - y * step for _, y in places],
        [step] * len(places),
        [size[0] for size in sizes],
        [size[1] for size in sizes],
        [depth] * len(places),
    )
    where = {future.id: index for index, future in enumerate(batch)}
    grey = bytearray(columns * rows)
    for done, future in enumerate(batch.as_completed(), 1):
        (x, y), (across, down) = places[where[future.id]], sizes[where[future.id]]
        values = future.result()
        for row in range(down):
            at = (y + row) * columns + x
            grey[at : at + across] = values[row * across : (row + 1) * across]
        if sys.stderr.isatty():
            print(f"\r{done} of {len(places)} tiles", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return bytes(grey)


@contextmanager
def connected(broker: str | None, devices: int) -> Iterator[forage.Client]:
    """A client of a fleet that is there, or of one on this machine for the while."""
    if broker is not None:
        with forage.connect(broker) as client:
            yield client
    else:
        with forage.LocalCluster(devices=devices) as cluster, cluster.client() as client:
            yield client


def main(argv: list[str] | None = None) -> int:
    """Read the command line, do the work, write the file."""
    parser = argparse.ArgumentParser(description="Draw the Mandelbrot set.")
    parser.add_argument("file", nargs="?", type=Path, default=Path("mandelbrot.png"))
    parser.add_argument("--size", type=int, nargs=2, default=(600, 400), metavar=("X", "Y"))
    parser.add_argument("--centre", type=float, nargs=2, default=(-0.6, 0.0), metavar=("RE", "IM"))
    parser.add_argument("--width", type=float, default=3.2, help="of the part that is shown")
    parser.add_argument("--depth", type=int, default=150, help="iterations at most")
    parser.add_argument("--broker", help="use this fleet in place of one on this machine")
    parser.add_argument("--devices", type=int, default=3, help="how many to start here")
    arguments = parser.parse_args(argv)
    columns, rows = arguments.size
    with connected(arguments.broker, arguments.devices) as client:
        grey = picture(
            client, columns, rows, complex(*arguments.centre), arguments.width, arguments.depth
        )
    arguments.file.write_bytes(png(columns, rows, grey))
    print(f"{arguments.file}: {columns} x {rows}, {grey.count(0) / len(grey):.0%} of it inside")
    return 0


if __name__ == "__main__":
    sys.exit(main())
