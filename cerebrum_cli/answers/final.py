"""Read the final answer of a reply, as the question wants it: a letter, yes or no, words, or whatever it comes to."""

from __future__ import annotations

import re
from typing import NamedTuple

from cerebrum_cli.answers.canonical import canonical, equals_reference
from cerebrum_cli.answers.chemistry import formula_in
from cerebrum_cli.answers.choices import chosen_letter, names
from cerebrum_cli.answers.dates import iso_date
from cerebrum_cli.answers.expected import Expected, expected_answer
from cerebrum_cli.answers.extract import Answers, extract_answers
from cerebrum_cli.answers.own_text import own_text
from cerebrum_cli.answers.plain_text import has_content, plain, sentences
from cerebrum_cli.answers.restated import restated
from cerebrum_cli.answers.subject import value_of_subject
from cerebrum_cli.answers.units import in_asked_unit
from cerebrum_cli.answers.words import (
    GERMAN_SUBJECT,
    added_words,
    asserted,
    is_about,
    nearest,
    wants_names,
    wants_several,
)
from cerebrum_cli.answers.yes_no import hedged, yes_or_no
from cerebrum_cli.core.text import Texts

_WORDS = re.compile(r"(?!(?:yes|no)\Z)[^\W\d_]{2}[^\\=^{}$<>|+*/]*+")  # normal form of an answer in words
_FORMULA = re.compile(r"=|\b(?:ln|log|exp|sin|cos|tan)(?:\b|_)[\W_]*\d")
# A relative clause, and what gives an order, a place or a time besides.
_ASIDE = re.compile(
    r"""(?x)[*_]*,\s(?:an?\s\w+\sof|(?!(?:king|being)\b)[a-z]{3,}ing|(?:(?:about|approximately|around|nearly|roughly|some)\s)?\d+|after|ahead\sof|and\s(?:later|then)|before
    |between|close\sto|followed|in\sfront\sof|just|like|next\sto|not\sfar|on\s\w+\s?\d|preceded|succeeded|unlike|where|which|who|whose|with)
    \b[^.;\n]*|\sagainst\s[^.;\n]*"""
)
# A sentence that leaves open which of several is the answer, or means another.
_OPEN = re.compile(r"(?i)\b(?:or|either|whether|opposite of|(?:day|month|year) (?:after|before))\b")
# The order of what is asked for does not matter.
_WANTS_ORDER = re.compile(r"(?i)\b(?:arrange|ascending|descending|order|rank|sort|smallest|largest|next)\b")
_LISTED = re.compile(r"[^(\[{=]+(?:,| and )[^(\[{=]+")
_WANTS_SET = re.compile(
    r"(?i)\b(?:compute|determine|find|for|give|list|name|state|what\sare|which\sare|write(?:\sdown)?)\s(?:the\s)?all\b"
    r"|\b(?:solutions|roots|zeros|divisors|factors|primes)\b"
)


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
    own, is_complete = own_text(text, is_complete)
    if expected.kind == "choice":
        letter, is_stated = chosen_letter(own, expected.choices, is_complete)
        return letter, letter if is_stated else None
    answer, stated = extract_answers(own, is_complete, expected.kind == "words")
    is_asked = expected.kind == "words" and has_content(question)
    if is_asked and is_complete and not stated and (added := added_words(question, own)):
        return added, None
    if expected.kind == "any" and answer is None and is_complete and (meant := hedged(own)):
        return meant, meant
    if answer is None and is_complete and re.search(r"(?i)\bformula\b", question):
        answer = formula_in(sentences(own)[-1])
    if expected.kind == "any" and is_complete and not stated and has_content(question):
        answer = value_of_subject(question, own) or answer
    if expected.kind == "any":
        answer, stated = in_asked_unit(question, answer, own), in_asked_unit(question, stated, own)
    if "%" in (answer or "") and (count := _count(question, own)):
        return count, None
    if expected.kind == "any" and _wants_set(question):
        return _as_set(answer), _as_set(stated)
    if expected.kind != "yes or no":
        return _asked_side(question, answer), _asked_side(question, stated)
    if not is_complete:  # the rest may answer other questions on the way to this one
        own = sentences(own.partition("\n")[0])[0]
    meant = yes_or_no(stated or "") or yes_or_no(own) or restated(question, own)
    return meant, meant


def _count(question: str, text: str) -> str | None:
    """The number of what a question counts, in the last sentence of a text: 30 of "20 %, i.e. 30 pupils"."""
    counted = re.search(r"(?i)\bhow many ([^\W\d_]+)", question)
    if counted is None:
        return None
    found = re.findall(rf"(?i)(\d[\d.,]*)\s{re.escape(counted[1])}\b", plain(sentences(text)[-1]))
    return found[0] if len(found) == 1 else None


def _wants_set(question: str) -> bool:
    return _WANTS_SET.search(question) is not None and not _WANTS_ORDER.search(question)


def _as_set(answer: str | None) -> str | None:
    """A list in braces, so that its order does not matter: {5, 3, 2} of "5, 3, and 2"."""
    if answer is not None:
        answer = re.sub(r"\b[a-z]_\w+\s?=\s?", "", answer)  # x_1 = 4, x_2 = -4
    if answer is None or not _LISTED.fullmatch(answer):
        return answer
    return "{" + re.sub(r",?\sand\s", ", ", answer) + "}"


def _asked_side(question: str, answer: str | None) -> str | None:
    """The other side of an equation if a question asks for one: 7 of "a + b = 7", if it asks for a + b."""
    sides = re.split(r"(?<![<>!=])=", answer or "")
    if len(sides) == 2 and _asks_for_product(question, sides[0].strip()):
        return sides[1].strip()
    if len(sides) != 2 or not re.search(r"\W", sides[0].strip()):
        return answer
    asked, given, equation = (re.sub(r"[\s$*\\{}]", "", text) for text in (question, sides[0], answer or ""))
    return sides[1].strip() if given in asked and equation not in asked else answer


def _asks_for_product(question: str, side: str) -> bool:
    """Whether a question asks for a multiple of a variable: "What is 3a if a = 4?"."""
    asked = rf"(?i)\b(?:compute|determine|find|is|of)\s\$?{re.escape(side)}\$?(?!\w|\s?[-+*/=^])"
    return re.fullmatch(r"\d+[a-z]", side) is not None and re.search(asked, question) is not None


def compare_answer(
    text: str, is_complete: bool, reference: str, choices: Texts = (), question: str = ""
) -> ComparedAnswer:
    """Find the final answer of a reply, of the kind that a reference answer has, and compare it with that."""
    expected = _expected(reference, choices)
    is_date = iso_date(reference) is not None and re.search(r"(?i)\b(?:where|who)\b", question) is not None
    if expected.kind == "any" and (is_date or wants_names(question) or _asks_for_name(question)):
        expected = Expected("words")
    answer, stated = read_answers(text, is_complete, expected, question)
    is_correct = equals_reference(answer, reference)
    if answer and not is_correct and (_wants_set(question) or wants_several(question)):
        is_correct = equals_reference(f"{{{answer}}}", f"{{{reference}}}")
    if expected.kind == "words" and not is_correct and not wants_names(question):
        conclusions = [nearest(question, asserted(sentence)) for sentence in _conclusions(text, answer, question)]
        is_correct = any(names(sentence, reference) for sentence in conclusions)
    return ComparedAnswer(answer, stated, is_correct or _is_surname(question, answer, reference))


def _is_surname(question: str, answer: str | None, reference: str) -> bool:
    """Whether an answer to "who" is the last of the names in the reference answer: "Armstrong"."""
    names = reference.split()
    return (
        answer is not None
        and len(names) > 1
        and answer == names[-1]
        and re.search(r"(?i)\bwho\b", question) is not None
    )


def _asks_for_name(question: str) -> bool:
    """Whether no number is asked for: "who", "which planet"; "what", and "where" without a name, may ask for one."""
    may_be_number = re.search(r"(?i)\bwhat\b|\bwhere\b(?!.*(?-i:[A-Z])\w\w)", question)
    return expected_answer(question).kind == "words" and may_be_number is None


def _expected(reference: str, choices: Texts) -> Expected:
    if choices:
        return Expected("choice", choices)
    if canonical(reference) in ("yes", "no"):
        return Expected("yes or no")
    return Expected("words" if is_in_words(reference) else "any")


def is_in_words(reference: str) -> bool:
    """Whether a reference answer is words, rather than a number, a letter, yes or no."""
    return _WORDS.fullmatch(canonical(reference)) is not None and not _FORMULA.search(reference)


def _without_asides(text: str, answer: str) -> str:
    """A text without what is said beside the answer, behind it: "Canberra", not "Canberra, which lies near Sydney"."""
    place = text.find(answer)
    aside = _ASIDE.search(text, place + len(answer)) if place >= 0 else None
    return text[: aside.start()] + text[aside.end() :] if aside else text


def _conclusions(text: str, answer: str | None, question: str) -> list[str]:
    """Sentences that may hold the answer in words: what is stated, those of the first line and of the last.

    If some of them are about the question, others do not count. An answer that is the first sentence stands alone.
    """
    own, _ = own_text(text, is_complete=True)
    if answer:
        own = _without_asides(own, answer)
    lines = [line for line in own.split("\n") if line.strip()]
    if answer and own.startswith(f"{answer}."):
        return [answer]
    found = [answer or "", *lines[:1], *lines[-1:]]
    found = [line.partition(";")[0] if answer and answer in line.partition(";")[0] else line for line in found]
    about = [sentence for line in found for sentence in sentences(line) if not _OPEN.search(sentence)]
    about = [sentence for sentence in about if is_about(question, sentence)] or about
    return [
        GERMAN_SUBJECT.sub("", line) if answer and answer in GERMAN_SUBJECT.sub("", line) else line for line in about
    ]
