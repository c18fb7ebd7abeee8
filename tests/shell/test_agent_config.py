"""The agent's configuration: who wins, what is refused, what is shown."""

import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import forage_agent
from forage_agent.config import (
    Config,
    ConfigError,
    default_toml,
    load_config,
    parser,
    print_config,
)
from forage_agent.core.settings import NamedFunction
from forage_agent.main import main

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a configuration from flags, variables and the text of a file."""

    def load_one(*flags: str, environment: dict[str, str] | None = None, file: str = "") -> Config:
        path = tmp_path / "agent.toml"
        path.write_text(file)
        arguments = parser().parse_args(["--config", str(path), *flags])
        return load_config(arguments, environment or {})

    return load_one


def test_flag_wins_over_variable_wins_over_file_wins_over_default(load: Load) -> None:
    file = 'name = "from-file"\nslots = 2\nroot = "lab"\n'
    environment = {"FORAGE_NAME": "from-env", "FORAGE_SLOTS": "3"}
    config = load("--name", "from-flag", environment=environment, file=file)
    assert (config.name, config.slots, config.root) == ("from-flag", 3, "lab")
    assert config.log_level == "info"
    assert str(config.broker) == "mqtt://127.0.0.1:1883"


def test_every_value_says_where_it_came_from(load: Load, tmp_path: Path) -> None:
    config = load("--slots", "4", environment={"FORAGE_ROOT": "lab"}, file='name = "a"')
    text = print_config(config)
    sources = {line.split(" ")[0]: line.rpartition("# ")[2] for line in text.splitlines()}
    assert sources["slots"] == "--slots"
    assert sources["root"] == "FORAGE_ROOT"
    assert sources["name"] == str(tmp_path / "agent.toml")
    assert sources["broker"] == "default"


def test_maps_come_from_repeated_flags_variables_and_tables(load: Load) -> None:
    config = load(
        "--label",
        "room=attic",
        "--label",
        "camera",
        environment={"FORAGE_RESOURCES": "gpu=1, camera=2"},
        file='[functions]\n"org.a" = "a.b:c.d"\n"org.b" = { target = "b:b", version = "7" }\n',
    )
    assert config.labels == {"room": "attic", "camera": ""}
    assert config.resources == {"gpu": 1, "camera": 2}
    assert config.functions == {
        "org.a": NamedFunction(target="a.b:c.d"),
        "org.b": NamedFunction(target="b:b", version="7"),
    }


def test_later_files_of_the_folder_win_and_tables_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "agent.d"
    folder.mkdir()
    main_file = tmp_path / "agent.toml"
    main_file.write_text('slots = 1\nname = "a"\n[labels]\nroom = "attic"\n')
    (folder / "10-slots.toml").write_text("slots = 2\n[labels]\nfloor = '3'\n")
    (folder / "20-slots.toml").write_text("slots = 3\n")
    monkeypatch.setattr("forage_agent.config.SYSTEM_FILE", str(main_file))
    monkeypatch.setattr("forage_agent.config.SYSTEM_FOLDER", str(folder))
    config = load_config(parser().parse_args([]), {})
    assert (config.slots, config.name) == (3, "a")
    assert config.labels == {"room": "attic", "floor": "3"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--broker", "http://x"], ["http", "mqtt://host"]),
        (["--broker", "mqtt://192.0.2.1"], ["credentials", "--insecure"]),
        (["--name", "Not A Name"], ["name", "a-z"]),
        (["--slots", "many"], ["slots", "number"]),
        (["--slots", "-1"], ["slots", "0 to 4096"]),
        (["--log-level", "loud"], ["log_level", "debug"]),
        (["--network", "carrier pigeon"], ["carrier pigeon", "LAN100"]),
        (["--function", "org.a=nowhere"], ["org.a", "module:attribute"]),
        (["--resource", "camera=some"], ["resources", "number"]),
        (["--label", "=x"], ["labels", "KEY=VALUE"]),
        (["--label", "room=\udcff"], ["the label 'room'", "U+DCFF"]),
        (["--config", "/not/there.toml"], ["/not/there.toml", "No such file"]),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence_and_exits_2(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    for word in words:
        assert word in text


@pytest.mark.parametrize("file", ["name = ", "speed = 3", "slots = true", 'labels = "x" \nx'])
def test_bad_file_is_told_with_its_path(load: Load, tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigError, match=r"agent\.toml"):
        load(file=file)


def test_password_is_never_shown(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    config = load("--broker", "mqtts://pi:secret@host")
    assert "secret" not in print_config(config)
    assert "secret" not in repr(config)
    assert main(["--broker", "mqtt://pi:secret@ho st"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_insecure_allows_an_open_broker_elsewhere(load: Load) -> None:
    assert load("--broker", "mqtt://192.0.2.1", "--insecure").broker.host == "192.0.2.1"
    allowed = load("--broker", "mqtt://192.0.2.1", environment={"FORAGE_INSECURE": "1"})
    assert allowed.insecure


def test_written_default_is_toml_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.toml"
    assert main(["--write-config", str(path)]) == 0
    assert tomllib.loads(path.read_text()) == {}
    assert main(["--write-config"]) == 0
    assert capsys.readouterr().out.strip() == path.read_text().strip()
    assert main(["--write-config", str(path)]) == 2, "what is there is not overwritten"
    uncommented = "\n".join(
        line.removeprefix("# ") for line in default_toml().splitlines() if " = " in line
    )
    keys = set(tomllib.loads(uncommented))
    arguments = parser().parse_args(["--config", str(path)])
    assert keys == set(load_config(arguments, {}).sources)


def test_print_config_shows_and_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-config", "--name", "dev"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("name")] == [
        ["name", "=", '"dev"', "#", "--name"]
    ]


def test_version_is_the_distributions() -> None:
    assert forage_agent.__version__ == version("forage-mqtt")
