"""The generated documentation is current, and links lead somewhere."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.cli.command_line import assembled
from cerebrum_cli.core.saved_prompts import read_prompt
from cerebrum_cli.core.settings import read_config
from cerebrum_cli.library.catalogue_file import load_catalogue
from cerebrum_cli.library.library import CATALOGUE

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", ["chat.md", "settings.md"])
def test_reference_pages_are_current(name: str) -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]()
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == pages[name], "run: make docs"


@pytest.mark.parametrize("page", [page for page in PAGES if "```toml\n" in page.read_text(encoding="utf-8")])
def test_examples_of_configuration_can_be_read(page: Path, tmp_path: Path) -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    models = [example for example in examples if example.startswith("[models")]
    packages = [example for example in examples if example.startswith("[project")]
    settings = "\n".join(example for example in examples if example not in (*models, *packages))
    (tmp_path / "models.toml").write_text("\n".join(models), encoding="utf-8")
    (tmp_path / "config.toml").write_text(settings, encoding="utf-8")
    load_catalogue([CATALOGUE, tmp_path / "models.toml"])
    read_config(tmp_path / "config.toml")


def test_example_of_a_saved_prompt_can_be_read(tmp_path: Path) -> None:
    text = (ROOT / "docs/ask.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```text\n(\+\+\+\n.*?)^```", text, re.M | re.S)
    (tmp_path / "example.md").write_text(example, encoding="utf-8")
    assert "{input}" in str(read_prompt(tmp_path / "example.md").prompt)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]
    assert [target for target, _ in targets if not target.exists()] == []
    assert [(target.name, anchor) for target, anchor in targets if anchor and anchor not in anchors(target)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_examples_have_valid_options(page: Path) -> None:
    group: Any = assembled(COMMANDS, COMMANDS)
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines:
        for found in re.finditer(r"(?<![\w./-])cerebrum (?!-)([^|>#&;]*)", line.partition("  # ")[0]):
            try:
                words = shlex.split(found[1].strip().rstrip(")"))
            except ValueError:  # a sign of the shell's in quotes
                continue
            command = group
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            assert command is not group, line
            if not words and hasattr(command, "commands"):
                continue
            context = command.make_context("cerebrum", [word for word in words if word != "..."])
            names = {text.partition("=")[0] for text in context.params.get("set") or ()}
            assert names <= {*command.settable, "help"}, line


def test_the_readme_can_be_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 700
