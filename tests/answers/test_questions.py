"""Replies to questions: whether a reader would mark them right, near misses among them, as scored and as printed."""

import json
from pathlib import Path
from typing import TypedDict

import pytest

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
    ],
)
def test_choice_that_is_only_supposed_does_not_count(reply: str) -> None:
    assert answers_to(QUESTION, reply, True)[0] == "C"
