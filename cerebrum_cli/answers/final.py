"""Read the final answer of a reply, as the question wants it: a letter, yes or no, words, or whatever it comes to."""

from __future__ import annotations

import re
from typing import NamedTuple

from cerebrum_cli.answers.canonical import canonical, equals_reference
from cerebrum_cli.answers.choices import chosen_letter, names
from cerebrum_cli.answers.expected import Expected, expected_answer
from cerebrum_cli.answers.extract import Answers, extract_answers, own_text
from cerebrum_cli.answers.plain_text import sentences
from cerebrum_cli.answers.yes_no import yes_or_no
from cerebrum_cli.core.text import Texts

_WORDS = re.compile(r"(?!(?:yes|no)\Z)[^\W\d_]{2}[^\\=^{}$<>|+*/]*+")  # normal form of an answer in words
# A sentence that leaves open which of several is the answer, or means another.
_OPEN = re.compile(r"(?i)\b(?:or|either|whether|opposite of|(?:day|month|year) (?:after|before))\b")


class ComparedAnswer(NamedTuple):
    """The final answer of a reply, what it states even if truncated, and whether it equals a reference answer."""

    answer: str | None
    stated: str | None
    is_correct: bool


def answers_to(question: str, text: str, is_complete: bool) -> Answers:
    """Find the final answer of a reply to a question, as `read_answers` does."""
    return read_answers(text, is_complete, expected_answer(question))


def read_answers(text: str, is_complete: bool, expected: Expected) -> Answers:
    """Find the final answer of a reply.

    To a question of yes or no it is "yes" or "no", and to one with choices a letter; without these, there is none.
    """
    own, is_complete = own_text(text, is_complete)
    if expected.kind == "choice":
        letter, is_stated = chosen_letter(own, expected.choices, is_complete)
        return letter, letter if is_stated else None
    answer, stated = extract_answers(own, is_complete, expected.kind == "words")
    if expected.kind != "yes or no":
        return answer, stated
    if not is_complete:  # the rest may answer other questions on the way to this one
        own = sentences(own.partition("\n")[0])[0]
    meant = yes_or_no(stated or "") or yes_or_no(own)
    return meant, meant


def compare_answer(text: str, is_complete: bool, reference: str, choices: Texts = ()) -> ComparedAnswer:
    """Find the final answer of a reply, of the kind that a reference answer has, and compare it with that."""
    expected = _expected(reference, choices)
    answer, stated = read_answers(text, is_complete, expected)
    is_correct = equals_reference(answer, reference)
    if expected.kind == "words" and not is_correct:
        is_correct = any(names(sentence, reference) for sentence in _conclusions(text, answer))
    return ComparedAnswer(answer, stated, is_correct)


def _expected(reference: str, choices: Texts) -> Expected:
    if choices:
        return Expected("choice", choices)
    if canonical(reference) in ("yes", "no"):
        return Expected("yes or no")
    return Expected("words" if is_in_words(reference) else "any")


def is_in_words(reference: str) -> bool:
    """Whether a reference answer is words, rather than a number, a letter, yes or no."""
    return _WORDS.fullmatch(canonical(reference)) is not None


def _conclusions(text: str, answer: str | None) -> list[str]:
    """What may hold the answer in words: what is stated, the first line and the last."""
    own, _ = own_text(text, is_complete=True)
    lines = [line for line in own.split("\n") if line.strip()]
    found = [answer or "", *lines[:1], *lines[-1:]]
    return [line for line in found if not _OPEN.search(line)]
