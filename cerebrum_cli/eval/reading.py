"""Read questions from the fields of rows; one that cannot be scored becomes a row with an error.

{"question": "...", "answer": "... #### 72"}                    text, as in GSM8K
{"question": "...", "choices": ["...", "..."], "answer": "B"}   the letter of a choice, its text, or its index from 0
{"question": "...", "answer": ["4", "four"]}                    several right answers
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from math import isfinite
from string import ascii_uppercase as LETTERS
from typing import Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_fields import UNKNOWN_FIELD, InvalidRow, RowId, Template, own_id
from cerebrum_cli.core.text import Texts, enumeration, truncate, well_formed
from cerebrum_cli.eval.answered import CHOICES, ENTRY_POINT, STUB
from cerebrum_cli.rows.keys import Digest
from cerebrum_cli.rows.read import Input, InputOptions, RowList
from cerebrum_cli.rows.row import REFERENCE, Cells, InputRow, prompt_row

QUESTION_TEMPLATE = "{question}"  # of a question without a template of its own
CHOICE_TEMPLATE = "{question}\n\n{choices}\n\nAnswer with the letter of the correct choice."  # of one with choices
_MAX_SHOWN = 60  # characters of a value in a reason
_FINAL = re.compile(r".*(?<!#)####(?!#)(.*)")  # in the last line of a solution in GSM8K

Fields = JsonObject  # of a row
# Fields of a question from those of a row that are not null; KeyError means a missing one.
Convert = Callable[[Fields], Fields]


def question_options(
    template: Template | None, convert: Convert | None, answer: str, delimiter: str | None
) -> InputOptions:
    """How questions are read whose right answers are in the field `answer`.

    A `template` gets the row's fields, with `choices` as lines. Without it, a question has QUESTION_TEMPLATE, and one
    with choices CHOICE_TEMPLATE. `convert` adds fields to a row.
    """

    def row_of(number: int, _: RowId, fields: Fields) -> InputRow:
        row = fields if convert is None else _converted(fields, convert)
        choices = _choices(row.get("choices"))
        prompt = _prompt(row, choices, template)
        return replace(
            prompt_row(number, own_id(row, number), prompt),
            expected=_expected(row, choices, answer, convert is not None),
        )

    return InputOptions(delimiter=delimiter, row_of=row_of)


def read_questions(inputs: Iterable[Input]) -> RowList:
    """Read the questions of inputs, numbered one after the other. Raises UsageError if none can be scored."""
    questions: list[tuple[Digest, InputRow]] = []
    unit = ""
    for rows in inputs:
        unit = rows.unit
        before = questions[-1][1].number if questions else 0
        for number, data in rows.records():
            questions.append((rows.source_of(data), rows.read(before + number, data)))
    if all(row.error for _, row in questions):
        _, first = questions[0]
        assert first.error
        raise UsageError(
            f"no question can be scored; {unit} {first.number}: {first.error.message}",
            'each line needs `answer`, and `question` or the fields of a template, such as --template "{problem}"',
        )
    return RowList(tuple(questions), unit)


def select(questions: RowList, limit: int | None = None) -> RowList:
    """Put questions in a random order and take the first of them: a smaller limit gives a prefix of a larger one.

    A question's place depends on its id alone, not on the other questions.
    """

    def rank(question: tuple[Digest, InputRow]) -> tuple[bytes, int]:
        _, row = question
        return sha256(f"0 {type(row.id).__name__} {row.id}".encode()).digest(), row.number

    return RowList(tuple(sorted(questions.rows, key=rank)[:limit]), questions.unit)


def _converted(row: Fields, convert: Convert) -> Fields:
    try:
        return {**row, **convert({key: value for key, value in row.items() if value is not None})}
    except KeyError as error:
        raise _missing(str(error.args[0]), row) from error


def _expected(row: Fields, choices: Texts, answer: str, has_code: bool) -> JsonDict:
    """What is known of the right answer, or of several, as keys of the row's object."""
    given = _right_answers(row.get(answer), isinstance(row, Cells))
    if not given:
        raise _missing(answer, row)
    if choices:
        right = [_correct_choice(_number_of(value, row), choices, answer) for value in given]
    else:
        right = [_final_answer(_text(value, answer), answer) for value in given]
    expected: JsonDict = {REFERENCE: right if len(right) > 1 else right[0]}
    if choices:
        expected[CHOICES] = list(choices)
    if has_code and STUB in row:
        expected |= {STUB: str(row[STUB]), ENTRY_POINT: str(row[ENTRY_POINT])}
    return expected


def _number_of(value: Any, row: Fields) -> Any:
    """The value of an answer, which is text in a table, as are its choices there."""
    is_cell = isinstance(value, str) and isinstance(row["choices"], str)
    return int(value) if is_cell and value.strip().isdecimal() else value


def _right_answers(value: Any, is_cell: bool) -> list[Any]:
    """The items of a list; another value is the only one. In a cell, a list of numbers is one answer: an interval."""
    listed = _from_cell(value) if is_cell else value
    if isinstance(listed, list) and not (is_cell and all(type(item) in (int, float) for item in listed)):
        return listed
    return [] if value is None else [value]


def _from_cell(value: Any) -> Any:
    """The list that a cell of a table has as JSON; any other value as it is."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _choices(value: Any) -> Texts:
    choices = _from_cell(value)
    if choices in (None, []):
        return ()
    if not isinstance(choices, list):
        raise InvalidRow("`choices` must be a list of texts")
    if not 2 <= len(choices) <= len(LETTERS):
        raise InvalidRow(f"`choices` must have 2 to {len(LETTERS)} items, not {len(choices)}")
    return tuple(_text(choice, "choices") for choice in choices)


def _prompt(row: Fields, choices: Texts, template: Template | None) -> str:
    lines = "\n".join(f"{letter}) {text}" for letter, text in zip(LETTERS, choices, strict=False))
    if template is None:
        question = _required(row, "question")
        if choices:
            return CHOICE_TEMPLATE.format(question=question, choices=lines)
        return question
    if choices:
        row = {**row, "choices": lines}
    return template.render(row)


def _required(row: Fields, name: str) -> str:
    if row.get(name) is None:
        raise _missing(name, row)
    return _text(row[name], name)


def _missing(name: str, row: Fields) -> InvalidRow:
    return InvalidRow(f"no `{name}`; the fields are: {', '.join(row) or 'none'}", UNKNOWN_FIELD)


def _text(value: Any, name: str) -> str:
    is_number = type(value) is int or (isinstance(value, float) and isfinite(value))
    if not (is_number or isinstance(value, str)):
        raise InvalidRow(f"invalid `{name}`: {_shown(value)}; it must be text or a number")
    text = well_formed(str(value)).strip()
    if not text:
        raise InvalidRow(f"`{name}` is blank")
    return text


def _final_answer(text: str, name: str) -> str:
    final = _FINAL.match(text.rpartition("\n")[2])
    if final is None:
        return text
    if not final[1].strip():
        raise InvalidRow(f"`{name}` has nothing after its ####")
    return final[1].strip()


def _correct_choice(value: Any, choices: Texts, name: str) -> str:
    """The letter of the choice that an answer names by its letter, its text, or its index from 0, as MMLU does."""
    text = _text(value, name)
    named = {letter for letter, choice in zip(LETTERS, choices, strict=False) if text in (letter, choice)}
    if type(value) in (int, float) and value in range(len(choices)):
        named.add(LETTERS[int(value)])
    if len(named) > 1:
        raise InvalidRow(f"ambiguous `{name}`: {_shown(value)} may mean choice {enumeration(sorted(named), 'or')}")
    if not named:
        problem = f"invalid `{name}`: {_shown(value)} is none of the {len(choices)} choices"
        raise InvalidRow(f"{problem}; give its letter, its text, or its index from 0")
    return named.pop()


def _shown(value: Any) -> str:
    return truncate(well_formed(repr(value)), _MAX_SHOWN)
