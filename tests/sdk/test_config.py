"""Where settings come from, and which wins."""

from pathlib import Path

import pytest

from forage.config import configuration_files, read_config


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_anything_it_is_this_machine() -> None:
    config = read_config(environment={}, files=[])
    assert (str(config.address), config.root) == ("mqtt://127.0.0.1:1883", "forage")
    assert config.broker_origin == "the default"
    assert config.tls_ca_file is None


def test_argument_beats_environment_beats_files_in_order(tmp_path: Path) -> None:
    files = [
        written(tmp_path / "near.toml", 'broker = "localhost:3"'),
        tmp_path / "not-there.toml",
        written(tmp_path / "far.toml", 'broker = "localhost:4"\nroot = "far"\nother = 1'),
    ]
    environment = {"FORAGE_BROKER": "localhost:2"}
    ports = [
        read_config(broker="localhost:1", environment=environment, files=files),
        read_config(environment=environment, files=files),
        read_config(environment={}, files=files),
        read_config(environment={}, files=files[1:]),
    ]
    assert [config.address.port for config in ports] == [1, 2, 3, 4]
    assert [config.broker_origin for config in ports] == [
        "the argument",
        "the environment",
        str(files[0]),
        str(files[2]),
    ]
    assert {config.root for config in ports} == {"far"}


def test_files_are_looked_for_here_then_the_users_then_the_systems() -> None:
    assert configuration_files({"HOME": "/home/ann"}) == [
        "forage.toml",
        "/home/ann/.config/forage/config.toml",
        "/etc/forage/client.toml",
    ]
    assert configuration_files({"XDG_CONFIG_HOME": "/x"})[1] == "/x/forage/config.toml"


def test_the_user_is_the_login_unless_one_is_given() -> None:
    login = read_config(broker="mqtt://ann:pw@host", environment={}, files=[])
    assert login.user == "ann"
    given = read_config(broker="mqtt://ann:pw@host", user="bob", environment={}, files=[])
    assert given.user == "bob"


def test_the_os_users_name_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "Ann.Smith")
    assert read_config(environment={}, files=[]).user == "ann-smith"


def test_an_open_broker_elsewhere_needs_insecure_in_so_many_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no credentials.*\(It comes from the environment\.\)"):
        read_config(environment={"FORAGE_BROKER": "mqtt://10.0.0.1"}, files=[])
    read_config(broker="mqtt://10.0.0.1", insecure=True, environment={}, files=[])
    file = written(tmp_path / "forage.toml", "insecure = true")
    read_config(broker="mqtt://10.0.0.1", environment={}, files=[file])
    with pytest.raises(ValueError, match="insecure is 'maybe' in the environment"):
        read_config(environment={"FORAGE_INSECURE": "maybe"}, files=[])


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "forage.toml", "broker = ")
    with pytest.raises(ValueError, match=r"forage\.toml is not valid TOML"):
        read_config(environment={}, files=[file])


def test_a_value_of_the_wrong_type_is_named_with_its_file(tmp_path: Path) -> None:
    file = written(tmp_path / "forage.toml", "broker = 1883")
    with pytest.raises(ValueError, match=r"1883 is not a text\. \(It comes from .*forage\.toml"):
        read_config(environment={}, files=[file])
