"""Decide the rows of a file, and write each to the result as soon as it is decided."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cerebrum_cli.batch.answering import FinishedRow, answer_rows
from cerebrum_cli.core.decision import PLACES, Decision
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import Event, Events, StageEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_fields import RowError, field_text
from cerebrum_cli.core.text import Texts
from cerebrum_cli.decide.by_likelihood import require_distinct
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, Decided
from cerebrum_cli.decide.deciding import decide
from cerebrum_cli.decide.given_choices import YES_OR_NO, Choice, GivenChoices, choices_of
from cerebrum_cli.decide.prompts import ChoiceListing
from cerebrum_cli.results.rows import RowFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from cerebrum_cli.batch.input_row import InputRow
    from cerebrum_cli.batch.readers import BatchInput
    from cerebrum_cli.core.conversation import Conversation
    from cerebrum_cli.decide.trusted import Trust
    from cerebrum_cli.replies.interface import Model
    from cerebrum_cli.results.rows import Results, RowKind

TOGETHER = 100  # rows whose prompts are evaluated together
LINE, INPUT = "line", "input"  # of a row: its number, for errors, and what was read
CHOICES = "choices"  # key of a row that has its own


class AskedRow(NamedTuple):
    """What is asked of a row, or why nothing is; and the object that results get, by what is found."""

    question: ChoiceQuestion | CerebrumError
    object: Callable[[Decision | CerebrumError], JsonDict]


@frozen
class RowQuestions:
    """The rows, and what is asked of each: the question follows the row's prompt, or has `fields` of the row.

    Without `choices`, a row has its own, or is answered by yes or no. `writes_all` probabilities, `copies_input`, to a
    result that may be a table.
    """

    rows: BatchInput
    question: str
    fields: Texts
    choices: GivenChoices | None
    listing: ChoiceListing = ChoiceListing()
    votes: int | None = None
    writes_all: bool = False
    copies_input: bool = False
    is_table: bool = False
    trust: Trust | None = None

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
        return tuple(keys)

    def ask(self, position: int, row: InputRow) -> AskedRow:  # noqa: ARG002
        """What is asked of a row."""
        asked: ChoiceQuestion | CerebrumError
        if row.conversation is None:
            asked = UsageError(row.error.message if row.error else "the row is invalid")
        else:
            try:
                asked = self.question_of(row.conversation, row.input)
            except UsageError as problem:
                asked = problem
        return AskedRow(asked, partial(self.object, row))

    def question_of(self, conversation: Conversation, input: Any) -> ChoiceQuestion:
        """The question of a row. Raises UsageError for a row that cannot be asked."""
        fields = input if isinstance(input, dict) else dict.fromkeys(self.fields, input)  # a line of text
        if self.fields and all(name in fields and is_empty(fields[name]) for name in self.fields):
            raise UsageError("the text is empty")
        if self.question:
            conversation = conversation.with_question(f"{conversation.question}\n\n{self.question}")
        choices = self.choices_for(input)
        if self.trust:
            self.trust.require(choices.names)
        return ChoiceQuestion(conversation, choices, self.listing)

    def choices_for(self, input: Any) -> GivenChoices:
        """The choices of a row, by its fields. Raises UsageError, also for those whose table has no columns."""
        own = None if self.choices else own_choices(input)
        if own and self.is_table and self.writes_all:
            problem = "the row has its own choices, for which a table has no columns"
            raise UsageError(problem, "omit --probabilities, or name the output .jsonl")
        return self.choices or own or YES_OR_NO

    @property
    def asks(self) -> str:
        """The question, or the template that has it."""
        template = self.rows.fingerprint["template"]
        return self.question or str(template)

    def kind_for(self, output: Path) -> RowKind:
        """The rows of a result. Raises UsageError."""
        return self.rows.kind_for(output, self.keys)

    def object(self, row: InputRow, result: Decision | CerebrumError) -> JsonDict:
        """The output object of a row."""
        object = {"id": row.id, "prompt": row.prompt, **dict.fromkeys(self.keys), "error": None}
        if self.copies_input:
            object[INPUT] = row.input
        if isinstance(result, CerebrumError):
            return object | {LINE: row.number, "error": asdict(row.error or RowError.of(result))}
        if self.trust is None:
            return object | decision_values(result, self.writes_all)
        result = self.trust.calibrated(result)
        return object | decision_values(result, self.writes_all) | self.trust.values(result)


def is_empty(value: Any) -> bool:
    return value is None or not field_text(value).strip()


def own_choices(fields: Any) -> GivenChoices | None:
    """The choices of a row: a list of names, or the JSON of one in a table. Raises UsageError for other values."""
    value = fields.get(CHOICES) if isinstance(fields, dict) else None
    if value in (None, ""):
        return None
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise UsageError(f"`{CHOICES}` is not a list of texts", 'write ["A", "B"], or use --choices')
    return choices_of(map(Choice, value))


def probability_key(name: str) -> str:
    return f"probability of {name}"


def decision_values(decision: Decision, writes_all: bool) -> JsonDict:
    values: JsonDict = {"answer": decision.answer, "probability": round(decision.probability, PLACES)}
    if decision.mean is not None:
        values["mean"] = round(decision.mean, PLACES)
    if writes_all:
        for name, probability in zip(decision.names, decision.probabilities, strict=True):
            values[probability_key(name)] = round(probability, PLACES)
    return values


def row_flags(object: JsonObject) -> int:
    if object["error"] is not None:
        return RowFlag.FINISHED | RowFlag.FAILED
    return RowFlag.FINISHED | (RowFlag.UNDECIDED if object.get("decided") is False else 0)


class Asked(Protocol):
    """What is asked of rows by position, with how many votes. Their `choices` are None if rows have their own."""

    @property
    def choices(self) -> GivenChoices | None: ...

    @property
    def listing(self) -> ChoiceListing: ...

    @property
    def votes(self) -> int | None: ...

    def ask(self, position: int, row: InputRow) -> AskedRow:
        """What is asked of a row."""


class DecisionAsker(NamedTuple):
    """Asks questions of rows, whose decisions are their answers."""

    questions: Asked
    samples: int = 1

    def answer(
        self,
        model: Model,
        rows: Iterable[tuple[int, InputRow]],
        in_order: bool,  # noqa: ARG002
    ) -> Iterator[Event | FinishedRow]:
        questions, scope = self.questions, model.engine.cancel_scope
        if questions.choices and not questions.votes:
            require_distinct(model, questions.choices, questions.listing)
        rows = iter(rows)
        while not scope.is_set() and (together := list(islice(rows, TOGETHER))):
            asked: list[ChoiceQuestion] = []
            begun: list[tuple[int, AskedRow, bool]] = []  # in the same order, with positions and whose ids are own
            for position, input_row in together:
                row = questions.ask(position, input_row)
                if isinstance(row.question, CerebrumError):
                    yield FinishedRow(position, row.object(row.question), input_row.has_own_id)
                else:
                    asked.append(row.question)
                    begun.append((position, row, input_row.has_own_id))
            for event in decide(model, asked, questions.votes):
                if isinstance(event, Decided):
                    position, row, has_own_id = begun[event.number]
                    yield FinishedRow(position, row.object(event.result), has_own_id)
                elif not isinstance(event, StageEvent):  # the progress counts rows
                    yield event


def decide_rows(questions: Asked, model: Model, rows: Iterable[tuple[int, InputRow]], results: Results) -> Events:
    """Decide rows, each with its position; yield all events, and a RowEvent for each row."""
    return answer_rows(model, rows, DecisionAsker(questions), results)
