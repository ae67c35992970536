"""The final answer of a reply: what it states, or else a guess, which is a whole line or a number.

The first of these rules that finds something answers; `Answer.rule` names it:

    box, key, mark, tag, lead-in, bold line     the reply states its answer; the last statement counts
    first letter, last sentence that names ...  the choice, where choices are given or the question lists them
    first word, last sentence                   yes or no, where that is asked
    number                                      the one that the last sentence with numbers comes to, where one is asked
    formula                                     a last line that is a formula
    marked                                      the only passage in bold, code or quotes that the question has not
    rest                                        what follows where a sentence repeats the question
    line                                        the only line of a reply, as it stands
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Literal, NamedTuple

from cerebrum_cli.answers.choices import chosen, listed_choices, yes_or_no
from cerebrum_cli.answers.equality import YES_NO, canonical, equals_reference, whole_number
from cerebrum_cli.answers.numbers import numbers
from cerebrum_cli.answers.passages import LONGEST, lines, plain, sentences, unwrapped
from cerebrum_cli.answers.statements import Answer, statements

__all__ = ["Answer", "ComparedAnswer", "Kind", "compare_answer", "final_answer", "is_in_words"]
Kind = Literal["any", "number", "yes or no", "choice"]
MOST = 50_000  # characters of a reply that are read

_ASKS_NUMBER = re.compile(
    r"(?i)\bhow\s(?:many|much|old|tall|long|far|high|fast|big|heavy)\b|\bwie\s?viele?\b|\bcombien\b|\bcuánt[oa]s?\b|\bсколько\b|\bquant[ieao]s?\b"
)
_ASKS_YES_OR_NO = re.compile(
    r"(?is).*\b(?:yes|true|right)\s?(?:or|/)\s?(?:no|false|wrong)\b.*|(?:.*[.!]\s+)?(?:is|are|was|were|do|does|did|can|could|will|would|has|have|had"
    r"|should|must)\b(?!.*\b(?:or|which|what|how|who|you)\b).*\?\s*"
)
_REFUSAL = re.compile(
    r"(?i)\b(?:(?:can(?:no|['’])t|can\snot|impossible\sto|unable\sto)\s(?:be\s)?(?:determine|know|answer|say|calculate|give|provide)|indeterminate|no\sidea|not\ssure|(?:do\snot|don['’]t)\s(?:know|have\saccess)"
    r"|(?:not|n['’]t)\senough\sinformation|insufficient\sinformation|unknown|not\s(?:specified|given|provided))"
)
_ITEM = re.compile(r"\A(?:\d+\.|[-*•])\s+")
_IN_BRACKETS = re.compile(r"\s\((?:[^()]|\([^()]*\))*\)")
_DENIED = re.compile(
    r"(?i)\b(?:not|isn['’]t|instead\sof|rather\sthan)\s[^,;.]*?(?=[,;.]|\bbut\b|$)|[^,;.]*\b(?:can['’]t|cannot)\sbe\s[^,;.]*(?:,\sbecause[^.]*)?"
)
_DOUBTED = re.compile(  # the words of a reference, which are at the bar
    r"\b(?:not|never|neither|nor|or|than|although|unlike|instead|cannot|(?:is|are|was|were|do|does|did)nt|cant)\b.*\||\|(?:or\b|is\s(?:not|wrong|incorrect))"
)
# Where the last of several parts has the number that a sentence comes to.
_PARTS = tuple(
    map(
        re.compile,
        (
            r"(?i)[;:]\s|,?\s(?:so|thus|therefore|hence|then|i\.\s?e\.,?|that\sis,?|which\s\w+(?:\sto)?)\s|,\s(?=together|altogether)",
            r"[=≈]",
            r"(?i)\bfrom\s\S+\sto\s(?=\S*\d)",
            r"(?i)\b(?:is|are|equals?|gives?|makes?|ha(?:ve|s)|holds?|contains?|costs?)\s(?:an?\s\w+\sof\s)?(?:equal\sto\s)?(?:about\s|around\s"
            r"|approximately\s|exactly\s|only\s)?(?=[$€£-]?\s?\d)",
        ),
    )
)
_NOT_EXACT = re.compile(
    r"(?i)(?:\b(?:(?:more|less|fewer|greater|larger|smaller)\sthan|at\smost|at\sleast|over|under|half\sof|twice|between|maybe|perhaps)\s|(?<!=)[<>≤≥]\s?)"
    r"[$€£]?\d|\d\s?(?:\bor\b|\bto\b|-|R|[x×*])\s?[-$]?\d|/\s?0\b|±|\d\s\w+\sand\s\d"
)
_PARTIAL = re.compile(
    r"(?i)\A\W*\([b-h]\)\s|\b\w\s?=[^=]*[,;]\s?\w\s?=|\b(?:step|page|chapter)\s\d"
)  # of several numbers
_CONTINUED = re.compile(
    r"(?!(?:[kcm]?[mglsLJW]|km|kg|USD|EUR|[ap]m)\b)[A-Za-z]|\s?[π√]|\^[\d(]|[:'’]\d"
)  # no number alone
_FORMULA = re.compile(r"(?:\$\$|\\\[).+(?:\$\$|\\\])\.?|\w\s?=\s?\S+")
_MARKED = re.compile(r"```\w*\n([^\n]+)\n```|\*\*([^*\n]+)(?<!:)\*\*|`([^`\n]+)`|[\"“]([^\"“”\n]+)[\"”]")
_VERB = re.compile(
    r"(?i)(?<!\w)(?:is|are|was|were|be|equals?|gives?|means?|stands?\sfor|translates?\s(?:to|as)|evaluates?\sto|returns?|contains?|becomes?|ist|sind"
    r"|lautet|est|sont|es|son|è|sono)(?!\w)|:(?=\s)"
)
_EQUALS = re.compile(r"=(?=\s)")
_CONCLUDES = re.compile(r"(?i)(?:so|thus|therefore|hence|finally|overall|in\sconclusion)\b")
_RESULT = re.compile(
    r"(?i)(?:(?:so|thus|therefore|hence|finally|and),?\s)?(?:(?:the|its|our|this|it)(?:\s[\w'’]+){0,4}|\W{0,2}\w(?:\(\w\))?)\s?$"
)
_COMPARED = re.compile(r"(?i)(\w+er|more|less)\b(?=[\w\s]{0,30}\sthan\b|[\w\s]{0,20}\W*\Z)")
_VALUE = re.compile(r"(?:about\s|approximately\s)?[$*(\[{\\-]*[\d√π(\[\\]")
_PARTICIPLE = re.compile(
    r"(?i)(?:(?:typically|usually|commonly|generally|approximately|about|roughly|often|also)\s(?:an?\s)?)?(?:(?:\w+(?:ed|en|wn|lt|nt)\s)?"
    r"(?:by|as|on|in|at|to|from|called|named)\s(?=\S))?"
)
_STOP_WORDS = """
a also an and answer are as at be by did do does for from generally how in is it its name of on one only or reply say
than that the there this to typically two usually was were what when where which who whom whose why with word words
write you
"""
_STOP = frozenset(_STOP_WORDS.split())


class ComparedAnswer(NamedTuple):
    """The final answer of a reply, and whether it equals a reference answer."""

    answer: Answer | None
    is_correct: bool


def final_answer(question: str, reply: str, is_complete: bool = True, kind: Kind | None = None) -> Answer | None:
    """The final answer of a reply, of a kind that is expected, or else of the one that the question asks for.

    A reply that is not complete has only what it states.
    """
    if kind:
        return _read(question, reply, kind, is_complete)
    if choices := listed_choices(question):
        return _read(question, reply, "choice", is_complete, choices)
    if _ASKS_YES_OR_NO.fullmatch(question):
        return _read(question, reply, "yes or no", is_complete)
    is_number = _ASKS_NUMBER.search(question) and re.search(r"\d", reply)  # which may also be in words
    return _read(question, reply, "number" if is_number else "any", is_complete)


def compare_answer(
    text: str, is_complete: bool, reference: str, choices: Sequence[str] = (), question: str = ""
) -> ComparedAnswer:
    """Find the final answer of a reply, of the kind that a reference answer has, and compare it with that.

    A guess is also right if it has the words of a reference answer and does not deny them.
    """
    kind: Kind = "number" if whole_number(reference) else "any"
    if choices or canonical(reference) in YES_NO.values():
        kind = "choice" if choices else "yes or no"
    found = _read(question, text, kind, is_complete, choices)
    if found is None:
        return ComparedAnswer(None, False)
    before, wanted, after = f" {canonical(found.text)} ".partition(f" {canonical(reference)} ")
    is_named = bool(wanted) and not found.is_stated and is_in_words(reference)
    is_correct = equals_reference(found.text, reference) or (is_named and not _DOUBTED.search(f"{before}|{after}"))
    return ComparedAnswer(found, is_correct)


def is_in_words(reference: str) -> bool:
    """Whether a reference answer is words, rather than a number, a letter, yes or no."""
    return re.fullmatch(r"(?!(?:yes|no)\Z)[^\W\d_]{2}[^\d\\=^{}$<>|+*/]*", canonical(reference)) is not None


def _read(question: str, reply: str, kind: Kind, is_complete: bool, choices: Sequence[str] = ()) -> Answer | None:
    """The final answer of the kind that is expected, in the end of a very long reply."""
    reply = reply[-MOST:]
    if kind == "number":
        answer = _number(reply)
    elif kind == "choice":
        answer = chosen(reply, choices)
    elif kind == "yes or no":
        answer = yes_or_no(reply)
    else:
        answer = _any(question, reply)
    if answer and (is_complete or answer.is_stated):
        return answer
    return None


def _any(question: str, reply: str) -> Answer | None:
    """What is stated, or else a guess; none behind a refusal."""
    for text, rule in statements(reply):
        if _REFUSAL.search(text):
            return None
        if answer := unwrapped(sentences(text)[0] if rule == "lead-in" else text):
            return Answer(answer, rule)
    guess = _guess(question, reply)
    return None if guess is None or _REFUSAL.search(guess.text) else guess


def _number(reply: str) -> Answer | None:
    """The number that is stated, or that the last sentence with numbers comes to; none behind a refusal."""
    guesses = (sentence for line in reversed(lines(reply)) for sentence in reversed(sentences(_ITEM.sub("", line))))
    for text, rule in chain(statements(reply), ((sentence, "number") for sentence in guesses if sentence[-1:] != "?")):
        if _REFUSAL.search(text):
            return None
        if found := _asserted_number(text):
            return Answer(found, rule)
        if rule == "number" and re.search(r"\d", text):
            return None
    return None


def _asserted_number(passage: str) -> str | None:
    """The number that a passage comes to, as it is written there, without what is denied or in brackets."""
    text = plain(passage[-LONGEST:])
    if _PARTIAL.search(text):
        return None
    bare = _DENIED.sub(" ", _IN_BRACKETS.sub(" ", text))
    kept = bare if next(numbers(bare), None) else _DENIED.sub(" ", text)
    exact, approximate, _ = kept.partition("≈")
    if approximate and re.search(r"[=/]", exact):
        kept = exact
    for pattern in _PARTS:
        kept = next((part for part in reversed(pattern.split(kept)) if next(numbers(part), None)), kept)
    found = next(numbers(kept), None)
    if (
        found is None
        or _NOT_EXACT.search(f"{kept[: found.start]}1{kept[found.end :]}")
        or _CONTINUED.match(kept, found.end)
    ):
        return None
    return kept[found.start : found.end].strip()


def _guess(question: str, reply: str) -> Answer | None:
    """What a reply that states nothing comes to: its only line, its conclusion, or what repeats the question."""
    content = lines(reply)
    if not content:
        return None
    parts = sentences(content[0])
    asked = _stems(question)
    if len(content) > 1:
        if _FORMULA.fullmatch(content[-1]):
            return Answer(unwrapped(content[-1]), "formula")
        marked = _marked(question, reply)
        short = " ".join(line for line in content if len(line.split()) < 7)
        if len(marked) == 1 and marked[0] in short:
            return Answer(marked[0], "marked")
        parts = [part for part in (sentences(content[-1])[-1], parts[0]) if not part.endswith(":")]
    told = [part for part in parts if _CONCLUDES.match(part) or len(asked & _stems(part)) * 2 >= len(asked)]
    if len(content) == 1 and (len(parts) == 1 or len(parts[0].split()) < 4):
        told = told or parts  # "Paris. It has been the capital since 987."
    return _of_sentence(question, told[0], asked) if told else None


def _of_sentence(question: str, sentence: str, asked: frozenset[str]) -> Answer:
    """What a sentence says where it repeats the question; the whole sentence where that is not plain."""
    sentence = re.sub(r"(?i)\bnot\s[^.]*?(?:\bbut\s|,\sit\sis\s)", "", sentence)
    if sentence[:1] in "{[":
        return Answer(sentence, "line")  # JSON
    marked = _marked(question, sentence)
    if len(marked) == 1:
        return Answer(unwrapped(marked[0]), "marked")
    verbs = [*_VERB.finditer(sentence)] or [*_EQUALS.finditer(sentence)]
    sides = [(sentence[: verb.start()], verb[0], sentence[verb.end() :].strip()) for verb in verbs]
    repeating = [side for side in sides if _stems(side[0]) and _stems(side[0]) <= asked]
    for left, verb, right in (*reversed(repeating), *sides):
        repeated, said = _stems(left), _stems(right)
        has_asked = bool(said) and said <= asked  # "positive", where the question has it
        compared = _COMPARED.match(right)
        is_subject = has_asked and verb != ":" and not asked & repeated
        if (compared and _stems(compared[1]) <= asked) or (is_subject and 0 < len(left.split()) < 6):
            return Answer(unwrapped(left), "rest")
        if compared:
            continue
        is_value = (_RESULT.match(left) and _VALUE.match(right)) or (has_asked and verb != "=")
        if is_value or (asked & repeated and (repeated <= asked or len(asked & repeated) * 2 >= len(asked))):
            rest = _PARTICIPLE.sub("", right, count=1)
            return Answer(unwrapped(rest) or unwrapped(sentence), "rest")
    return Answer(unwrapped(sentence) if len(sentence.split()) < 4 else sentence.strip(), "line")


def _marked(question: str, passage: str) -> list[str]:
    """Passages in bold, code or quotes that the question has not."""
    found = ("".join(filter(None, match.groups())).strip() for match in _MARKED.finditer(passage))
    return [text for text in dict.fromkeys(found) if text and text not in question]


def _stems(text: str) -> frozenset[str]:
    """The beginnings of the words of a text that bear its meaning."""
    return frozenset(word[:4] for word in re.findall(r"[\w.+#]*\w", text.casefold()) if word not in _STOP)
