"""`cerebrum config`: settings are listed, set and removed, and the rest of config.toml stays."""

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


def test_settings_are_set_for_all_commands(user: CommandLine) -> None:
    assert "no settings" in config(user).err
    for words in (("model", "nano"), ("max_tokens", "3"), ("stop", "###", "Q:"), ("vi", "on"), ("temperature", "0.5")):
        done = config(user, "set", *words)
        assert done.code == 0 and str(user.config / "config.toml") in done.err
    values = {row["key"]: row["value"] for row in config(user, "--json").object}
    assert values == {"model": "nano", "max_tokens": 3, "stop": ["###", "Q:"], "vi": True, "temperature": 0.5}
    assert "temperature  0.5" in config(user, "list").out
    done = user.run("ask", "2 + 2 =", "--json", "--stats")
    assert done.object["model"] == "nano" and "temperature 0.5" in done.err


def test_a_new_default_names_the_setting_that_precedes_it(user: CommandLine) -> None:
    assert user.run("pull", "--default", "nano").err.splitlines()[-1] == "default model: nano"
    config(user, "set", "model", "starter")
    done = user.run("pull", "--default", "nano")
    assert done.err.splitlines()[-3:] == [
        "default model: nano",
        "note: config.toml sets starter, which takes precedence",
        "      cerebrum config unset model removes it",
    ]
    config(user, "set", "model", "nano")
    assert user.run("pull", "--default", "nano").err.splitlines()[-1] == "default model: nano"
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
    assert config(user, "unset", "max_tokens").code == 0 and config(user, "unset", "cache_type").code == 0
    assert file.read_text() == "# mine\n" + WRITTEN[WRITTEN.index("\n[") :]
    assert "endpoints.gpu.url" in config(user).out


def test_tables_in_a_list_hide_their_variables(user: CommandLine) -> None:
    write(user, f'[[mcp.time]]\ncommand = "a"\nenv = {{TOKEN = "secret"}}\n[[mcp.time]]\ncommand = {10**400}\n')
    listed = config(user, "--json")
    assert "secret" not in listed.out and '"mcp.time[0].command"' in listed.out


def test_unknown_options_are_corrected(user: CommandLine) -> None:
    assert "did you mean --json" in config(user, "--jsn").err
    assert "put -- before a value" in config(user, "set", "temperature", "-1").err


def test_line_ends_stay_and_unknown_settings_can_be_removed(user: CommandLine) -> None:
    file = write(user, 'foo = 3\r\nmodel = "a"\r\n')
    assert_error(user.run("ask", "Hi"), 2, "unknown key `foo`")
    assert config(user, "unset", "foo").code == 0
    assert config(user, "set", "model", "nano").code == 0
    assert file.read_bytes() == b'model = "nano"\r\n'


def test_a_table_keeps_its_comment_and_is_not_removed(user: CommandLine) -> None:
    table = '# about servers\n[endpoints.gpu]\nurl = "http://host:1"\n'
    file = write(user, table)
    assert config(user, "set", "top_k", "5").code == 0
    assert file.read_text() == f"top_k = 5\n\n{table}"
    for name in ("endpoints", "endpoints.gpu.url"):
        assert_error(config(user, "unset", name), 2, "is a table, or a part of one", "edit ")
    assert config(user, "set", "seed", "--", "-1").code == 2  # a range
    assert_error(config(user, "set", "seed", "-1"), 2, "put -- before a value")


def test_values_are_shown_as_json_and_secrets_not_at_all(user: CommandLine) -> None:
    write(user, 'day = 2020-01-01\nnumber = inf\n[mcp.time]\ncommand = "x"\nenv = {TOKEN = "s3cret"}\n')
    values = {row["key"]: row["value"] for row in config(user, "--json").object}
    assert values == {"day": "2020-01-01", "number": "inf", "mcp.time.command": "x", "mcp.time.env.TOKEN": "***"}
    assert "s3cret" not in config(user).out


def test_paths_are_absolute(user: CommandLine) -> None:
    (user.home / "template.jinja").touch()
    assert config(user, "set", "chat_template", "template.jinja").code == 0
    assert config(user, "set", "model", "./x.gguf").code == 0
    values = {row["key"]: row["value"] for row in config(user, "--json").object}
    assert values == {"chat_template": str(user.home / "template.jinja"), "model": str(user.home / "x.gguf")}


def test_a_variable_that_overrides_is_named(user: CommandLine) -> None:
    done = user.run("config", "set", "top_k", "5", env={"CEREBRUM_TOP_K": "3"})
    assert done.code == 0 and "CEREBRUM_TOP_K overrides it" in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("set", "temperature", "hot"), ("invalid temperature: 'hot'", "a number of 0 or more")),
        (("set", "temprature", "1"), ("no setting 'temprature'", "did you mean temperature?")),
        (("set", "system", "Be", "brief."), ("several values for system", "'Be brief.'")),
        (("set", "model"), ("missing or unexpected argument of config set", "config set KEY VALUE")),
        (("unset", "vi"), ("does not set vi", "cerebrum config")),
        (("unset", "vy"), ("no setting 'vy'",)),
        (("temperature", "1"), ("unknown argument 'temperature'", "config set KEY VALUE")),
    ],
)
def test_bad_input_changes_nothing(user: CommandLine, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    file = write(user, WRITTEN)
    assert_error(config(user, *words), 2, *parts)
    assert file.read_text() == WRITTEN


def test_a_damaged_file_is_not_changed(user: CommandLine) -> None:
    file = write(user, "x = [\n")
    for words in ((), ("set", "top_k", "5"), ("unset", "x")):
        assert_error(config(user, *words), 2, "invalid TOML")
    assert file.read_text() == "x = [\n"
