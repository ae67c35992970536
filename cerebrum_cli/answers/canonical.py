r"""Give answers that mean the same one normal form, and others another: the key under which votes are counted.

Forms are only compared; users see the model's own spelling. Two answers are equal where their forms are, so
equality is an equivalence by construction. The rules, of which the first that fits is taken:

    a choice letter      (B)   b)   option B   B) 12                      B; a lone letter stays as it is
    yes and no           Yes.   "No, it is odd"                           yes, no; true and false are something else
    an amount, exactly   4/5   .80   8 \times 10^{-1}   80%   3 1/2       4/5, 4/5, 4/5, 4/5, 7/2
      without its unit   $18   18 apples   5 hours per day   30^\circ     18, 18, 5, 30
      in words           twelve   two dozen   two thirds   5 tenths       12, 24, 2/3, 1/2
      with alias         25 (twenty-five)   1/2 (50%)                     25, 1/2
    alternatives         x = 2 or x = -2   \pm 2   \{2, -2\}              {-2, 2}: sorted
    a list               1, 2, and 3   x = 1, y = 2                       in its order; names stay where they differ
    brackets             (1,2)   [0, \frac12)   ((x + 1))                 (1, 2), [0, 1/2), x+1
    an equation          x = 5   f(x) = 2x   5! = 120   8 = 5 + 3         what it comes to: 5, 2x, 120, 8
    algebra              3 + 2x   \frac{1}{2}\pi   \sqrt{2}               2x+3, π/2, √2: the terms of a sum sorted
    plain text           The Eiffel Tower.                                eiffel tower

A unit is dropped because samples that agree often omit it. So "50 cents" is 50 and not "$0.50", which is 1/2: who
is asked for cents writes a bare 50. Only behind dollars do cents count as hundredths ("$25 and 50 cents" is 25.50).
A time ("5 o'clock") and what turns an amount round ("5 fewer", "5 years younger") are no bare amounts. Nothing is
computed: 2^10 is not 1024.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from cerebrum_cli.answers.amounts import amount, is_unit
from cerebrum_cli.answers.plain_text import rewriting, rewritten
from cerebrum_cli.answers.spelling import normalize_spelling

_LONGEST = 1000  # longer answers are compared as text, so that no rule has to be fast on them
_ROUNDS = 6
_DEPTH = 3
_VERBATIM = "\N{REFERENCE MARK} "  # opens a form that is not looked at again

Rule = Callable[[str, int], str | None]

_LETTER = r"[^\W\d_]"
_CHOICE = re.compile(r"\(([A-H]|(?-i:[A-Z]))\)|([A-H])\)|(?:option|choice)\s\(?([A-Z])\)?", re.IGNORECASE)
_CHOICE_AND_TEXT = re.compile(r"\(?([A-H])(?:\)|[.:]\s)\s?(?=[\w√-])(?!.*[A-Z]\)).*", re.DOTALL)
_YES_NO = re.compile(r"(yes|no)(?=[,;:.!(]|\s?-\s|\Z)", re.IGNORECASE)
_SEPARATOR = re.compile(r"[(\[{]|[)\]}]|[,;]|\s(?:and|or)(?=\s)", re.IGNORECASE)
_NAME = re.compile(rf"{_LETTER}[\w' ]*+(?:\([^()]*+\))?|\([\w, ]++\)")
_WITH_ALIAS = re.compile(r"([^()]*[^()\s])\s\(([^()]++)\)")
_RELATION = re.compile(r"[<>≤≥≠]")
_FUNCTION = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp|mod|det|max|min|lim", re.IGNORECASE)


def _coefficient(decimal: re.Match[str]) -> str:
    value = Fraction(decimal[1])
    return f"({value})" if value.denominator > 1 else str(value)


_TIDY = rewriting(
    (r"(?<!\d)\s|\s(?!\d)", ""),
    (rf"(?<=[\w)])\*(?={_LETTER}|[(√])", ""),  # 2*x
    (rf"(?<![\w.^)√])1(?=[√π]|{_LETTER}(?!\w))", ""),  # 1x, not 1e5
    (rf"(?<![\w.^/)√])(\d*+\.\d++)(?=[√π]|{_LETTER}(?!\w))", _coefficient),  # 1.5x
    (  # (3/2)x
        rf"(?<![\w)^*/√])\((\d++)/(\d++)\)(?=[√π]|{_LETTER})((?:√\d++)?(?:{_LETTER}(?:\^\d++)?)*+)(?![\w(^/*√!])",
        lambda term: f"{'' if term[1] == '1' else term[1]}{term[3]}/{term[2]}",
    ),
    (r"(?<![\w)^*/√])\(([\w√.]++)\)(?=/)|(?<=/)\((\d++|√?\w|√\d++)\)(?![\w(^√!])", r"\1\2"),  # (2π)/3
)
_SIGN = re.compile(r"[(\[{]|[)\]}]|(?<![-+*/^(\[{_])(?<!\A)[-+]")
# Of gold answers.
_BARE = re.compile(r"[-+]?(?:\d[\d,]*+(?:\.\d*+)?|\.\d++)")
_PERCENT = re.compile(r"\s?(?:%|\bper\s?cent\b)", re.IGNORECASE)
# Units that change the normal form of an amount: the hour of a time, and words that repeat what was asked.
_UNIT = re.compile(
    r"(?<=\d)(?::00)?\s[ap]m\Z|(?<=\d):00\Z|\s(?:fewer|gain|increase|less|profit|younger)\b", re.IGNORECASE
)
_ARTICLE = re.compile(r"\b(?:the|an|a)\s(?=\S)")


def canonical(answer: str) -> str:
    """Normal form of an extracted answer; idempotent."""
    form = answer
    for _ in range(_ROUNDS):
        last, form = form, _form(form)
        if form == last:
            return form
    return _VERBATIM + form


def _form(answer: str) -> str:
    if answer.startswith(_VERBATIM):
        return answer
    if len(answer) > _LONGEST:
        return " ".join(answer.casefold().split())
    return _ruled(normalize_spelling(answer), 0)


def _ruled(text: str, depth: int) -> str:
    """Form by the first rule that matches; `depth` counts the lists and brackets around the text."""
    text = _trimmed(text)
    nested: tuple[Rule, ...] = (_measured, _list, _brackets, _equation) if depth < _DEPTH else ()
    for rule in (_choice, _yes_no, _amount, *nested, _algebra):
        form = rule(text, depth)
        if form is not None:
            return form
    return _words(text)


def _trimmed(text: str) -> str:
    """Strip closing punctuation and quotes, but not the mark of a factorial."""
    stripped = text.strip()
    if len(stripped) > 2 and stripped[0] == stripped[-1] == "'":
        stripped = stripped[1:-1]
    stripped = stripped.lstrip(" ,;:").rstrip(" .,;:?")
    return re.sub(rf"(?<={_LETTER}{_LETTER})!++$", "", stripped) or text


def _choice(text: str, depth: int) -> str | None:
    if re.fullmatch(_LETTER, text):
        return text
    if match := _CHOICE.fullmatch(text):
        return str(match[match.lastindex or 0]).upper()
    match = None if depth else _CHOICE_AND_TEXT.fullmatch(text)
    return match[1] if match else None


def _yes_no(text: str, _depth: int) -> str | None:
    match = _YES_NO.match(text)
    return match[1].lower() if match else None


def _amount(text: str, _depth: int) -> str | None:
    value = amount(text)
    if value is None and (alias := _WITH_ALIAS.fullmatch(text)):
        value, again = amount(alias[1]), amount(alias[2])
        value = value if value == again else None
    return None if value is None else str(value)


def _measured(text: str, depth: int) -> str | None:
    """A multiple of a root or of π, without its unit."""
    number, space, unit = text.partition(" ")
    is_measured = re.search("[√π]", number) and is_unit(space + unit) and len(unit) > 1
    return _ruled(number, depth + 1) if is_measured else None


def _list(text: str, depth: int) -> str | None:
    parts, are_alternatives = _parts(text)
    if len(parts) < 2:
        return None
    members = _members(parts, depth)
    return _set(members) if are_alternatives else ", ".join(members)


def _brackets(text: str, depth: int) -> str | None:
    """A tuple, an interval, a set; parentheses around one thing are dropped."""
    if not _is_enclosed(text):
        return None
    opening, inside, closing = text[0], text[1:-1], text[-1]
    parts, are_alternatives = _parts(inside)
    if opening == "{":
        return _set(_members(parts, depth))
    if len(parts) > 1 and not are_alternatives:
        return opening + ", ".join(_members(parts, depth)) + closing
    form = _ruled(inside, depth + 1)
    return form if opening + closing == "()" else opening + form + closing


def _equation(text: str, depth: int) -> str | None:
    name, value = _sides(text)
    return None if name is None else _ruled(value, depth + 1)


def _algebra(text: str, _depth: int) -> str | None:
    """What has operators or digits and no words."""
    rest = _FUNCTION.sub("·", text)
    if re.search(_LETTER + "{3}", rest) or not re.search(r"[^\w\s'.,!?]|\d", rest):
        return None
    return _sum(rewritten(text.casefold(), _TIDY))


def _words(text: str) -> str:
    """Plain text, without articles and stops, as in SQuAD's normal form (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    text = text.casefold()
    return " ".join(re.sub(r"(?<!\d)\.|\.(?!\d)", "", _ARTICLE.sub("", text)).split()) or text


def _parts(text: str) -> tuple[list[str], bool]:
    """Split at commas, "and" and "or" outside brackets; also whether there was an "or"."""
    parts, start, are_alternatives = [], 0, False
    for mark in _outside_brackets(_SEPARATOR, text):
        parts.append(text[start : mark.start()])
        start = mark.end()
        are_alternatives = are_alternatives or mark[0].lower().endswith("or")
    parts.append(text[start:])
    return [part for part in parts if part.strip()], are_alternatives


def _outside_brackets(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Yield the marks outside of brackets that a pattern finds, which finds brackets too."""
    depth = 0
    for mark in pattern.finditer(text):
        if mark[0] in "([{":
            depth += 1
        elif mark[0] in ")]}":
            depth = max(0, depth - 1)
        elif not depth:
            yield mark


def _members(parts: list[str], depth: int) -> list[str]:
    """Forms of a list's parts; equations of several names keep the names, sorted."""
    sides = [_sides(_trimmed(part)) for part in parts]
    forms = [_ruled(value, depth + 1) for _, value in sides]
    names = [name or "" for name, _ in sides]
    if len(set(filter(None, names))) < 2:
        return forms
    named = [f"{name}={form}" if name else form for name, form in zip(names, forms, strict=True)]
    return sorted(named) if all(names) else named


def _set(members: list[str]) -> str:
    return "{" + ", ".join(sorted(set(members))) + "}" if members else "∅"


def _sides(text: str) -> tuple[str | None, str]:
    """Name and value of an equation; the name is "" for a calculation. None if it is neither."""
    sides = [side.strip() for side in re.split("[=≈∈]", text)]
    if len(sides) < 2 or not sides[-1] or _RELATION.search(text):
        return None, text
    numbers = [side for side in sides if amount(side) is not None]
    others = [side for side in sides if side not in numbers]
    if len(numbers) == 1 and all(_NAME.fullmatch(side) or not re.search(_LETTER, side) for side in others):
        sides = [*others, *numbers]  # 8 = 5 + 3
    name, value = sides[0], sides[-1]
    is_word = _NAME.fullmatch(name) is not None
    if not is_word and re.search(_LETTER, name):
        return None, text
    return name.replace(" ", "").casefold() if is_word else "", value


def _is_enclosed(text: str) -> bool:
    """Whether the bracket a text opens with is closed by its last character, as in [0, 1) and not in (a)(b)."""
    if text[:1] not in ("(", "[", "{") or text[-1:] not in ((")", "]") if text[0] != "{" else "}") or len(text) < 3:
        return text == "{}"
    depth = 0
    for mark in re.finditer(r"[(\[{]|[)\]}]", text):
        depth += 1 if mark[0] in "([{" else -1
        if not depth:
            return mark.end() == len(text)
    return False


def _sum(text: str) -> str:
    """Sort the terms of a sum: powers, other letters, numbers."""
    if re.search(r"[^\w\s.()√π^*/!+-]", text) or not re.search(f"{_LETTER}|√", text):
        return text
    cuts = [0, *(mark.start() for mark in _outside_brackets(_SIGN, text))]
    terms = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    signed = [term if term[:1] in ("+", "-") else "+" + term for term in terms]
    signed.sort(key=lambda term: (not re.search(f"{_LETTER}|√", term), "^" not in term, term[1:], term[0]))
    return "".join(signed).removeprefix("+")


def matches_gold(answer: str | None, gold: str) -> bool:
    """Whether an answer is the gold one: in normal form, or, where one of them is a bare number, without its unit.

    The question names the unit that a gold of `60` lacks, so `60%` is right, as are "8 p.m." for 8 and "7 fewer" for 7,
    which votes keep apart. A number counts as it is written: 0.6 is not 60, and "50 cents" are not 0.50. Up to 1, a
    percentage may be meant as a share (0.6), so it counts only as its value. Words that may contradict the sign of the
    gold ("a $20 loss") are no units.
    """
    if answer is None:
        return False
    if canonical(answer) == canonical(gold):
        return True
    if not any(_BARE.fullmatch(text.strip()) for text in (answer, gold)):
        return False
    number, wanted = _bare_number(answer), _bare_number(gold)
    return number is not None and number == wanted


def _bare_number(text: str) -> Fraction | None:
    """Number of an amount as it is written, without its unit; None if there is none, or if it may be a share."""
    text = _UNIT.sub("", normalize_spelling(text))
    without_percent = _PERCENT.sub("", text)
    number = amount(canonical(without_percent))
    return None if number is None or (without_percent != text and abs(number) <= 1) else number
