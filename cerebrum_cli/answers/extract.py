r"""Find the final answer in a reply, as the model wrote it and without the markup around it.

Equal answers may differ here ("0.8" and "4/5"): `canonical` decides which are equal. What counts, first of all:

1. What the reply states last as its answer: "the answer is", "Answer:", `\boxed{}`, `####`, `"answer":` in JSON. Of
   a sentence, its amount counts: "Answer: They sold 12 apples (6 red ones)." comes to 12, "a = b = 10" to 10.
2. Otherwise its last line, if that is a yes, a no, a letter, a value or a list of values.
3. Otherwise the value of its last sentence that has one, unless that is a question; of several, the bold one, else
   the one computed last, else the last that is not beside the point: "in 3 days", "of the 20", "after giving away 3".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from cerebrum_cli.answers.number_words import with_digits
from cerebrum_cli.answers.phrases import (
    ASIDE_LINE,
    COPULAS,
    CORRECTION,
    CORRECTION_WORDS,
    FILLER,
    LABEL_WORDS,
    LABELS,
    NOT_IT,
    REMARK,
)
from cerebrum_cli.answers.plain_text import (
    CALCULATOR_NOTE,
    has_content,
    plain,
    sentences,
    trimmed,
    without_markup,
)
from cerebrum_cli.answers.rewriting import in_order, rewriting
from cerebrum_cli.answers.sentence import result, values_alone, values_in
from cerebrum_cli.answers.values import (
    BRACKETED,
    MAY_HOLD_VALUE,
    solved,
    starts_with_value,
)
from cerebrum_cli.core.text import Match, Pattern, braced, one_line

_without_reasoning = rewriting(
    (r"\r\n", "\n"),
    (r'\\"', '"'),
    ("\N{MINUS SIGN}", "-"),
    (r"(?s)\A.*</think(?:ing)?>|<think(?:ing)?>.*+\Z", ""),
    where=r'\r|\\"|\u2212|think',
)
_NEXT_QUESTION = re.compile(
    r"(?im)^[ \t#*>_-]*+(?:question|q|user|human|problem|exercise|instruction|input)\s?\d*+"
    r"(?:[*_]*+:|[.)]\s|(?<=\d)[ *_]*$)"
    r"|^\#{1,4}\s(?:question|exercise|problem|instruction|input)\b|^(?:the following (?:are|is)\b)",
)
# What ends a turn in the prompt formats of models: another turn follows.
_END_OF_TURN = re.compile(
    r"<\|(?:start_header_id|im_start|channel|start)\|>\w*(?:<\|\w+\|>)?|<[|｜][^<>\n]{1,40}[|｜]>|<\|?/?(?:s|eos|bos|pad|unk|turn|end_of_\w+|start_of_turn|endoftext|extra_id_\d+)\|?>|<turn\|>"
    r"|\[(?:/?INST|EOS|\|\w+\||end of text)\]"
)
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
    r"(?i)(?:[\s*`:=$#>\"“]++|[-•]\s|\\[\[(]|[)\]}]|\\displaystyle|as\s++follows\b|(?:therefore|thus|hence|simply)\b,?)*+",
)

# "So the answer is correct" checks an answer that stands elsewhere, and "not 5" is none.
_REMARK = re.compile(r"(?is)(?:in)?correct|right|wrong|clear|(?:un)?reasonable|not\b.*")
_IN_WORDS = re.compile(
    r"(?!(?:yes|no|true|false|.)\Z)[^\W\d_]++(?:[\s-][^\W\d_]++)*+", re.IGNORECASE
)  # a remark, if a value precedes it
_REFUSAL = re.compile(
    r"(?i)\b(?:can(?:not|['’]t)|could not|(?:im|not )possible to|unable to) (?:be |we )?(?:determin|answer|calculat)"
    r"|\b(?:none of the (?:above|given|options)|(?:not enough|insufficient) info)"
    r"|\A(?:none|null|n/a|unknown|undetermined|indetermina(?:te|ble))\Z",
)
_without_asides = rewriting(
    (r"(?i)(?<=[\w%.!)\]}])\s++\((?!mod\b)(?=[^()]*?(?:[^\W\d_]{2}|\d\s?[-+*/×]))[^()\\]*+\)", ""),
)
# What a sentence states, without decoration, and without a reason: samples that agree should not differ by it.
_statement_in = in_order(
    rewriting(
        (
            r"(?is)(?:(?:[,;]|\s[—–-])\s++(?:because|since|which|so|as|but|where|meaning|given|assuming|not|nicht"
            r"|et non|non|no|rather than|instead of)\b|\s(?:rather than|instead of|et non|i\.e\.)\b|[,，]不是"
            r"|\s\(?(?:because|since)\b).*+",
            "",
        )
    ),
    _without_asides,
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
_QUESTION = re.compile(
    r"(?i)\b(?:how|what|when|where|which|who|whose|why)\b|\A\W*(?:are|can|could|did|do|does|has|have|is|may|shall|should|was|were|will|would)\b"
)
_BALANCED = re.compile(rf"(?:[^()\[\]{{}}]++|{BRACKETED}|[(\[{{])*+")
_COUNTER = re.compile(r"(?<=\d)(?:です|입니다|ではありません|个|個|つ|개|명|人|円|元|块|원)[^\d]*\Z")
_CONCLUSION = re.compile(r"[,;]\s(?:so|thus|therefore|hence|which gives|giving)\s|;(?=[^,;]*\sis\s)")
_EQUAL = re.compile("[=≈]")
_NOT_IT = re.compile(rf"(?ix)(?:{NOT_IT})\s?(?=\d)")
_AS_IS = re.compile(r"(?i)\(?[A-H]\)|[A-H](?:[.:]\s|\Z)|(?:yes|no)\b")  # not an amount
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_ALONE = re.compile(r"(?i)yes|no|[a-z]|\([a-z]\)")
_ITEM = re.compile(r"(?i)^[ \t#*>-]*+(?:\d{1,2}[.)]\s|Step \d++\b)")
_BOLD = re.compile(  # where a sentence comes to it: "The capital of France is **Paris**."
    r"\b(?:is|are|was|were|be|has|have|had|needs?|equals|makes?|earns?|costs?|of|total)\s\$?\*\*([^*\n:]+)\*\*(?!\s?[:=])"
)


# The final answer of a reply, and what it states even if truncated; the answer is guessed if they differ.
Answers = tuple[str | None, str | None]


def extract_answers(text: str, is_complete: bool, in_words: bool = False) -> Answers:
    """Find the final answer in a reply's own text.

    If it was truncated (not `is_complete`), only what it states counts. To a question that words answer (`in_words`),
    no number counts: without a statement, it is the bold part of the last line, or that line.
    """
    doubtful = words = None
    for answer, is_firm in _statements_from_last(text, in_words):
        if not is_firm:
            doubtful = doubtful or answer
            continue
        if _REFUSAL.search(answer):
            return None, None
        if in_words or not _IN_WORDS.fullmatch(answer):
            return answer, answer
        words = words or answer
    if words:
        return words, words
    if not is_complete:
        return None, None
    if in_words:
        return doubtful or _last_words(text), None
    value = _last_value(text) or _last_value(with_digits(text)) or doubtful
    return value, value if _alone(text) else None


def _without_remarks(text: str) -> str:
    """A text without what is said about the answer, unless nothing else holds a value."""
    shorter = ASIDE_LINE.sub("", REMARK.sub("", text)).rstrip()
    return shorter if has_content(shorter) else text


def _last_words(text: str) -> str | None:
    """The bold part of the last line, or that line if it has none or several."""
    line = text.rstrip().rpartition("\n")[2]
    bold = _BOLD.findall(line)
    if len(bold) == 1:
        line = bold[0]
    return trimmed(plain(line)) or None


def own_text(text: str, is_complete: bool) -> tuple[str, bool]:
    """Text of a reply without its reasoning and remarks about the answer, and whether it is complete.

    It is complete, too, if another turn follows, which a base model made up.
    """
    text = _without_reasoning(text)
    turns = [turn for turn in _END_OF_TURN.split(text) if has_content(turn)]
    text = without_markup(turns[0] if turns else text)
    own, *following = _NEXT_QUESTION.split(text, maxsplit=1)
    is_cut = len(turns) > 1
    if following and _holds_answer(own):
        text, is_cut = own, True
    return _without_remarks(text.strip()), is_complete or is_cut


def _holds_answer(text: str) -> bool:
    if re.search(r"\d", text) or _AS_IS.match(text.strip()):
        return True
    marker = _markers_in(text).search(text)
    return marker is not None and has_content(text[marker.end() :])


def _markers_in(text: str) -> Pattern:
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


def _statements_from_last(text: str, in_words: bool) -> Iterator[tuple[str, bool]]:
    """Yield each statement of an answer and whether it is firm, last first.

    `in_words` keeps sentences as they are, instead of the amounts that they come to.

    A statement ends where the next begins: so no character is read twice, however many statements are empty.
    """
    end = len(text)
    for marker in reversed(list(_markers_in(text).finditer(text))):
        line, below, is_box = _region(marker, text[marker.end() : end])
        sentence, *others = [line] if is_box else sentences(next(_BALANCED.finditer(line))[0])
        answer = _statement_in(sentence)
        remainder = " ".join(others)
        if marker.lastgroup == "correction":
            answer = result(line) or ""
        # A Markdown heading has text below it, unlike GSM8K's last line.
        is_heading = marker.lastgroup == "hashes" and (not starts_with_value(answer) or has_content(remainder))
        has_text_below = end < len(text) or has_content(remainder + below)
        if answer and not (is_heading and has_text_below):
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
            value = _last_result(line) or value
    # Many words without an amount are a first step ("Answer: Let us think step by step"), or a remark.
    is_prose = len(_WORD.findall(value)) > 3 and not _REFUSAL.search(value)
    return value, not is_prose


def _conclusion(line: str) -> str | None:
    """Value that ends a line behind its first conclusion: "x = 5, so 2x is 10"."""
    *before, last = _CONCLUSION.split(line)
    values = values_in(last)
    if before and values and not has_content(values[-1].behind):
        return solved(values[-1].text)
    return None


def _value(answer: str) -> str:
    """Value of a statement; of a sentence, its amount."""
    answer = _COUNTER.sub("", answer)
    if not values_in(answer) and starts_with_value(in_digits := with_digits(answer)):
        answer = in_digits
    if alone := values_alone(answer):
        return alone
    if _REFUSAL.search(answer) or _AS_IS.match(answer) or _NOT_IT.match(answer):
        return answer
    side = _EQUAL.split(answer)[-1].strip()
    if side not in (answer, "0") and starts_with_value(side):
        return solved(answer)
    if starts_with_value(answer) or len(_WORD.findall(answer)) < 2:
        return answer
    return result(answer) or answer


def _alone(text: str) -> str:
    """A text that is a yes, a no, a letter, a value or a list of values; "" if it is more."""
    text = trimmed(plain(text))
    if _ALONE.fullmatch(text):
        return text
    return values_alone(text)


def _last_value(text: str) -> str | None:
    text = CALCULATOR_NOTE.sub(" = ", text).strip()
    if alone := _alone(text.rpartition("\n")[2]):
        return alone
    for line in filter(MAY_HOLD_VALUE.search, reversed(text.split("\n"))):
        line = next(filter(starts_with_value, reversed(_BOLD.findall(line))), line)
        if value := _last_result(plain(line)):
            return value
    return None


def _last_result(line: str) -> str | None:
    for sentence in reversed(sentences(_ITEM.sub("", line))):
        if sentence.rstrip().endswith("?") and _QUESTION.search(sentence):
            continue
        if value := result(trimmed(_without_asides(sentence))):
            return value
    return None
