"""`cerebrum config`: settings are listed, set, reset and edited, and the rest of config.toml stays."""

import tomllib
from pathlib import Path

import pytest
from command_line import CommandLine, Finished, assert_error

WRITTEN = """\
# mine
max-tokens = 10  # short
cache_type = "f16"

[endpoints.gpu]
url = "http://host:1"  # upstairs
"""


@pytest.fixture
def user(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def config(user: CommandLine, *words: str) -> Finished:
    return user.run("config", *words)


def write(user: CommandLine, text: str) -> Path:
    file = user.config / "config.toml"
    file.write_text(text, newline="")
    return file


def test_settings_that_are_set_at_once_are_all_kept(user: CommandLine) -> None:
    settings = {"temperature": 0.1, "max_tokens": 11, "seed": 12, "top_k": 13, "ctx": 1111, "threads": 1, "top_p": 0.5}
    processes = [user.start("config", "set", key, str(value)) for key, value in settings.items()]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert tomllib.loads((user.config / "config.toml").read_text()) == settings
    assert [path.name for path in user.config.iterdir()] == ["config.toml"]


def test_settings_are_set_for_all_commands(user: CommandLine) -> None:
    for words in (("model", "nano"), ("max_tokens", "3"), ("stop", "###"), ("vi", "on"), ("temperature", "0.5")):
        done = config(user, "set", *words)
        assert done.code == 0 and str(user.config / "config.toml") in done.err
    values = {row["key"]: row["value"] for row in config(user, "--json").object if row["origin"] == "config.toml"}
    assert values == {"model": "nano", "max_tokens": 3, "stop": ["###"], "vi": True, "temperature": 0.5}
    listed = user.run("config", env={"CEREBRUM_SEED": "7"})
    rows = [line.split() for line in listed.out.splitlines()]
    assert ["temperature", "0.5", "config.toml"] in rows and ["seed", "7", "CEREBRUM_SEED"] in rows
    assert ["top_k", "40", "default"] in rows and str(user.config / "config.toml") in listed.err
    done = user.run("ask", "2 + 2 =", "--json", "--stats")
    assert done.object["model"] == "nano" and "temperature 0.5" in done.err


def test_the_default_model_is_the_setting(user: CommandLine) -> None:
    config(user, "set", "model", "starter")
    assert user.run("pull", "--default", "nano").err.splitlines()[-1] == "default model: nano"
    assert (user.config / "config.toml").read_text() == 'model = "nano"\n'
    done = user.run("pull", "--default", "nano", env={"CEREBRUM_MODEL": "starter"})
    assert done.err.splitlines()[-1] == "note: CEREBRUM_MODEL sets starter, which takes precedence"


def test_the_rest_of_the_file_stays(user: CommandLine) -> None:
    file = write(user, WRITTEN)
    file.chmod(0o644)
    assert config(user, "set", "max_tokens", "20").code == 0
    assert file.read_text() == WRITTEN.replace("10", "20")
    assert file.stat().st_mode & 0o777 == 0o644
    assert config(user, "set", "cache-type", "q8_0").code == 0
    assert tomllib.loads(file.read_text())["cache_type"] == "q8_0"
    assert config(user, "set", "max_tokens").code == 0 and config(user, "set", "cache_type").code == 0
    assert file.read_text() == "# mine\n" + WRITTEN[WRITTEN.index("\n[") :]
    assert config(user, "set", "vi").code == 0  # which it does not set


def test_unknown_options_are_corrected(user: CommandLine) -> None:
    assert "did you mean --json" in config(user, "--jsn").err


def test_the_file_is_edited_and_checked(user: CommandLine) -> None:
    file = write(user, "")
    (user.home / "editor").write_text('#!/bin/sh\nprintf "foo = 3\\r\\nvi = true\\r\\n" > "$1"')
    (user.home / "editor").chmod(0o755)
    editor = {"EDITOR": str(user.home / "editor")}
    assert_error(user.run("config", "edit", env=editor), 2, "config.toml:1: unknown key `foo`")
    assert file.read_bytes() == b"foo = 3\r\nvi = true\r\n"
    assert config(user, "set", "vi", "off").code == 0
    assert file.read_bytes() == b"foo = 3\r\nvi = false\r\n"


def test_a_negative_value_needs_dashes(user: CommandLine) -> None:
    assert config(user, "set", "seed", "--", "-1").code == 2  # a range
    assert_error(config(user, "set", "seed", "-1"), 2, "no such option: -1")


def test_paths_are_absolute(user: CommandLine) -> None:
    (user.home / "template.jinja").touch()
    assert config(user, "set", "format", "template.jinja").code == 0
    assert config(user, "set", "model", "./x.gguf").code == 0
    values = {row["key"]: row["value"] for row in config(user, "--json").object if row["origin"] == "config.toml"}
    assert values == {"format": str(user.home / "template.jinja"), "model": str(user.home / "x.gguf")}


def test_a_variable_that_overrides_is_named(user: CommandLine) -> None:
    done = user.run("config", "set", "top_k", "5", env={"CEREBRUM_TOP_K": "3"})
    assert done.code == 0 and "CEREBRUM_TOP_K overrides it" in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("set", "temperature", "hot"), ("invalid temperature: 'hot'", "a number of 0 or more")),
        (("set", "temprature", "1"), ("no setting 'temprature'", "did you mean temperature?")),
        (("set", "system", "Be", "brief."), ("unexpected argument", "brief.")),
        (("set",), ("missing or unexpected argument of config set", "config set KEY VALUE")),
        (("edit", "vi"), ("missing or unexpected argument of config edit", "config edit")),
        (("temperature", "1"), ("unknown argument 'temperature'", "config set KEY VALUE")),
    ],
)
def test_bad_input_changes_nothing(user: CommandLine, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    file = write(user, WRITTEN)
    assert_error(config(user, *words), 2, *parts)
    assert file.read_text() == WRITTEN


def test_a_damaged_file_is_not_changed(user: CommandLine) -> None:
    file = write(user, "x = [\n")
    for words in ((), ("set", "top_k", "5"), ("set", "top_k")):
        assert_error(config(user, *words), 2, "invalid TOML")
    assert file.read_text() == "x = [\n"
