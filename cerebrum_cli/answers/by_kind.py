"""A reader for each kind of question: of choices, of yes or no, of words, and of any other value."""

from __future__ import annotations

import re
from typing import NamedTuple

from cerebrum_cli.answers.chemistry import formula_in
from cerebrum_cli.answers.choices import chosen_letter
from cerebrum_cli.answers.extract import Answers, extract_answers, is_refusal
from cerebrum_cli.answers.parts import values_of_parts
from cerebrum_cli.answers.plain_text import has_content, plain, sentences, trimmed
from cerebrum_cli.answers.restated import restated
from cerebrum_cli.answers.sentence import values_alone
from cerebrum_cli.answers.spelling import spelled
from cerebrum_cli.answers.subject import value_of_subject
from cerebrum_cli.answers.units import in_asked_unit
from cerebrum_cli.answers.words import added_words
from cerebrum_cli.answers.yes_no import hedged, yes_or_no
from cerebrum_cli.core.text import Texts

# The order of what is asked for does not matter.
_WANTS_SET = re.compile(
    r"(?i)\b(?:compute|determine|find|for|give|list|name|state|what\sare|which\sare|write(?:\sdown)?)\s(?:the\s)?all\b"
    r"|\b(?:solutions|roots|zeros|divisors|factors|primes)\b"
)
_WANTS_ORDER = re.compile(r"(?i)\b(?:arrange|ascending|descending|order|rank|sort|smallest|largest|next)\b")
_LISTED = re.compile(r"[^(\[{=]+(?:,| and )[^(\[{=]+")
# What a question asks for, how that is written, and an answer of another kind.
_KINDS = (
    (re.compile(r"(?i)\bhow many ([^\W\d_]+)"), r"(\d[\d.,]*)\s(?:{}\b|(?!per)[^\W\d_]{{2}})", "%"),
    (
        re.compile(r"(?i)\b(?:what|which) (?:fraction|proportion)\b|\bas a fraction\b"),
        r"(?<![\d/.])\d+/\d+(?![\d/])",
        "^[^/]*$",
    ),
    (re.compile(r"(?i)\b(?:what|which) percent\w*|\bas a percent\w*"), r"\d[\d.,]*\s?(?:%|percent\b)", "^[^%]*$"),
)
_SAME_SHARE = re.compile(r"(0?\.\d+),?\s(?:or|that is|i\.e\.,?)\s(\d+(?:\.\d+)?)\s?%")  # 0.08, or 8%
# Languages that group digits by points, and such a number: 1.200 of "Hay 1.200 alumnos".
_COUNTS_WITH_POINTS = re.compile(r"(?i)\b(?:wie\s?viele?|cuánt[ao]s|quant[ie]|quant[ao]s|hoeveel)\b")
_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?![\d.,]*\d)(?=\s[^\W\d_]{3})")
_INDEXED = re.compile(r"\b[a-z]_\w+\s?=\s?")  # x_1 = 4, x_2 = -4


class QuestionAndReply(NamedTuple):
    """A reply's own text, and its question; "" if that is not known."""

    question: str
    text: str
    is_complete: bool

    @property
    def last_line(self) -> str:
        return self.text.rpartition("\n")[2]

    @property
    def last_sentence(self) -> str:
        return sentences(self.text)[-1]


def read_choice(reply: QuestionAndReply, choices: Texts) -> Answers:
    """The letter of a choice."""
    letter, is_stated = chosen_letter(reply.question, reply.text, choices, reply.is_complete)
    return letter, letter if is_stated else None


def read_yes_or_no(reply: QuestionAndReply) -> Answers:
    """Yes or no, of the first line if a reply is truncated: the rest may answer other questions on the way."""
    text = reply.text if reply.is_complete else sentences(reply.text.partition("\n")[0])[0]
    _, stated = extract_answers(reply.text, reply.is_complete)
    meant = yes_or_no(stated or "") or yes_or_no(text) or restated(reply.question, text)
    return meant, meant


def read_words(reply: QuestionAndReply) -> Answers:
    """What a reply states, in words; else what its sentences add to the question."""
    answer, stated = extract_answers(reply.text, reply.is_complete, in_words=True)
    if stated is None and reply.is_complete and has_content(reply.question) and not is_refusal(reply.text):
        answer = added_words(reply.question, reply.text) or answer
    return answer, stated


def read_value(reply: QuestionAndReply) -> Answers:
    """What a reply comes to, in the form that its question wants: in its unit, as a set, one side of an equation."""
    if _COUNTS_WITH_POINTS.search(reply.question):
        reply = reply._replace(text=_GROUPED.sub(lambda number: number[0].replace(".", ""), reply.text))
    answer, stated = extract_answers(reply.text, reply.is_complete)
    if stated is None and reply.is_complete:
        if answer is None and (meant := hedged(reply.text)):
            return meant, meant
        answer = _unstated(reply, answer)
    if stated is None and (in_kind := _of_asked_kind(reply, answer)):
        return in_kind, None
    return _as_asked(reply, answer), _as_asked(reply, stated)


def _unstated(reply: QuestionAndReply, found: str | None) -> str | None:
    """The answer of a complete reply that states none; `found` is its last value."""
    if found is None and re.search(r"(?i)\bformula\b", reply.question):
        found = formula_in(reply.last_sentence)
    if not has_content(reply.question):
        return found
    if parts := values_of_parts(reply.question, reply.text):
        return parts
    if values_alone(trimmed(plain(reply.last_line))):
        return found
    return value_of_subject(reply.question, reply.text) or found


def _of_asked_kind(reply: QuestionAndReply, answer: str | None) -> str | None:
    """The count, fraction or percentage that a question asks for: 30 of "20 %, i.e. 30 pupils"."""
    for asks, kind, other in _KINDS:
        asked = asks.search(reply.question)
        if asked and re.search(other, answer or ""):
            found = re.findall(kind.format(*map(re.escape, asked.groups())), plain(reply.last_sentence), re.IGNORECASE)
            return found[0] if len(found) == 1 else None
    return None


def _as_asked(reply: QuestionAndReply, answer: str | None) -> str | None:
    if answer is None:
        return None
    if (shares := _SAME_SHARE.fullmatch(answer)) and float(shares[1]) * 100 == float(shares[2]):
        return f"{shares[2]}%"
    answer = in_asked_unit(reply.question, answer, reply.text)
    return _as_set(answer) if wants_set(reply.question) else _asked_side(reply.question, answer)


def wants_set(question: str) -> bool:
    """Whether a question asks for all of something, in any order."""
    return _WANTS_SET.search(question) is not None and not _WANTS_ORDER.search(question)


def _as_set(answer: str) -> str:
    """A list in braces, so that its order does not matter: {5, 3, 2} of "5, 3, and 2"."""
    answer = _INDEXED.sub("", answer)
    if not _LISTED.fullmatch(answer):
        return answer
    return "{" + re.sub(r",?\sand\s", ", ", answer) + "}"


def _asked_side(question: str, answer: str) -> str:
    """The other side of an equation if a question asks for one: 7 of "a + b = 7", if it asks for a + b."""
    sides = [side.strip() for side in re.split(r"(?<![<>!=])=", answer)]
    if len(sides) != 2:
        return answer
    if _asks_for_product(question, sides[0]):
        return sides[1]
    asked, given, equation = (re.sub(r"[\s$*\\{}]", "", spelled(text)) for text in (question, sides[0], answer))
    is_asked = re.search(r"\W", sides[0]) is not None and given in asked and equation not in asked
    return sides[1] if is_asked else answer


def _asks_for_product(question: str, side: str) -> bool:
    """Whether a question asks for a multiple of a variable: "What is 3a if a = 4?"."""
    asked = rf"(?i)\b(?:compute|determine|find|is|of)\s\$?{re.escape(side)}\$?(?!\w|\s?[-+*/=^])"
    return re.fullmatch(r"\d+[a-z]", side) is not None and re.search(asked, question) is not None
