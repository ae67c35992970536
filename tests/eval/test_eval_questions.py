"""Rows become questions, or bad rows; subsets and seeds are the same everywhere; tasks and presets agree with cards."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.row_fields import parse_template
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.eval.presets import PRESETS
from cerebrum_cli.eval.questions import MAX_SAMPLES, Question, sample_seed, select
from cerebrum_cli.eval.reading import BadRow, QuestionSet, read_questions
from cerebrum_cli.eval.tasks import TASKS, last_boxed
from cerebrum_cli.library.reference import is_repo_id

ROOT = Path(__file__).parents[2]
GOOD = {"question": "1 + 1?", "answer": "2"}
COLORS = ["red", "green", "blue", "white"]


def read(*rows: Any, **options: Any) -> QuestionSet:
    """Read rows as lines of JSON; bytes are a line as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    return read_questions(b"\n".join(lines), **options)


def references(*rows: dict[str, Any]) -> list[str]:
    """The reference answers of questions about COLORS, none of them bad."""
    found = read(*({"question": "Which?", "choices": COLORS, **row} for row in rows))
    assert not found.bad_rows
    return [question.reference for question in found.questions]


def reason(row: Any, **options: Any) -> str:
    """Why a row is bad."""
    [bad] = read(GOOD, row, **options).bad_rows
    assert bad.line == 2
    return bad.reason


def test_questions_have_the_fields_of_their_rows() -> None:
    found = read(
        b'\xef\xbb\xbf{"question": " 2 + 2? ", "answer": 4}\r',
        b"",
        {"question": "Why?", "answer": "so", "id": "q-3", "cluster": 7},
        {"question": "Why not?", "answer": 0.5, "id": 12, "other": None},
    )
    why = Question(2, "q-3", "Why?", "so", cluster="7", solution="so")
    why_not = Question(3, 12, "Why not?", "0.5", solution="0.5")
    assert found == QuestionSet((Question(0, 1, "2 + 2?", "4", solution="4"), why, why_not))


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("16 - 3 = <<16-3=13>>13\n13 * 2 = 26\n#### 26", "26"),
        ("so\n####  1,234 \n", "1,234"),
        ("#### 5\nand #### -72", "-72"),
        ("#### Heading\n72", "#### Heading\n72"),
    ],
)
def test_questions_read_the_final_answer_of_gsm8k(answer: str, reference: str) -> None:
    assert read({"question": "?", "answer": answer}).questions[0].reference == reference


def test_choices_are_listed_below_the_question() -> None:
    [question] = read({"question": "Which?", "choices": ["red", 2], "answer": "B"}).questions
    assert question.prompt == "Which?\n\nA) red\nB) 2\n\nAnswer with the letter of the correct choice."
    assert question.choices == ("red", "2")


@pytest.mark.parametrize("answer", ["C", "c", "(C)", "C.", " c) ", "blue"])
def test_choices_are_answered_by_letter_or_text(answer: str) -> None:
    assert references({"answer": answer}) == ["C"]


@pytest.mark.parametrize(
    ("row", "letter"),
    [
        ({"answer": 0}, "A"),
        ({"answer": "1"}, "B"),
        ({"answer": 1, "choices": ["1", "2", "4"]}, "B"),  # the number is an index
        ({"answer": "1", "choices": ["1", "2", "4"]}, "A"),  # the text is a choice
        ({"answer": 2, "choices": [1, 2, 4]}, "B"),  # and so is a number among numbers
        ({"answer": "E", "choices": ["F", "E"]}, "B"),  # two choices have no letter E
    ],
)
def test_choices_are_answered_by_index_from_0(row: dict[str, Any], letter: str) -> None:
    assert references(row) == [letter]


@pytest.mark.parametrize("last", [4, "4"])
def test_choices_counted_from_1_are_refused(last: int | str) -> None:
    with pytest.raises(UsageError, match=r"^line 2: the index 4 equals the number of choices"):
        references({"answer": 1}, {"answer": last}, {"answer": 2})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes (character 2)"),
        (b'{"question": "\xff"}', "byte 15 is not UTF-8"),
        (b"[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        (b'{"a": ' + b"1" * 5000 + b"}", "no `question`; the fields are: a"),
        ({"prompt": "?", "answer": "2"}, "no `question`; the fields are: prompt, answer"),
        ({"question": "?"}, "no `answer`; the fields are: question"),
        ({"question": " \n", "answer": "2"}, "`question` is blank"),
        ({"question": "?", "answer": "so\n####"}, "`answer` has nothing after its ####"),
        ({"question": "?", "answer": True}, "invalid `answer`: True; it must be text or a number"),
        (b'{"question": "?", "answer": NaN}', "no `answer`; the fields are: question, answer"),
        ({"question": ["?"], "answer": "2"}, "invalid `question`: ['?']; it must be text or a number"),
        ({**GOOD, "id": 1}, "duplicate id 1, first on line 1"),
        ({**GOOD, "id": 1.5}, "invalid `id`: 1.5; it must be text or an integer"),
        ({**GOOD, "cluster": []}, "invalid `cluster`: []; it must be text or a number"),
        ({**GOOD, "choices": "AB"}, '`choices` must be a list of texts, or {"text": [...], "label": [...]}'),
        ({**GOOD, "choices": ["2"]}, "`choices` must have 2 to 26 items, not 1"),
        ({**GOOD, "choices": {"text": ["2", "3"], "label": ["A"]}}, "`choices` must be a list of texts, or {"),
        ({**GOOD, "choices": COLORS, "answer": "E"}, "invalid `answer`: 'E' is none of the 4 choices"),
        ({**GOOD, "choices": COLORS, "answer": 5}, "invalid `answer`: 5 is none of the 4 choices"),
        ({**GOOD, "choices": ["B", "A"], "answer": "A"}, "ambiguous `answer`: 'A' may mean choice A or B"),
        ({**GOOD, "choices": ["x", "x"], "answer": "x"}, "ambiguous `answer`: 'x' may mean choice A or B"),
    ],
)
def test_bad_rows_have_a_line_and_a_reason(row: Any, expected: str) -> None:
    assert reason(row).startswith(expected)


def test_questions_of_a_template_need_no_question_field() -> None:
    template = parse_template("Solve: {problem}")
    found = read({"problem": "P", "answer": "a"}, GOOD, template=template)
    assert [question.prompt for question in found.questions] == ["Solve: P"]
    assert found.bad_rows == (BadRow(2, "no field `problem`; the fields are: question, answer"),)
    row = {"q": "Q", "choices": COLORS, "answer": "blue"}
    [question] = read(row, template=parse_template("{q}\n{choices}")).questions
    assert question.prompt == "Q\nA) red\nB) green\nC) blue\nD) white"
    assert reason({"question": "", "answer": "2"}, template=parse_template("{question}")) == "the prompt is blank"


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


def test_selection_is_a_prefix_of_a_larger_one() -> None:
    questions = [Question(index, index + 1, "?", "2") for index in range(400)]
    chosen = select(questions, 400)
    assert set(chosen) == set(questions) and list(chosen) != questions
    assert select(questions, 200) == chosen[:200]
    assert select(reversed(questions)) == chosen != select(questions, seed=1)
    assert select(questions[:300]) == tuple(each for each in chosen if each.index < 300)


def test_selection_is_the_same_on_every_machine() -> None:
    ids: tuple[str | int, ...] = ("a", "b", 1, "1", 2, "ü")
    questions = [Question(index, id, "?", "2") for index, id in enumerate(ids)]
    assert [question.id for question in select(questions)] == ["1", 1, "ü", "b", "a", 2]
    assert [sample_seed(0, 0, 0), sample_seed(7, 12, 3)] == [3520783360, 3788976131]


def test_seeds_are_consecutive_and_never_collide() -> None:
    first = [sample_seed(3, index, 0) for index in range(100_000)]
    blocks = sorted(first)
    assert all(before + MAX_SAMPLES <= after for before, after in pairwise(blocks))
    assert [sample_seed(3, 5, sample) - first[5] for sample in (1, 2, MAX_SAMPLES - 1)] == [1, 2, MAX_SAMPLES - 1]
    assert blocks[-1] + MAX_SAMPLES <= SEEDS


# The tables of tasks and presets.


def test_tasks_and_presets_are_of_the_hub_and_the_catalog() -> None:
    names = ["gsm8k", "gsm8k@8shot", "math", "math500", "arc-challenge", "humaneval", "humaneval+", "mbpp@0shot"]
    assert [*TASKS] == names
    assert all(is_repo_id(task.repo_id) for task in TASKS.values())
    catalog = (ROOT / "models.toml").read_text(encoding="utf-8")
    assert all(preset.task in TASKS and f"[models.{preset.name}]" in catalog for preset in PRESETS)


def test_task_reports_a_row_without_a_field_it_converts() -> None:
    row = {"task_id": "H/0", "prompt": "def f():", "test": "", "entry_point": None}
    fields = "the fields are: task_id, prompt, test, entry_point"
    assert reason(row, convert=lambda row: {"answer": row["answer"]}) == f"no `answer`; {fields}"
    with pytest.raises(UsageError, match=f"line 1: no `entry_point`; {fields}"):
        read(row, b"{", convert=TASKS["humaneval"].convert)
    [question] = read(row | {"entry_point": "f"}, convert=TASKS["humaneval"].convert).questions
    assert question.prompt.endswith("```python\ndef f():\n```")  # also for a template with {question}


def test_task_mbpp_asks_with_its_tests_and_finds_the_function_they_name() -> None:
    row: dict[str, Any] = {
        "task_id": 11,
        "text": "Write a function to add.",
        "code": "def half(x):\r\n    return x / 2\r\ndef add(a, b):\r\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert abs(add(1, 1)) == 2"],
        "test_setup_code": "import math",
    }
    task = TASKS["mbpp@0shot"]
    [question] = read(row, template=parse_template(task.template), convert=task.convert).questions
    assert "Write a function to add." in question.prompt and row["test_list"][1] in question.prompt
    assert (question.id, question.entry_point, question.stub) == (11, "add", "")
    assert question.reference == "import math\nassert add(1, 2) == 3\nassert abs(add(1, 1)) == 2"
    row |= {"code": "add = lambda a, b: a + b", "test_setup_code": None}
    [question] = read(row, template=parse_template(task.template), convert=task.convert).questions
    assert question.entry_point == "add"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So $\boxed{5}$, no: $\boxed{\frac{1}{2}}.$", r"\frac{1}{2}"),
        (r"It is $x = \boxed{\{1, 2\}}$ and {so} on.", r"\{1, 2\}"),
        (r"It is $\boxed 5$.", "5"),
        ("It is 5.", ""),
        (r"It is $\boxed{5", ""),
    ],
)
def test_reference_answer_of_math_is_its_last_box(solution: str, answer: str) -> None:
    assert last_boxed(solution) == answer
