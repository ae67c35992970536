"""What decisions of rows depend on, as their record and a calibration say it."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.decide.by_likelihood import UNUSED
from cerebrum_cli.decide.choice_questions import described
from cerebrum_cli.decide.decided_rows import DecisionAsker
from cerebrum_cli.rows.output_tables import COLUMNS
from cerebrum_cli.rows.read import Input

if TYPE_CHECKING:
    from cerebrum_cli.replies.source import ModelSource

METHOD = 6  # of the prompts and the averages; raise it when a decision may change
NOT_CALIBRATED = ("template", COLUMNS, "input format", "seed")  # what a calibration may differ in


@frozen
class DecisionRun:
    """Rows, and what asks them by which model; `labelling` is what else the record of labelled rows says."""

    rows: Input
    asker: DecisionAsker
    model: ModelSource
    labelling: JsonObject = field(default_factory=dict)

    @property
    def conditions(self) -> JsonDict:
        """Everything that decisions depend on besides the rows, by readable names."""
        asker = self.asker
        unused = () if asker.votes else UNUSED
        return {
            **self.rows.fingerprint,
            **{key: value for key, value in self.model.fingerprint(None).items() if key not in unused},
            "question": asker.question,
            "choices": asker.choices and [list(choice) for choice in asker.choices.items],
            COLUMNS: list(asker.keys),
            "score": bool(asker.choices and asker.choices.is_score) or None,
            "letters": asker.by_letter or None,
            "votes": asker.votes,
            "method of decisions": METHOD,
            **(asker.trust.fingerprint if asker.trust else {}),
            **self.labelling,
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
        left_out = {*NOT_CALIBRATED, *self.labelling}
        if not (model.settings.format or model.model.is_served) and model.model.header.chat_template:
            left_out.add("format")
        return {key: value for key, value in conditions.items() if key not in left_out and value not in (None, False)}
