"""Files of saved prompts, and `cerebrum prompts edit`."""

import json
import os
import re
import sys
from shlex import join

import pytest
from command_line import CommandLine
from hypothesis import given, strategies as st

from cerebrum_cli.core.saved_prompts import SavedPrompt, read_prompt

HEADER = '+++\nsystem = "Be kind."\n+++\n'


class Home:
    """A user with a saved prompt, who edits it with a Python program."""

    def __init__(self, user: CommandLine) -> None:
        self.home, self.run = user.home, user.run
        self.file = user.config / "prompts" / "tone.md"
        self.file.parent.mkdir()
        self.file.write_text(HEADER)

    def edit(self, name: str, code: str) -> tuple[int, str]:
        """Edit a prompt with code that changes the text `text` of the file; returns exit code and standard error."""
        program = self.home / "editor.py"
        opened = "import sys, pathlib\npath = pathlib.Path(sys.argv[-1])\ntext = path.read_text()"
        program.write_text(f"{opened}\n{code}\npath.write_text(text)\n")
        done = self.run("prompts", "edit", name, env={"VISUAL": join([sys.executable, str(program)])})
        return done.code, done.err


@pytest.fixture
def home(new_user: CommandLine) -> Home:
    return Home(new_user)


WITHOUT_PLACEHOLDERS = st.text().filter(lambda text: not re.search(r"\{\w+\}", text))
JSON = st.recursive(
    st.none() | st.integers() | WITHOUT_PLACEHOLDERS,
    lambda inner: st.lists(inner) | st.dictionaries(WITHOUT_PLACEHOLDERS, inner),
)
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="{}"))
NAMES = st.sampled_from(["language", "tone", "größe", "x1", "_"])


@given(st.lists(st.tuples(PLAIN, NAMES | st.just("input"))), PLAIN, st.text(min_size=1), st.data())
def test_placeholders_stand_for_their_values(
    parts: list[tuple[str, str]], end: str, question: str, data: st.DataObject
) -> None:
    template = "".join(f"{before}{{{name}}}" for before, name in parts) + end
    needed = dict.fromkeys(name for _, name in parts if name != "input")
    values = {name: data.draw(st.text(st.characters(codec="utf-8")), name) for name in needed}
    saved = SavedPrompt("a", {}, template).with_values([f"{name}={value}" for name, value in values.items()], "")
    filled = "".join(before + {**values, "input": question}[name] for before, name in parts) + end
    if all(name != "input" for _, name in parts):
        filled = f"{template and filled}\n\n{question}"
    assert saved.fill(question) == filled
    doubled = template.replace("{", "{{").replace("}", "}}")
    assert SavedPrompt("a", {}, doubled).with_values([], "").fill("") == template


@given(JSON, st.text())
def test_braces_of_json_are_text(value: object, question: str) -> None:
    text = json.dumps({"value": value})
    saved = SavedPrompt("a", {"system": text}, text).with_values([], "")
    assert (saved.placeholders, saved.settings["system"]) == ((), text)
    assert saved.fill(question) == (f"{text}\n\n{question}" if question else text)


def test_saved_prompt_may_have_no_header_and_other_line_ends(home: Home) -> None:
    home.file.write_bytes(b"Sum up:\r\n\r\n{input}\r\n")
    assert read_prompt(home.file) == SavedPrompt("tone", {}, "Sum up:\n\n{input}")


def test_prompts_edit_keeps_symlinks(home: Home) -> None:
    real = home.home / "dotfiles" / "tone.md"
    real.parent.mkdir()
    home.file.rename(real)
    home.file.symlink_to(real)
    assert home.edit("tone", "text = 'New'")[0] == 0
    assert home.file.is_symlink() and real.read_text() == "New"


def test_prompts_edit_creates_a_file_from_an_example(home: Home) -> None:
    change = "assert '# model = ' in text\ntext = text.replace('# temperature', 'temperature')"
    new = home.file.with_name("new.md")
    assert home.edit("new", change) == (0, f"new saved in {new}\n")
    assert read_prompt(new).settings == {"temperature": 0.2}


def test_prompts_edit_without_changes_adds_nothing(home: Home) -> None:
    assert home.edit("tone", "") == (0, "no changes\n")
    assert home.edit("new", "") == (0, "no changes\n")
    failed = home.run("prompts", "edit", "new", env={"VISUAL": "false"})
    assert failed.code == 2
    assert failed.err.startswith("error: the editor false failed: ")
    assert os.listdir(home.file.parent) == ["tone.md"]


def test_prompts_edit_keeps_the_text_of_a_fault(home: Home) -> None:
    code, error = home.edit("tone", "text = text.replace('system', 'sistem')")
    assert code == 2
    assert error.startswith(f"error: {home.file}:2: unknown key `sistem`\n hint: did you mean system?")
    assert error.endswith("run cerebrum prompts edit tone to open the file again, with your text\n")
    assert home.edit("tone", "text = text.replace('sistem', 'system')")[0] == 0
    assert home.file.read_text() == HEADER
