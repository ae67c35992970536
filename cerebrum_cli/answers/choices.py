"""The choice that a reply names, by its letter or its text; and yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS

from cerebrum_cli.answers.equality import canonical
from cerebrum_cli.answers.passages import LONGEST, last_sentences, lines, plain, unwrapped
from cerebrum_cli.answers.statements import Answer, statements

_LISTED = re.compile(r"(?<!\w)[*_]{0,3}\(?([A-Ja-j])[).:][*_]*\s+(?=\S)")
_FIRST = re.compile(
    r"(?i)[\W_]{0,9}(?:(?:option|choice|answer|letter)\s[\W_]{0,9})?([A-Z])(?![\w’'])(?=[\W_]{0,9}\Z|[\W_]{0,9}[).:,\-–—*\n]|\s(?:is(?!\s(?:wrong|incorrect|not|false|out))|because|since)\b)"
)
_LETTER = re.compile(
    r"(?<![\w'’])\(([A-Za-z])\)|(?<![\w.'’])([B-HJ-Z]|A(?!\s[a-z])|I(?!\s[a-z]|['’]))(?![\w'’+-]|\.\w|\W{0,3}\s(?:is|are)\s(?:both\s)?(?:wrong|incorrect|not|false)\b)"
)
_DENIED = re.compile(
    r"(?i)\b(?:not|n['’]t|isn['’]t|neither|never|nor|rather\sthan|instead\sof|unlike|wrong|incorrect|except"
    r"|eliminate[sd]?|rule[sd]?\sout|thought|without)\b[^,;.]*$"
)
_ASIDE = re.compile(
    r"(?i)[,;:]?\s(?:because|since|whereas|while|although|explanation|not(?!.*\bbut\b)|unlike|rather\sthan|instead\sof|which)\b.*"
)
_NOT_ONE = re.compile(
    r"(?i)\b(?:none\s(?:of|are|is)|neither|no\s(?:correct|right)\s|(?:can|could|do)(?:no|n['’])t\s(?:know|determine|answer|be|give|provide)"
    r"|both\s(?=[A-Z]\b))|\b(?-i:[A-Z])\W{1,3}(?:and|or|und|oder|&|/)\W{1,3}(?-i:[A-Z])\b|\b(?-i:[A-Z])\s(?:or|and)\Z|\A(?-i:[A-Z]{2,4})\Z|\A\W*[A-Z](?:,\s?[A-Z])+\W*\Z"
)
_YES_OR_NO = re.compile(
    r"(?i)(?<![\w-])(?:(yes|true|ja|oui|sí|sim|да|是的?|correct|possible)|(no(?!\s(?!(?:it|they|s?he|this|that|there|the|you|i|we|because|but|and)\b)\w)|不是|否|false|nein|non|não|нет|incorrect|impossible))(?![\w-])"
)
_OPEN = re.compile(r"(?i)\b(?:or|say|depends|if)\b")
_TURNED = re.compile(r"(?i)\b(?:not|isn['’]t|cannot|can['’]t|never)\s[\w\s]{0,20}\Z")


def listed_choices(question: str) -> list[str]:
    """The choices that a question lists, from A on; none unless there are two."""
    marks: list[re.Match[str]] = []
    for match in _LISTED.finditer(question):
        if match[1] in "Aa":
            marks = [match]
        elif marks and match[1] == chr(ord(marks[-1][1]) + 1):
            marks.append(match)
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    texts = [question[mark.end() : end].partition("\n")[0].strip(" ,;") for mark, end in zip(marks, ends, strict=False)]
    return texts if len(texts) > 1 else []


def chosen(reply: str, choices: Sequence[str]) -> Answer | None:
    """The letter of the choice that a reply states, begins with, or names last and does not deny."""
    for stated in statements(reply):
        text = plain(stated.text)
        first = _FIRST.match(text)
        if first and first[1].upper() in LETTERS[: len(choices)] and not _NOT_ONE.search(text):
            return Answer(first[1].upper(), stated.rule)
        if letter := _named(text, choices) or _equal(text, choices):
            return Answer(letter, stated.rule)
        if _NOT_ONE.search(text):
            return None
    content = lines(reply) or [""]
    beginning = plain(content[0][:LONGEST])
    first = _FIRST.match(beginning)
    is_listing = any(map(_FIRST.match, content[1:2]))
    if first and first[1].upper() in LETTERS[: len(choices)] and not (is_listing or _NOT_ONE.search(beginning)):
        return Answer(first[1].upper(), "first letter")
    for sentence in last_sentences(content):
        if letter := _named(sentence, choices):
            return Answer(letter, "last sentence that names a choice")
        if _NOT_ONE.search(sentence) and not _DENIED.search(sentence):
            return None
    return None


def _named(sentence: str, choices: Sequence[str]) -> str | None:
    """The only choice that a sentence asserts, by its letter or else its text."""
    kept = _ASIDE.sub("", sentence)
    said = f" {_words(kept)} "
    texts = {letter: f" {_words(choice)} " for letter, choice in zip(LETTERS, choices, strict=False)}
    if _NOT_ONE.search(sentence):
        return next((letter for letter, words in texts.items() if words == said), None)
    letters = [
        (match[1] or match[2]).upper() for match in _LETTER.finditer(kept) if not _DENIED.search(kept[: match.start()])
    ]
    if known := [letter for letter in letters if letter in texts]:
        return known[-1]
    found = {
        letter: words
        for letter, words in texts.items()
        if words in said and not _DENIED.search(said.partition(words)[0])
    }
    longest = [
        letter
        for letter, words in found.items()
        if not any(words != other and words in other for other in found.values())
    ]
    return longest[0] if len(longest) == 1 else None


def _equal(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the only choice that equals a statement, with or without a unit."""
    equal = [letter for letter, choice in zip(LETTERS, choices, strict=False) if canonical(choice) == canonical(text)]
    return equal[0] if len(equal) == 1 else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w.%$+-]*\w", plain(text).casefold()))


def yes_or_no(reply: str) -> Answer | None:
    """Yes or no: the first word of a reply, what it states, or else the only one of its last sentence that has any."""
    content = lines(reply) or [""]
    if first := _YES_OR_NO.match(unwrapped(plain(content[0][:LONGEST])).lstrip("*_ ")):
        return Answer(_polarity(first), "first word")
    for stated in statements(reply):
        if found := _YES_OR_NO.search(plain(stated.text)):
            return Answer(_polarity(found), stated.rule)
    for sentence in last_sentences(content[-4:]):
        words = list(_YES_OR_NO.finditer(sentence))
        if words and len(set(map(_polarity, words))) == 1 and not _OPEN.search(sentence):
            is_turned = _TURNED.search(sentence, 0, words[0].start()) is not None
            return Answer(_polarity(words[0], is_turned), "last sentence")
    return None


def _polarity(word: re.Match[str], is_turned: bool = False) -> str:
    return "yes" if (word[1] is not None) != is_turned else "no"
