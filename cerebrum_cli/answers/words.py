"""The words with which a sentence answers a question: what it adds to the words of the question.

"Jane Austen wrote it; it appeared in 1813." adds "Jane Austen" to "Who wrote Pride and Prejudice?". What a clause
denies or only mentions is no answer: "not Sydney", "many people think it is Sydney".
"""

from __future__ import annotations

import re
from itertools import groupby
from operator import itemgetter

from cerebrum_cli.answers.dates import MONTHS
from cerebrum_cli.answers.phrases import DENIAL, MENTION
from cerebrum_cli.answers.plain_text import plain, sentences
from cerebrum_cli.core.text import Texts

LONGEST = 6  # words of an answer
_WORD = re.compile(  # or a name such as "Republic of Korea"
    r"[A-Z]\w+(?:\s(?:of|de|da|di|von)(?:\sthe|\sla)?\s[A-Z]\w+)+|[^\W_](?:[\w'’.-]*[^\W_])?"
)
_CLAUSES = re.compile(r"(?i)[,;:()–—]+\s*|\s-\s|(?:\A|\s)(?:but|sondern|sino|mais|ma|mas|while|whereas)\s")
# What a question asks for, where only a few words are answers.
_CLASSES = (
    (
        r"(?i)\bweekday\b|\bday of the week\b|\b(?:what|which) day\b",
        r"(?i)\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    ),
    (r"(?i)\bwhich month\b|\bwhat month\b", rf"(?i)\b(?:{'|'.join(MONTHS)})\b"),
)
_DENIED = re.compile(rf"(?ix){DENIAL}")
_MENTIONED = re.compile(rf"(?ix){MENTION}")
# Words that carry no answer, in English, German, French, Spanish and Italian.
_FUNCTION_WORDS = """a an the is are was were be been being am it its it's that that's this these those there he
she they them his her hers their theirs i we you my our of in on at to for from by with as into and or so thus
hence therefore then indeed fact answer called named known do does did has have had which who what where when also
simply actually would will but finally correct right option choice definitely certainly clearly yes final most one
ist sind war der die das ein eine es er sie von im in am zu und also heißt sondern c'est est sont était le la les
un une de du des en à il elle et donc mais es son era el los las una uno se en y fue sino mas è sono il lo gli ma"""
_EMPTY = frozenset(_FUNCTION_WORDS.split())


def added_words(question: str, text: str) -> str | None:
    """What the sentence of a reply that answers a question adds to it; None if that is nothing, or a long text."""
    asked = _stems(question)
    for sentence in _about(asked, text):
        for asks, names in _CLASSES:
            found = re.findall(names, ", ".join(_clauses(sentence))) if re.search(asks, question) else []
            if found:
                return str(found[0])
        for clause in _clauses(sentence):
            if added := _added(asked, clause):
                return added
    return None


def is_about(question: str, sentence: str) -> bool:
    """Whether a sentence shares a word with the question that is no function word."""
    return bool(_stems(question) & _stems(sentence))


def repeats(question: str, sentence: str) -> bool:
    """Whether a sentence has almost all words of a question, as one that answers yes or no by a statement."""
    asked = _stems(question)
    return len(asked) > 1 and len(asked & _stems(sentence)) >= max(2, len(asked) - 1)


def asserted(sentence: str) -> str:
    """A sentence without the clauses that deny or only mention something: "it is Canberra" of "many people think it is
    Sydney, but it is Canberra"."""
    kept = sentence
    for clause in _CLAUSES.split(sentence):
        if clause.strip() and not _counts(clause):
            kept = kept.replace(clause, " ", 1)
    return kept


def is_denied(sentence: str) -> bool:
    return _DENIED.search(sentence) is not None


def _about(asked: set[str], text: str) -> Texts:
    """The sentences of the last and of the first line, those that share a word with the question first."""
    lines = [line for line in text.split("\n") if line.strip()]
    found = [sentence for line in dict.fromkeys([*lines[-1:], *lines[:1]]) for sentence in sentences(plain(line))]
    return tuple(sorted(found, key=lambda sentence: not asked & _stems(sentence)))


def _clauses(sentence: str) -> Texts:
    """The clauses of a sentence that neither deny nor only mention."""
    return tuple(clause for clause in _CLAUSES.split(sentence) if clause.strip() and _counts(clause))


def _counts(clause: str) -> bool:
    return not (_DENIED.search(clause) or _MENTIONED.search(clause))


def _added(asked: set[str], clause: str) -> str | None:
    """The first run of words in a clause that are new: neither in the question nor function words. A name precedes."""
    runs = list[str]()
    words = [(word, _is_new(word[0], asked)) for word in _WORD.finditer(clause)]
    for is_new, run in groupby(words, key=itemgetter(1)):
        if is_new:
            found = [word for word, _ in run]
            if len(found) <= LONGEST:
                runs.append(clause[found[0].start() : found[-1].end()])
    names = [run for run in runs if run[0].isupper()]
    return next(iter(names + runs), None)


def _is_new(word: str, asked: set[str]) -> bool:
    return word.casefold().replace("’", "'") not in _EMPTY and _stem(word) not in asked


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text) if word.casefold().replace("’", "'") not in _EMPTY}


def _stem(word: str) -> str:
    """A word in lower case, without the ending of a plural or a verb."""
    return re.sub(r"(?<=\w{3})(?:e?s|ed|ing)\Z", "", word.casefold())
