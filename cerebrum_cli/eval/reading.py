"""Read questions from JSON objects; one that cannot be scored becomes a row with an error.

{"question": "...", "answer": "... #### 72"}                    text, as in GSM8K
{"question": "...", "choices": ["...", "..."], "answer": "B"}   the letter of a choice, or its text
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from string import ascii_uppercase as LETTERS
from typing import Any

from cerebrum_cli.batch.input_row import InputRow, invalid_row, prompt_row
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.row_fields import InvalidRow, RowId, Template, own_id, parse_line
from cerebrum_cli.core.text import Texts, truncate, well_formed
from cerebrum_cli.eval.questions import CHOICES, ENTRY_POINT, STUB, Question
from cerebrum_cli.eval.runs import REFERENCE
from cerebrum_cli.results.rows import digest_of

QUESTION_TEMPLATE = "{question}"  # of a question without a template of its own
CHOICE_TEMPLATE = "{question}\n\n{choices}\n\nAnswer with the letter of the correct choice."  # of one with choices
_BOM = b"\xef\xbb\xbf"
_MAX_SHOWN = 60  # characters of a value in a reason
_FINAL = re.compile(r".*(?<!#)####(?!#)(.*)")  # in the last line of a solution in GSM8K

Fields = JsonObject  # of a row
# Fields of a question from those of a row that are not null; KeyError means a missing one.
Convert = Callable[[Fields], Fields]


def read_questions(data: bytes, template: Template | None = None, convert: Convert | None = None) -> list[Question]:
    """Read questions from lines of JSON. Raises UsageError if none can be scored.

    A `template` gets the row's fields, with `choices` as lines. Without it, a question has QUESTION_TEMPLATE, and one
    with choices CHOICE_TEMPLATE. `convert` adds fields to a row.
    """
    lines = enumerate(data.removeprefix(_BOM).split(b"\n"), 1)
    questions = [
        Question(digest_of(line.strip()), _read_line(number, line, template, convert))
        for number, line in lines
        if line.strip()
    ]
    if not questions:
        raise UsageError("there are no questions", 'put one {"question": "...", "answer": "..."} on each line')
    if all(question.row.error for question in questions):
        first = questions[0].row
        assert first.error
        raise UsageError(
            f"no question can be scored; line {first.number}: {first.error.message}",
            'each line needs `answer`, and `question` or the fields of a template, such as --template "{problem}"',
        )
    return questions


def _read_line(number: int, line: bytes, template: Template | None, convert: Convert | None) -> InputRow:
    id: RowId = number
    try:
        row = _fields(line, convert)
        id = own_id(row, number, ("id",))
        choices = _choices(row.get("choices"))
        prompt = _prompt(row, choices, template)
        return replace(prompt_row(number, id, prompt), known=_known(row, choices))
    except InvalidRow as invalid:
        return invalid_row(number, invalid.id or id, None, invalid)


def _fields(line: bytes, convert: Convert | None) -> Fields:
    try:
        row = parse_line(line.decode())
    except UnicodeDecodeError as error:
        raise InvalidRow(f"byte {error.start + 1} is not UTF-8", "invalid_utf8") from error
    if not isinstance(row, dict):
        raise InvalidRow("not a JSON object")
    if convert is None:
        return row
    try:
        return {**row, **convert({key: value for key, value in row.items() if value is not None})}
    except KeyError as error:
        raise _missing(str(error.args[0]), row) from error


def _known(row: Fields, choices: Texts) -> JsonDict:
    """What is known of the right answer, as keys of the row's object."""
    answer = _required(row, "answer")
    if choices:
        return {REFERENCE: _correct_choice(answer, choices), CHOICES: list(choices)}
    known: JsonDict = {REFERENCE: _final_answer(answer)}
    if STUB in row:
        known |= {STUB: str(row[STUB]), ENTRY_POINT: str(row[ENTRY_POINT])}
    return known


def _choices(value: Any) -> Texts:
    if value is None or value == []:
        return ()
    if not isinstance(value, list):
        raise InvalidRow("`choices` must be a list of texts")
    if not 2 <= len(value) <= len(LETTERS):
        raise InvalidRow(f"`choices` must have 2 to {len(LETTERS)} items, not {len(value)}")
    return tuple(_text(choice, "choices") for choice in value)


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
    return InvalidRow(f"no `{name}`; the fields are: {', '.join(row) or 'none'}", "unknown_field")


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


def _correct_choice(answer: str, choices: Texts) -> str:
    """The letter of the choice that an answer names by its letter, or its text."""
    named = [letter for letter, choice in zip(LETTERS, choices, strict=False) if answer in (letter, choice)]
    if len(named) > 1:
        raise InvalidRow(f"ambiguous `answer`: {_shown(answer)} may mean choice {' or '.join(named)}")
    if not named:
        problem = f"invalid `answer`: {_shown(answer)} is none of the {len(choices)} choices"
        raise InvalidRow(f"{problem}; give its letter, or its text")
    return named[0]


def _shown(value: Any) -> str:
    return truncate(well_formed(repr(value)), _MAX_SHOWN)
