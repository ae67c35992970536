"""Replies to questions: whether a reader would mark them right, near misses among them, as scored and as printed."""

import json
import time
from pathlib import Path
from typing import TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.answers.canonical import equals_reference
from cerebrum_cli.answers.final import answers_to, compare_answer


class Case(TypedDict):
    question: str
    reply: str
    reference: str
    equal: bool


CASES: list[Case] = json.loads((Path(__file__).parents[1] / "data" / "questions.json").read_text(encoding="utf-8"))
CHOICES = ("It halves.", "It stays.", "It doubles.", "It quadruples.")
QUESTION = "What happens to it? " + "\n".join(f"{letter}) {text}" for letter, text in zip("ABCD", CHOICES, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['reply'][:40]} / {case['reference']}")
def test_reply_is_marked_as_a_reader_would(case: Case) -> None:
    question, reply, reference = case["question"], case["reply"], case["reference"]
    assert compare_answer(reply, True, reference, (), question).is_correct == case["equal"]
    assert equals_reference(answers_to(question, reply, True)[0], reference) == case["equal"]


@pytest.mark.parametrize(
    "reply",
    [
        "C) It doubles. If the force were halved, the answer would be A.",
        "The answer is C. (It would be A if it were halved.)",
        "If the force were halved, the answer would be A. So here it is C.",
        "**C) It doubles.** If the mass were doubled as well, the answer would be A.",
        "A is wrong, B is wrong, and D needs 4 times the force.\n\nThat leaves C.",
    ],
)
def test_choice_that_is_only_supposed_does_not_count(reply: str) -> None:
    assert answers_to(QUESTION, reply, True)[0] == "C"


@pytest.mark.parametrize(
    "reply",
    [
        "**C) It doubles.** If the mass were doubled as well, the answer would be A.",
        "A is wrong, B is wrong, and D needs 4 times the force.\n\nThat leaves C.",
    ],
)
def test_letter_answers_a_question_whose_choices_are_not_known(reply: str) -> None:
    assert answers_to("What happens to it?", reply, True)[0] == "C"


@pytest.mark.parametrize(
    ("reply", "reference", "is_correct"),
    [
        ("The pencil is 14 mm long.", "14 cm", False),
        ("The pencil is 140 mm long.", "14 cm", True),
        ("The pencil is 14 cm long.", "14 cm", True),
        ("It is 14.", "14 cm", True),
    ],
)
def test_answer_is_compared_in_the_unit_of_the_reference(reply: str, reference: str, is_correct: bool) -> None:
    assert compare_answer(reply, True, reference, (), "How long is the pencil?").is_correct == is_correct


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("It halves without friction (A). Nothing else is asked.", "A"),
        ("The third option describes what happens.", "C"),
        ("The force and the mass cancel, and what happens is that it stays. It doubles elsewhere.", "B"),
        ("La respuesta correcta es la **c)**. Mucha gente cree que se queda.", "C"),
        ("It halves has its friends, but it doubles is the one.", "C"),
        ("It can't be A.", None),
        ("I can't tell whether it is B.", None),
        ("A is too small, so it cannot be A.", None),
    ],
)
def test_choice_is_read_as_a_reader_would(reply: str, letter: str | None) -> None:
    assert answers_to(QUESTION, reply, True)[0] == letter


SUBJECTS = ("91", "Rome", "Mount Everest", "the largest lake", "a square of side 2", "the Sun", "Zürich")
PREDICATES = ("prime", "older than Paris", "the capital of Australia", "a well-known metal", "equal to 7 × 8")
LEADS = ("", "In fact, ", "No doubt, ", "Therefore ", "Nobody disputes that ", "Since it was checked, ")
ADDITIONS = ("", ", not a bird", " and not a bird", " because it is not even", ", but this is not all", "; so it is")
DOUBTS = ("It is widely believed that {}.", "Some say that {}.", "If {}, I lose.", "{}, according to a legend.", "{}?")
subjects, predicates = st.sampled_from(SUBJECTS), st.sampled_from(PREDICATES)


def read(question: str, reply: str) -> str | None:
    return answers_to(question, reply, True)[0]


@given(subjects, predicates, *map(st.sampled_from, (LEADS, ADDITIONS)))
def test_statement_that_repeats_a_question_answers_it(subject: str, predicate: str, lead: str, addition: str) -> None:
    question = f"Is {subject} {predicate}?"
    assert read(question, f"{lead}{subject} is {predicate}{addition}.") == "yes"
    assert read(question, f"{lead}{subject} is not {predicate}{addition}.") == "no"


@given(subjects, subjects, predicates, predicates)
def test_statement_of_something_else_answers_no_question(subject: str, other: str, predicate: str, wrong: str) -> None:
    if (subject, predicate) != (other, wrong):
        assert read(f"Is {subject} {predicate}?", f"{other} is {wrong}.") is None
        assert read(f"Is {subject} {predicate}?", f"{other} is not {wrong}.") is None


@given(subjects, predicates, st.sampled_from(DOUBTS))
def test_statement_that_is_doubted_answers_no_question(subject: str, predicate: str, doubt: str) -> None:
    assert read(f"Is {subject} {predicate}?", doubt.format(f"{subject} is {predicate}")) is None


@pytest.mark.slow
@pytest.mark.parametrize("question", ["Name three colors.", "Which month is it?", "Is 91 prime?", "Who was it?"])
def test_answer_to_a_question_is_read_in_linear_time(question: str) -> None:
    for unit in (
        "red",
        "red, ",
        "red and ",
        "May ",
        "is 91 prime so ",
        "91 is prime, if ",
        "it is true that ",
        "but ",
        "Die A ist ",
        "if 1, 2 would ",
    ):
        start = time.process_time()
        answers_to(question, unit * (5_000 // len(unit)), True)
        assert time.process_time() - start < 0.5, unit
