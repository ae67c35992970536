"""The words with which a sentence answers a question: what it adds to the words of the question.

"Jane Austen wrote it; it appeared in 1813." adds "Jane Austen" to "Who wrote Pride and Prejudice?". What a clause
denies or only mentions is no answer: "not Sydney", "many people think it is Sydney".
"""

from __future__ import annotations

import re
from itertools import groupby
from operator import itemgetter

from cerebrum_cli.answers.dates import MONTHS
from cerebrum_cli.answers.lists import AND, listed_in, listed_in_sentence, wants_several
from cerebrum_cli.answers.phrases import CORRECTION, DENIAL, MENTION
from cerebrum_cli.answers.plain_text import plain, sentences
from cerebrum_cli.answers.statement_words import PRESENT_OF
from cerebrum_cli.core.text import Texts

LONGEST = 6  # words of an answer
_WORD = re.compile(  # or a name such as "Republic of Korea"
    r"[A-Z]\w+(?:\s(?:of|de|da|di|von)(?:\sthe|\sla)?\s[A-Z]\w+)+|[^\W_](?:[\w'’.-]*[^\W_])?"
)
_CLAUSES = re.compile(
    r"(?i)(?!:\s(?:no|false|wrong)\W*\Z)[,;:()–—]+\s*|\s-\s|(?:\A|\s)(?:but|sondern|sino|mais|ma|mas)\s|\s(?=(?:while|whereas)\s)"
    rf"|{AND}(?=(?:not|nicht|kein\w*|non|pas|no)\s)"  # "Bern und nicht Zürich"
)
_SUBORDINATE = re.compile(
    r"(?i)\W*(?:(?:even\s|al)?though|whereas|while|obwohl|während|bien\sque|tandis\sque|aunque|mientras\sque)\b"
)
_BUT = re.compile(r"(?i),?\s(?:but|aber|mais|pero)\s")
_EARLIER = re.compile(
    r"(?i)\b(before (?:that|then)|formerly|originally|previously|until then|früher|davor|autrefois|antes),(\s)"
)
_VERBS = ("august", "march", "may")  # months that are also other words: in lower case only these if nothing follows
# What a question asks for, where only a few words are answers.
_CLASSES = (
    (
        r"(?i)\bweekday\b|\bday of the week\b|\b(?:what|which) day\b(?!\s(?:in|of)\b)",
        r"(?i)\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    ),
    (
        r"(?i)\b(?:which|what) month\b",
        rf"\b(?i:{'|'.join(month for month in MONTHS if month not in _VERBS)})\b"
        rf"|\b(?:{'|'.join([*map(str.capitalize, _VERBS), *map(str.upper, _VERBS)])})\b"
        rf"|(?:\A|\b(?i:in|is|of)\s)(?:{'|'.join(_VERBS)})(?=\W*\Z)",
    ),
)
# The common nouns of a German sentence are written as names are, so its subject is none if another stands behind.
GERMAN_SUBJECT = re.compile(r"(?:Der|Die|Das)\s[^,;]*?\s(?:ist|sind|war|waren|heißt|hieß|lautet)\s")
_REASON = re.compile(r"(?i)(?:because|since|as|given|if|while)\s")
_IT_IS = re.compile(r"(?i)(?:it|that|this)(?:\s(?:is|was)|['’]s)\s")
_NEAR = 40  # characters before a name in which something may exclude it
_OTHER = re.compile(r"(?i)\b(?:after|before|since|from|until|if|because|as|given)\s(?:\w+\s){0,2}?\Z")
_CORRECTION = re.compile(rf"(?ix)(?!,\ no\s){CORRECTION}[^\w\n]*(?:(?:it|that)\s(?:is|was)\s)?")
_DENIED = re.compile(rf"(?ix){DENIAL}")
_MENTIONED = re.compile(rf"(?ix){MENTION}")
# Words that carry no answer, in English, German, French, Spanish and Italian.
_FUNCTION_WORDS = """because since a an the is are was were be been being am it its it's that that's this these
those there he she they them his her hers their theirs i we you my our of in on at to for from by with as into and
or so thus hence therefore then indeed fact answer called named known do does did has have had which who what where
when also simply actually would will must can may might should use used run type remains remain left leaves but
finally correct right option choice definitely certainly clearly yes final most one ist sind war der die das ein
eine es er sie von im in am zu und also heißt sondern c'est est sont était le la les un une de du des en à il elle
et donc mais es son era el los las una uno se en y fue sino mas è sono il lo gli ma est-ce que l'a l'ont"""
# "Alexander Graham Bell patented": the name alone answers.
_NAME_AND_VERB = re.compile(
    r"\A((?:[A-Z][\w.'’-]*\s)*[A-Z][\w.'’-]*)\s(?:[a-z]+ed|[a-z]{3,}s|built|drew|led|made|sang|won|wrote)\b.*"
)
_BARE_NAME = re.compile(
    r"(?!(?:absolutely|alright|certainly|correct|exactly|great|hello|hi|no|ok|okay|right|sorry|sure|thanks|true|well|yes)\b)"
    r"(?:the\s)?(?-i:[A-ZÀ-Þ])\w+(?:\s(?-i:[A-ZÀ-Þ])\w+){0,2}\.",
    re.IGNORECASE,
)
# A question for something to be typed, and code in a reply.
_CODE_ASKED = re.compile(
    r"(?i)\b(?:clause|command|function|keyword|method|module|operator|package|statement|tag|tool)s?\b"
)
_CODE = re.compile(r"```\w*\n([^`]+)```|`([^`\n]+)`")
_EMPHASIZED = re.compile(r"(?<![\w*])(\*{1,3}|_)(?=\S)([^*_\n]+)\1(?![\w*])")
_EMPTY = frozenset(_FUNCTION_WORDS.split())


def added_words(question: str, text: str) -> str | None:
    """What the sentence of a reply that answers a question adds to it; None if that is nothing, or a long text."""
    asked, names = stems(question), _names_of_class(question)
    text = corrected(text)
    if wants_several(question) and (items := listed_in(text)):
        return items
    if code := _CODE_ASKED.search(question) and _code(text):
        return code
    if marked := _emphasized(asked, text):
        return marked
    for sentence in _about(asked, text):
        if wants_several(question) and (listed := listed_in_sentence(sentence)):
            return listed
        if names:
            if name := _name_in(names, asked, nearest(question, sentence)):
                return name
            continue
        sentence = nearest(question, sentence)
        added = [run for clause in _clauses(sentence) if (run := _added(asked, clause))]
        if added:
            return next((run for run in added if not run.isdigit()), added[0])  # not the year of a work
    return None


def corrected(text: str) -> str:
    """What follows the last correction in a text: "it was Elgar" of "It was Holst. Sorry, it was Elgar"."""
    behind = _CORRECTION.split(text)[-1]
    return behind if stems(behind) else text


def wants_names(question: str) -> bool:
    """Whether a question asks for a weekday, a month, or several things: never for a number beside them."""
    return wants_several(question) or _names_of_class(question) is not None


def nearest(question: str, sentence: str) -> str:
    """A sentence without the parts behind "and", and before "but", that share less with a question than the other part.

    "Plants absorb carbon dioxide" of "Plants absorb carbon dioxide and give off oxygen", if the question is what plants
    absorb.
    """
    asked = stems(question)
    if (but := _BUT.search(sentence)) and _shared(asked, sentence[but.end() :]) > _shared(
        asked, sentence[: but.start()]
    ):
        sentence = sentence[but.end() :]
    for joint in reversed(list(re.finditer(AND, sentence))):
        before, behind = sentence[: joint.start()], sentence[joint.end() :]
        is_farther = _shared(asked, behind) < _shared(asked, before)
        if not is_farther or len(behind.split()) < 2:  # the last name of a list is no part
            break
        sentence = before
    return sentence


def is_about(question: str, sentence: str) -> bool:
    """Whether a sentence shares a word with the question that is no function word."""
    return bool(stems(question) & stems(sentence))


def asserted(sentence: str) -> str:
    """A sentence without the clauses that deny or only mention something.

    "It is Canberra" remains of "Many people think it is Sydney, but it is Canberra".
    """
    kept = _EARLIER.sub(r"\1\2", sentence)
    for clause in _split(sentence):
        if clause.strip() and not _counts(clause):
            kept = kept.replace(clause, " ", 1)
    return kept


def _code(text: str) -> str | None:
    """The only code in a text, or in the first clause of several."""
    for part in (text, text.partition(";")[0]):
        found = {(block or span).strip() for block, span in _CODE.findall(part)}
        if len(found) == 1:
            return str(found.pop())
    return None


def _emphasized(asked: set[str], text: str) -> str | None:
    """The only emphasized words of a text, if a clause asserts them, and a question does not have them."""
    found = [mark for mark in _EMPHASIZED.finditer(text) if not _DENIED.search(mark[0])]
    if len(found) != 1:
        return None
    words = plain(found[0][2]).strip(" .,;!")
    clause = next((clause for clause in _split(text) if found[0][0] in clause), "")
    is_new = _added(asked, words) == words and len(words.split()) <= LONGEST
    return words if is_new and clause and _counts(clause) else None


def _names_of_class(question: str) -> str | None:
    """The pattern of the few names that answer a question; None if any may."""
    return next((names for asks, names in _CLASSES if re.search(asks, question)), None)


def _name_in(names: str, asked: set[str], sentence: str) -> str | None:
    """The last name in the clause that has most words of a question; rather one that is not in the question itself."""
    named = list[tuple[tuple[bool, bool, int, bool], str]]()
    for clause in _clauses(sentence):
        is_reason, shared = _REASON.match(clause) is not None, _shared(asked, clause)
        for found in re.finditer(names, clause):
            if not _OTHER.search(clause[max(0, found.start() - _NEAR) : found.start()]):
                name = found[0].split()[-1]
                rank = (_stem(name) not in asked, not is_reason, shared, _IT_IS.match(clause) is not None)
                named.insert(0, (rank, name))
    return max(named, key=itemgetter(0))[1] if named else None


def _about(asked: set[str], text: str) -> Texts:
    """The sentences of the last and of the first line: a mere name first, then what has words of the question."""
    lines = [line for line in text.split("\n") if line.strip() and not line.endswith(":") and " | " not in line]
    found = [sentence for line in dict.fromkeys([*lines[-1:], *lines[:1]]) for sentence in sentences(plain(line))]
    bare = [sentence for sentence in found if _BARE_NAME.fullmatch(sentence)] if len(lines) == 1 else []
    return (*bare, *sorted(found, key=lambda sentence: not asked & stems(sentence)))


def _clauses(sentence: str) -> Texts:
    """The clauses of a sentence that neither deny nor only mention."""
    return tuple(clause for clause in _split(sentence) if clause.strip() and _counts(clause))


def _split(sentence: str) -> list[str]:
    """The clauses of a sentence; "before that, it was Bonn" is one."""
    return _CLAUSES.split(_EARLIER.sub(r"\1\2", sentence))


def _counts(clause: str) -> bool:
    return not (_DENIED.search(clause) or _MENTIONED.search(clause) or _SUBORDINATE.match(clause))


def _added(asked: set[str], clause: str) -> str | None:
    """The first run of words in a clause that are new. Names are preferred, and in German those behind the verb."""
    if subject := GERMAN_SUBJECT.match(clause):
        behind = next(iter(_new_names(asked, clause[subject.end() :])), None)
        if behind and not _has_head_of(asked, behind):
            return behind
    return next(iter(_new_names(asked, clause) + _new_runs(asked, clause)), None)


def _new_names(asked: set[str], clause: str) -> list[str]:
    return [run for run in _new_runs(asked, clause) if run[0].isupper()]


def _new_runs(asked: set[str], clause: str) -> list[str]:
    """The runs of words in a clause that are not in the question, nor function words."""
    runs = list[str]()
    words = [(word, _is_new(word[0], asked)) for word in _WORD.finditer(clause)]
    for is_new, run in groupby(words, key=itemgetter(1)):
        if is_new:
            found = [word for word, _ in run]
            if len(found) <= LONGEST:
                runs.append(_NAME_AND_VERB.sub(r"\1", clause[found[0].start() : found[-1].end()]))
    return runs


def _has_head_of(asked: set[str], word: str) -> bool:
    """Whether a German noun ends as one of a question: "Bundesstadt", if it asks for a "Hauptstadt"."""
    return any(_stem(word).endswith(other[-5:]) for other in asked if len(other) > 3)


def _is_new(word: str, asked: set[str]) -> bool:
    return word.casefold().replace("’", "'") not in _EMPTY and _stem(word) not in asked


def _shared(asked: set[str], text: str) -> int:
    return len(asked & stems(text))


def stems(text: str) -> set[str]:
    """The words of a text that carry meaning, without their endings."""
    return {_stem(word) for word in _WORD.findall(text) if word.casefold().replace("’", "'") not in _EMPTY}


def _stem(word: str) -> str:
    """A word in lower case, without the ending of a plural, a verb or who does it: "paint" of "painted", "painter"."""
    word = re.sub(r"['’]s\Z", "", word.casefold())
    word = re.sub(r"(?<=\w{3})(?:e?s|ed|ing)\Z", "", PRESENT_OF.get(word, word))
    return re.sub(r"(?<=\w{3})(?:er|or|e)+\Z", "", word)
