"""Lines become questions, or rows with an error; subsets are the same everywhere; tasks and presets follow cards."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cases
import pytest

from cerebrum_cli.batch.input_row import InputRow, prompt_row
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.row_fields import parse_template
from cerebrum_cli.eval.presets import PRESETS
from cerebrum_cli.eval.questions import Question, select
from cerebrum_cli.eval.reading import read_questions
from cerebrum_cli.eval.tasks import TASKS, last_boxed
from cerebrum_cli.library.reference import is_repo_id

ROOT = Path(__file__).parents[2]
GOOD = {"question": "1 + 1?", "answer": "2"}
COLORS = ["red", "green", "blue", "white"]


def read(*rows: Any, **options: Any) -> list[InputRow]:
    """Read rows as lines of JSON; bytes are a line as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    return [question.row for question in read_questions(b"\n".join(lines), **options)]


def reason(row: Any, **options: Any) -> str:
    """Why a row cannot be scored."""
    _, bad = read(GOOD, row, **options)
    assert bad.number == 2 and bad.conversation is None and bad.error
    return bad.error.message


def test_questions_have_the_fields_of_their_rows() -> None:
    rows = read(
        b'\xef\xbb\xbf{"question": " 2 + 2? ", "answer": 4}\r',
        b"",
        {"question": "Why?", "answer": "so", "id": "q-3"},
        {"question": "Why not?", "answer": 0.5, "id": 12, "other": None},
    )
    assert [(row.number, row.id, row.prompt, row.known["reference"]) for row in rows] == [
        (1, 1, "2 + 2?", "4"),
        (3, "q-3", "Why?", "so"),
        (4, 12, "Why not?", "0.5"),
    ]


@pytest.mark.parametrize(("answer", "choices", "reference"), cases.rows("question_references"))
def test_reference_is_a_final_answer_of_gsm8k_or_the_letter_of_a_choice(
    answer: Any, choices: list[str] | None, reference: str
) -> None:
    [row] = read({"question": "?", "answer": answer, "choices": choices})
    assert row.known["reference"] == reference


def test_choices_are_listed_below_the_question() -> None:
    [row] = read({"question": "Which?", "choices": ["red", 2], "answer": "B"})
    assert row.prompt == "Which?\n\nA) red\nB) 2\n\nAnswer with the letter of the correct choice."
    assert row.known == {"reference": "B", "choices": ["red", "2"]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes (character 2)"),
        (b'{"question": "\xff"}', "byte 15 is not UTF-8"),
        (b"[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        (b'{"a": ' + b"1" * 5000 + b"}", "no `question`; the fields are: a"),
        (b'{"question": "?", "answer": NaN}', "no `answer`; the fields are: question, answer"),
        *cases.rows("unscorable_questions"),
    ],
)
def test_rows_that_cannot_be_scored_have_a_reason(row: Any, expected: str) -> None:
    assert reason(row).startswith(expected)


def test_questions_of_a_template_need_no_question_field() -> None:
    template = parse_template("Solve: {problem}")
    [row] = read({"problem": "P", "answer": "a"}, template=template)
    assert row.prompt == "Solve: P"
    [_, bad] = read({"problem": "P", "answer": "a"}, GOOD, template=template)
    assert bad.error and bad.error.message == "no field `problem`; the fields are: question, answer"
    [question] = read({"q": "Q", "choices": COLORS, "answer": "blue"}, template=parse_template("{q}\n{choices}"))
    assert question.prompt == "Q\nA) red\nB) green\nC) blue\nD) white"
    assert reason({"question": "", "answer": "2"}, template=parse_template("{question}")) == "the prompt is empty"


@pytest.mark.parametrize(
    ("data", "problem", "hint"),
    [
        (b"\n \n", "there are no questions", "put one"),
        (b'{"q": 1}\n[', "no question can be scored; line 1: no `question`; the fields are: q", "each line needs"),
    ],
)
def test_questions_without_a_good_row_are_refused(data: bytes, problem: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"^{problem}$") as caught:
        read_questions(data)
    assert caught.value.hint.startswith(hint)


def numbered(ids: Iterable[str | int]) -> list[Question]:
    return [Question(b"%d" % number, prompt_row(number, id, "?")) for number, id in enumerate(ids, 1)]


def test_selection_is_a_prefix_of_a_larger_one() -> None:
    questions = numbered(range(1, 401))
    chosen = select(questions, 400).questions
    assert {each.digest for each in chosen} == {each.digest for each in questions} and list(chosen) != questions
    assert select(questions, 200).questions == chosen[:200]
    assert select(reversed(questions)).questions == chosen
    assert select(questions[:300]).questions == tuple(each for each in chosen if each.row.number <= 300)


def test_selection_is_the_same_on_every_machine() -> None:
    questions = numbered(("a", "b", 1, "1", 2, "ü"))
    assert [question.row.id for question in select(questions).questions] == ["1", 1, "ü", "b", "a", 2]


# The tables of tasks and presets.


def test_tasks_and_presets_are_of_the_hub_and_the_catalog() -> None:
    assert [*TASKS] == ["gsm8k", "math", "arc-challenge", "humaneval"]
    assert all(is_repo_id(task.repo_id) for task in TASKS.values())
    catalog = (ROOT / "models.toml").read_text(encoding="utf-8")
    assert all(preset.task in TASKS and f"[models.{preset.name}]" in catalog for preset in PRESETS)


def test_task_reports_a_row_without_a_field_it_converts() -> None:
    row = {"task_id": "H/0", "prompt": "def f():", "test": "", "entry_point": None}
    fields = "the fields are: task_id, prompt, test, entry_point"
    assert reason(row, convert=lambda row: {"answer": row["answer"]}) == f"no `answer`; {fields}"
    with pytest.raises(UsageError, match=f"line 1: no `entry_point`; {fields}"):
        read(row, b"{", convert=TASKS["humaneval"].convert)
    [question] = read(row | {"entry_point": "f"}, convert=TASKS["humaneval"].convert)
    assert question.known == {"reference": "check(f)", "stub": "def f():", "entry_point": "f"}
    assert question.prompt
    assert question.prompt.endswith("```python\ndef f():\n```")  # also for a template with {question}


@pytest.mark.parametrize(("solution", "answer"), cases.rows("boxed_answers"))
def test_reference_answer_of_math_is_its_last_box(solution: str, answer: str) -> None:
    assert last_boxed(solution) == answer
