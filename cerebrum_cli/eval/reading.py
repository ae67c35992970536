"""Read questions from JSON objects; a row that cannot be scored becomes a BadRow with the reason.

    {"question": "...", "answer": "... #### 72"}                                          text, as in GSM8K
    {"question": "...", "choices": ["...", "..."], "answer": "B"}                         letter, text or index from 0
    {"question": "...", "choices": {"text": [...], "label": ["1", "2"]}, "answer": "2"}   label, as in ARC

A row may have an `id` and a `cluster`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from string import ascii_uppercase as LETTERS
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.row_fields import InvalidRow, Template, own_id, parse_line
from cerebrum_cli.core.text import Texts, truncate, well_formed
from cerebrum_cli.eval.questions import Question, QuestionId, Questions

QUESTION_TEMPLATE = "{question}"  # of a question without a template of its own
CHOICE_TEMPLATE = "{question}\n\n{choices}\n\nAnswer with the letter of the correct choice."  # of one with choices
_BOM = b"\xef\xbb\xbf"
_MAX_SHOWN = 60  # characters of a value in a reason
_FINAL = re.compile(r".*(?<!#)####(?!#)(.*)")  # in the last line of a solution in GSM8K
_LETTER_MARKS = re.compile(r"\(?([^().:]+)[).:]?")  # B, (B), B), B.

Fields = JsonObject  # of a row
# Fields of a question from those of a row that are not null; KeyError means a missing one.
Convert = Callable[[Fields], Fields]


@frozen
class BadRow:
    """A row that cannot be scored: its line, from 1, and why."""

    line: int
    reason: str


@frozen
class QuestionSet:
    """The questions of a source, at least one, and its bad rows by line."""

    questions: Questions
    bad_rows: tuple[BadRow, ...] = ()


def read_questions(data: bytes, template: Template | None = None, convert: Convert | None = None) -> QuestionSet:
    """Read questions from lines of JSON. Raises UsageError if none can be scored, or if answers count choices from 1.

    A `template` gets the row's fields, with `choices` as lines. Without it, a question has QUESTION_TEMPLATE, and one
    with choices CHOICE_TEMPLATE. `convert` adds fields to a row.
    """
    questions: dict[QuestionId, Question] = {}
    bad_rows = []
    for number, line in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            question = _read_row(number, _fields(line, convert), template)
            if first := questions.get(question.id):
                raise InvalidRow(f"duplicate id {_shown(question.id)}, first on line {first.index + 1}")
            questions[question.id] = question
        except InvalidRow as invalid:
            bad_rows.append(BadRow(number, well_formed(str(invalid))))
    if questions:
        return QuestionSet(tuple(questions.values()), tuple(bad_rows))
    if not bad_rows:
        raise UsageError("there are no questions", 'put one {"question": "...", "answer": "..."} on each line')
    raise UsageError(
        f"no question can be scored; line {bad_rows[0].line}: {bad_rows[0].reason}",
        'each line needs `answer`, and `question` or the fields of a template, such as --template "{problem}"',
    )


def _fields(line: bytes, convert: Convert | None) -> Fields:
    try:
        row = parse_line(line.decode())
    except UnicodeDecodeError as error:
        raise InvalidRow(f"byte {error.start + 1} is not UTF-8") from error
    if not isinstance(row, dict):
        raise InvalidRow("not a JSON object")
    if convert is None:
        return row
    try:
        return {**row, **convert({key: value for key, value in row.items() if value is not None})}
    except KeyError as error:
        raise _missing(str(error.args[0]), row) from error


def _read_row(number: int, row: Fields, template: Template | None) -> Question:
    choices = _choices(row.get("choices"))
    prompt = _prompt(row, choices.texts, template)
    if choices.texts:
        solution, reference = "", _correct_choice(row, choices, number)
    else:
        solution = _required(row, "answer")
        reference = _final_answer(solution)
    return Question(
        index=number - 1,
        id=own_id(row, number, ("id",)),
        prompt=prompt,
        reference=reference,
        solution=solution,
        choices=choices.texts,
        cluster=_cluster(row),
        stub=str(row.get("stub", "")),
        entry_point=str(row.get("entry_point", "")),
    )


def _cluster(row: Fields) -> str | None:
    if row.get("cluster") in (None, ""):
        return None
    return _text(row["cluster"], "cluster")


class Choices(NamedTuple):
    """Texts of the choices, their labels if the data have any, and those that are JSON integers."""

    texts: Texts = ()
    labels: Texts = ()
    integers: tuple[int, ...] = ()


def _choices(value: Any) -> Choices:
    if value is None or value == []:
        return Choices()
    labels = None
    if isinstance(value, Mapping):
        value, labels = value.get("text"), value.get("label")
    is_list = isinstance(value, list)
    if not is_list or not (labels is None or (isinstance(labels, list) and len(labels) == len(value))):
        raise InvalidRow('`choices` must be a list of texts, or {"text": [...], "label": [...]}')
    if not 2 <= len(value) <= len(LETTERS):
        raise InvalidRow(f"`choices` must have 2 to {len(LETTERS)} items, not {len(value)}")
    return Choices(
        texts=tuple(_text(choice, "choices") for choice in value),
        labels=tuple(_text(label, "choices") for label in labels or ()),
        integers=tuple(choice for choice in value if type(choice) is int),
    )


def _prompt(row: Fields, choices: Texts, template: Template | None) -> str:
    lines = "\n".join(f"{letter}) {text}" for letter, text in zip(LETTERS, choices, strict=False))
    if template is None:
        question = _required(row, "question")
        if choices:
            return CHOICE_TEMPLATE.format(question=question, choices=lines)
        return question
    if choices:
        row = {**row, "choices": lines}
    prompt = well_formed(template.render(row))
    if not prompt.strip():
        raise InvalidRow("the prompt is blank")
    return prompt


def _required(row: Fields, name: str) -> str:
    if row.get(name) is None:
        raise _missing(name, row)
    return _text(row[name], name)


def _missing(name: str, row: Fields) -> InvalidRow:
    return InvalidRow(f"no `{name}`; the fields are: {', '.join(row) or 'none'}")


def _text(value: Any, name: str) -> str:
    is_number = type(value) is int or (isinstance(value, float) and isfinite(value))
    if not (is_number or isinstance(value, str)):
        raise InvalidRow(f"invalid `{name}`: {_shown(value)}; it must be text or a number")
    text = well_formed(str(value)).strip()
    if not text:
        raise InvalidRow(f"`{name}` is blank")
    return text


def _final_answer(answer: str) -> str:
    final = _FINAL.match(answer.rpartition("\n")[2])
    if final is None:
        return answer
    if not final[1].strip():
        raise InvalidRow("`answer` has nothing after its ####")
    return final[1].strip()


def _correct_choice(row: Fields, choices: Choices, line: int) -> str:
    """Letter of the choice that `answer` names by its label, its text, or its index from 0.

    Raises UsageError for the index after the last: the file's other indices probably count from 1, too.
    """
    text = _required(row, "answer")
    answer = row["answer"]
    count = len(choices.texts)
    places = _labeled(text, choices.labels or LETTERS[:count])
    is_index = text in map(str, range(count))
    # The number 2 is an index beside the text "2", and a choice beside the numbers 1 and 2, as the text "2" always is.
    is_number = is_index and isinstance(answer, int) and answer not in choices.integers
    if not is_number and not (choices.labels and places):
        places.update(place for place, choice in enumerate(choices.texts) if text == choice)
    if len(places) > 1:
        named = " or ".join(LETTERS[place] for place in sorted(places))
        raise InvalidRow(f"ambiguous `answer`: {_shown(answer)} may mean choice {named}")
    if places:
        return LETTERS[places.pop()]
    if is_index:
        return LETTERS[int(text)]
    if text == str(count):
        raise UsageError(
            f"line {line}: the index {count} equals the number of choices: this file seems to count from 1",
            "count from 0, or answer with letters or the texts of choices",
        )
    raise InvalidRow(f"invalid `answer`: {_shown(answer)} is none of the {count} choices")


def _labeled(text: str, labels: Sequence[str]) -> set[int]:
    """Places of the label in a text, such as "(b)"."""
    marked = _LETTER_MARKS.fullmatch(text)
    if marked:
        text = marked[1].strip()
    return {place for place, label in enumerate(labels) if text.casefold() == label.casefold()}


def _shown(value: Any) -> str:
    return truncate(well_formed(repr(value)), _MAX_SHOWN)
