"""What a reply states as its answer: "the answer is", "Answer:", `\\boxed{}`, `####`, `"answer":` in JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from cerebrum_cli.answers.number_words import with_digits
from cerebrum_cli.answers.phrases import (
    COPULAS,
    CORRECTION,
    CORRECTION_WORDS,
    FILLER,
    LABEL_WORDS,
    LABELS,
    NOT_IT,
    REFUSAL,
)
from cerebrum_cli.answers.plain_text import has_content, plain, sentences, trimmed
from cerebrum_cli.answers.rewriting import in_order, rewriting
from cerebrum_cli.answers.sentence import (
    EQUAL,
    is_in_doubt,
    is_supposed,
    last_result,
    result,
    values_alone,
    values_in,
    without_asides,
)
from cerebrum_cli.answers.values import BRACKETED, VALUE, solved, starts_with_value
from cerebrum_cli.core.text import Match, Pattern, braced, one_line

_MARKER = r"""(?imx)
      (?P<box>\\(?:boxed|fbox)(?![a-z]))\s*+
    | ^(?P<hashes>\#{4})(?!\#)
    | (?P<heading>^[^\w\n]*+(?:(?:the|my|our)\ )?(?:final\ )?answer[^\w\n]*+$)
    | \banswers?["'*_]*+
      (?:\s++(?:in|(?:to|for)(?:\s++[\w'-]++){0,4}?)\s++[\w'-]++)?
      (?:\s++[*_]*+(?:is|are|was|equals|(?:would|should|must|will)\s++be)\b | (?P<label>\s*+[:=]|>))
    """
_LABEL = rf"""| {LABELS}["'*_]*+\s*+(?:{COPULAS}|(?P<labelled>[:=—-]))"""
_CORRECTION = rf"| (?P<correction>{CORRECTION})"

_JSON_END = re.compile(r'"\s*+[,}]|,\s*+"|\}')
_LEAD = re.compile(
    r"(?i)(?:(?:[=-]>|[\s*`:=$#\"“]|>(?!\s?\d))++|[-•]\s|\\[\[(]|[)\]}]|\\displaystyle|as\s++follows\b|(?:therefore|thus|hence|simply)\b,?)*+",
)

# "So the answer is correct" checks an answer that stands elsewhere, and "not 5" is none.
_REMARK = re.compile(r"(?is)(?:in)?correct|right|wrong|clear|(?:un)?reasonable|(?:neither|not)\b.*")
REFUSED = re.compile(
    rf"(?ix){REFUSAL} | \A(?:none|null|n/a|unknown|undetermined|indetermina(?:te|ble))\Z",
)
_statement_in = in_order(
    rewriting(
        (
            r"(?is)(?:(?:[,;]|\s[—–-])\s++(?:because|since|which|so|as|but|where|meaning|given|assuming|not|nicht"
            r"|et non|non|no|rather than|instead of)\b|\s(?:rather than|instead of|et non|i\.e\.)\b|[,，]不是"
            r"|\s\(?(?:because|since)\b).*+",
            "",
        )
    ),
    without_asides,
    one_line,
    rewriting(
        (
            rf"(?ix)\A(?:(?:{FILLER})(?:[,:]?\s|[,:])\s*+|[a-z]+(?:\s[a-z]+)?:\s)++(?=[^\W_a-z]|[^\w\s]|[a-z]\b)",
            "",
        )
    ),
    trimmed,
    rewriting((r"\A[_\-–—…^= ]++\Z", "")),
)
_BALANCED = re.compile(rf"(?:[^()\[\]{{}}]++|{BRACKETED}|[(\[{{])*+")
_COUNTER = re.compile(r"(?<=\d)(?:です|입니다|ではありません|个|個|つ|개|명|人|円|元|块|원)[^\d]*\Z")
_CONCLUSION = re.compile(r"[,;]\s(?:so|thus|therefore|hence|which gives|giving)\s|;(?=[^,;]*\sis\s)")
_NOT_IT = re.compile(rf"(?ix)(?:{NOT_IT})\s?(?=\d)")
AS_IS = re.compile(r"(?i)\(?[A-H]\)|[A-H](?:[.:]\s|\Z)|(?:yes|no)\b")  # not an amount
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
# "72; she earns 10 per day", "72, in total", "54 dollars: 6 tickets"; not "72, 73", "2 or 3", "12, or 15", "3: 4"
_REMARK_IN_WORDS = r"(?:\s?[,;]\s|\s[-–—]\s)(?!(?:and|or)\b|[^\W\d_]\w*\s?[=:])(?:[^\W\d_]{2}|i\.e\.|e\.g\.)"
_COUNT_IN_WORDS = r";\s\d+(?:\s[^\W\d_]+){3}"  # "19; 31 seats are taken"
_REMARK_BEHIND_COLON = r":\s(?:\d+\s)?[^\W\d_]{2}"
_WITH_REMARK = re.compile(
    rf"({VALUE.pattern}(?:\s[^\W\d_]++){{0,3}}+)(?:{_REMARK_IN_WORDS}|{_COUNT_IN_WORDS}|{_REMARK_BEHIND_COLON}).*"
)


def markers_in(text: str) -> Pattern:
    """The pattern of what announces an answer in this text, without the lists of words that it has none of."""
    lower = text.lower()
    return _markers(
        any(word in lower for word in LABEL_WORDS),
        any(word in lower for word in CORRECTION_WORDS),
    )


@cache
def _markers(has_labels: bool, has_corrections: bool) -> Pattern:
    pattern = _MARKER
    if has_labels:
        pattern += _LABEL
    if has_corrections:
        pattern += _CORRECTION
    return re.compile(pattern)


def statements_from_last(text: str, in_words: bool) -> Iterator[tuple[str, bool]]:
    """Yield each statement of an answer and whether it is firm, last first.

    `in_words` keeps sentences as they are, instead of the amounts that they come to.

    A statement ends where the next begins: so no character is read twice, however many statements are empty.
    """
    end = len(text)
    for marker in reversed(list(markers_in(text).finditer(text))):
        line, below, is_box = _region(marker, text[marker.end() : end])
        sentence, *others = [line] if is_box else sentences(next(_BALANCED.finditer(line))[0])
        answer = _statement_in(sentence)
        remainder = " ".join(others)
        if marker.lastgroup == "correction":
            answer = result(line) or ""
        # A Markdown heading has text below it, unlike GSM8K's last line.
        is_heading = marker.lastgroup == "hashes" and (not starts_with_value(answer) or has_content(remainder))
        has_text_below = end < len(text) or has_content(remainder + below)
        is_empty = not answer or (is_heading and has_text_below)
        if not is_empty and not is_in_doubt(text, marker.start(), marker.end()) and not is_supposed(text, marker.end()):
            yield _statement(answer, line, remainder, marker, in_words)
        end = marker.start()


def _region(marker: Match, region: str) -> tuple[str, str, bool]:
    """The line behind a marker, the lines below it, and whether it is the content of a box."""
    if marker.lastgroup == "box" and region.startswith("{"):
        return plain(braced(region)), "", True
    if '"' in marker[0]:
        region = _JSON_END.split(region, maxsplit=1)[0]
    region = region.partition("</")[0]
    line, _, below = _LEAD.sub("", region, count=1).partition("\n")
    return plain(line), below, False


def _statement(answer: str, line: str, remainder: str, marker: Match, in_words: bool) -> tuple[str, bool]:
    """The value of a statement, and whether it is firm."""
    if _REMARK.fullmatch(answer):
        return answer, False
    value = answer
    if not in_words:
        if "=" in answer and (conclusion := _conclusion(line)):
            return conclusion, True
        value = _value(answer)
        if marker.lastgroup in ("label", "labelled", "heading") and value != answer and has_content(remainder):
            value = last_result(line) or value
    # Many words without an amount are a first step ("Answer: Let us think step by step"), or a remark.
    is_prose = len(_WORD.findall(value)) > 3 and not REFUSED.search(value)
    return value, not is_prose


def _conclusion(line: str) -> str | None:
    """Value that ends a line behind its first conclusion: "x = 5, so 2x is 10"."""
    *before, last = _CONCLUSION.split(line)
    values = values_in(last)
    if not before or not values or has_content(values[-1].behind):
        return None
    names, _, sum_of_names = values[-1].text.partition("=")
    if all(re.search(rf"\b{name}\s?=", " ".join(before)) for name in re.findall(r"[A-Za-z]", names)):
        return sum_of_names.strip() or solved(values[-1].text)  # "m = 2, n = 3, so m + n = 5"
    return solved(values[-1].text)


def _value(answer: str) -> str:
    """Value of a statement; of a sentence, its amount."""
    answer = _COUNTER.sub("", answer)
    if remarked := _WITH_REMARK.match(answer):
        answer = remarked[1]
    if not values_in(answer) and starts_with_value(in_digits := with_digits(answer)):
        answer = in_digits
    if alone := values_alone(answer):
        return alone
    if REFUSED.search(answer) or AS_IS.match(answer) or _NOT_IT.match(answer):
        return answer
    side = EQUAL.split(answer)[-1].strip()
    if side not in (answer, "0") and starts_with_value(side):
        return solved(answer)
    if starts_with_value(answer) or len(_WORD.findall(answer)) < 2:
        return answer
    return result(answer) or answer
