"""Whether the sentences in which a reply concludes name a reference answer in words."""

from __future__ import annotations

import re

from cerebrum_cli.answers.choices import names
from cerebrum_cli.answers.own_text import own_text
from cerebrum_cli.answers.plain_text import sentences
from cerebrum_cli.answers.words import GERMAN_SUBJECT, asserted, corrected, is_about, nearest, wants_names

# A relative clause, and what gives an order, a place or a time besides.
_ASIDE = re.compile(
    r"""(?x)[*_]*,\s(?:an?\s\w+\sof|(?!(?:king|being)\b)[a-z]{3,}ing|(?:(?:about|approximately|around|nearly|roughly|some)\s)?\d+|after|ahead\sof|and\s(?:later|then)|before
    |between|close\sto|followed|in\sfront\sof|just|like|next\sto|not\sfar|on\s\w+\s?\d|preceded|succeeded|unlike|where|which|who|whose|with)
    \b[^.;\n]*|\sagainst\s[^.;\n]*"""
)
# A sentence that leaves open which of several is the answer, or means another.
_OPEN = re.compile(r"(?i)\b(?:or|either|whether|opposite of|(?:day|month|year) (?:after|before))\b")


def concludes(question: str, text: str, answer: str | None, reference: str) -> bool:
    """Whether a conclusion of a reply names a reference answer; of several names that are asked for, none does."""
    if wants_names(question):
        return False
    found = (nearest(question, asserted(sentence)) for sentence in _conclusions(question, text, answer))
    return any(names(sentence, reference) for sentence in found)


def _conclusions(question: str, text: str, answer: str | None) -> list[str]:
    """Sentences that may hold the answer in words: what is stated, those of the first line and of the last.

    If some of them are about the question, others do not count. An answer that is the first sentence stands alone.
    """
    own = corrected(own_text(text, is_complete=True)[0])
    if answer:
        own = _without_asides(own, answer)
    lines = [line for line in own.split("\n") if line.strip()]
    if answer and own.startswith(f"{answer}."):
        return [answer]
    found = [_up_to_semicolon(line, answer) for line in (answer or "", *lines[:1], *lines[-1:])]
    closed = [sentence for line in found for sentence in sentences(line) if not _OPEN.search(sentence)]
    about = [sentence for sentence in closed if is_about(question, sentence)] or closed
    return [_without_german_subject(sentence, answer) for sentence in about]


def _without_asides(text: str, answer: str) -> str:
    """A text without what is said beside the answer, behind it: "Canberra", not "Canberra, which lies near Sydney"."""
    place = text.find(answer)
    aside = _ASIDE.search(text, place + len(answer)) if place >= 0 else None
    return text[: aside.start()] + text[aside.end() :] if aside else text


def _up_to_semicolon(line: str, answer: str | None) -> str:
    first = line.partition(";")[0]
    return first if answer and answer in first else line


def _without_german_subject(sentence: str, answer: str | None) -> str:
    rest = GERMAN_SUBJECT.sub("", sentence)
    return rest if answer and answer in rest else sentence
