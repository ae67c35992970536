"""The preview of an evaluation: its first prompt, and how many questions it asks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.settings import sampling_text
from cerebrum_cli.core.text import enumeration, format_count
from cerebrum_cli.engine.requests import ContextOptions
from cerebrum_cli.eval.sources import references_of
from cerebrum_cli.replies.interface import open_source
from cerebrum_cli.rows.answering import row_to_ask

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.prepared import PreparedEvaluation


def show_preview(app: App, prepared: PreparedEvaluation) -> None:
    """Print the exact prompt of the first good question on standard output, and a summary on standard error."""
    streams, questions = app.streams, prepared.questions.rows
    first = next(row for _, row in questions if row.error is None)
    asked = row_to_ask(0, first, prepared.asker, prepared.source).request
    assert isinstance(asked, Ask)
    with open_source(replace(prepared.source, context=ContextOptions(), vocabulary_only=True)) as loaded:
        prompt, token_ids = loaded.preview(asked.conversation, asked.settings)
        for notice in loaded.take_notices():
            streams.note(notice)
    streams.answer(prompt if prompt.endswith("\n") or not streams.out_is_terminal else f"{prompt}\n")
    if streams.is_quiet:
        return
    streams.draw(f"{len(token_ids)} tokens; expected answer: {enumeration(references_of(first.expected), 'or')}\n")
    asked_of = format_count(prepared.notes["all questions"], "question")
    streams.draw(f"{len(questions)} of {asked_of}, {format_count(prepared.asker.samples, 'sample')} each\n")
    streams.draw(f"{sampling_text(asked.settings.samplers, asked.settings.origins)}\n")
    for line in prepared.notes["remarks"]:
        streams.note(f"- {line}")
