"""The prompt's history, a file with the questions that a user has typed."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from cerebrum_cli.core.files import atomic_write
from cerebrum_cli.core.text import Match

_AROUND = '" \n'  # a question, and text that the prompt takes as several lines
_TYPED = re.compile(r"\n# [^\n]*\n((?:\+[^\n]*\n)+)")  # a question in the prompt's history, after its time


def forget_questions(path: Path, questions: Collection[str]) -> None:
    """Remove questions from the prompt's history, in the form that prompt_toolkit writes."""
    gone = [question.strip(_AROUND) for question in questions]

    def without(entry: Match) -> str:
        text = entry[1].replace("\n+", "\n")[1:-1]
        typed = text.strip(_AROUND)
        if typed and any(f"\n{question}".endswith(f"\n{typed}") for question in gone):
            return ""
        return entry[0]

    with suppress(FileNotFoundError):
        text = path.read_bytes().decode(errors="surrogateescape")
        kept = _TYPED.sub(without, text)
        if kept != text:
            atomic_write(path, kept.encode(errors="surrogateescape"))
