"""What commands print: every line of standard output and standard error, and the exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import CommandLine
from transcripts import Transcript

DIRECTORY = Path(__file__).with_name("transcripts")


@pytest.mark.parametrize("name", sorted(path.stem for path in DIRECTORY.glob("*.txt")))
def test_commands_print_their_transcript(new_user: CommandLine, chatml_model: Path, name: str) -> None:
    path = DIRECTORY / f"{name}.txt"
    expected = path.read_text(encoding="utf-8")
    printed = Transcript(new_user, chatml_model).replay(expected)
    if os.environ.get("WRITE_TRANSCRIPTS"):
        path.write_text(printed, encoding="utf-8")
    else:
        assert printed == expected
