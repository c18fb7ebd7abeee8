"""Which files of a folder are copies of each other, whole or in part?

    python examples/near_duplicates.py ~/src
    python examples/near_duplicates.py ~/src --broker mqtt://login:password@broker.example

Each file is fingerprinted on a device: its words are hashed in overlapping runs, and of each window
of hashes the smallest is kept ("winnowing", as plagiarism detectors do: S. Schleimer, D. Wilkerson,
A. Aiken, Winnowing: Local Algorithms for Document Fingerprinting, SIGMOD 2003). Any passage of at
least RUN + WINDOW - 1 common words leaves a common fingerprint, wherever it stands. Here the
fingerprints are joined. Without --broker, devices are started on this machine for the while.
"""

import argparse
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from zlib import crc32

import forage

RUN = 8
"""Words that are hashed together."""
WINDOW = 6
"""Hashes of which the smallest is kept."""
COMMON_MAX = 20
"""A fingerprint in more files than this is a licence or the like, and says nothing."""
FILE_BYTES_MAX = 4_000_000


def fingerprints(content: bytes) -> list[int]:
    """The fingerprints of one file, ascending. Runs on a device."""
    words = re.findall(rb"\w+|[^\w\s]", content)
    hashes = [crc32(b" ".join(words[at : at + RUN])) for at in range(len(words) - RUN + 1)]
    windows = range(max(1, len(hashes) - WINDOW + 1))
    return sorted({min(hashes[at : at + WINDOW]) for at in windows}) if hashes else []


def likeness(prints: dict[str, list[int]]) -> list[tuple[float, str, str]]:
    """(share of the smaller file found in the other, name, name), most alike first."""
    holders: dict[int, list[str]] = defaultdict(list)
    for name, found in prints.items():
        for fingerprint in found:
            holders[fingerprint].append(name)
    shared: dict[tuple[str, str], int] = defaultdict(int)
    for names in holders.values():
        if len(names) <= COMMON_MAX:
            for pair in combinations(names, 2):
                shared[pair] += 1
    rows = [
        (count / min(len(prints[one]), len(prints[other])), one, other)
        for (one, other), count in shared.items()
    ]
    return sorted(rows, key=lambda row: (-row[0], row[1], row[2]))


def files_of(folder: Path, pattern: str) -> list[Path]:
    """What is to be compared, in a fixed order."""
    found = [path for path in folder.rglob(pattern) if path.is_file()]
    return sorted(path for path in found if 0 < path.stat().st_size <= FILE_BYTES_MAX)


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
    """Read the command line, do the work, print the pairs."""
    library = Path(sysconfig.get_paths()["stdlib"]) / "encodings"
    parser = argparse.ArgumentParser(description="Find files that are copies of each other.")
    parser.add_argument("folder", nargs="?", type=Path, default=library)
    parser.add_argument("--pattern", default="*.py", help="which files (default: *.py)")
    parser.add_argument("--top", type=int, default=10, help="how many pairs to show")
    parser.add_argument("--broker", help="use this fleet in place of one on this machine")
    parser.add_argument("--devices", type=int, default=3, help="how many to start here")
    arguments = parser.parse_args(argv)
    paths = files_of(arguments.folder, arguments.pattern)
    if not paths:
        parser.error(f"there are no files {arguments.pattern} in {arguments.folder}")
    with connected(arguments.broker, arguments.devices) as client:
        # Files are read as they are sent, and never all in memory at once.
        prints = client.map(fingerprints, (path.read_bytes() for path in paths))
        names = (path.relative_to(arguments.folder).as_posix() for path in paths)
        found = likeness(dict(zip(names, prints, strict=True)))
    print(f"{len(paths)} files, {len(found)} pairs with something in common; the most alike:")
    for share, one, other in found[: arguments.top]:
        print(f"{share:6.0%}  {one}  {other}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
