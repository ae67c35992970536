"""Decide the rows of a file: what is asked of a row, and the object that its decision becomes."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.decision import PLACES, PROBABILITY_OF, Decision
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import Event, StageEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.row_fields import RowError, field_text
from cerebrum_cli.core.text import Texts, format_names, truncate
from cerebrum_cli.decide.by_likelihood import require_distinct
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, DecisionEvent, PlacedQuestion
from cerebrum_cli.decide.deciding import decide
from cerebrum_cli.decide.given_choices import SHOWN, YES_OR_NO, Choice, GivenChoices, choices_of
from cerebrum_cli.rows.answering import RowAnswer
from cerebrum_cli.rows.row import REFERENCE, Cells, InputRow, output_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cerebrum_cli.decide.trusted import Trust
    from cerebrum_cli.replies.interface import Model

CHOICES = "choices"  # key of a row that has its own
FIRST_WORD = "first_word"  # key of a labelled row: the answer to the question as it was written


@frozen
class DecisionAsker:
    """Asks which choice answers a question. It follows the row's prompt, or is a template with `fields` of the row.

    A `placed` question is that with which the prompts of all rows begin or end. Without `choices`, a row has its own,
    or is answered by yes or no. `label` names the column with the right answer.
    `writes_all` probabilities, to a result that may be a table.
    """

    question: str
    fields: Texts
    choices: GivenChoices | None
    placed: PlacedQuestion | None = None
    by_letter: bool = False
    votes: int | None = None
    label: str | None = None
    writes_all: bool = False
    is_table: bool = False
    is_calibrated: bool = False
    trust: Trust | None = None

    @property
    def samples(self) -> int:
        return self.votes or 1

    @property
    def given(self) -> GivenChoices:
        """The choices of a row without any of its own."""
        return self.choices or YES_OR_NO

    @property
    def keys(self) -> Texts:
        """The keys of an answer, without those of choices that rows have."""
        keys = ["answer", "probability"]
        if self.choices and self.choices.is_score:
            keys.append("mean")
        if self.writes_all:
            keys += map(probability_key, self.given.names)
        if self.trust:
            keys += self.trust.keys
        if self.label is not None:
            keys += (FIRST_WORD, REFERENCE)
        return tuple(keys)

    def answer(self, model: Model, rows: Iterable[tuple[int, InputRow]], in_order: bool) -> Iterator[Event | RowAnswer]:
        if self.choices and not self.votes:
            require_distinct(model, self.choices, self.by_letter)
        asked = (((place, row), self.question_of(row)) for place, row in rows)
        for event in decide(model, asked, self.votes, in_order):
            if isinstance(event, DecisionEvent):
                place, row = event.key
                yield RowAnswer(place, self.object(row, event.result))
            elif not isinstance(event, StageEvent):  # the progress counts rows
                yield event

    def completed(self, row: InputRow) -> InputRow:
        """A row with the question, its own choices and its right answer, by its input; or with its error."""
        if row.conversation is None:
            return row
        fields = row.input if isinstance(row.input, dict) else dict.fromkeys(self.fields, row.input)  # a line of text
        expected, conversation = row.expected, row.conversation
        if self.question:
            conversation = conversation.with_question(f"{conversation.question}\n\n{self.question}")
        try:
            choices = self.choices_for(row.input)
            if self.label is not None:
                expected = {REFERENCE: self.reference_of(row.input)}
            if self.fields and all(name in fields and is_empty(fields[name]) for name in self.fields):
                raise UsageError("the text is empty")
            own = None if choices == self.given else choices.names
            asked = replace(row, conversation=conversation, choices=own, expected=expected)
            self.question_of(asked)
        except UsageError as problem:
            return replace(row, conversation=None, error=RowError.of(problem), expected=expected)
        return asked

    def question_of(self, row: InputRow) -> ChoiceQuestion:
        """The question of a row. Raises UsageError if it cannot be asked."""
        assert row.conversation
        if row.choices is not None and self.is_calibrated:
            raise UsageError("the row has choices of its own, for which there is no calibration")
        choices = self.given if row.choices is None else choices_of(map(Choice, row.choices))
        return ChoiceQuestion(row.conversation, choices, self.by_letter, self.placed)

    def choices_for(self, input: Any) -> GivenChoices:
        """The choices of a row, by its fields. Raises UsageError, also for those whose table has no columns."""
        own = None if self.choices else own_choices(input)
        if own and self.is_table and self.writes_all:
            problem = "the row has its own choices, for which a table has no columns"
            raise UsageError(problem, "omit --probabilities, or name the output .jsonl")
        return self.choices or own or YES_OR_NO

    def reference_of(self, values: Any) -> str:
        """The choice that the label of a row names, in any case. Raises UsageError for another label, or without."""
        column, choices = self.label or "", self.choices_for(values)
        if not isinstance(values, dict) or column not in values:
            known = format_names(list(values)) if isinstance(values, dict) else "none"
            raise UsageError(f"the row has no field {column!r}", f"the fields are: {known}")
        label = field_text(values[column])
        try:
            return choices.names[choices.find(label)]
        except KeyError:
            problem = f"the label {truncate(label, SHOWN)!r} is not a choice"
            raise UsageError(problem, f"the choices are: {format_names(choices.names)}") from None

    def object(self, row: InputRow, result: Decision | CerebrumError) -> JsonDict:
        """The output object of a row."""
        if isinstance(result, CerebrumError):
            return output_object(row, self.keys, {"error": asdict(RowError.of(result))})
        calibrated = self.trust.calibrated(result) if self.trust else result
        values = decision_values(calibrated, self.writes_all)
        if self.label is not None:
            values[FIRST_WORD] = result.first_word or None
        if self.trust:
            values |= self.trust.values(calibrated)
        return output_object(row, self.keys, values)


def is_empty(value: Any) -> bool:
    return value is None or not field_text(value).strip()


def own_choices(fields: Any) -> GivenChoices | None:
    """The choices of a row: a list of names, or the JSON of one. Raises UsageError for other values.

    A column of a table may have another meaning.
    """
    value = fields.get(CHOICES) if isinstance(fields, dict) else None
    if value in (None, ""):
        return None
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(fields, Cells) and not isinstance(value, list):
        return None
    if not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise UsageError(f"`{CHOICES}` is not a list of texts", 'write ["A", "B"], or use --choices')
    return choices_of(map(Choice, value))


def probability_key(name: str) -> str:
    return f"{PROBABILITY_OF}{name}"


def decision_values(decision: Decision, writes_all: bool) -> JsonDict:
    values: JsonDict = {"answer": decision.answer, "probability": round(decision.probability, PLACES)}
    if decision.mean is not None:
        values["mean"] = round(decision.mean, PLACES)
    if writes_all:
        for name, probability in zip(decision.names, decision.probabilities, strict=True):
            values[probability_key(name)] = round(probability, PLACES)
    return values
