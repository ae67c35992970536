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

from cerebrum_cli.answers.number_words import with_digits
from cerebrum_cli.answers.plain_text import CALCULATOR_NOTE, plain, sentences, trimmed
from cerebrum_cli.answers.sentence import EQUAL, last_result, values_alone, values_in
from cerebrum_cli.answers.statements import REFUSED, statements_from_last
from cerebrum_cli.answers.values import MAY_HOLD_VALUE, starts_with_value
from cerebrum_cli.core.text import one_line

_IN_WORDS = re.compile(
    r"(?!(?:yes|no|true|false|.)\Z)[^\W\d_]++(?:[\s-][^\W\d_]++)*+", re.IGNORECASE
)  # a remark, if a value precedes it
_ALONE = re.compile(r"(?i)yes|no|[a-z]|\([a-z]\)")
_LINE_LETTER = re.compile(r"(?m)^[ \t*_]*+\(?([A-H])[).:][)*_]*\s(?!\W*(?:and|or)\b)")
_CHOICE_HEADLINE = re.compile(r"[*_]+(\(?[A-H][).:]\s[^\n*_]+)[*_]+\s*\n")
_LETTER_LEFT = re.compile(  # "That leaves us with C."
    r"(?:\bleav(?:es|ing)\s(?:(?:us|only|just|with|option|choice|answer)\s)*|\bleft\swith\s)\W*([A-H])\W*\Z"
    r"|\b(?:(?:answer|choice|option)\sis|(?:has\sto|must|should)\sbe|choos(?:e|ing)|go(?:ing)?\swith|pick(?:ing)?|select|opt(?:ing)?\sfor|hence|therefore|thus|so|es\sla|est\sla)"
    r"\W{1,4}(?:(?:option|choice|answer)\s)?\W*([A-Ha-h])"
    r"(?=\W*\Z|[*]*[:;)]|[*]*\sis\s(?:the\s)?(?:answer|best|correct|right)).*\Z"
    r"|\bonly\s(?:option\s|choice\s)?\W*([A-H])\W*\s(?:remains|is\s(?:left|possible)|fits)\W*\Z"
)
_TICKED = re.compile(r"(?m)^[^\w\n]*([A-H])[.):]\s[^\n✓✔✅✗✘❌]*[✓✔✅]")  # the only line of a list with a tick
_SHORT = 4  # words of a reply that is the answer as it stands
_NO_LABEL = re.compile(
    r"(?i)\b(?:answer|cannot|can['’]t|don['’]t|depends|hello|hi|idea|knows?|nobody|not|question|sorry|sure|unclear|unknown"
    r"|yes|no|or|(?-i:[A-Z])|is|are|was|it|this|that|i|you)\b|:\Z"
)
_FRACTION = re.compile(r"(?i)\b(?:one|two|three|four|five)[\s-](?:third|quarter|fifth|sixth|eighth|tenth)s?\b")
_LAW = re.compile(r"(?<![\w=+*/-])[A-Za-z]\w*\s=\s[^\W\d]{1,3}[^\w\s.,;]*+(?![\w=])")
_LABEL = re.compile(r"\A[^\W\d_]+:\s")  # "Label: joy"
_PART = r"[ \t*]*\(?{}\)[*]*\s[^\n]{{1,80}}"
_PARTS = re.compile(rf"(?m)^{_PART.format('a')}\s{_PART.format('b')}(?:\n{_PART.format('[c-h]')})*\s*\Z")
_BOLD = re.compile(  # where a sentence comes to it: "The capital of France is **Paris**."
    r"\b(?:is|are|was|were|be|has|have|had|needs?|equals|makes?|earns?|costs?|of|total|get|hay|tem|tiene|hat|gibt|sind|ist|est|a|son|são|é|è)\s\$?\*\*([^*\n:]+)\*\*(?!\s?[:=])"
)
_BOLD_COUNTS = re.compile(r"\*\*\d++\s[^*\n]+\*\*(?:,?\s(?:and\s)?\*\*\d++\s[^*\n]+\*\*)+")  # **3 cats** and **4 dogs**

# The final answer of a reply, and what it states even if truncated; the answer is guessed if they differ.
Answers = tuple[str | None, str | None]


def extract_answers(text: str, is_complete: bool, in_words: bool = False) -> Answers:
    """Find the final answer in a reply's own text.

    If it was truncated (not `is_complete`), only what it states counts. To a question that words answer (`in_words`),
    no number counts: without a statement, it is the bold part of the last line, or that line.
    """
    doubtful = words = None
    for answer, is_firm in statements_from_last(text, in_words):
        if not is_firm:
            doubtful = doubtful or answer
            continue
        if REFUSED.search(answer):
            return None, None
        if in_words or not _IN_WORDS.fullmatch(answer):
            value = _last_value(text.replace(answer, "")) if "=" in answer else None
            if value and value in map(str.strip, EQUAL.split(answer)):  # "x + z - y = 60. So there are 60 oranges."
                return value, value
            return answer, answer
        words = words or answer
    if words:
        return words, words
    if not is_complete or is_refusal(text):
        return None, None
    if letter := _LETTER_LEFT.search(plain(_last_sentence(text))):
        left = next(filter(None, letter.groups())).upper()
        return left, left
    ticked = _TICKED.findall(text)
    if len(ticked) == 1:
        return ticked[0], ticked[0]
    if in_words and (headline := _CHOICE_HEADLINE.match(text)):
        return headline[1], headline[1]
    if in_words:
        return doubtful or _last_words(text), None
    if whole := _parts(text) or _short_line(text):
        return whole, whole
    value = _last_value(text) or _last_value_in_words(text) or doubtful or _law(text) or _opening_letter(text)
    return value, value if _alone(text) else None


def is_refusal(text: str) -> bool:
    """Whether the last sentence of a text says that there is no answer."""
    return REFUSED.search(_last_sentence(text)) is not None


def _parts(text: str) -> str | None:
    """The answers to parts (a), (b) and so on, if the last lines or the last line are these."""
    parts = _PARTS.search(text)
    return one_line(plain(parts[0])) if parts else None


def _short_line(text: str) -> str | None:
    """A reply that is one line of a few words without a value: a label, a name."""
    line = _LABEL.sub("", trimmed(plain(text)))
    if "\n" in text or "?" in line or not 0 < len(line.split()) <= _SHORT or MAY_HOLD_VALUE.search(line):
        return None
    return None if _NO_LABEL.search(line) or values_in(with_digits(line)) else line


def _with_fractions(line: str) -> str:
    return with_digits(line) if _FRACTION.search(line) else line


def _opening_letter(text: str) -> str | None:
    """The letter of the choice that opens a reply, unless it lists others: C of "**C) It doubles.** ..."."""
    letters = _LINE_LETTER.findall(text)
    return letters[0] if len(letters) == 1 and _LINE_LETTER.match(text) else None


def _law(text: str) -> str | None:
    """The only equation of the last sentence that has names of several letters, which are no values: F = ma."""
    laws = _LAW.findall(plain(_last_sentence(text)))
    return str(laws[0]) if len(laws) == 1 else None


def _last_sentence(text: str) -> str:
    return sentences(text.rstrip().rpartition("\n")[2])[-1]


def _last_words(text: str) -> str | None:
    """The bold part of the last line, or that line if it has none or several."""
    line = text.rstrip().rpartition("\n")[2]
    bold = _BOLD.findall(line)
    if len(bold) == 1:
        line = bold[0]
    return trimmed(plain(line)) or None


def _alone(text: str) -> str:
    """A text that is a yes, a no, a letter, a value or a list of values; "" if it is more."""
    text = trimmed(plain(text))
    if _ALONE.fullmatch(text):
        return text
    return values_alone(text)


def _last_value_in_words(text: str) -> str | None:
    """The last value of a text whose numbers are words; None if it has no such words."""
    digits = with_digits(text)
    return _last_value(digits) if digits != text else None


def _last_value(text: str) -> str | None:
    text = CALCULATOR_NOTE.sub(" = ", text).strip()
    if alone := _alone(text.rpartition("\n")[2]):
        return alone
    for line in filter(MAY_HOLD_VALUE.search, reversed(text.split("\n"))):
        if counts := _BOLD_COUNTS.search(line):
            return plain(counts[0])
        line = next(filter(starts_with_value, reversed(_BOLD.findall(line))), line)
        if value := last_result(_with_fractions(plain(line))):
            return value
    return None
