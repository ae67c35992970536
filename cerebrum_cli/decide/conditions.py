"""What decisions depend on besides the rows, by readable names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.decide.by_likelihood import UNUSED

if TYPE_CHECKING:
    from cerebrum_cli.batch.readers import BatchInput
    from cerebrum_cli.decide.decided_rows import DecisionAsker
    from cerebrum_cli.replies.source import ModelSource

METHOD = 4  # of the prompts and the averages; raise it when a decision may change
NOT_CALIBRATED = ("template", "columns", "include input", "input format", "seed")  # what a calibration may differ in


def fingerprint_of(rows: BatchInput, asked: DecisionAsker, model: ModelSource) -> JsonDict:
    """Everything that decisions depend on besides the rows, by readable names."""
    choices = asked.choices and [list(choice) for choice in asked.choices.items]
    unused = () if asked.votes else UNUSED
    return {
        **rows.fingerprint,
        **(asked.trust.fingerprint if asked.trust else {}),
        **{key: value for key, value in model.fingerprint(None).items() if key not in unused},
        "include input": asked.copies_input,
        "question": asked.question,
        "choices": choices,
        "columns": list(asked.keys),
        "score": bool(asked.choices and asked.choices.is_score) or None,
        "letters": asked.by_letter or None,
        "votes": asked.votes,
        "method of decisions": METHOD,
    }


def calibrated_conditions(rows: BatchInput, asked: DecisionAsker, model: ModelSource) -> JsonDict:
    """Everything that the probabilities depend on, by readable names, without what is off. Seeds do not matter.

    Neither does the name of a prompt format that a model has without a choice of the user: its file has the template.
    """
    choices = [f"{name}: {description}" if description else name for name, description in asked.given.items]
    fingerprint = fingerprint_of(rows, asked, model)
    question = asked.question or fingerprint["template"]
    conditions = {**fingerprint, "question": question, "choices": "; ".join(choices)}
    if not (model.settings.format or model.model.is_served) and model.model.header.chat_template:
        del conditions["format"]
    return {
        name: value for name, value in conditions.items() if name not in NOT_CALIBRATED and value not in (None, False)
    }
