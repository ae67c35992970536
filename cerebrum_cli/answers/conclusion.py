"""Find what a chain of thought that states no answer comes to: the value at its end.

The rule is the last number of the last sentence, but what a sentence has computed stands behind its last equals sign:
"16 x 3 = 48 kilograms in 3 bags" comes to 48. The exceptions are equations that only prepare a value behind them, and
sentences whose number is in words. A question comes to nothing: the sentence before it counts.
"""

from __future__ import annotations

import re

from cerebrum_cli.answers.plain_text import (
    CALCULATOR_NOTE,
    NUMBER,
    NUMBER_SOURCE,
    VERB,
    has_content,
    plain,
    sentences,
    trimmed,
)

_ALONE = re.compile(r"(?i:yes|no)|[A-Z]|\([A-Za-z]\)")
_OPEN_EQUATION = re.compile(r"(?<=[^=\n])=[ \t]*+\n\s*+")  # its right side is on the next line

_EQUALS = re.compile(r"(?<!!)=|≈|\\approx(?![a-z])|\bequals\b|\bequal to\b", re.IGNORECASE)
# What makes the right side an expression, as in "= 2x + 5", and no value.
_OPERATOR = re.compile(r"(?:\^|[a-z]?\s?[-+*/×÷]|\s?x)\s?[\d(.]", re.IGNORECASE)
# "It is 50 when r = 3"
_CONDITION = re.compile(
    rf"\b(?:as|at|because|for|given|if|let|since|when|where|with)\ [a-z]\ ?=\ ?{NUMBER_SOURCE}",
    re.VERBOSE | re.IGNORECASE,
)
# "Since 1 hour = 60 minutes, 2 hours are 120 minutes"
_PREMISE = re.compile(r"\W*+(?:(?:and|but|so|now) )?(?:as|because|given|if|since|when|with)\s[^,=]*+\Z", re.IGNORECASE)
_COMPARISON = "percent|more|less|fewer|greater|higher|lower|older|younger|times|of|x|[*]"
# "= 60 minutes, so 2 hours are 120 minutes", "= 90 minutes, which is 1.5 hours"; not "= 8, which is 2 more than 6"
_CONSEQUENCE = re.compile(
    rf"""
    \b(?: (?:so(?!\ (?:far|many|much|that)\b)|thus|therefore|hence|then|meaning|leaving|(?<=,\ )(?:making|giving))\b
        | or(?=\ -?[\d.]) | which\ (?:means|leaves|makes|gives)\b
        | which\ (?:is|are|equals)\ (?:about\ |equal\ to\ )?+ (?={NUMBER_SOURCE} (?!\ ?(?:{_COMPARISON})))
      )
    """,
    re.VERBOSE | re.IGNORECASE,
)


def last_value(text: str) -> str | None:
    """Value at the end of a chain of thought that states no answer."""
    text = CALCULATOR_NOTE.sub(" = ", _OPEN_EQUATION.sub("= ", text))
    has_digits = re.search(r"\d", text) is not None  # without any, "there are two ways" concludes no calculation
    for line in filter(has_content, reversed(text.split("\n"))):
        line = plain(line).strip()
        if _ALONE.fullmatch(trimmed(line)):
            return trimmed(line).strip("()")
        statements = [sentence for sentence in sentences(line) if not sentence.endswith("?")]
        if any(map(has_content, statements)):
            return next(filter(None, map(_result, reversed(statements))), None) if has_digits else None
    return None


def _result(sentence: str) -> str | None:
    """Number that a sentence comes to."""
    rest = _CONDITION.sub(" ", sentence)
    sentence = rest if NUMBER.search(rest) else sentence
    equations = list(_EQUALS.finditer(sentence))
    if not equations:
        return _last_number(sentence) or _number_in_words(sentence)
    equals = equations[-1]
    value = NUMBER.search(sentence, equals.end())
    if value is None or _OPERATOR.match(sentence, value.end()):
        return _last_number(sentence)
    if conclusion := _CONSEQUENCE.search(sentence, equals.end()):
        start = conclusion.end()
    elif _PREMISE.match(sentence[: equals.start()]):
        start = sentence.find(", ", value.end())
    else:
        start = -1
    return (_last_number(sentence[start:]) if start > 0 else None) or value[0].strip()


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return str(numbers[-1]).strip() if numbers else None


def _number_in_words(sentence: str) -> str | None:
    """Number behind a verb: "it took three days", but not "this is one of them"."""
    from cerebrum_cli.answers.amounts import NUMBER_WORD, amount  # its patterns are slow to compile

    verb = rf"(?:{VERB.pattern}|\b(?:leaves?|left|made|makes?|needed|took)\b)"
    number = rf"{NUMBER_WORD}(?:[ -](?:and )?{NUMBER_WORD})*+"
    words = re.search(
        rf"{verb}(?: (?:about|exactly|just|now|only|still)\b)*+ ({number})"
        r"(?! (?:and|fewer|less|more|of|or|that|which|who)\b)",
        sentence,
        re.IGNORECASE,
    )
    value = amount(words[1]) if words else None
    return None if value is None else str(value)
