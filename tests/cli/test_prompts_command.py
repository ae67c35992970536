"""`cerebrum prompts` and `ask --save-prompt`: changes to config.toml that keep everything else in it."""

from __future__ import annotations

import os
import stat
import sys
import tomllib
from pathlib import Path

import pytest
from command_line import CommandLine, Finished
from hypothesis import given
from hypothesis import strategies as st
from person import OpenTerminal
from scripted_command import run_here

from cerebrum_cli.cli.config_file import prompt_table, table_line, with_prompt, without_prompt
from cerebrum_cli.core.config import read_config
from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.sampling import TokenBias

CONFIG = '''\
# My settings.
top_k = 3  # few

# Two prompts.
[prompts.sum]  # short
temperature = 0.9  # warm
prompt = """
Sum up: {input}
[prompts.list]
"""

# The server.
[endpoints.lab]
url = "http://localhost:1"

# Another.
[prompts."a b"]
system = "Be kind."
'''
WITHOUT_SUM = """\
# My settings.
top_k = 3  # few

# Two prompts.
# The server.
[endpoints.lab]
url = "http://localhost:1"

# Another.
[prompts."a b"]
system = "Be kind."
"""


class Home:
    """A user whose config.toml has two saved prompts."""

    def __init__(self, home: CommandLine) -> None:
        self.home = home.home
        self.path = home.config / "config.toml"
        self.path.write_text(CONFIG)

    @property
    def text(self) -> str:
        return self.path.read_text()

    def run(self, *arguments: str, piped: bytes | None = None) -> Finished:
        return run_here({}, self.home, *arguments, piped=piped)


@pytest.fixture
def home(new_user: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(new_user.home)
    return Home(new_user)


def editor(directory: Path, code: str) -> str:
    """An editor: a Python program that changes the text `text` of the file."""
    program = directory / "editor.py"
    opened = "import sys, pathlib\npath = pathlib.Path(sys.argv[-1])\ntext = path.read_text()"
    program.write_text(f"{opened}\n{code}\npath.write_text(text)\n")
    return f"'{sys.executable}' '{program}'"


# Text of config.toml.


def test_config_file_keeps_everything_else() -> None:
    assert without_prompt(CONFIG, "sum") == WITHOUT_SUM
    assert without_prompt(CONFIG, "a b") == CONFIG[: CONFIG.index('[prompts."a b"]')]
    assert with_prompt(CONFIG, "new", {"prompt": "x"}) == CONFIG + '\n[prompts.new]\nprompt = "x"\n'
    changed = with_prompt(CONFIG, "sum", {"temperature": 0.5, "system": "A\nB"})
    assert "temperature = 0.5 # warm\n" in changed.replace("  #", " #")
    assert 'system = """\nA\nB"""\n' in changed
    assert [line for line in CONFIG.splitlines() if "#" in line and "warm" not in line] == [
        line for line in changed.splitlines() if "#" in line and "warm" not in line
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[prompts]\na = {prompt = "x"}\nsum = {prompt = "y"}\n',
        'prompts.sum.prompt = "y"\nmodel = "z"\n',
        '[prompts.sum]\nprompt = "y"',
        '[ prompts . "sum" ]\r\nprompt = "y"\r\n[endpoints.b]\r\nurl = "u"\r\n',
        '[prompts.sum]\n# only a comment\n\n[prompts.a]\nprompt = "x"\n',
        '[prompts.a]\nprompt = "[prompts.sum]\\n"\n[prompts.sum]\nprompt = """\n[prompts.a]\n"""\n',
    ],
)
def test_config_file_is_written_in_many_ways(text: str) -> None:
    values = tomllib.loads(text)
    others = {key: table for key, table in values.get("prompts", {}).items() if key != "sum"}
    changed = tomllib.loads(with_prompt(text, "sum", {"prompt": "a\nb", "top_k": 1}))
    assert changed == {**values, "prompts": {**others, "sum": {"prompt": "a\nb", "top_k": 1}}}
    if "sum" in values.get("prompts", {}):
        removed = tomllib.loads(without_prompt(text, "sum"))
        assert {"prompts": {}, **removed} == {**values, "prompts": others}


def test_config_file_that_would_be_damaged_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        with_prompt('prompts = {a = {prompt = "x"}}\n', "sum", {"prompt": "y"})
    assert caught.value.hint == "edit the file: cerebrum prompts edit sum"


@given(st.text(st.characters(codec="utf-8")), st.text("ab_-.\"' é", min_size=1))
def test_prompt_table_holds_any_text(text: str, name: str) -> None:
    table = prompt_table(name, {"prompt": text, "stop": [text], "drafts": False, "temperature": 0.5})
    [(found, values)] = tomllib.loads(table)["prompts"].items()
    assert (found, values["prompt"], values["stop"]) == (name, text, [text])
    assert table_line(f"\n{table}", name) == 2


# cerebrum prompts list, show, rm.


def test_prompts_are_listed_and_shown(home: Home) -> None:
    assert home.run("prompts", "list").out == (
        "name  model  prompt\n"
        "sum   -      Sum up: {input} [prompts.list]\n"
        "a b   -      Be kind.\n"
    )  # fmt: skip
    first, second = home.run("prompts", "list", "--json").object
    assert first == {
        "name": "sum",
        "prompt": "Sum up: {input}\n[prompts.list]",
        "system": None,
        "model": None,
        "schema": None,
        "extract": None,
        "settings": {"temperature": 0.9},
    }
    assert home.run("prompts", "show", "a b", "--json").object == second
    assert home.run("prompts", "show", "a b").out == '[prompts."a b"]\nsystem = "Be kind."\n'
    unknown = home.run("prompts", "show", "su")
    assert (unknown.code, unknown.err.splitlines()[0]) == (2, "error: no saved prompt named 'su'")


def test_prompts_list_without_any(home: Home) -> None:
    home.path.unlink()
    deleted = home.run("prompts", "rm", "old")
    assert deleted.err.endswith(" hint: none are saved; cerebrum prompts edit old creates it\n")
    assert home.run("prompts", "list").err == "no saved prompts; cerebrum prompts edit NAME creates one\n"
    assert home.run("prompts", "list", "--json").object == []


def test_prompts_rm_deletes_what_is_confirmed(home: Home) -> None:
    asked = home.run("prompts", "rm", "sum")
    assert (asked.code, asked.err) == (1, "sum not deleted; confirm with -y\n")
    assert home.run("prompts", "rm", "-y", "sum", "nothing").code == 2
    assert home.text == CONFIG
    assert home.run("prompts", "rm", "-y", "sum").err == "deleted sum\n"
    assert home.text == WITHOUT_SUM


def test_prompts_report_an_invalid_config(home: Home) -> None:
    home.path.write_text("top_k = \n")
    for arguments in (("list",), ("show", "sum"), ("rm", "-y", "sum")):
        done = home.run("prompts", *arguments)
        assert (done.code, done.err.startswith(f"error: {home.path}: ")) == (1, True)
    assert home.text == "top_k = \n"


def test_prompts_keep_permissions_and_symlinks(home: Home) -> None:
    real = home.home / "dotfiles" / "config.toml"
    real.parent.mkdir()
    home.path.rename(real)
    home.path.symlink_to(real)
    real.chmod(0o664)
    assert home.run("prompts", "rm", "-y", "sum").code == 0
    assert home.path.is_symlink() and real.read_text() == WITHOUT_SUM
    assert stat.S_IMODE(real.stat().st_mode) == 0o664
    assert os.listdir(real.parent) == ["config.toml"]


# cerebrum ask --save-prompt.


def test_ask_saves_what_is_typed_as_a_prompt(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEREBRUM_MAX_TOKENS", "5")
    (home.home / "a.json").write_text("{}")
    more = ("-s", "Be brief.", "--temperature", "0.5", "--stop", "x", "--schema", "a.json", "-m", "./m.gguf")
    done = home.run("ask", "Sum up:\n\n{input}", *more, "--save-prompt", "new")
    assert (done.code, done.out) == (0, "")
    assert done.err == f"new saved in {home.path}; use it with cerebrum ask -p new\n"
    assert home.text.startswith(CONFIG + "\n[prompts.new]\n")
    assert tomllib.loads(home.text)["prompts"]["new"] == {
        "model": str(home.home / "m.gguf"),
        "system": "Be brief.",
        "temperature": 0.5,
        "stop": ["x"],
        "prompt": "Sum up:\n\n{input}",
        "schema": str(home.home / "a.json"),
    }


def test_ask_saves_settings_as_config_reads_them(home: Home) -> None:
    more = (
        "--set",
        "logit_bias=5=-1.5",
        "--set",
        "logit_bias=yes=2",
        "--set",
        "loop_check=off",
        "--set",
        "drafts=on",
        "--top-k",
        "7",
    )
    assert home.run("ask", *more, "--save-prompt", "new").code == 0
    saved = read_config(home.path).prompts["new"]
    assert saved.settings == {
        "logit_bias": (TokenBias(5, -1.5), TokenBias("yes", 2)),
        "loop_check": False,
        "drafts": True,
        "top_k": 7,
    }
    assert home.run("prompts", "show", "new", "--json").object["settings"]["logit_bias"] == ["5=-1.5", "yes=2"]


def test_ask_saves_a_prompt_without_a_config(home: Home) -> None:
    home.path.unlink()
    home.path.parent.rmdir()
    assert home.run("ask", "-", "--save-prompt", "new", "-q", piped=b"From a pipe\n").err == ""
    assert home.text == '[prompts.new]\nprompt = "From a pipe"\n'


def test_ask_replaces_a_prompt_only_if_confirmed(home: Home) -> None:
    refused = home.run("ask", "New", "--save-prompt", "sum")
    assert (refused.code, home.text) == (2, CONFIG)
    assert (
        refused.err == "error: there is a saved prompt sum already\n hint: choose another name, or replace it with -y\n"
    )
    assert home.run("ask", "New", "--save-prompt", "sum", "-y").code == 0
    assert tomllib.loads(home.text)["prompts"]["sum"] == {"prompt": "New"}
    assert "# short" in home.text and "# The server." in home.text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("x", "--votes", "3"), "--votes cannot be saved with a prompt"),
        (("x", "-p", "sum"), "--saved-prompt cannot be saved with a prompt"),
        (("-f", "a.txt"), "--file cannot be saved with a prompt"),
        (("-c", "x"), "--continue cannot be saved with a prompt"),
        ((), "there is nothing to save as new"),
        (("x", "--schema", "none.json"), "none.json: No such file or directory"),
        (("x", "--set", "no_profile=on"), "--set no_profile cannot be saved with a prompt"),
        (("x", "-x", "--schema", "config/cerebrum/config.toml"), "--extract and --schema cannot be used together"),
    ],
)
def test_ask_reports_what_it_cannot_save(home: Home, arguments: tuple[str, ...], problem: str) -> None:
    done = home.run("ask", *arguments, "--save-prompt", "new")
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {problem}")
    assert home.text == CONFIG


@pytest.mark.parametrize(
    ("arguments", "value"), [(("-x",), True), (("--extract=last",), "last"), (("-x", "-xpy"), "py")]
)
def test_ask_saves_which_code_block_is_extracted(home: Home, arguments: tuple[str, ...], value: object) -> None:
    assert home.run("ask", "x", *arguments, "--save-prompt", "new").code == 0
    assert tomllib.loads(home.text)["prompts"]["new"] == {"prompt": "x", "extract": value}


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n"])
def test_ask_refuses_a_name_that_is_hard_to_type(home: Home, name: str) -> None:
    done = home.run("ask", "x", f"--save-prompt={name}")
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: a saved prompt cannot be named {name!r}")
    assert home.text == CONFIG


# cerebrum prompts edit.


def test_prompts_edit_opens_the_table(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    vim = home.home / "vim"
    vim.write_text('#!/bin/sh\necho "$@" > arguments\n')
    vim.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(vim))
    assert home.run("prompts", "edit", "a b").err == "no changes\n"
    assert (home.home / "arguments").read_text() == f"+17 {home.path}\n"
    assert home.text == CONFIG


def test_prompts_edit_creates_a_table(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    change = "assert '[prompts.new]\\n# prompt = ' in text\ntext = text.replace('# temperature', 'temperature')"
    monkeypatch.setenv("VISUAL", editor(home.home, change))
    done = home.run("prompts", "edit", "new")
    assert (done.code, done.err) == (0, f"new saved in {home.path}\n")
    assert home.text.startswith(CONFIG + "\n[prompts.new]\n# prompt = ")
    assert tomllib.loads(home.text)["prompts"]["new"] == {"temperature": 0.2}


def test_prompts_edit_without_changes_adds_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", editor(home.home, ""))
    assert home.run("prompts", "edit", "new").err == "no changes\n"
    assert home.text == CONFIG
    monkeypatch.setenv("VISUAL", "false")
    failed = home.run("prompts", "edit", "new")
    assert (failed.code, home.text) == (2, CONFIG)
    assert failed.err.startswith("error: the editor false failed: ")
    home.path.unlink()
    assert home.run("prompts", "edit", "new").code == 2
    assert not home.path.exists()


def test_prompts_edit_keeps_the_text_of_a_fault(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", editor(home.home, "text += 'prmpt = \"x\"\\n'"))
    done = home.run("prompts", "edit", "a b")
    assert (done.code, home.text) == (1, CONFIG + 'prmpt = "x"\n')
    assert done.err.startswith(f"error: {home.path}: [prompts.a b]: unknown key `prmpt`\n hint: did you mean prompt?")
    assert done.err.endswith("cerebrum prompts edit 'a b'  opens the file again, with your text\n")
    monkeypatch.setenv("VISUAL", editor(home.home, "text = text.replace('prmpt', 'prompt')"))
    assert home.run("prompts", "edit", "a b").code == 0
    assert home.run("prompts", "show", "a b", "--json").object["prompt"] == "x"


def test_prompts_edit_opens_a_file_that_is_damaged(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.path.write_text(CONFIG + "top_k = = 1\n")
    monkeypatch.setenv("VISUAL", editor(home.home, "text = text.replace('= =', '=')\nprint(sys.argv)"))
    done = home.run("prompts", "edit", "sum")
    assert (done.code, "top_k = = 1" in home.text) == (0, False), done.err


# In a shell.


@pytest.mark.slow
def test_shell_completes_names_of_saved_prompts(new_user: CommandLine) -> None:
    (new_user.config / "config.toml").write_text(CONFIG)
    for line in (
        "ask -p s",
        "chat --saved-prompt s",
        "batch in.txt -p s",
        "prompts show s",
        "prompts edit s",
        "prompts rm s",
    ):
        words = f"cerebrum {line}"
        env = {"_CEREBRUM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        assert new_user.run(env=env).out.split() == ["sum"], line


@pytest.mark.slow
def test_prompts_rm_asks_at_a_terminal(new_user: CommandLine, open_terminal: OpenTerminal) -> None:
    (new_user.config / "config.toml").write_text(CONFIG)
    person = open_terminal(sys.executable, "-m", "cerebrum_cli", "prompts", "rm", "sum")
    person.wait_for("Delete the saved prompt sum? [y/N]")
    person.type("y\r")
    person.wait_for("deleted sum")
    assert person.end() == 0
    assert list(tomllib.loads((new_user.config / "config.toml").read_text())["prompts"]) == ["a b"]
