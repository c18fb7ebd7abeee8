"""What the C client promises of its source: no allocator, nothing that it does not need."""

import subprocess
from pathlib import Path

import pytest

from firmware.boards import CORE, FIRMWARE, KINDS, WARNINGS, sanitizers

ALLOCATORS = {"malloc", "calloc", "realloc", "free", "strdup", "asprintf", "alloca", "sbrk", "mmap"}


@pytest.fixture(params=KINDS[1:], autouse=True)
def needs_c(request: pytest.FixtureRequest) -> None:
    """Skipped, with the reason, where it cannot be built."""


def undefined(source: str, folder: Path) -> set[str]:
    """The functions that a compiled source wants from elsewhere."""
    target = folder / "one.o"
    subprocess.run(
        ["cc", *WARNINGS, "-Os", "-c", "-o", str(target), str(FIRMWARE / "c" / source)], check=True
    )
    listing = subprocess.run(["nm", "-u", str(target)], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in listing.stdout.splitlines()}


@pytest.mark.parametrize("source", [*CORE, "main.c"])
def test_nothing_is_allocated_after_the_start_or_before(source: str, tmp_path: Path) -> None:
    wanted = undefined(source, tmp_path)
    assert "strlen" in wanted or "snprintf" in wanted
    assert not wanted & ALLOCATORS


@pytest.mark.parametrize("source", CORE)
def test_the_core_knows_no_socket_clock_or_terminal(source: str, tmp_path: Path) -> None:
    allowed = {"snprintf", "ldexp", "memcpy", "memcmp", "memchr", "memset", "__stack_chk_fail"}
    strings = {"strlen", "strcmp", "strncmp", "strchr", "strspn", "strcpy"}
    own = {name for name in undefined(source, tmp_path) if name.startswith(("cbor_", "forage_"))}
    assert undefined(source, tmp_path) - own <= allowed | strings


def test_its_harness_is_built_to_notice_what_is_out_of_bounds(tmp_path: Path) -> None:
    flags = sanitizers()
    if not flags:
        pytest.skip("this compiler has no address sanitizer (Debian: it comes with gcc)")
    source = tmp_path / "beyond.c"
    source.write_text("int main(int n, char **a) { char b[4] = {0}; (void)a; return b[3 + n]; }\n")
    program = tmp_path / "beyond"
    subprocess.run(["cc", *flags, "-o", str(program), str(source)], check=True)
    assert subprocess.run([str(program)], capture_output=True, check=False).returncode != 0
