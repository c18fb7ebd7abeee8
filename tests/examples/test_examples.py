"""The examples do what they say, each as a program of its own."""

import importlib.util
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

from forage import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT_S = 100


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def test_the_search_stops_at_the_counterexample_of_1966(forage_cluster: LocalCluster) -> None:
    done = run(
        "euler_powers", "--from", "130", "--to", "160", "--broker", forage_cluster.broker_url
    )
    first, second = done.stdout.splitlines()
    assert first == "27^5 + 84^5 + 110^5 + 133^5 = 144^5"
    assert "of 31 candidates looked at" in second
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_search_without_a_hit_says_so(forage_cluster: LocalCluster) -> None:
    done = run("euler_powers", "--from", "10", "--to", "20", "--broker", forage_cluster.broker_url)
    assert done.stdout == "nothing up to 20^5 (all 11 candidates looked at)\n"
    assert done.returncode == 1


def test_the_picture_is_the_one_computed_here(forage_cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "set.png"
    size, depth = (90, 70), 60
    done = run(
        "mandelbrot",
        str(file),
        *("--size", *map(str, size)),
        *("--depth", str(depth)),
        *("--broker", forage_cluster.broker_url),
    )
    assert (done.stderr, done.returncode) == ("", 0)
    columns, rows = size
    width = 3.2
    step = width / columns
    example = loaded("mandelbrot")
    pixels = [
        example.tile(-0.6 - width / 2 + x * step, step * rows / 2 - y * step, step, 1, 1, depth)
        for y in range(rows)
        for x in range(columns)
    ]
    got_size, got = _grey_values(file.read_bytes())
    assert got_size == size
    # A pixel's place is a sum of floats, which a tile begins elsewhere; where that matters at the
    # set's edge, a few may differ.
    different = sum(one != other for one, other in zip(got, b"".join(pixels), strict=True))
    assert different <= len(got) // 100
    assert 0.1 < got.count(0) / len(got) < 0.4


def _grey_values(png: bytes) -> tuple[tuple[int, int], bytes]:
    """A PNG's size and grey values, read strictly."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", png[at + 8 + length : at + 12 + length])
        assert zlib.crc32(kind + data) == check
        chunks[kind] = data
        at += 12 + length
    columns, rows, bits, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (bits, colour, rest) == (8, 0, [0, 0, 0])
    lines = zlib.decompress(chunks[b"IDAT"])
    assert len(lines) == rows * (columns + 1)
    each = [lines[at : at + columns + 1] for at in range(0, len(lines), columns + 1)]
    assert {line[0] for line in each} == {0}
    return (columns, rows), b"".join(line[1:] for line in each)


def test_copies_are_found_in_a_folder(forage_cluster: LocalCluster, tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(400)]
    (tmp_path / "one.txt").write_text(" ".join(words))
    (tmp_path / "part.txt").write_text("a new beginning " + " ".join(words[100:300]))
    (tmp_path / "other.txt").write_text(" ".join(f"else{number}" for number in range(300)))
    done = run(
        "near_duplicates",
        str(tmp_path),
        "--pattern",
        "*.txt",
        "--broker",
        forage_cluster.broker_url,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    head, *rows = done.stdout.splitlines()
    assert head.startswith("3 files, 1 pairs")
    [row] = rows
    share, one, other = row.split()
    assert (one, other) == ("one.txt", "part.txt")
    assert int(share.rstrip("%")) > 90


def test_without_a_broker_an_example_brings_its_own_fleet() -> None:
    done = run("near_duplicates", "--devices", "2", "--top", "3")
    assert (done.stderr, done.returncode) == ("", 0)
    assert len(done.stdout.splitlines()) == 4
    assert "cp850.py  cp858.py" in done.stdout


def test_a_folder_without_files_is_a_wrong_argument(tmp_path: Path) -> None:
    done = run("near_duplicates", str(tmp_path))
    assert done.returncode == 2
    assert "there are no files *.py" in done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_explains_itself(path: Path) -> None:
    done = run(path.stem, "--help")
    assert done.returncode == 0
    assert "--broker" in done.stdout


def test_winnowing_finds_a_common_passage_wherever_it_stands() -> None:
    example = loaded("near_duplicates")
    length = example.RUN + example.WINDOW - 1
    passage = " ".join(f"common{number}" for number in range(length))
    one = f"some words before {passage} and some after it that differ from all others"
    other = f"quite other ones {passage} here"
    assert set(example.fingerprints(one.encode())) & set(example.fingerprints(other.encode()))
    assert example.fingerprints(b"too short") == []
