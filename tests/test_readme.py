"""The README shows what the code has."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
with_tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))["with_tables"]


def test_the_tables_of_keys_and_commands_come_from_the_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: make docs"
    assert "| `/undo` | take the last question" in text
    assert "| `Ctrl-R` |" in text


def test_a_readme_without_marks_is_no_place_for_tables() -> None:
    with pytest.raises(ValueError, match="has no <!-- slashes -->"):
        with_tables("# cerebrum")


def test_the_picture_is_a_chat() -> None:
    picture = (ROOT / "docs" / "chat.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg")
    assert ">context<" in picture
