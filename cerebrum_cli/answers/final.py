"""Read the final answer of a reply, as the question wants it, and compare it with a reference answer."""

from __future__ import annotations

import re
from typing import NamedTuple

from cerebrum_cli.answers.by_kind import (
    QuestionAndReply,
    read_choice,
    read_value,
    read_words,
    read_yes_or_no,
    wants_set,
)
from cerebrum_cli.answers.canonical import canonical, equals_reference
from cerebrum_cli.answers.conclusions import concludes
from cerebrum_cli.answers.dates import iso_date
from cerebrum_cli.answers.expected import Expected, expected_answer
from cerebrum_cli.answers.extract import Answers
from cerebrum_cli.answers.lists import wants_several
from cerebrum_cli.answers.own_text import own_text
from cerebrum_cli.answers.parts import asks_for_parts
from cerebrum_cli.answers.units import in_unit_of
from cerebrum_cli.answers.words import wants_names
from cerebrum_cli.core.text import Texts

_WORDS = re.compile(r"(?!(?:yes|no)\Z)[^\W\d_]{2}[^\\=^{}$<>|+*/]*+")  # normal form of an answer in words
_FORMULA = re.compile(r"=|\b(?:ln|log|exp|sin|cos|tan)(?:\b|_)[\W_]*\d")


class ComparedAnswer(NamedTuple):
    """The final answer of a reply, what it states even if truncated, and whether it equals a reference answer."""

    answer: str | None
    stated: str | None
    is_correct: bool


def answers_to(question: str, text: str, is_complete: bool) -> Answers:
    """Find the final answer of a reply to a question, as `read_answers` does."""
    expected = expected_answer(question)
    if expected.kind == "any" and wants_names(question):
        expected = Expected("words")
    return read_answers(text, is_complete, expected, question)


def read_answers(text: str, is_complete: bool, expected: Expected, question: str = "") -> Answers:
    """Find the final answer of a reply.

    To a question of yes or no it is "yes" or "no", and to one with choices a letter; without these, there is none.
    """
    reply = QuestionAndReply(question, *own_text(text, is_complete))
    match expected.kind:
        case "choice":
            return read_choice(reply, expected.choices)
        case "yes or no":
            return read_yes_or_no(reply)
        case "words":
            return read_words(reply)
        case "any":
            return read_value(reply)


def compare_answer(
    text: str, is_complete: bool, reference: str, choices: Texts = (), question: str = ""
) -> ComparedAnswer:
    """Find the final answer of a reply, of the kind that a reference answer has, and compare it with that."""
    expected = _expected(reference, choices, question)
    answer, stated = read_answers(text, is_complete, expected, question)
    is_correct = (
        equals_reference(in_unit_of(reference, answer, text), reference)
        or (answer is not None and _is_same_set(question, answer, reference))
        or _is_surname(question, answer, reference)
        or (expected.kind == "words" and concludes(question, text, answer, reference))
    )
    return ComparedAnswer(answer, stated, is_correct)


def _expected(reference: str, choices: Texts, question: str) -> Expected:
    """The kind of answer that a reference answer has, with the help of its question."""
    if choices:
        return Expected("choice", choices)
    if canonical(reference) in ("yes", "no"):
        return Expected("yes or no")
    is_date = iso_date(reference) is not None and re.search(r"(?i)\b(?:where|who)\b", question) is not None
    asks_for_words = is_date or wants_names(question) or _asks_for_name(question)
    return Expected("words" if asks_for_words or (is_in_words(reference) and not asks_for_parts(question)) else "any")


def is_in_words(reference: str) -> bool:
    """Whether a reference answer is words, rather than a number, a letter, yes or no."""
    return _WORDS.fullmatch(canonical(reference)) is not None and not _FORMULA.search(reference)


def _asks_for_name(question: str) -> bool:
    """Whether no number is asked for: "who", "which planet"; "what", and "where" without a name, may ask for one."""
    may_be_number = re.search(r"(?i)\bwhat\b|\bwhere\b(?!.*(?-i:[A-Z])\w\w)", question)
    return expected_answer(question).kind == "words" and may_be_number is None


def _is_same_set(question: str, answer: str, reference: str) -> bool:
    """Whether an answer has the members of a reference answer, where a question leaves their order open."""
    is_set = wants_set(question) or wants_several(question)
    return is_set and equals_reference(f"{{{answer}}}", f"{{{reference}}}")


def _is_surname(question: str, answer: str | None, reference: str) -> bool:
    """Whether an answer to "who" is the last of the names in the reference answer: "Armstrong"."""
    names = reference.split()
    return len(names) > 1 and answer == names[-1] and re.search(r"(?i)\bwho\b", question) is not None
