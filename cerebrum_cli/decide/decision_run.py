"""One run: rows, what asks them, and the file that gets the decisions."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.batch.readers import BatchInput
from cerebrum_cli.cli.row_commands import Work, answer_missing, resumable
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.decide.by_likelihood import UNUSED
from cerebrum_cli.decide.choice_questions import described
from cerebrum_cli.decide.decided_rows import DecisionAsker, row_flags
from cerebrum_cli.results.output_tables import COLUMNS, INCLUDE_INPUT
from cerebrum_cli.results.results import open_results, open_stream

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.rows import Results, RowKind

STANDARD = Path("-")  # standard input or output
METHOD = 6  # of the prompts and the averages; raise it when a decision may change
NOT_CALIBRATED = ("template", COLUMNS, INCLUDE_INPUT, "input format", "seed")  # what a calibration may differ in


@frozen
class DecisionRun:
    """Rows, what asks them by which model, and the output; `known` is what else its record says."""

    rows: BatchInput
    asker: DecisionAsker
    model: ModelSource
    output: Path
    known: JsonObject = field(default_factory=dict)

    @property
    def kind(self) -> RowKind:
        """The rows of the output. Raises UsageError."""
        return replace(self.rows.kind_for(self.output, self.asker.keys), flags=row_flags)

    @property
    def conditions(self) -> JsonDict:
        """Everything that decisions depend on besides the rows, by readable names."""
        asker = self.asker
        unused = () if asker.votes else UNUSED
        return {
            **self.rows.fingerprint,
            **{key: value for key, value in self.model.fingerprint(None).items() if key not in unused},
            INCLUDE_INPUT: asker.copies_input,
            "question": asker.question,
            "choices": asker.choices and [list(choice) for choice in asker.choices.items],
            COLUMNS: list(asker.keys),
            "score": bool(asker.choices and asker.choices.is_score) or None,
            "letters": asker.by_letter or None,
            "votes": asker.votes,
            "method of decisions": METHOD,
            **(asker.trust.fingerprint if asker.trust else {}),
            **self.known,
        }

    @property
    def calibrated_conditions(self) -> JsonDict:
        """Everything that the probabilities depend on, without what is off. Seeds do not matter.

        Neither does the name of a prompt format that a model has without a choice of the user: its file has the
        template.
        """
        model, conditions = self.model, self.conditions
        conditions["question"] = self.asker.question or conditions["template"]
        conditions["choices"] = "; ".join(map(described, self.asker.given.items))
        left_out = {*NOT_CALIBRATED, *self.known}
        if not (model.settings.format or model.model.is_served) and model.model.header.chat_template:
            left_out.add("format")
        return {key: value for key, value in conditions.items() if key not in left_out and value not in (None, False)}

    def decide(self, app: App, options: DecideOptions, kind: RowKind) -> Results:
        """Decide the rows that the output lacks. Raises UsageError, BatchError, Interrupted with how to resume."""
        results = self._open_results(app, options, kind)
        results.has_more = not self.rows.is_whole
        with resumable(results, "rows", options.restart):
            answer_missing(app, self.model, options, results, Work(self.rows.missing_rows, self.asker))
        return results

    def _open_results(self, app: App, options: DecideOptions, kind: RowKind) -> Results:
        """The result, with the rows that earlier runs decided."""
        rows, notes = self.rows.known_rows(), self.model.model.adapter_params
        if self.output != STANDARD:
            return open_results(self.output, self.conditions, kind, rows, options.restart, options.retry_failed, notes)
        if options.retry_failed:
            raise UsageError("--retry-failed requires a file with earlier decisions", "give it as -o OUTPUT")
        return open_stream(app.streams.answer, kind, rows)
