"""Read questions from JSON objects; a row that cannot be scored becomes a BadRow with the reason.

    {"question": "...", "answer": "... #### 72"}                                          text, as in GSM8K
    {"question": "...", "choices": ["...", "..."], "answer": "B"}                         letter, text or index
    {"question": "...", "choices": {"text": [...], "label": ["1", "2"]}, "answer": "2"}   label, as in ARC

A row may have an `id` and a `cluster`. Whether an index counts from 0 or from 1 is decided over all rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from string import ascii_uppercase as LETTERS
from typing import Any

from cerebrum_cli.batch.json_rows import parse_line
from cerebrum_cli.batch.rows import InvalidRow, Template
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import truncate, well_formed
from cerebrum_cli.eval.questions import Question, QuestionId

QUESTION_TEMPLATE = "{question}"  # of a question without a template of its own
CHOICE_TEMPLATE = "{question}\n\n{choices}\n\nAnswer with the letter of the correct choice."  # of one with choices
INDEX_NOTE = "answer indices are assumed to start at 0: none is 0, and none equals its number of choices"
_BOM = b"\xef\xbb\xbf"
_MAX_SHOWN = 60  # characters of a value in a reason
_FINAL = re.compile(r".*(?<!#)####(?!#)(.*)")  # in the last line of a solution in GSM8K
_LETTER_MARKS = re.compile(r"\(?([^().:]+)[).:]?")  # B, (B), B), B.

# Number of a row, from 1, and its fields, or a line of JSON that has them.
Row = tuple[int, Mapping[str, Any] | bytes]
# Fields of a question from those of a row that are not null; KeyError means a missing one.
Convert = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be scored: its line, from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of a source, at least one, its bad rows by line, and an assumption about all of them."""

    questions: tuple[Question, ...]
    bad_rows: tuple[BadRow, ...] = ()
    note: str | None = None


class _Invalid(Exception):
    """A row cannot be scored; caught where it becomes a BadRow."""


def split_lines(data: bytes) -> Iterator[Row]:
    for number, line in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        if line.strip():
            yield number, line


def read_questions(
    rows: Iterable[Row], template: Template | None = None, convert: Convert | None = None
) -> QuestionSet:
    """Read the questions of a source. Raises UsageError if none can be scored.

    A `template` gets the row's fields, with `choices` as lines. Without it, a question has QUESTION_TEMPLATE, and one
    with choices CHOICE_TEMPLATE. `convert` adds fields to a row.
    """
    questions: dict[QuestionId, Question] = {}
    indices: dict[QuestionId, int] = {}  # answers that are indices, whose base is known once all rows are read
    bad_rows: list[BadRow] = []
    for number, row in rows:
        try:
            question, index = _read_row(number, _fields(row, convert), template)
            if first := questions.get(question.id):
                raise _Invalid(f"duplicate id {_shown(question.id)}, first on line {first.index + 1}")
            questions[question.id] = question
            if index is not None:
                indices[question.id] = index
        except (_Invalid, InvalidRow) as invalid:
            bad_rows.append(BadRow(number, well_formed(str(invalid))))
    note = _resolve_indices(questions, indices, bad_rows)
    bad_rows.sort(key=lambda bad: bad.line)
    if questions:
        return QuestionSet(tuple(questions.values()), tuple(bad_rows), note)
    if not bad_rows:
        raise UsageError("there are no questions", 'put one {"question": "...", "answer": "..."} on each line')
    raise UsageError(
        f"no question can be scored; line {bad_rows[0].line}: {bad_rows[0].reason}",
        'each line needs `answer`, and `question` or the fields of a template, such as --template "{problem}"',
    )


def _fields(row: Mapping[str, Any] | bytes, convert: Convert | None) -> Mapping[str, Any]:
    if isinstance(row, bytes):
        try:
            row = parse_line(row.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _Invalid(f"byte {error.start + 1} is not UTF-8") from error
    if not isinstance(row, dict):
        raise _Invalid("not a JSON object")
    if convert is None:
        return row
    try:
        return {**row, **convert({key: value for key, value in row.items() if value is not None})}
    except KeyError as error:
        raise _missing(str(error.args[0]), row) from error


def _read_row(number: int, row: Mapping[str, Any], template: Template | None) -> tuple[Question, int | None]:
    """The question of a row; if its answer is an index, without its reference answer, and the index."""
    id = row.get("id")
    choices, labels, integers = _choices(row.get("choices"))
    if id is None or id == "":
        id = number
    elif isinstance(id, bool) or not isinstance(id, str | int):
        raise _Invalid(f"invalid `id`: {_shown(id)}; it must be text or an integer")
    prompt = _prompt(row, choices, template)
    solution = "" if choices else _required(row, "answer")
    correct = _correct_choice(row, choices, labels, integers) if choices else _final_answer(solution)
    question = Question(
        index=number - 1,
        id=well_formed(id) if isinstance(id, str) else id,
        prompt=prompt,
        reference=correct if isinstance(correct, str) else "",
        solution=solution,
        choices=choices,
        cluster=None if row.get("cluster") in (None, "") else _text(row["cluster"], "cluster"),
        stub=str(row.get("stub", "")),
        entry_point=str(row.get("entry_point", "")),
    )
    return question, correct if isinstance(correct, int) else None


def _choices(value: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """Texts of the choices, their labels if the data have any, and those that are JSON integers."""
    if value is None or value == []:
        return (), (), ()
    labels = None
    if isinstance(value, Mapping):
        value, labels = value.get("text"), value.get("label")
    if not isinstance(value, list) or not (labels is None or (isinstance(labels, list) and len(labels) == len(value))):
        raise _Invalid('`choices` must be a list of texts, or {"text": [...], "label": [...]}')
    if not 2 <= len(value) <= len(LETTERS):
        raise _Invalid(f"`choices` must have 2 to {len(LETTERS)} items, not {len(value)}")
    return (
        tuple(_text(choice, "choices") for choice in value),
        tuple(_text(label, "choices") for label in labels or ()),
        tuple(choice for choice in value if type(choice) is int),
    )


def _prompt(row: Mapping[str, Any], choices: tuple[str, ...], template: Template | None) -> str:
    lines = "\n".join(f"{letter}) {text}" for letter, text in zip(LETTERS, choices, strict=False))
    if template is None:
        own = CHOICE_TEMPLATE if choices else QUESTION_TEMPLATE
        return own.format(question=_required(row, "question"), choices=lines)
    prompt = well_formed(template.render({**row, "choices": lines} if choices else row))
    if not prompt.strip():
        raise _Invalid("the prompt is blank")
    return prompt


def _required(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        raise _missing(name, row)
    return _text(row[name], name)


def _missing(name: str, row: Mapping[str, Any]) -> _Invalid:
    return _Invalid(f"no `{name}`; the fields are: {', '.join(row) or 'none'}")


def _text(value: Any, name: str) -> str:
    if not (isinstance(value, str) or type(value) is int or (isinstance(value, float) and math.isfinite(value))):
        raise _Invalid(f"invalid `{name}`: {_shown(value)}; it must be text or a number")
    text = well_formed(str(value)).strip()
    if not text:
        raise _Invalid(f"`{name}` is blank")
    return text


def _final_answer(answer: str) -> str:
    final = _FINAL.match(answer.rpartition("\n")[2])
    if final and not final[1].strip():
        raise _Invalid("`answer` has nothing after its ####")
    return final[1].strip() if final else answer


def _correct_choice(
    row: Mapping[str, Any], choices: tuple[str, ...], labels: tuple[str, ...], integers: tuple[int, ...]
) -> str | int:
    """Letter of the correct choice, or its index, from 0 or 1."""
    text = _required(row, "answer")
    answer = row["answer"]
    count = len(choices)
    marked = _LETTER_MARKS.fullmatch(text)
    answered = (marked[1].strip() if marked else text).casefold()
    places = {place for place, label in enumerate(labels or LETTERS[:count]) if answered == label.casefold()}
    could_be_index = text.isdecimal() and len(text) < 3 and int(text) <= count
    # The number 2 is an index beside the text "2", and a choice beside the numbers 1 and 2, as the text "2" always is.
    is_index = could_be_index and isinstance(answer, int) and answer not in integers
    if not is_index and not (labels and places):
        places |= {place for place, choice in enumerate(choices) if text == choice}
    if len(places) > 1:
        named = " or ".join(LETTERS[place] for place in sorted(places))
        raise _Invalid(f"ambiguous `answer`: {_shown(answer)} may mean choice {named}")
    if places:
        return LETTERS[places.pop()]
    if could_be_index:
        return int(text)
    raise _Invalid(f"invalid `answer`: {_shown(answer)} is none of the {count} choices")


def _resolve_indices(
    questions: dict[QuestionId, Question], indices: Mapping[QuestionId, int], bad_rows: list[BadRow]
) -> str | None:
    """Give questions their reference answers, or make them bad rows if the base is undecided; what was assumed.

    An index of 0 shows that indices count from 0, one equal to the number of choices that they count from 1.
    """
    zero = next((id for id, index in indices.items() if index == 0), None)
    last = next((id for id, index in indices.items() if index == len(questions[id].choices)), None)
    if zero is not None and last is not None:
        lines = (questions[id].index + 1 for id in (zero, last))
        reason = "the answer is an index, but line {} counts from 0 and line {} from 1".format(*lines)
        bad_rows += [BadRow(questions.pop(id).index + 1, reason) for id in indices]
        return None
    base = 0 if last is None else 1
    for id, index in indices.items():
        questions[id] = replace(questions[id], reference=LETTERS[index - base])
    return INDEX_NOTE if indices and zero is None and last is None else None


def _shown(value: Any) -> str:
    return truncate(well_formed(repr(value)), _MAX_SHOWN)
