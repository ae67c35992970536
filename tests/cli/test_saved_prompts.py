"""Saved prompts in config.toml, and `cerebrum prompts`, which edits them."""

from __future__ import annotations

import os
import stat
import sys
import tomllib
from pathlib import Path

import pytest
from command_line import CommandLine
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.cli.prompts import prompt_table, table_line, with_prompt
from cerebrum_cli.core.errors import ConfigError

FILE = '''\
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
WITHOUT_SUM = FILE[: FILE.index("[prompts.sum]")] + FILE[FILE.index("# The server.") :]


class Home:
    """A user who has FILE, with its comments."""

    def __init__(self, user: CommandLine) -> None:
        self.home, self.run = user.home, user.run
        self.config = user.config / "config.toml"
        self.config.write_text(FILE, encoding="utf-8")

    @property
    def text(self) -> str:
        return self.config.read_text(encoding="utf-8")


@pytest.fixture
def editable(new_user: CommandLine) -> Home:
    return Home(new_user)


def editor(directory: Path, code: str) -> str:
    """An editor: a Python program that changes the text `text` of the file."""
    program = directory / "editor.py"
    opened = "import sys, pathlib\npath = pathlib.Path(sys.argv[-1])\ntext = path.read_text()"
    program.write_text(f"{opened}\n{code}\npath.write_text(text)\n")
    return f"'{sys.executable}' '{program}'"


# Text of config.toml.


def test_config_file_keeps_everything_else() -> None:
    assert with_prompt(FILE, "sum", None) == WITHOUT_SUM
    assert with_prompt(FILE, "a b", None) == FILE[: FILE.index('[prompts."a b"]')]
    assert with_prompt(FILE, "new", {"prompt": "x"}) == FILE + '\n[prompts.new]\nprompt = "x"\n'
    changed = with_prompt(FILE, "sum", {"temperature": 0.5, "system": "A\nB"})
    assert "[prompts.sum]  # short\ntemperature = 0.5\n" in changed
    assert 'system = """\nA\nB"""\n' in changed
    assert [line for line in FILE.splitlines() if "#" in line and "warm" not in line] == [
        line for line in changed.splitlines() if "#" in line and "warm" not in line
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[ prompts . "sum" ]\r\nprompt = "y"\r\n[endpoints.b]\r\nurl = "u"\r\n',
        '[prompts.a]\nprompt = "[prompts.sum]\\n"\n[prompts.sum]\nprompt = """\n[prompts.a]\n"""\n',
    ],
)
def test_config_file_is_written_in_many_ways(text: str) -> None:
    values = tomllib.loads(text)
    others = {key: table for key, table in values.get("prompts", {}).items() if key != "sum"}
    changed = tomllib.loads(with_prompt(text, "sum", {"prompt": "a\nb", "top_k": 1}))
    assert changed == {**values, "prompts": {**others, "sum": {"prompt": "a\nb", "top_k": 1}}}
    if "sum" in values.get("prompts", {}):
        removed = tomllib.loads(with_prompt(text, "sum", None))
        assert {"prompts": {}, **removed} == {**values, "prompts": others}


@pytest.mark.parametrize("text", ['prompts = {sum = {prompt = "x"}}\n', 'prompts.sum.prompt = "y"\n'])
def test_config_file_that_would_be_damaged_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_prompt(text, "sum", {"prompt": "y"})
    assert caught.value.hint == "edit the file: cerebrum prompts edit sum"
    with pytest.raises(ConfigError):
        with_prompt(text, "sum", None)


@given(st.text(st.characters(codec="utf-8")), st.text("ab_-.\"' é", min_size=1))
def test_prompt_table_holds_any_text(text: str, name: str) -> None:
    table = prompt_table(name, {"prompt": text, "stop": [text], "speculative": False, "temperature": 0.5})
    [(found, values)] = tomllib.loads(table)["prompts"].items()
    assert (found, values["prompt"], values["stop"]) == (name, text, [text])
    assert table_line(f"\n{table}", name) == 2


def test_prompts_keep_permissions_and_symlinks(editable: Home) -> None:
    real = editable.home / "dotfiles" / "config.toml"
    real.parent.mkdir()
    editable.config.rename(real)
    editable.config.symlink_to(real)
    real.chmod(0o664)
    assert editable.run("prompts", "rm", "-y", "sum").code == 0
    assert editable.config.is_symlink() and real.read_text() == WITHOUT_SUM
    assert stat.S_IMODE(real.stat().st_mode) == 0o664
    assert os.listdir(real.parent) == ["config.toml"]


# cerebrum prompts edit.


def test_prompts_edit_creates_a_table(editable: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    change = "assert '[prompts.new]\\n# prompt = ' in text\ntext = text.replace('# temperature', 'temperature')"
    monkeypatch.setenv("VISUAL", editor(editable.home, change))
    done = editable.run("prompts", "edit", "new")
    assert (done.code, done.err) == (0, f"new saved in {editable.config}\n")
    assert editable.text.startswith(FILE + "\n[prompts.new]\n# prompt = ")
    assert tomllib.loads(editable.text)["prompts"]["new"] == {"temperature": 0.2}


def test_prompts_edit_without_changes_adds_nothing(editable: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    vim = editable.home / "vim"
    vim.write_text('#!/bin/sh\necho "$@" > arguments\n')
    vim.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(vim))
    assert editable.run("prompts", "edit", "a b").err == "no changes\n"
    assert (editable.home / "arguments").read_text() == f"+17 {editable.config}\n"  # the line of its table
    assert editable.run("prompts", "edit", "new").err == "no changes\n"
    monkeypatch.setenv("VISUAL", "false")
    failed = editable.run("prompts", "edit", "new")
    assert (failed.code, editable.text) == (2, FILE)
    assert failed.err.startswith("error: the editor false failed: ")
    editable.config.unlink()
    assert editable.run("prompts", "edit", "new").code == 2
    assert not editable.config.exists()


def test_prompts_edit_keeps_the_text_of_a_fault(editable: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", editor(editable.home, "text += 'prmpt = \"x\"\\n'"))
    done = editable.run("prompts", "edit", "a b")
    assert (done.code, editable.text) == (2, FILE + 'prmpt = "x"\n')
    problem = f"error: {editable.config}: [prompts.a b]: unknown key `prmpt`\n hint: did you mean prompt?"
    assert done.err.startswith(problem)
    assert done.err.endswith("run cerebrum prompts edit 'a b' to open the file again, with your text\n")
    editable.config.write_text(editable.text + "top_k = = 1\n")
    monkeypatch.setenv("VISUAL", editor(editable.home, "text = text.replace('prmpt', 'prompt').replace('= =', '=')"))
    assert editable.run("prompts", "edit", "a b").code == 0
    assert editable.run("prompts", "show", "a b", "--json").object["prompt"] == "x"
