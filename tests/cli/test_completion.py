"""Tab completion of slash commands and their arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.terminal.repl.prompt import SlashCompleter
from cerebrum_cli.terminal.repl.slash_table import PARTS, SETTABLE, SETTING_VALUES, SLASH_COMMANDS


def unreadable() -> list[str]:
    raise SessionError("the database is gone")


COMPLETER = SlashCompleter(
    {
        "model": lambda: ["cerebrum-7b:Q4_K_M", "cerebrum-8x7b", "starter"],
        "session": lambda: ["tea with milk", "tea", "coffee"],
        "setting": lambda: SETTABLE,
        "part": lambda: PARTS,
    },
    SETTING_VALUES,
)


def completed(text: str, completer: SlashCompleter = COMPLETER) -> list[str]:
    """Lines that Tab would complete a line to."""
    document = Document(text, len(text))
    completions = completer.get_completions(document, CompleteEvent(completion_requested=True))
    return [text[: len(text) + each.start_position] + each.text for each in completions]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("/sess", ["/sessions"]),
        ("/s", ["/system", "/set", "/sessions", "/save", "/stats"]),
        ("/model cere", ["/model cerebrum-7b:Q4_K_M", "/model cerebrum-8x7b"]),
        ("/load tea", ["/load tea with milk", "/load tea"]),
        ("/load tea ", ["/load tea with milk"]),
        ("/set te", ["/set temperature"]),
        ("/set overflow ", ["/set overflow drop-oldest", "/set overflow stop"]),
        ("/set --gpu-layers a", ["/set --gpu-layers auto", "/set --gpu-layers all"]),
        ("/set format emb", ["/set format embedded"]),
        ("/set top_k ", []),
        ("/edit ", ["/edit question", "/edit answer"]),
        ("/undo ", []),
        ("/nothing x", []),
        ("tell me", []),
        ("what is /s", []),
    ],
)
def test_completion_of_commands_and_arguments(text: str, lines: list[str]) -> None:
    assert completed(text) == lines


def test_completion_of_a_slash_lists_every_command() -> None:
    assert completed("/") == [f"/{slash.name}" for slash in SLASH_COMMANDS]


@pytest.mark.parametrize("command", ["/file", "/export"])
def test_completion_of_file_names_with_spaces(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my notes.txt").write_text("")
    (tmp_path / "my folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completed(f"{command} my") == [f"{command} my folder", f"{command} my notes.txt"]
    assert completed(f"{command} {tmp_path}/my n") == [f"{command} {tmp_path}/my notes.txt"]


def test_completion_ignores_candidates_that_cannot_be_listed() -> None:
    assert completed("/load t", SlashCompleter({"session": unreadable}, {})) == []
    assert completed("/model t", SlashCompleter({}, {})) == []
