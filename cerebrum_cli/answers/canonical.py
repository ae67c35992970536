r"""Give answers that mean the same one normal form, and others another: the key under which votes are counted.

Two answers are equal if their forms are, so equality is an equivalence relation. The first rule that fits applies;
tests/data/canonical.json has groups of spellings:

    a choice letter, yes, no   (B)   b)   option B   B) 12   Yes, True      B, yes; a lone letter stays as it is
    an amount, exactly         4/5   .80   8 \times 10^{-1}   twelve        4/5, 4/5, 4/5, 12
      without its unit         $18   18 apples   5 km/h   30^\circ   80%    18, 18, 5, 30, 80
    alternatives, a list       \pm 2   x = 2 or x = -2   1, 2, and 3        {-2, 2}: sorted; 1, 2, 3
    brackets, an equation      (1,2)   [0, \frac12)   ((x + 1))   x = 5     (1, 2), [0, 1/2), x+1, 5
    algebra                    3 + 2x   \frac{1}{2}\pi                      2x+3, π/2: the terms of a sum sorted
    plain text                 The Eiffel Tower.                            eiffel tower

A unit is dropped because samples that agree often omit it: "50 cents" is 50, and "7 fewer" is 7. Words that may turn
the sign round ("a $20 loss") are no units. Nothing is computed: 2^10 is not 1024.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from cerebrum_cli.answers.algebra import FUNCTION, LETTER, algebraic, interval
from cerebrum_cli.answers.amounts import amount, is_unit
from cerebrum_cli.answers.brackets import is_enclosed, split_outside
from cerebrum_cli.answers.chemistry import plain_formula
from cerebrum_cli.answers.dates import iso_date
from cerebrum_cli.answers.plain_text import plain
from cerebrum_cli.answers.rewriting import rewriting
from cerebrum_cli.answers.spelling import spelled
from cerebrum_cli.core.text import one_line

_LONGEST = 1000  # longer answers are compared as text, so that no rule has to be fast on them
_ROUNDS = 6
_DEPTH = 3
_VERBATIM = "\N{REFERENCE MARK} "  # opens a form that is not looked at again

_CHOICE = re.compile(r"(?i)\(([A-H]|(?-i:[A-Z]))\)|([A-H])\)|(?:option|choice)\s\(?([A-Z])\)?")
_CHOICE_AND_TEXT = re.compile(r"(?s)\(?([A-H])(?:\)|[.:]\s)\s?(?=[\w√-])(?!.*[A-Z]\)).*")
_YES_NO = re.compile(r"(?i)(yes|no|true|false|ja|nein|oui|non|sí|sim|não|да|нет)(?=[,;:.!(]|\s?-\s|\Z)")
_YES = ("yes", "true", "ja", "oui", "sí", "sim", "да")
_SEPARATOR = re.compile(r"(?i)[(\[{]|[)\]}]|[,;]|\s(?:and|or)(?=\s)")
_PRODUCT = "(?-i:[xyz]{2,3})(?!\\w)"  # of variables: no name
_NAME = re.compile(
    rf"(?i)(?!{_PRODUCT}){LETTER}[\w' ]*+(?:\^-1)?(?:\([^()]*+\))?|\([\w, ]++\)|\|\w++\||(?:{FUNCTION})\s?\w++"
)
_other_spelling = rewriting(
    (r"\A(-?\d++),(\d{1,2})(?![\d,]|\s\d)", r"\1.\2"),  # a decimal comma
    (r"\A[^≈]++≈([^≈]++)\Z", r"\1"),
)
_ROOT = re.compile(r"(?:√|(?<!\\)\bsqrt(?=\())\s?(\d+|\w|\([^()]*\))")
_LATEX = {"π": "pi", "±": "pm", "∞": "infty", "∪": "cup", "∩": "cap", "≤": "le", "≥": "ge", "×": "times", "·": "cdot"}
_SYMBOLS = str.maketrans({character: f"\\{name} " for character, name in _LATEX.items()} | {"−": "-", "°": ""})
_SOLUTIONS = re.compile(r"(\w)_\w+=[^=]*(?:, \1_\w+=[^=]*)+")  # x_1=5, x_2=-3
_PLAIN_LIST = re.compile(r"[^(\[{=]+, [^(\[{=]+")
_UNION = re.compile(r"[(\[{]|[)\]}]|∪")
_PART = re.compile(r"[,;\n]|\sand\s|\s(?=\([b-h]\))|\s(?:remainder|r|R)\s")
_LABEL = re.compile(r"\A\s*\(?[a-h]\)")
_PART_NUMBER = re.compile(r"(?<![\^\w.-])-?\d+(?:\.\d+)?(?:/\d+)?(?!\w)")
_ARTICLE = re.compile(r"\b(?:the|an|a)\s(?=\S)")


@lru_cache(10_000)  # samples that vote have few different answers
def canonical(answer: str) -> str:
    """Normal form of an extracted answer; idempotent."""
    form = answer
    for _ in range(_ROUNDS):
        if form.startswith(_VERBATIM):
            return form
        last = form
        if len(last) <= _LONGEST:
            form = _ruled(spelled(last), 0)
        else:
            form = one_line(last.casefold())
        if form == last:
            return form
    return _VERBATIM + form


def equals_reference(answer: str | None, reference: str) -> bool:
    """Whether an answer equals the reference answer, in normal form or in a form that the question implies.

    If the reference answer is 60%, both 0.6 and 60 are right; if it is 8, so is "8 p.m."; and the reverse.
    """
    if answer is None:
        return False
    form, wanted = canonical(answer), canonical(reference)
    if form == wanted:
        return _is_percentage(answer) == _is_percentage(reference) or not _is_share(form)
    if _is_percentage(answer) and _is_percentage(reference):
        return False
    implied, also_right = {*_implied(answer, form)}, {*_implied(reference, wanted)}
    names_one = (_SOLUTIONS.fullmatch(form) is None) != (_SOLUTIONS.fullmatch(wanted) is None)
    is_set = names_one or not re.search(r"\d", form + wanted)
    return wanted in implied or form in also_right or (is_set and bool(implied & also_right))


def latex(answer: str) -> str:
    """An answer as LaTeX, for other programs that compare answers."""
    return _ROOT.sub(r"\\sqrt{\1}", plain(answer)).translate(_SYMBOLS)


def _is_percentage(text: str) -> bool:
    return re.search(r"%|\bper\s?cent\b", text) is not None


def _is_share(form: str) -> bool:
    """Whether a form is a number between 0 and 1, which is another amount as a percentage."""
    value = amount(form)
    return value is not None and 0 < value < 1


def _implied(text: str, form: str) -> Iterator[str]:
    """Forms that a question may imply for an answer.

    They are a percentage as a share, a time without its half of the day, what is rounded, a ratio as a fraction,
    solutions without their names, or a list as a set.
    """
    other = _other_spelling(text)
    if other != text:
        yield canonical(other)
    if time := re.fullmatch(r"([\d:]++)[ap]m", form):
        yield time[1]
    if ratio := re.fullmatch(r"(\d++):(\d++)", form):
        yield canonical(f"{ratio[1]}/{ratio[2]}")
    if len(form) == 1:
        yield form.upper()
    if numbers := _numbers_of_parts(text):
        yield numbers
    if _SOLUTIONS.fullmatch(form):
        form = re.sub(r"\w_\w+=", "", form)
        yield form
    if _PLAIN_LIST.fullmatch(form):
        yield "{" + ", ".join(sorted(set(form.split(", ")))) + "}"
    value = amount(form) if _is_percentage(text) else None
    if value is not None:
        yield str(value / 100)


def _numbers_of_parts(text: str) -> str | None:
    """The numbers of a list that names each: "18, 36" of "Leo 18, Mia 36" and "7, 5" of "7 remainder 5"."""
    parts = [_LABEL.sub("", part) for part in _PART.split(text)]
    found = [_PART_NUMBER.findall(part) for part in parts]
    if len(parts) < 2 or any(len(numbers) != 1 for numbers in found) or not re.search(LETTER, text):
        return None
    return canonical(", ".join(number for (number,) in found))


def _ruled(text: str, depth: int) -> str:
    """Form by the first rule that matches; `depth` counts the lists and brackets around the text."""
    text = _trimmed(text)
    if letter := _choice(text, depth):
        return letter
    if exact := iso_date(text) or plain_formula(text):
        return exact
    if yes_no := _YES_NO.match(text):
        return "yes" if yes_no[1].lower() in _YES else "no"
    if (value := amount(text)) is not None:
        return str(value)
    if depth < _DEPTH and (nested := _nested(text, depth + 1)):
        return nested
    return algebraic(text) or _words(text)


def _trimmed(text: str) -> str:
    """Strip closing punctuation, but not the mark of a factorial."""
    stripped = text.lstrip(" ,;:").rstrip(" .,;:?")
    return re.sub(rf"(?<={LETTER}{LETTER})!++$", "", stripped) or text


def _choice(text: str, depth: int) -> str | None:
    if re.fullmatch(LETTER, text):
        return text
    match = _CHOICE.fullmatch(text) or (not depth and _CHOICE_AND_TEXT.fullmatch(text))
    if not match:
        return None
    return str(match[match.lastindex or 0]).upper()


def _nested(text: str, depth: int) -> str | None:
    """Form of a list, of what is in brackets, of an equation's value, or of a root or π without its unit."""
    if within := interval(text):
        return _ruled(within, depth)
    number, space, unit = text.partition(" ")
    if unit and re.search("[√π)]", number) and is_unit(space + unit):
        return _ruled(number, depth)
    sets, unions = split_outside(_UNION, text)
    if unions:
        return "∪".join(sorted(_ruled(part, depth) for part in sets))
    if is_enclosed(text):
        opening, inside, closing = text[0], text[1:-1], text[-1]
        if listed := _listed(inside, depth, opening, closing):
            return listed
        form = _ruled(inside, depth)
        return form if opening + closing == "()" else opening + form + closing
    if listed := _listed(text, depth):
        return listed
    exact, _, rounded = text.partition("≈")
    if rounded and exact and not _NAME.fullmatch(exact.strip()):
        return _ruled(exact, depth)
    name, value = _sides(text)
    if name is None:
        return None
    return _ruled(value, depth)


def _listed(text: str, depth: int, opening: str = "", closing: str = "") -> str | None:
    """Form of alternatives as a set, or of a list in its brackets; None if a text is neither."""
    parts, separators = split_outside(_SEPARATOR, text)
    parts = [part for part in parts if part.strip()]
    names = [name for name, _ in map(_sides, parts) if name]
    is_set = opening == "{" or any(mark.lower().endswith("or") for mark in separators) or len(set(names)) < len(names)
    if len(parts) < 2 and not is_set:
        return None
    members = _members(parts, depth)
    if is_set:
        members = sorted(set(members)) or ["∅"]
        opening, closing = ("{", "}") if len(members) > 1 else ("", "")
    return opening + ", ".join(members) + closing


def _words(text: str) -> str:
    """Plain text, without articles and stops, as in SQuAD's normal form (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    text = text.casefold()
    return one_line(re.sub(r"(?<!\d)\.|\.(?!\d)", "", _ARTICLE.sub("", text))) or text


def _members(parts: list[str], depth: int) -> list[str]:
    """Forms of a list's parts; equations of several names keep the names, sorted."""
    sides = [_sides(_trimmed(part)) for part in parts]
    forms = [_ruled(value, depth) for _, value in sides]
    names = {name for name, _ in sides if name}
    if len(names) < 2:
        return forms
    for place, (name, _) in enumerate(sides):
        if name:
            forms[place] = f"{name}={forms[place]}"
    return sorted(forms)


def _sides(text: str) -> tuple[str | None, str]:
    """Name and value of an equation; the name is "" for a calculation. None if it is neither."""
    sides = [side.strip() for side in re.split("[=≈∈]", text)]
    if len(sides) < 2 or not sides[-1] or re.search(r"[<>≤≥≠]", text):
        return None, text
    name, value = sides[0], sides[-1]
    if amount(value) is None and amount(name) is not None:  # 8 = 5 + 3
        name, value = value, name
    if _NAME.fullmatch(name):
        return name.replace(" ", "").casefold(), value
    if re.search(LETTER, name) and amount(name) is None:
        return None, text
    return "", value
