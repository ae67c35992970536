r"""Find the final answer in a reply, as the model wrote it and without the markup around it.

Equal answers may differ here ("0.8" and "4/5"): `canonical` decides which are equal. What counts, first of all:

1. What the reply states last as its answer: "the answer is", "Answer:", `\boxed{}`, `####`, `"answer":` in JSON. Of
   a sentence, its amount counts: "Answer: They sold 12 apples (6 red ones)." comes to 12, "a = b = 10" to 10.
2. Otherwise its last line, if that is a yes, a no or a letter.
3. Otherwise the amount of its last sentence that has one, unless that is a question; of several, the bold one, else
   the one computed last, else the last that is not beside the point: "in 3 days", "of the 20", "after giving away 3".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cerebrum_cli.answers.plain_text import (
    BREAK,
    CALCULATOR_NOTE,
    NUMBER,
    NUMBER_SOURCE,
    Match,
    has_content,
    plain,
    sentence_stop,
    sentences,
    trimmed,
)

_REASONING = re.compile(r"(?s)\A.*</think(?:ing)?>|<think(?:ing)?>.*+\Z")
_NEXT_QUESTION = re.compile(
    r"(?im)^[ \t#*>_-]*+(?:(?P<own>question|q)|user|human|problem)\s?\d*+[*_]*+:|^(?P<list>the following (?:are|is)\b)",
)
_MARKER = re.compile(
    r"""(?imx)
      (?P<box>\\(?:boxed|fbox)(?![a-z]))\s*+
    | ^(?P<hashes>\#{4})(?!\#)
    | (?P<heading>^[^\w\n]*+(?:(?:the|my|our)\ )?(?:final\ )?answer[^\w\n]*+$)
    | \banswers?["'*_]*+
      (?:\s++(?:in|(?:to|for)(?:\s++[\w'-]++){0,4}?)\s++[\w'-]++)?
      (?:\s++[*_]*+(?:is|are|was|equals|(?:would|should|must|will)\s++be)\b | (?P<label>\s*+[:=]|>))
    """,
)

_JSON_END = re.compile(r'"\s*+[,}]|,\s*+"|\}')
_LEAD = re.compile(
    r"(?i)(?:[\s*`:=$#>\"“]++|[-•]\s|\\[\[(]|[)\]}]|\\displaystyle|as\s++follows\b|(?:therefore|thus|hence|simply)\b,?)*+",
)

# "So the answer is correct" checks an answer that stands elsewhere, and "not 5" is none.
_REMARK = re.compile(r"(?is)(?:in)?correct|right|wrong|clear|(?:un)?reasonable|not\b.*")
_REFUSAL = re.compile(
    r"(?i)\b(?:can(?:not|['’]t)|could not|(?:im|not )possible to|unable to) (?:be |we )?(?:determin|answer|calculat)"
    r"|\b(?:none of the (?:above|given|options)|(?:not enough|insufficient) info)"
    r"|\A(?:none|null|n/a|unknown|undetermined|indetermina(?:te|ble))\Z",
)
_REASON = re.compile(  # samples that agree should not differ by it
    r"(?i)(?:[,;]|\s[—–-])\s++(?:because|since|which|so|as|but|where|meaning|given|assuming|not)\b|\s\(?(?:because|since)\b",
)
_AS_IS = re.compile(r"(?i)\(?[A-H]\)|[A-H](?:[.:]\s|\Z)|(?:yes|no)\b|.*\\begin")  # not an amount
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_ASIDE = re.compile(r"(?i)(?<=[\w%.])\s++\((?!mod\b)(?=[^()]*?(?:[^\W\d_]{2}|\d\s?[-+*/×]))[^()\\]*+\)")
_EXPRESSION = r"(?:\^|[a-z]?\s?[-+*/×÷]|\s?x)\s?[\d(.]"  # with the number before it: "2x + 5"
_EQUATION = re.compile(rf"(?ix).*[=≈]\s*+(?!0\s*\Z)({NUMBER_SOURCE}(?!{_EXPRESSION}).*+)")
_SEVERAL = re.compile(r"[,;<>≤≥≠^]|!=|\b(?:and|or)\b")
_ALONE = re.compile(r"(?i:yes|no)|[A-Z]|\([A-Za-z]\)")
_ITEM = re.compile(r"(?im)^[ \t#*>-]*+(?:\d{1,2}[.)]\s|Step \d++\b)")
_CLOSING = re.compile(
    r"(?im)^[ \t*#_>]*+(?:explanation|note|check|verification|reflection|remember)(?=[*_]*+:|[*_ ]*+$)"
    r"(?:.++|\n(?!\s*\n))*+",
)
_COMPUTED = re.compile(
    rf"(?ix)(?:(?<!!)=|≈|\\approx(?![a-z])|\bequals\b|\bequal\ to\b)\s*+({NUMBER_SOURCE})(?!{_EXPRESSION})",
)
# "= 90 minutes, which is 1.5 hours"; not "= 8, which is 2 more than 6"
_CONSEQUENCE = re.compile(r"(?i)\b(?:so|thus|therefore|hence|leaving|which (?:is|means|leaves|gives))\b(?! far)")
# "240 apples in 30 days", "5 of the 20 students"
_BESIDE = re.compile(
    r"(?i)(?<!total )(?<!sum )(?<!average )\b(?:at|during|every|for|in|of|on|over|per|than|to|within)\s"
    rf"(?:(?:an?|all|the|those|these|\w++'s)\s(?:(?:first|initial|original|other|total)\s)?)?+(?x:{NUMBER_SOURCE})",
)
_EXPLANATION = re.compile(
    r"(?i)\b(?:(?:since|because|after|or(?=\s-?\d)|to\s(?!a|the\b)[a-z]+|which is\b(?=.{3,16}\bthan\b))\b|i\.e\.)"
)
_BOLD = re.compile(  # where a sentence comes to it: "The capital of France is **Paris**."
    r"\b(?:is|are|was|were|be|has|have|had|needs?|equals|makes?|earns?|costs?|of|total)\s\$?\*\*([^*\n:]+)\*\*(?!\s?[:=])"
)


def final_answer(text: str, is_complete: bool = True) -> str | None:
    """Find the final answer of a reply; None if it has none."""
    return extract_answers(text, is_complete)[0]


def extract_answers(text: str, is_complete: bool, in_words: bool = False) -> tuple[str | None, str | None]:
    """Find the final answer, and what the text states even if it is truncated; guessed if they differ.

    If it was truncated (not `is_complete`), only what it states counts. To a question that words answer (`in_words`),
    no number counts: without a statement, it is the bold part of the last line, or that line.
    """
    text = own_text(text)
    doubtful = None
    for answer, is_firm in _statements_from_last(text, in_words):
        if is_firm and _REFUSAL.search(answer):
            return None, None
        if is_firm:
            return answer, answer
        doubtful = doubtful or answer
    if not is_complete:
        return None, None
    if in_words:
        return doubtful or _last_words(text), None
    value = _last_value(text) or doubtful
    whole = trimmed(plain(text)).strip()
    if NUMBER.fullmatch(whole) or _ALONE.fullmatch(whole):
        return value, value
    return value, None


def _last_words(text: str) -> str | None:
    """The bold part of the last line, or that line if it has none or several."""
    line = text.rstrip().rpartition("\n")[2]
    bold = _BOLD.findall(line)
    if len(bold) == 1:
        line = bold[0]
    return trimmed(plain(line)) or None


def own_text(text: str) -> str:
    """Text of a reply after its reasoning, and before another question that a base model makes up."""
    text = text.replace("\r\n", "\n").replace('\\"', '"').replace("\N{MINUS SIGN}", "-")
    if "think" in text:
        text = _REASONING.sub("", text)
    question = _NEXT_QUESTION.search(text)
    if question is None:
        return text
    before = text[: question.start()]
    own = before.strip()
    is_apart = "\n" not in own or (question.lastgroup and before.endswith("\n\n"))
    if is_apart and (_AS_IS.match(own) or NUMBER.search(own)):
        return own
    for marker in _MARKER.finditer(own):
        if has_content(own[marker.end() :].partition("\n")[0]):
            return own
    return text


def _statements_from_last(text: str, in_words: bool) -> Iterator[tuple[str, bool]]:
    """Yield each statement of an answer and whether it is firm, last first.

    `in_words` keeps sentences as they are, instead of the amounts that they come to.

    A statement ends where the next begins: so no character is read twice, however many statements are empty.
    """
    end = len(text)
    for marker in reversed(list(_MARKER.finditer(text))):
        line, below, is_box = _region(marker, text[marker.end() : end])
        end_of_sentence = len(line) if is_box else _sentence_end(line)
        answer = _answer(line[:end_of_sentence])
        remainder = line[end_of_sentence:]
        # A Markdown heading has text below it, unlike GSM8K's last line.
        is_heading = marker.lastgroup == "hashes" and (not NUMBER.match(answer) or has_content(remainder))
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
        return _ASIDE.sub("", answer), False
    if in_words:
        value = _ASIDE.sub("", answer)
    else:
        text, place = marker.string, marker.start()
        value = _value(answer, text, place)
        if marker.lastgroup in ("label", "heading") and value != answer and has_content(remainder):
            value = _last_result(line, text, place) or value
    # Many words without an amount are a first step ("Answer: Let us think step by step"), or a remark.
    is_prose = len(_WORD.findall(value)) > 3 and not _REFUSAL.search(value)
    return value, not is_prose


def braced(text: str) -> str:
    """Text between the brace that opens `text` and the matching one; empty if there is none."""
    depth = 0
    for mark in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if not depth and mark[0] == "}":
            return text[1 : mark.start()]
    return ""


def _value(answer: str, text: str, place: int) -> str:
    """Value of a statement at a place in a text, without a remark in parentheses; of a sentence, its amount."""
    answer = _ASIDE.sub("", answer)
    if _REFUSAL.search(answer) or _AS_IS.match(answer):
        return answer
    if (equation := _EQUATION.fullmatch(answer)) and not _SEVERAL.search(answer):
        return equation[1]
    numbers = _numbers(answer)
    words = len(_WORD.findall(answer))
    if NUMBER.match(answer):
        if len(numbers) > 1 and words > 2 and not _SEVERAL.search(answer):
            return numbers[0]
        return answer
    if words < 2 or (words < 3 and len(numbers) > 1):
        return answer
    return _result(answer, text, place) or answer


def _sentence_end(line: str) -> int:
    """End of the first sentence of a line; closing a bracket that was opened before the line ends it too."""
    depth = 0
    for mark in BREAK.finditer(line):
        if mark[0] in "([{":
            depth += 1
        elif mark[0] in ")]}":
            depth -= 1
            if depth < 0:
                return mark.start()
        elif depth == 0 and (end := sentence_stop(line, mark)) is not None:
            return end
    return len(line)


def _answer(text: str) -> str:
    text = trimmed(" ".join(_REASON.split(text, maxsplit=1)[0].split()))
    text = re.sub(r"\A(?:\(([A-Z])\)|[\[<]\$?(-?[\d./]++)[\]>])\Z", r"\1\2", text)
    if not text.strip("_-–—…^= "):
        return ""
    return text


def _last_value(text: str) -> str | None:
    text = CALCULATOR_NOTE.sub(" = ", text).strip()
    last = trimmed(plain(text.rpartition("\n")[2]).strip())
    if _ALONE.fullmatch(last):
        return last.strip("()")
    without_notes = _CLOSING.sub("", text)
    if NUMBER.search(without_notes):
        text = without_notes
    text = _ITEM.sub("", text)
    for line in reversed(text.split("\n")):
        bold = [*filter(NUMBER.match, _BOLD.findall(line))]
        if bold:
            line = bold[-1]
        if value := _last_result(plain(line), text, len(text)):
            return value
    return None


def _last_result(line: str, text: str, place: int) -> str | None:
    for sentence in reversed(sentences(line)):
        if sentence.rstrip().endswith("?"):
            continue
        if value := _result(sentence, text, place):
            return value
    return None


def _result(sentence: str, text: str, place: int) -> str | None:
    """Number that a sentence at a place in a text comes to; of several, the one that was computed last."""
    sentence = _without_explanation(_ASIDE.sub("", sentence))
    numbers = _numbers(sentence)
    if not numbers:
        return None
    if len(numbers) == 1:
        return numbers[0]
    own = list(_COMPUTED.finditer(sentence))
    if own:
        conclusion = _CONSEQUENCE.search(sentence, own[-1].end())
        value = _last_number(sentence[conclusion.end() :]) if conclusion else None
        return value or own[-1][1].strip()
    computed = _COMPUTED.findall(plain(text[:place]))
    if computed and computed[-1].strip() in numbers:
        return str(computed[-1]).strip()
    return _last_number(sentence)


def _without_explanation(sentence: str) -> str:
    """A sentence up to the explanation of its first number, unless that computes another."""
    first = NUMBER.search(sentence)
    if first is None:
        return sentence
    explanation = _EXPLANATION.search(sentence, first.end())
    if explanation is None:
        return sentence
    behind = _BESIDE.sub(" ", sentence[explanation.start() :])
    if re.search("[=,]", behind) or len(NUMBER.findall(behind)) > 1:
        return sentence
    return sentence[: explanation.start()]


def _numbers(text: str) -> list[str]:
    return [number.strip() for number in NUMBER.findall(text)]


def _last_number(text: str) -> str | None:
    numbers = _numbers(_BESIDE.sub(" ", text)) or _numbers(text)
    return numbers[-1] if numbers else None
