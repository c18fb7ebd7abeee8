"""Layers of a service's configuration: which one wins, where it is said, how mistakes read."""

import tomllib
from pathlib import Path

import pytest

from forage_wire.shell.configuration import (
    BROKER,
    INSECURE,
    SERVICE_SETTINGS,
    Setting,
    Settings,
    choice,
    configure,
    integer,
    pairs,
    path,
    seconds,
    state_directory,
)

SLOTS: Setting[int] = Setting(key="slots", parse=integer(1, 64), default="2", help="Slots.")
LABEL: Setting[dict[str, str]] = Setting(
    key="label", parse=pairs, default="", repeated=True, metavar="KEY=VALUE", help="Labels."
)
DETECT: Setting[float | str] = Setting(
    key="detect_s", parse=seconds(0.1, 3600, "auto"), default="auto", help="Detection."
)
STATE: Setting[Path] = Setting(
    key="state_dir",
    parse=path,
    default=state_directory("thing"),
    default_words="somewhere",
    help="State.",
)
MODE: Setting[str | None] = Setting(key="mode", parse=choice("fast", "slow"), help="Mode.")
ALL = [*SERVICE_SETTINGS, SLOTS, LABEL, DETECT, STATE, MODE]


def settings_of(
    tmp_path: Path, *argv: str, environment: dict[str, str] | None = None
) -> Settings | int:
    return configure(
        program="forage thing",
        description="A thing.",
        settings=ALL,
        build=lambda found: found,
        argv=argv,
        file_name="thing",
        environment=environment or {},
        directory=tmp_path,
    )


def found(tmp_path: Path, *argv: str, environment: dict[str, str] | None = None) -> Settings:
    settings = settings_of(tmp_path, *argv, environment=environment)
    assert isinstance(settings, Settings)
    return settings


def test_default_file_variable_and_flag_win_in_this_order(tmp_path: Path) -> None:
    assert found(tmp_path)[SLOTS] == 2
    (tmp_path / "thing.toml").write_text("slots = 3\n")
    assert found(tmp_path)[SLOTS] == 3
    (tmp_path / "thing.d").mkdir()
    (tmp_path / "thing.d" / "10-more.toml").write_text("slots = 4\n")
    assert found(tmp_path)[SLOTS] == 4
    variables = {"FORAGE_SLOTS": "5"}
    assert found(tmp_path, environment=variables)[SLOTS] == 5
    assert found(tmp_path, "--slots", "6", environment=variables)[SLOTS] == 6


def test_origin_names_the_layer(tmp_path: Path) -> None:
    (tmp_path / "thing.toml").write_text("slots = 3\n")
    settings = found(tmp_path, "--insecure", environment={"FORAGE_DETECT_S": "0.5"})
    assert settings.origin(SLOTS) == str(tmp_path / "thing.toml")
    assert settings.origin(INSECURE) == "--insecure"
    assert settings.origin(DETECT) == "$FORAGE_DETECT_S"
    assert settings.origin(LABEL) == "default"


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert found(tmp_path, environment={"FORAGE_SLOTS": ""})[SLOTS] == 2


def test_labels_read_the_same_from_every_layer(tmp_path: Path) -> None:
    expected = {"rack": "a", "size": "2"}
    assert found(tmp_path, "--label", "rack=a", "--label", "size=2")[LABEL] == expected
    assert found(tmp_path, environment={"FORAGE_LABEL": "rack=a,size=2"})[LABEL] == expected
    for text in ('label = {rack = "a", size = 2}', 'label = ["rack=a", "size=2"]'):
        (tmp_path / "thing.toml").write_text(text)
        assert found(tmp_path)[LABEL] == expected


def test_a_switch_can_be_undone_by_a_flag(tmp_path: Path) -> None:
    (tmp_path / "thing.toml").write_text("insecure = true\n")
    assert found(tmp_path)[INSECURE] is True
    assert found(tmp_path, "--no-insecure")[INSECURE] is False


def test_given_file_replaces_the_systems(tmp_path: Path) -> None:
    (tmp_path / "thing.toml").write_text("slots = 3\n")
    other = tmp_path / "other.toml"
    other.write_text('mode = "slow"\n')
    settings = found(tmp_path, "--config", str(other))
    assert (settings[SLOTS], settings[MODE]) == (2, "slow")


def test_state_directory_is_systemds_then_the_users(tmp_path: Path) -> None:
    both = {"STATE_DIRECTORY": "/var/lib/thing:/var/lib/other", "XDG_STATE_HOME": "/x"}
    assert found(tmp_path, environment=both)[STATE] == Path("/var/lib/thing")
    assert found(tmp_path, environment={"XDG_STATE_HOME": "/x"})[STATE] == Path("/x/forage/thing")
    assert found(tmp_path)[STATE] == Path.home() / ".local/state/forage/thing"


@pytest.mark.parametrize(
    ("argv", "file_text", "says"),
    [
        (["--slots", "many"], "", "--slots: must be a whole number from 1 to 64, not 'many'."),
        (["--slots", "65"], "", "--slots: must be a whole number from 1 to 64, not '65'."),
        (["--detect-s", "nan"], "", "must be 0.1 to 3600 seconds or auto, not 'nan'."),
        (["--log-level", "loud"], "", "must be one of debug, info, warning, error, not 'loud'."),
        (["--label", "rack"], "", "--label: must be KEY=VALUE, not 'rack'."),
        (["--root", "a/b"], "", "--root: must be 1 to 32 of a-z"),
        (["--broker", "http://u:pw@x"], "", "scheme 'http'"),
        (["--no-such"], "", "unrecognized arguments: --no-such; `forage thing --help`"),
        (["--slot", "3"], "", "unrecognized arguments"),
        ([], "slots = 0", "thing.toml: slots: must be a whole number"),
        ([], "slot = 3", "thing.toml: there is no setting slot; did you mean slots."),
        ([], "slots = ", "thing.toml: is not TOML"),
        ([], "slots = 2026-01-01", "a date or time means nothing here"),
        ([], 'label = ["a=1,b"]', "a comma may not stand inside of an item"),
        (["--config", "/no/such.toml"], "", "/no/such.toml: cannot be read (No such file"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    file_text: str,
    says: str,
) -> None:
    if file_text:
        (tmp_path / "thing.toml").write_text(file_text)
    assert settings_of(tmp_path, *argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("forage thing: ")
    assert says in captured.err
    assert "pw" not in captured.err


def test_printed_configuration_is_toml_with_origins_and_without_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--broker", "mqtts://u:secret@host", "--slots", "7", "--label", "a=1")
    assert settings_of(tmp_path, *argv, "--print-config") == 0
    printed = capsys.readouterr().out
    assert "secret" not in printed
    values = tomllib.loads(printed)
    assert values["broker"] == "mqtts://u:***@host:8883"
    assert (values["slots"], values["label"], values["detect_s"]) == ("7", "a=1", "auto")
    assert "mode" not in values
    assert next(line for line in printed.splitlines() if "slots" in line).endswith("# --slots")


def test_written_file_is_a_valid_one_that_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "written.toml"
    assert settings_of(tmp_path, "--write-config", str(target)) == 0
    written = target.read_text()
    assert tomllib.loads(written) == {}
    settings = found(tmp_path, "--config", str(target))
    assert settings[BROKER] == found(tmp_path)[BROKER]
    assert all(f"# {setting.key} = " in written for setting in ALL)
    assert settings_of(tmp_path, "--write-config", str(target)) == 2
    assert "cannot be written (File exists)" in capsys.readouterr().err
    assert settings_of(tmp_path, "--write-config") == 0
    assert capsys.readouterr().out == written


def test_help_names_every_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert settings_of(tmp_path, "--help") == 0
    printed = capsys.readouterr().out
    assert all(setting.flag in printed for setting in ALL)


def test_what_build_refuses_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build(settings: Settings) -> int:
        raise ValueError("These two do not go together.")

    code = configure(
        program="forage thing",
        description="",
        settings=ALL,
        build=build,
        argv=[],
        file_name="thing",
        environment={},
        directory=tmp_path,
    )
    assert code == 2
    assert capsys.readouterr().err == "forage thing: These two do not go together.\n"
