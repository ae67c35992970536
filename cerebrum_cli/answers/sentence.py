"""A sentence as values and the words between them, and the value it comes to."""

from __future__ import annotations

import re
from typing import NamedTuple

from cerebrum_cli.answers.chemistry import plain_formula
from cerebrum_cli.answers.dates import iso_date
from cerebrum_cli.answers.phrases import DOUBT, NOT_IT, POSSIBLE
from cerebrum_cli.answers.plain_text import sentences, trimmed
from cerebrum_cli.answers.rewriting import rewriting
from cerebrum_cli.answers.values import VALUE, is_value, solved

_NEAR = 60  # characters of words next to a value that are looked at, so that time is linear
_NOT_IT = re.compile(rf"(?ix)(?:{NOT_IT})\s?\Z")
_NAMED = re.compile(r"(?i)\b(?:equation|line)\s\Z")  # "the equation y = 2x", unlike "equation 2"
_CLAUSE = 120  # characters before a value that may leave it open
_DOUBT = re.compile(rf"(?ix){DOUBT}")
_NO_LONGER = r"but|however|i\ think|so|still|then|therefore|yet|aber|jedoch|mais|pero"
_IN_DOUBT = re.compile(rf"(?ix)(?:{DOUBT})(?:(?!\b(?:{_NO_LONGER})\b)[^.!?;\n])*\Z")
_POSSIBLE = re.compile(rf"(?ix){POSSIBLE}")
_SUPPOSED = re.compile(
    r"(?i)(?:\bif\b[^.!?\n]*\b|(?:\A|[.!?\n])\W*)(?:had|were)\b[^.!?\n]*\b(?:could|might|would)\b[^.!?\n]*\Z"
)
_SUPPOSING = re.compile(r"(?i)\s(?:would|could|might)\s(?:only\s)?be\s(?:the\s(?:answer|case)|correct|right|true)\b")
_SPAN = re.compile(r"(?i)\b(?:day|hour|minute|month|week|year)s?\s(?:after|before|from)\s(?:the\s)?\Z")
_PART_OF = re.compile(r"(?: \w+){1,3} than\b| of (?:which|whom)\b")
_INTERVAL = re.compile(r"[<>≤≥∞]|\\(?:infty|[lg]eq?(?![a-z]))")
_MORE = re.compile(r"以上|以下|\+(?!\S)| or (?:more|less|fewer)\b| less than\b")
_FROM, _TO = re.compile(r"(?i)(?<!range )(?<!number )\bfrom\s\Z"), re.compile(r"(?i)(?:\s\w+)?\sto\s")
_JOINT = re.compile(r"(?:, ?(?:and |or )?| (?:and|or|to) )")
_STATED = re.compile(r"(?:\b(?:are|is|either)|[:=])\s\Z")
# What is beside the point: "240 apples in 30 days", "5 of the 20 students".
_BESIDE = re.compile(
    r"""(?ix)
    (?<!total\ )(?<!sum\ )(?<!average\ )\b(?:at|during|every|for|from|in|of|on|over|per|than|to|within)\s
    (?:(?:an?|all|the|those|these|\w++'s)\s(?:(?:first|initial|original|other|total)\s)?)?+ \Z"""
)
_COMPUTED = re.compile(
    r"""(?ix) (?:(?<!!)= | ≈ | \\approx(?![a-z]) | \b(?:equals?(?:\ to)? | amounts?\ to | adds?\ up\ to | comes?\ to
  | comes?\ out\ (?:at|to) | works?\ out\ (?:at|to) | rounds?\ (?:(?:down|off|up)\ )?to | gives | yields | to\ get
  | totals | results?\ in))\s*\Z"""
)
# "= 90 minutes, which is 1.5 hours"; not "= 8, which is 2 more than 6"
_CONSEQUENCE = re.compile(
    r"(?ix)\b(?:so|thus|therefore|hence|leaving|giving|which\ (?:is|means|leaves|gives))\b(?!\ far)"
)
_EXPLANATION = re.compile(
    r"(?ix)\b(?:since|because|while|whereas|after|to\s(?!a|the\b)[a-z]+)\b"
    r"| ,\ (?:working|using|counting|including|excluding|considering|paying|selling|driving|walking|buying|charging)\b"
    r"| \b(?:i\.e\.|or\s\Z) | ,\ (?:who|of\ which|where|davon|darunter|von\ denen|dont|d[ao]s\ quais"
    r"|de\ l[ao]s\ (?:cuales|que)|di\ cui)\b"
)
_REASON = re.compile(r"(?i)\W*(?:as|because|given\sthat|since)\s")
_CONCESSION = re.compile(r"(?i)\W*(?:although|even\sthough|though|while|obwohl|bien\sque|aunque)\s")
_VERB = re.compile(r"(?i)\b(?:are|equals?|is)\s")
EQUAL = re.compile("(?<![<>!])=|≈")

without_asides = rewriting(
    (r"(?i)(?<=[\w%.!)\]}])\s++\((?!mod\b)(?=[^()]*?(?:[^\W\d_]{2}|\d\s?[-+*/×]))[^()\\]*+\)(?!\\)", ""),
)
# What a sentence states, without decoration, and without a reason: samples that agree should not differ by it.
_ASKING = r"(?:are|can|could|did|do|does|has|have|is|may|might|shall|should|was|were|will|would)\b"
_QUESTION = re.compile(
    rf"(?i)\b(?:how|what|when|where|which|who|whose|why)\b|\A\W*(?:{_ASKING}|(?:or|and)\b|maybe\b|perhaps\b)"
    rf"|\b(?:{_ASKING})\s(?:he|it|she|that|the|there|they|this|we)\b"
)
_EACH_HAS = re.compile(r"(?: \w+){0,2} each\b")  # "14 rows with 9 chairs each"
_EACH = re.compile(r"(?i);\s(?:each|every)\s[^,;=]*\Z")  # "144 tiles; each costs 3 dollars"
_ITEM = re.compile(r"(?i)^[ \t#*>-]*+(?:\d{1,2}[.)]\s|Step \d++\b)")


class FoundValue(NamedTuple):
    """A value as it is written, where it stands, and the words beside it, up to other values."""

    text: str
    start: int
    end: int
    before: str
    behind: str


Values = list[FoundValue]  # of a sentence, in order


def values_in(text: str) -> Values:
    found = [match for match in VALUE.finditer(text) if is_value(match[1])]
    edges = [0, *(edge for match in found for edge in match.span()), len(text)]
    words = [text[end:start] for end, start in zip(edges[::2], edges[1::2], strict=True)]
    return [FoundValue(match[1], *match.span(1), *words[place : place + 2]) for place, match in enumerate(found)]


def result(text: str) -> str | None:
    """Value that a sentence comes to; of several, what was computed last.

    Otherwise it is the last value that is not beside the point.
    """
    text = _without_reason(text)
    found = values_in(text)
    if _DOUBT.search(text):
        found = [value for value in found if not is_in_doubt(text, value.start, value.start)]
    for possible in _POSSIBLE.finditer(text):
        found = [value for value in found if not possible.start() < value.start < possible.end()]
    listed = _list_at_end(found)
    if len(listed) > 1 and _solves(listed):
        return solved(listed[-1].text)
    is_stated = len(listed) > 1 and (_is_computed(listed[0]) or _STATED.search(listed[0].before))
    if is_stated and not re.search(r"\w", listed[-1].behind):
        return text[listed[0].start : listed[-1].end]
    values = _without_explanation([value for value in found if not _is_other(value)])
    answer = _last_computed(values)
    if answer:
        return answer
    counted = [value for value in values if not plain_formula(value.text)] or values  # "it has 3 atoms: H2O"
    own = [value for value in counted if not _is_beside(value)] or counted
    return solved(own[-1].text) if own else None


def _without_reason(text: str) -> str:
    """The last clause of a sentence that begins with a reason or a concession: "Since 54 = 27 * 2, the root is ..."."""
    reason, _, clause = text.rpartition(", ")
    if _CONCESSION.match(reason) and re.search(r"\d", clause):
        return clause
    verb = _VERB.search(clause)
    return clause if _REASON.match(reason) and verb and re.search(r"\d", clause[verb.end() :]) else text


def last_result(line: str) -> str | None:
    for sentence in reversed(sentences(_ITEM.sub("", line))):
        if sentence.rstrip().endswith("?") and _QUESTION.search(sentence):
            continue
        if value := result(_EACH.sub("", trimmed(without_asides(sentence)))):
            return value
    return None


def _last_computed(values: Values) -> str:
    """The value computed last, or what follows from it; "" if none is computed."""
    answer = ""
    for value in values:
        if _is_computed(value) or (answer and _CONSEQUENCE.search(value.before) and not _is_beside(value)):
            answer = solved(value.text)
    return answer


def is_in_doubt(text: str, start: int, end: int) -> bool:
    """Whether the text around `start` up to `end`, where an answer begins, leaves open whether it is one.

    A later clause may take that back.
    """
    return _IN_DOUBT.search(text[max(0, start - _CLAUSE) : end]) is not None


def is_supposed(text: str, end: int) -> bool:
    """Whether the text before `end` supposes what is not so: "If it were halved, the answer would be"."""
    return _SUPPOSED.search(text[max(0, end - _CLAUSE) : end]) is not None


def values_alone(text: str) -> str:
    """A text that is a value or a list of values; "" if it is neither."""
    listed = _list_at_end(values_in(text))
    if not listed or listed[0].start or listed[-1].end < len(text):
        return ""
    return solved(text) if len(listed) == 1 else text


def _list_at_end(values: Values) -> Values:
    """The values at the end that commas, "and" or "or" join."""
    place = len(values) - 1
    while place > 0 and _JOINT.fullmatch(values[place].before):
        place -= 1
    return values[max(place, 0) :]


def _solves(listed: Values) -> bool:
    """Whether the last of equations is the solution of those before it: "2n = 14 and n = 7"."""
    name, is_equation, _ = listed[-1].text.partition("=")
    name = name.strip()
    return (
        bool(is_equation)
        and name.isalpha()
        and all(
            re.search(rf"(?<![^\W\d_]){name}(?![^\W\d_])", value.text) and not re.match(rf"{name}\s?=", value.text)
            for value in listed[:-1]
        )
    )


def _is_other(value: FoundValue) -> bool:
    """Whether a value is only compared with the answer, counts something else, or is what changes."""
    before, behind = value.before[-_NEAR:], value.behind[:_NEAR]
    if EQUAL.search(value.text) and _NAMED.search(before):
        return False
    if _NOT_IT.search(before) or _SPAN.search(before) or _MORE.match(behind) or _SUPPOSING.match(behind):
        return True
    return bool(_FROM.search(before) and _TO.fullmatch(behind))


def _is_computed(value: FoundValue) -> bool:
    return bool(EQUAL.search(value.text) or _COMPUTED.search(value.before[-_NEAR:]))


def _is_beside(value: FoundValue) -> bool:
    if iso_date(value.text) or _INTERVAL.search(value.text):
        return False
    if value.before.endswith("with ") and _EACH_HAS.match(value.behind):
        return True
    return bool(_BESIDE.search(value.before[-_NEAR:]) or _PART_OF.match(value.behind))


def _without_explanation(values: Values) -> Values:
    """Values up to the explanation of the first one, unless that computes another."""
    for place, value in enumerate(values[1:], 1):
        if _EXPLANATION.search(value.before):
            behind = [other for other in values[place:] if not _is_beside(other)]
            if len(behind) > 1 or _last_computed(behind):
                return values
            return values[:place]
    return values
