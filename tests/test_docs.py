"""The generated documentation is current, and links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from cerebrum_cli.core.config import read_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", ["cli.md", "chat.md"])
def test_reference_pages_are_current(name: str) -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]()
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == pages[name], "run: make docs"


def test_reference_lists_slash_commands_and_keys() -> None:
    text = (ROOT / "docs" / "reference" / "chat.md").read_text(encoding="utf-8")
    assert "| `/undo` | undo the last turn |" in text
    assert "| `Ctrl-R` |" in text


def test_examples_of_saved_prompts_can_be_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "save-prompts.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "config.toml").write_text("\n".join(examples), encoding="utf-8")
    assert list(read_config(tmp_path / "config.toml").prompts) == ["commit", "french", "contact"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("name", "signs"),
    [("chat", (">context<", ">/undo<", ">is_even<")), ("vote", (">--votes<", ">25:<"))],
)
def test_readme_shows_pictures(name: str, signs: tuple[str, ...]) -> None:
    picture = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg")
    assert [sign for sign in signs if sign not in picture] == []
    assert f"(docs/{name}.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")
