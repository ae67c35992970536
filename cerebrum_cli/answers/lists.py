"""Questions for several things, in any order, and the things that a reply lists: red, yellow and blue."""

from __future__ import annotations

import re

from cerebrum_cli.answers.plain_text import plain

AND = r"\s(?:and|und|et|y|e)\s"
# A question for several things, and a sentence's list of them: red, blue and yellow.
_SEVERAL = re.compile(
    r"(?i)\b(?:(?:name|list|what\sare|which)\s(?:\w+\s)?(?:two|three|four|five|six|[2-9])"
    r"|nenne[n]?\s(?:\w+\s)?(?:zwei|drei|vier|fünf|sechs|[2-9])|(?:cite[sz]?|nomme[sz]?)\s(?:\w+\s)?(?:deux|trois|quatre|cinq|six|[2-9])"
    r"|(?:menciona|nombra)\s(?:dos|tres|cuatro|cinco|seis|[2-9]))\b"
    r"(?!\s(?:\w+\s){0,2}(?:angles|answers|coordinates|digits|divisors|factors|fractions|integers|multiples|numbers|pairs"
    r"|points|powers|primes|roots|sides|solutions|squares|terms|values|zeros)\b)"
)
_ITEM = r"[^\W\d_][^\s,;:.]*(?:\s[^\s,;:.]+){0,2}?"
_LAST_ITEM = re.compile(rf",?{AND}{_ITEM}(?=\W*\Z|\s(?:are|is|were)\b|(?P<comma>,\s))")
_ITEM_WORDS = 3
_ITEM_LINE = re.compile(r"(?m)^[ \t]*(?:[-*•+–]|\d{1,2}[.)])[ \t]+(\S[^\n]*)")
_ITEM_REMARK = re.compile(r"(?:\s?[:;(–—]|\s-\s|,\s).*", re.DOTALL)  # "Red: the longest waves"
_NAMES_ONLY = re.compile(r"[^\W\d_][^\s,;:.]*(?:\s[^\s,;:.]+){0,2}(?:,\s[^\W\d_][^\s,;:.]*(?:\s[^\s,;:.]+){0,2})+")


def wants_several(question: str) -> bool:
    """Whether a question asks for several things, in any order: "Name three ...", "What are the two ..."."""
    return _SEVERAL.search(question) is not None


def listed_in(text: str) -> str | None:
    """The things of a list below each other, or of a text that is nothing but a list."""
    return _listed_below(text) or _in_one_line(text)


def listed_in_sentence(sentence: str) -> str | None:
    """The things that a sentence lists: "red, yellow and blue"; None if it has no "and"."""
    ends = list(_LAST_ITEM.finditer(sentence))
    if not ends:
        return None
    end = next((item for item in ends if not item["comma"]), ends[-1])
    start = end.start()
    for part in reversed(sentence[:start].split(", ")):
        words = part.split()
        start -= len(part) if len(words) <= _ITEM_WORDS else len(" ".join(words[-_ITEM_WORDS:]))
        if len(words) > _ITEM_WORDS or start <= 0:
            break
        start -= len(", ")
    return re.sub(r".*\b(?:are|include|is|were)\s", "", sentence[max(start, 0) : end.end()])


def _listed_below(text: str) -> str | None:
    """The items of a numbered or dashed list, joined by commas; None if they are no names."""
    items = [_ITEM_REMARK.sub("", plain(item)).strip(" .;,") for item in _ITEM_LINE.findall(text)]
    is_short = all(0 < len(item.split()) <= _ITEM_WORDS for item in items)
    return ", ".join(items) if len(items) > 1 and is_short else None


def _in_one_line(text: str) -> str | None:
    """A text that is nothing but names between commas: "Red, green, blue"."""
    line = plain(text).strip().rstrip(".")
    return line if _NAMES_ONLY.fullmatch(line) else None
