"""Files of saved prompts; transcripts have the commands."""

import json
import re
from pathlib import Path

from command_line import CommandLine
from hypothesis import given, strategies as st

from cerebrum_cli.core.saved_prompts import SavedPrompt, read_prompt

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


def test_saved_prompt_may_have_no_header_and_other_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "tone.md"
    path.write_bytes(b"Sum up:\r\n\r\n{input}\r\n")
    assert read_prompt(path) == SavedPrompt("tone", {}, "Sum up:\n\n{input}")


def test_prompts_edit_keeps_symlinks(new_user: CommandLine) -> None:
    real, link = new_user.home / "tone.md", new_user.config / "prompts" / "tone.md"
    real.write_text("Old")
    link.parent.mkdir()
    link.symlink_to(real)
    editor = {"VISUAL": """sh -c 'printf New > "$0"'"""}
    assert new_user.run("prompts", "edit", "tone", env=editor).code == 0
    assert link.is_symlink() and real.read_text() == "New"
