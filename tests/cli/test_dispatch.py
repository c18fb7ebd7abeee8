"""Services start without the terminal and the SDK; commands are found, and explained."""

import json
import subprocess
import sys

import pytest

from cli.conftest import LIMIT_S, Run

HEAVY = ("click", "rich", "forage.client", "forage.config", "amqtt", "asyncio")


def modules_after(*words: str) -> list[str]:
    """The modules that `forage WORDS…` has loaded when it ends."""
    program = (
        "import sys, json\n"
        "from forage.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("service", ["agent", "controller", "broker"])
def test_a_service_loads_neither_the_terminal_nor_the_sdk(service: str) -> None:
    loaded = modules_after(service, "--help")
    assert f"forage_{service}.main" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_the_version_is_shown_without_a_network_stack() -> None:
    loaded = modules_after("--version")
    assert [name for name in ("paho", "rich", "forage.client", "amqtt") if name in loaded] == []


def test_the_version_names_protocol_and_python(run: Run) -> None:
    ended = run("--version")
    assert ended.code == 0
    assert ended.out.startswith("forage 0.")
    assert f"protocol 1.0, Python {sys.version.split()[0]}" in ended.out


def test_flags_before_a_service_reach_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forage.cli", "--root", "lab", "agent", "--print-config"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith("root")]
    assert "lab" in line


@pytest.mark.parametrize("group", [(), ("device",), ("task",)])
def test_a_group_without_a_verb_shows_its_help(run: Run, group: tuple[str, ...]) -> None:
    ended = run(*group)
    assert ended.code == 2
    assert ended.out == ""
    assert "Commands:" in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ("demo",),
        ("up",),
        ("run",),
        ("map",),
        ("device", "ls"),
        ("device", "get"),
        ("device", "drain"),
        ("device", "undrain"),
        ("task", "ls"),
        ("task", "get"),
        ("task", "logs"),
        ("task", "cancel"),
        ("task", "explain"),
        ("watch",),
        ("decode",),
    ],
)
def test_every_command_explains_itself(run: Run, words: tuple[str, ...]) -> None:
    ended = run(*words, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: forage {' '.join(words)}")


def test_a_misspelt_command_is_answered_with_the_right_one(run: Run) -> None:
    ended = run("devcie", "ls")
    assert ended.code == 2
    assert "Did you mean `forage device`?" in ended.sentence


def test_an_unknown_flag_names_the_help(run: Run) -> None:
    ended = run("device", "ls", "--colour")
    assert ended.code == 2
    assert "See `forage device ls --help`." in ended.sentence


def test_completion_is_offered_to_the_shell() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'forage'; import forage.cli as c; c.main()",
        ],
        env={"_FORAGE_COMPLETE": "bash_complete", "COMP_WORDS": "forage de", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.stdout.splitlines() == ["plain,demo", "plain,device", "plain,decode"]
