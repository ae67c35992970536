"""Read yes or no from a reply that states what a question asks: "91 is not a prime number".

Such a statement has the words of the question in their order; only its finite verb moves, articles come and go, words
are inflected, and a negation or a filler ("in fact") is added. A sentence with another subject, number or predicate
("Canberra is the capital", "91 is a composite number") is another statement, and gives no answer here. Neither does one
that is doubted, supposed, or told as the opinion of others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from cerebrum_cli.answers import statement_words as words_of
from cerebrum_cli.answers.plain_text import sentences
from cerebrum_cli.answers.statement_words import spelled_alike
from cerebrum_cli.core.text import Texts

_LONGEST = 500  # characters of a question that somebody repeats, or of a sentence that does
_LABEL = re.compile(
    r"(?i)\A\W*(?:(?:question|q|frage|pregunta|true\sor\sfalse|yes\sor\sno)\s?\d{0,3}\s?[:.?]\s)?[^\w-]*"
)
_IS_IT_TRUE = re.compile(
    r"(?i)\A(?:is\sit\s(?:true|correct|the\scase)\sthat|est-ce\sque?|(?:est-il|es)\s(?:vrai|cierto|verdad)\sque)\s?"
)
_TOKEN = re.compile(r"\d++!(?=\s\w)|[^\W_]+(?:[.'-][^\W_]+)*|[^\w\s]")
_ENDING = re.compile(r"(?<=\w{3})(?:e?s|e|ing)\Z|(?<=\w{2})(?:ies|y)\Z")
_WITHOUT_PREDICATE = re.compile(
    r"(?i)\W*(?:it|they|he|she)\s(?:is|are|was|were|does|do|did|has|have|can|could|will|would)(?P<not>\snot)?(?:\W*|(?:[;:,—–-]\s?|\s|,\s)(?:because|since|as)\b.*|:\s.*)"
)


class _Asked(NamedTuple):
    """A question as the forms of the verb that opens it, and the stems of its other words in order.

    Up to `subject_words` of the first words are one name: Mount Everest.
    """

    verb: frozenset[str]
    words: Texts
    subject_words: int

    @property
    def is_past(self) -> bool:
        return _is_past(self.verb)


def restated(question: str, text: str) -> str | None:
    """Yes or no, if the first or the last sentence of a reply states what a question asks, or its contrary."""
    asked = _asked(question)
    if asked is None:
        return None
    found = sentences(text.strip().replace("\n", " "))
    if meant := _read(asked, found[-1], is_first=len(found) == 1):
        return meant
    if words_of.RETRACTED.search(" ".join(found[1:])):
        return None
    return _read(asked, found[0], is_first=True)


def _asked(question: str) -> _Asked | None:
    """The only question of a text; None if there are several, or it is negated or long."""
    found = sentences(question.strip().replace("\n", " "))
    questions = [sentence for sentence in found if sentence.rstrip().endswith("?")] or found
    if len(questions) != 1 or len(questions[0]) > _LONGEST:
        return None
    asked = _IS_IT_TRUE.sub("", _LABEL.sub("", questions[0]))
    opening, *others = _TOKEN.findall(spelled_alike(asked).rstrip(" ?!.")) or [""]
    verb = next((row for row in words_of.VERB_FORMS if opening.casefold() in row), frozenset([opening.casefold()]))
    named = [word for word in others if not _is_skipped(word) and word.casefold() not in verb]
    if not named or any(word.casefold() in words_of.NEGATIONS for word in named):
        return None
    return _Asked(verb, tuple(_stem(word, _is_past(verb)) for word in named), _name_length(named))


def _name_length(words: list[str]) -> int:
    length = 1
    while words[0][0].isupper() and length < len(words) and words[length][0].isupper():
        length += 1
    return length


def _read(asked: _Asked, sentence: str, is_first: bool) -> str | None:
    """Yes or no of a sentence that states what is asked in one of its clauses."""
    if len(sentence) > _LONGEST:
        return None
    sentence = spelled_alike(sentence)
    if asked.is_past and not re.search(r"\d", " ".join(asked.words)):
        sentence = words_of.IN_YEAR.sub("", sentence)
    if is_first and (alone := _WITHOUT_PREDICATE.fullmatch(sentence)):
        return "no" if alone["not"] else "yes"
    names_subject = _starts_with(asked, sentence)
    for begin in _beginnings(sentence):
        clause, denials = _without_leads(sentence[begin:])
        is_known = names_subject or (is_first and begin == 0)
        for words in _required(asked, clause, is_known):
            for statement in (clause, *_denied_contrasts(asked, clause)):
                if meant := _verdict(asked, words, statement, denials):
                    return meant
    return None


def _starts_with(asked: _Asked, sentence: str) -> bool:
    """Whether a sentence names the subject of a question first, so that a pronoun further on stands for it."""
    tokens = _TOKEN.finditer(words_of.REASON_FIRST.sub("", sentence))
    first = next((token[0] for token in tokens if not _is_skipped(token[0])), "")
    return _stem(first, asked.is_past) == asked.words[0]


def _beginnings(sentence: str) -> Iterator[int]:
    """Where a statement may begin, unless what stands before it makes it the opinion of others."""
    is_reason_first = words_of.REASON_FIRST.match(sentence)
    beginning = words_of.BEGINNING_BEHIND_REASON if is_reason_first else words_of.BEGINNING
    yield 0
    for found in beginning.finditer(sentence):
        if words_of.CONTRAST.fullmatch(found[0]) or not words_of.QUALIFIES.search(sentence[: found.start()]):
            yield found.end()


def _without_leads(clause: str) -> tuple[str, int]:
    """A clause without what leads to its statement, and how often that denies it."""
    denials = 0
    while lead := words_of.LEAD.match(clause) or words_of.DENYING_LEAD.match(clause):
        denials += 1 if lead.re is words_of.DENYING_LEAD else 0
        clause = clause[lead.end() :]
    return clause, denials


def _required(asked: _Asked, clause: str, is_known: bool) -> Iterator[Texts]:
    """The words that a clause must have: those of the question, with a pronoun for the subject if that `is_known`."""
    first = _TOKEN.search(clause)
    pronoun = _stem(first[0], asked.is_past) if first and first[0].casefold() in words_of.PRONOUNS else asked.words[0]
    if pronoun == asked.words[0]:
        yield asked.words
    elif is_known:
        for length in range(1, min(asked.subject_words + 1, len(asked.words))):
            yield (pronoun, *asked.words[length:])


def _denied_contrasts(asked: _Asked, clause: str) -> Iterator[str]:
    """What a clause may deny behind what it asserts.

    "A dolphin is not a fish" of "A dolphin is a mammal, not a fish", and the same with more words of what is asserted.
    """
    contrasted = words_of.CONTRASTED.match(clause)
    if contrasted is None:
        return
    asserted, denied = contrasted.groups()
    is_behind_verb = False
    for token in _TOKEN.finditer(asserted):
        is_behind_verb = is_behind_verb or token[0].casefold() in asked.verb
        if is_behind_verb:
            yield f"{asserted[: token.end()]} not {denied}"


def _verdict(asked: _Asked, words: Texts, clause: str, denials: int) -> str | None:
    """Yes or no, if a clause begins with these words in their order, and nothing behind them qualifies that."""
    remaining = list(reversed(words))
    has_verb = bool(asked.verb & words_of.WITHOUT_VERB)
    behind = ""
    for token in _TOKEN.finditer(clause):
        word = token[0].casefold()
        if word in asked.verb:
            has_verb = True
        elif word in words_of.NEGATIONS:
            denials += 1
        elif not remaining and word in words_of.ENDS:
            behind = clause[token.start() :]
            break
        elif remaining and _stem(word, asked.is_past) == remaining[-1]:
            remaining.pop()
        elif not _is_skipped(word):
            return None
    if remaining or not has_verb or denials > 1:
        return None
    if words_of.QUALIFIES.search(behind) and not words_of.REASON.match(behind):
        return None
    if denials and any(_stem(word, asked.is_past) in words for word in words_of.PARTLY):
        return None
    return "no" if denials else "yes"


def _is_past(verb: frozenset[str]) -> bool:
    return bool(verb & words_of.PAST_VERBS)


def _is_skipped(word: str) -> bool:
    return _stem(word, is_past=True) in words_of.SKIPPED


def _stem(word: str, is_past: bool) -> str:
    """A word in lower case, without the ending of a plural or a verb; of verbs in the past, their present."""
    word = "have" if word.casefold() == "has" else word.casefold()
    if is_past:
        word = re.sub(r"(?<=\w{3})ed\Z", "", words_of.PRESENT_OF.get(word, word))
    return _ENDING.sub("", word)
