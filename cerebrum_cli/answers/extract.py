"""Find the final answer in a chain of thought, as the model wrote it and without the markup around it.

Equal answers may differ here ("0.8" and "4/5"): `canonical` decides which are equal.
Every pattern below runs in linear time; hence the possessive quantifiers (`++`), which never give back what they took.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MARKER = re.compile(
    r"""
      (?P<box>\\(?:boxed|fbox)(?![a-z]))\s*+
    | ^(?P<hashes>\#{4})(?!\#)
    | (?P<heading>^[#*_>\t ]*+(?:(?:the|my|our)\ )?(?:final\ )?answer[*_\t ]*+$)
    | \banswers?[*_]*+
      (?:\s++(?:in|(?:to|for)(?:\s++[\w'-]++){0,4}?)\s++[\w'-]++)?
      (?:\s++[*_]*+(?:is|are|was|equals|(?:would|should|must|will)\s++be)\b | (?P<label>\s*+[:=]))
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)

_LEAD = re.compile(
    r"(?:[\s*`:=$]++|\\[\[(]|[)\]}]|\\displaystyle|as\s++follows\b|(?:therefore|thus|hence|simply)\b,?)*+",
    re.IGNORECASE,
)

# "So the answer is correct" checks an answer that stands elsewhere, and "not 5" is none.
_REMARK = re.compile(r"(?:in)?correct|right|wrong|clear|(?:un)?reasonable|not\b.*", re.IGNORECASE | re.DOTALL)

# "yes, because ...": samples that agree should not differ by an explanation.
_REASON = re.compile(
    r"(?:[,;]|\s[—–-])\s++(?:because|since|which|so|as|but|where|meaning|given|assuming)\b|\s\(?(?:because|since)\b",
    re.IGNORECASE,
)

# A full stop ends the sentence before a space, or before a capital when it follows a digit; not in 3.5 or foo.bar.
_BREAK = re.compile(r"""[(\[{]|[)\]}]|(?<![.!?])[.!?]++(?=["'”’)]{0,3}(?:\s|\Z))|(?<=\d)\.(?=[A-Z])|。""")
_INITIALS = re.compile(r"\b[A-Za-z]{1,2}\.[A-Za-z]\Z")
_TITLE = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St|Mt|vs|approx|sq|cu)\Z")

_YES_NO = re.compile(r"(yes|no)(?=[,;:(]|\s++[—–(-]|\Z)", re.IGNORECASE)
# The text beside a choice's letter is dropped; two letters, or parts (a) and (b), are an answer as they are.
_CHOICE = re.compile(
    r"""
      (?:(?:option|choice)\s++)? \(([A-Z])\) (?: [.:]?\s++ (?!and\b|or\b) (?=[\w\\-]) (?!.*\([A-Z]\)) .* )?
    | (?:option|choice)\s++ ([A-Z])
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
LETTERS = "ABCDEFGH"  # that choices have; others are variables
_QUOTES = ('""', "''", "“”", "‘’", "«»")
_CLOSING_QUOTES = {pair[1] for pair in _QUOTES}

SENTENCE_WORDS, CLAUSE_WORDS = 10, 3
_VERB = re.compile(
    r"\b(?:is|are|was|were|am|has|have|had|will|would|can|could|should|must|does|do|did|gets?|got|takes?|needs?|costs?)\b",
    re.IGNORECASE,
)

_UNSIGNED = r"(?:\d++(?:\.\d++)?|\.\d++)"
_NUMBER_SOURCE = rf"""
    (?:(?<![\w)\]}}%])-)? (?<!\w)(?<!\d\.)
    (?:\d++\ (?=\d++/\d))? {_UNSIGNED} (?:e[-+]?\d++)? (?:\ ?/\ ?{_UNSIGNED})?
    (?:\ ?(?:\\times|\\cdot|[×·*])\ ?10\ ?\^\ ?(?:\{{-?\d++\}}|-?\d++))?
    (?:\ ?%)?
"""
_NUMBER = re.compile(_NUMBER_SOURCE, re.VERBOSE | re.IGNORECASE)
_AMOUNT = re.compile(rf"{_NUMBER_SOURCE} (?:\ ?[^\W\d_]++)?", re.VERBOSE | re.IGNORECASE)

_TEXT_COMMAND = r"\\(?:text\w*+|mathrm|mathbf|mbox|operatorname)\s*+\{([^{}]*+)\}"
_PLAIN = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<<[^<>]*+>>", ""),  # GSM8K's calculator notes
        (r"(?<=[\w}%])" + _TEXT_COMMAND, r" \1"),
        (_TEXT_COMMAND, r"\1"),
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"(?<=\d)(?:\{,\}|,?\\[,!;:])(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|(?<=\d)~", " "),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"(?:\bUS)?\\?\$|`", ""),  # a dollar sign opens money or a formula; the answer is what stands behind it
        (r"\\([%{}#&_])", r"\1"),
        (r"(?<![\w)\]}^*])\*{1,3}(?=[^\s*])|(?<=[^\s^*])\*{1,3}(?![\w(\[{\\*])|\s\*++\Z", ""),  # bold, but not 2**3
    )
)
_THOUSANDS = re.compile(r"(?<![\w.,(\[{])[1-9]\d{0,2}(?:,\d{3})++(?![\d,]*\d)")

_ARGUMENT = r"\s*+(?:\{((?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+)\}|([0-9A-Za-z]))"
_FRACTION = re.compile(r"\\(?:[dtcs]|nice)?frac" + _ARGUMENT + _ARGUMENT + r"(?=([\w\\(^])?)")
_BEFORE_FRACTION = re.compile(r"(?<=\w)\s*+(?=\\(?:[dtcs]|nice)?frac)")
_TERM = re.compile(r"-?(?:\d[\d.,]*+|[A-Za-z]|\\[A-Za-z]++(?:\{[^{}]*+\})?)")
_FRACTION_DEPTH = 3


def final_answer(text: str, is_complete: bool = True) -> str | None:
    r"""Find the final answer of a chain of thought; None if it states none.

    The last "the answer is ...", "Answer: ...", `\boxed{...}` or `#### ...` counts, unless it is empty or cut off; then
    the one before. Without any, the last number on the last line does, or that line itself if it is a yes, a no or a
    choice letter; but if the text was truncated (`is_complete` is false), its last line states nothing yet.
    """
    text = text.replace("\r\n", "\n").replace("\N{MINUS SIGN}", "-")
    doubtful = None
    for answer, firm in _statements_from_last(text):
        if firm:
            return answer
        doubtful = doubtful or answer
    return (_last_value(text) if is_complete else None) or doubtful


def _statements_from_last(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each statement of an answer and whether it is firm, last first.

    A statement ends where the next begins: so no character is read twice, however many statements are empty.
    """
    end = len(text)
    for marker in reversed(list(_MARKER.finditer(text))):
        kind, region = marker.lastgroup, text[marker.end() : end]
        if kind == "box" and region.startswith("{"):
            answer, rest = _answer(plain(_braced(region))), ""
        else:
            answer, rest = _stated(region)
        answer = _amount_of_sentence(answer) if _is_sentence(answer) else answer
        continues = end < len(text) or _has_content(rest)
        if answer and not (kind == "hashes" and continues and _is_heading(answer, rest)):
            opens_chain = kind in ("heading", "label") and continues and _is_prose(answer)
            yield answer, not (opens_chain or _REMARK.fullmatch(answer))
        end = marker.start()


def _braced(text: str) -> str:
    """Text between the brace that opens `text` and its partner; empty if there is none."""
    depth = 0
    for mark in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if not depth and mark[0] == "}":
            return text[1 : mark.start()]
    return ""


def _stated(region: str) -> tuple[str, str]:
    """Answer that a sentence states, and the text after that sentence."""
    line, newline, below = _LEAD.sub("", region, count=1).partition("\n")
    line = plain(line)
    end = _sentence_end(line)
    sentence = line[:end]
    reason = _REASON.search(sentence)
    return _answer(sentence[: reason.start()] if reason else sentence), line[end:] + newline + below


def _is_heading(answer: str, rest: str) -> bool:
    """Whether `####` is a Markdown heading with text below it, rather than GSM8K's last line."""
    return not _AMOUNT.fullmatch(answer) or _has_content(rest.partition("\n")[0])


def _is_prose(answer: str) -> bool:
    """Whether the text after an opening "Answer:" is a first step ("Let us think step by step") and not an answer."""
    return len(re.findall(r"[^\W\d_]{2,}", answer)) > 3


def _is_sentence(answer: str) -> bool:
    """Whether an answer is a whole sentence: several words with a verb, or many words."""
    words = re.findall(r"[^\W\d_][^\W_]*", answer)
    return len(words) > SENTENCE_WORDS or (len(words) >= CLAUSE_WORDS and _VERB.search(answer) is not None)


def _amount_of_sentence(answer: str) -> str:
    """The only amount in a sentence, in digits or in words; empty if it has none or several."""
    from cerebrum_cli.answers.amounts import amount  # its patterns are slow to compile

    numbers = {str(number).strip() for number in _NUMBER.findall(answer)}
    if not numbers and (verb := _VERB.search(answer)):
        value = amount(answer[verb.end() :].strip())
        return "" if value is None else str(value)
    return numbers.pop() if len(numbers) == 1 else ""


def _has_content(text: str) -> bool:
    return re.search(r"[^\W_]", text) is not None


def _sentence_end(line: str) -> int:
    """End of the first sentence of a line; closing a bracket that was opened before the line ends it too."""
    depth = 0
    for mark in _BREAK.finditer(line):
        if mark[0] in "([{":
            depth += 1
        elif mark[0] in ")]}":
            depth -= 1
            if depth < 0:
                return mark.start()
        elif depth == 0 and (end := _stop(line, mark)) is not None:
            return end
    return len(line)


def _stop(line: str, mark: re.Match[str]) -> int | None:
    """End of the sentence at this mark; None if the mark is part of it ("6 p.m. sharp", "5! = 120")."""
    before, after = line[max(0, mark.start() - 8) : mark.start()], line[mark.end() :].lstrip()[:1]
    new_sentence = not after or after.isupper()
    if mark[0].startswith("!") and before[-1:].isdigit():
        return mark.start() + 1 if new_sentence else None
    if _INITIALS.search(before):
        return mark.start() + 1 if not after or (new_sentence and before[-1:].islower()) else None
    if (_TITLE.search(before) and after) or (mark[0].startswith("..") and not new_sentence):
        return None
    return mark.end() + 1 if line[mark.end() : mark.end() + 1] in _CLOSING_QUOTES else mark.start()


def plain(text: str) -> str:
    """Remove markup from a text: fractions as "4/5", numbers without thousands separators, no delimiters."""
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    text = _BEFORE_FRACTION.sub(" ", text)  # 3\frac{1}{2} is three and a half, not 31/2
    for _ in range(_FRACTION_DEPTH):
        text = _FRACTION.sub(_slashed, text)
    return _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)


def _slashed(fraction: re.Match[str]) -> str:
    r"""Write a LaTeX fraction with a slash, and with the parentheses its value needs."""
    over, under = (
        term if _TERM.fullmatch(term) else f"({term})"
        for term in (str(fraction[1] or fraction[2] or "").strip(), str(fraction[3] or fraction[4] or "").strip())
    )
    return f"({over}/{under})" if fraction[5] else f"{over}/{under}"


def _answer(text: str) -> str:
    """Strip quotes, closing punctuation and a choice's parentheses from an answer."""
    text = _without_open_quote(_trimmed(" ".join(text.split())))
    if yes_no := _YES_NO.match(text):
        return yes_no[1]
    if choice := _CHOICE.fullmatch(text):
        letter = str(choice[1] or choice[2])
        return letter.upper() if letter.upper() in LETTERS else letter
    return text if text.strip("_-–—…^= ") else ""


def _trimmed(text: str) -> str:
    for _ in range(2):  # the full stop may stand inside the quotes or behind them
        stripped = text.rstrip(" .,;:?").lstrip(" ,;:*")
        if _INITIALS.search(stripped[-4:]) and text.rstrip().endswith("."):
            stripped += "."
        if not stripped.rstrip("!")[-1:].isdigit():
            stripped = stripped.rstrip("!")
        text = stripped[1:-1] if stripped[:1] + stripped[-1:] in _QUOTES and len(stripped) > 1 else stripped
    return text


def _without_open_quote(text: str) -> str:
    """Strip a closing quote whose partner stands before the answer, but no inches and no apostrophe."""
    before, last = text[:-1], text[-1:]
    opening = next((pair[0] for pair in _QUOTES if pair[1] == last), None)
    if opening is None or not re.search(r"[.,!?]\Z" if last in "'’" else r"\D\Z", before):
        return text
    is_opened = before.count(opening) % 2 if opening == last else opening in before
    return text if is_opened else _trimmed(before)


def _last_value(text: str) -> str | None:
    """Value at the end of a chain of thought that states no answer."""
    line = next(filter(_has_content, reversed(text.split("\n"))), "")
    line = _trimmed(plain(line).strip())
    if re.fullmatch(r"(?i:yes|no)|[A-Z]|\([A-Za-z]\)", line):
        return line.strip("()")
    numbers = _NUMBER.findall(line)
    return str(numbers[-1]).strip() if numbers else None
