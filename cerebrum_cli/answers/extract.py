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
    has_content,
    plain,
    sentence_stop,
    sentences,
    trimmed,
)

_REASONING = re.compile(r"\A.*</think(?:ing)?>|<think(?:ing)?>.*+\Z", re.DOTALL)
_NEXT_QUESTION = re.compile(
    r"^[ \t#*>_-]*+(?:(?P<own>question|q)|user|human|problem)\s?\d*+[*_]*+:|^(?P<list>the following (?:are|is)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_MARKER = re.compile(
    r"""
      (?P<box>\\(?:boxed|fbox)(?![a-z]))\s*+
    | ^(?P<hashes>\#{4})(?!\#)
    | (?P<heading>^[^\w\n]*+(?:(?:the|my|our)\ )?(?:final\ )?answer[^\w\n]*+$)
    | \banswers?["'*_]*+
      (?:\s++(?:in|(?:to|for)(?:\s++[\w'-]++){0,4}?)\s++[\w'-]++)?
      (?:\s++[*_]*+(?:is|are|was|equals|(?:would|should|must|will)\s++be)\b | (?P<label>\s*+[:=]|>))
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)

_JSON_END = re.compile(r'"\s*+[,}]|,\s*+"|\}')
_LEAD = re.compile(
    r"(?:[\s*`:=$#>\"“]++|[-•]\s|\\[\[(]|[)\]}]|\\displaystyle|as\s++follows\b|(?:therefore|thus|hence|simply)\b,?)*+",
    re.IGNORECASE,
)

# "So the answer is correct" checks an answer that stands elsewhere, and "not 5" is none.
_REMARK = re.compile(r"(?:in)?correct|right|wrong|clear|(?:un)?reasonable|not\b.*", re.IGNORECASE | re.DOTALL)
_REFUSAL = re.compile(
    r"\b(?:can(?:not|['’]t)|could not|(?:im|not )possible to|unable to) (?:be |we )?(?:determin|answer|calculat)"
    r"|\b(?:none of the (?:above|given|options)|(?:not enough|insufficient) info)"
    r"|\A(?:none|null|n/a|unknown|undetermined|indetermina(?:te|ble))\Z",
    re.IGNORECASE,
)
_REASON = re.compile(  # samples that agree should not differ by it
    r"(?:[,;]|\s[—–-])\s++(?:because|since|which|so|as|but|where|meaning|given|assuming|not)\b|\s\(?(?:because|since)\b",
    re.IGNORECASE,
)
_AS_IS = re.compile(r"\(?[A-H]\)|[A-H](?:[.:]\s|\Z)|(?:yes|no)\b|.*\\begin", re.IGNORECASE)  # not an amount
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_ASIDE = re.compile(r"(?<=[\w%.])\s++\((?!mod\b)(?=[^()]*?(?:[^\W\d_]{2}|\d\s?[-+*/×]))[^()\\]*+\)", re.IGNORECASE)
_EXPRESSION = r"(?:\^|[a-z]?\s?[-+*/×÷]|\s?x)\s?[\d(.]"  # with the number before it: "2x + 5"
_EQUATION = re.compile(rf".*[=≈]\s*+(?!0\s*\Z)({NUMBER_SOURCE}(?!{_EXPRESSION}).*+)", re.VERBOSE | re.IGNORECASE)
_SEVERAL = re.compile(r"[,;<>≤≥≠^]|!=|\b(?:and|or)\b")
_ALONE = re.compile(r"(?i:yes|no)|[A-Z]|\([A-Za-z]\)")
_ITEM = re.compile(r"^[ \t#*>-]*+(?:\d{1,2}[.)]\s|Step \d++\b)", re.MULTILINE | re.IGNORECASE)
_CLOSING = re.compile(
    r"^[ \t*#_>]*+(?:explanation|note|check|verification|reflection|remember)(?=[*_]*+:|[*_ ]*+$)(?:.++|\n(?!\s*\n))*+",
    re.IGNORECASE | re.MULTILINE,
)
_COMPUTED = re.compile(
    rf"(?:(?<!!)=|≈|\\approx(?![a-z])|\bequals\b|\bequal\ to\b)\s*+({NUMBER_SOURCE})(?!{_EXPRESSION})",
    re.VERBOSE | re.IGNORECASE,
)
# "= 90 minutes, which is 1.5 hours"; not "= 8, which is 2 more than 6"
_CONSEQUENCE = re.compile(r"\b(?:so|thus|therefore|hence|leaving|which (?:is|means|leaves|gives))\b(?! far)", re.I)
# "240 apples in 30 days", "5 of the 20 students"
_BESIDE = re.compile(
    r"(?<!total )(?<!sum )(?<!average )\b(?:at|during|every|for|in|of|on|over|per|than|to|within)\s"
    rf"(?:(?:an?|all|the|those|these|\w++'s)\s(?:(?:first|initial|original|other|total)\s)?)?+(?x:{NUMBER_SOURCE})",
    re.IGNORECASE,
)
_EXPLANATION = re.compile(
    r"\b(?:(?:since|because|after|or(?=\s-?\d)|to\s(?!a|the\b)[a-z]+|which is\b(?=.{3,16}\bthan\b))\b|i\.e\.)", re.I
)
_BOLD = re.compile(  # where a sentence comes to it: "The capital of France is **Paris**."
    r"\b(?:is|are|was|were|be|has|have|had|needs?|equals|makes?|earns?|costs?|of|total)\s\$?\*\*([^*\n:]+)\*\*(?!\s?[:=])"
)


def final_answer(text: str, is_complete: bool = True, in_words: bool = False) -> str | None:
    """Find the final answer of a reply; None if it has none.

    If it was truncated (not `is_complete`), only what it states counts. To a question that words answer (`in_words`),
    no number counts: without a statement, it is the bold part of the last line, or that line.
    """
    return extract_answers(text, is_complete, in_words)[0]


def extract_answers(text: str, is_complete: bool, in_words: bool = False) -> tuple[str | None, str | None]:
    """Find the final answer, and what the text states even if it is truncated; guessed if they differ."""
    text = own_text(text)
    doubtful = None
    for answer, firm in _statements_from_last(text, in_words):
        if firm:
            return (None, None) if _REFUSAL.search(answer) else (answer, answer)
        doubtful = doubtful or answer
    if not is_complete:
        return None, None
    if in_words:
        last = text.rstrip().rpartition("\n")[2]
        [value, *others] = _BOLD.findall(last) or [last]
        return doubtful or trimmed(plain(last if others else value)) or None, None
    value, whole = _last_value(text) or doubtful, trimmed(plain(text)).strip()
    return value, value if NUMBER.fullmatch(whole) or _ALONE.fullmatch(whole) else None


def own_text(text: str) -> str:
    """Text of a reply after its reasoning, and before another question that a base model makes up."""
    text = text.replace("\r\n", "\n").replace('\\"', '"').replace("\N{MINUS SIGN}", "-")
    text = _REASONING.sub("", text) if "think" in text else text
    if question := _NEXT_QUESTION.search(text):
        own = text[: question.start()].strip()
        is_apart = "\n" not in own or (question.lastgroup and text[: question.start()].endswith("\n\n"))
        is_answer = is_apart and (_AS_IS.match(own) or NUMBER.search(own))
        if is_answer or any(has_content(own[marker.end() :].partition("\n")[0]) for marker in _MARKER.finditer(own)):
            return own
    return text


def _statements_from_last(text: str, in_words: bool) -> Iterator[tuple[str, bool]]:
    """Yield each statement of an answer and whether it is firm, last first.

    `in_words` keeps sentences as they are, instead of the amounts that they come to.

    A statement ends where the next begins: so no character is read twice, however many statements are empty.
    """
    end = len(text)
    for marker in reversed(list(_MARKER.finditer(text))):
        kind, region = marker.lastgroup, text[marker.end() : end]
        if is_box := kind == "box" and region.startswith("{"):
            line, below = braced(region), ""
        else:
            region = _JSON_END.split(region, maxsplit=1)[0] if '"' in marker[0] else region
            line, _, below = _LEAD.sub("", region.partition("</")[0], count=1).partition("\n")
        line = plain(line)
        end_of_sentence = len(line) if is_box else _sentence_end(line)
        answer = _answer(line[:end_of_sentence])
        remainder = line[end_of_sentence:]
        # A Markdown heading has text below it, unlike GSM8K's last line.
        is_heading = kind == "hashes" and (not NUMBER.match(answer) or has_content(remainder))
        if answer and not (is_heading and (end < len(text) or has_content(remainder + below))):
            is_remark = _REMARK.fullmatch(answer) is not None
            is_amount = not (is_remark or in_words)
            value = _value(answer, text, marker.start()) if is_amount else _ASIDE.sub("", answer)
            if is_amount and kind in ("label", "heading") and value != answer and has_content(remainder):
                value = _last_result(line, text, marker.start()) or value
            # Many words without an amount are a first step ("Answer: Let us think step by step"), or a remark.
            is_prose = len(_WORD.findall(value)) > 3 and not _REFUSAL.search(value)
            yield value, not (is_prose or is_remark)
        end = marker.start()


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
    numbers = [number.strip() for number in NUMBER.findall(answer)]
    words = len(_WORD.findall(answer))
    if NUMBER.match(answer):
        return numbers[0] if len(numbers) > 1 and words > 2 and not _SEVERAL.search(answer) else answer
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
    return text if text.strip("_-–—…^= ") else ""


def _last_value(text: str) -> str | None:
    text = CALCULATOR_NOTE.sub(" = ", text).strip()
    last = trimmed(plain(text.rpartition("\n")[2]).strip())
    if _ALONE.fullmatch(last):
        return last.strip("()")
    without_notes = _CLOSING.sub("", text)
    text = _ITEM.sub("", without_notes if NUMBER.search(without_notes) else text)
    lines = (next(filter(NUMBER.match, reversed(_BOLD.findall(line))), line) for line in reversed(text.split("\n")))
    return next(filter(None, (_last_result(plain(line), text, len(text)) for line in lines)), None)


def _last_result(line: str, text: str, place: int) -> str | None:
    statements = (sentence for sentence in reversed(sentences(line)) if not sentence.rstrip().endswith("?"))
    return next(filter(None, (_result(sentence, text, place) for sentence in statements)), None)


def _result(sentence: str, text: str, place: int) -> str | None:
    """Number that a sentence at a place in a text comes to; of several, the one that was computed last."""
    sentence = _ASIDE.sub("", sentence)
    if (first := NUMBER.search(sentence)) and (explanation := _EXPLANATION.search(sentence, first.end())):
        behind = _BESIDE.sub(" ", sentence[explanation.start() :])
        if not re.search("[=,]", behind) and len(NUMBER.findall(behind)) < 2:
            sentence = sentence[: explanation.start()]
    numbers = [number.strip() for number in NUMBER.findall(sentence)]
    if len(numbers) < 2:
        return numbers[0] if numbers else None
    if own := list(_COMPUTED.finditer(sentence)):
        conclusion = _CONSEQUENCE.search(sentence, own[-1].end())
        return (conclusion and _last_number(sentence[conclusion.end() :])) or own[-1][1].strip()
    computed = [number.strip() for number in _COMPUTED.findall(plain(text[:place]))[-1:]]
    return computed[0] if computed and computed[0] in numbers else _last_number(sentence)


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(_BESIDE.sub(" ", text)) or NUMBER.findall(text)
    return str(numbers[-1]).strip() if numbers else None
