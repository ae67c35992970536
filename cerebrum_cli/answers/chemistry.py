"""Formulas of molecules and equations of reactions, as patterns: C6H12O6, H₂SO₄, 2Mg + O2 → 2MgO."""

from __future__ import annotations

import re

_COUNT = r"(?:_?\{?\d++\}?|[₀-₉]++)"
_ELEMENT = rf"[A-Z][a-z]?{_COUNT}?+"
_GROUP = rf"\((?:{_ELEMENT})++\){_COUNT}?+"
_PART = rf"(?:{_ELEMENT}|{_GROUP})"
_STATE = r"(?:\s?\((?:s|l|g|aq)\))"  # solid, liquid, gas, in water
_TERM = rf"(?:\d++\s?)?{_PART}(?:(?:(?<=[\d}}])\s)?{_PART}){{0,20}}+{_STATE}?+"
_SIDE = rf"{_TERM}(?:\s?\+\s?{_TERM}){{0,7}}+"  # a limit, so that time is linear
_ARROW = r"\s?(?:→|⟶|⇌|⇒|-{1,2}>|=>|\\?(?:longrightarrow|rightarrow|rightleftharpoons|to)(?![a-z]))\s?"
_HAS_COUNT = r"(?=[^=\n]{0,80}[A-Z][a-z]?_?\{?[\d₀-₉])"  # unlike A + B = C
_BEGINS = r"(?<!\w)(?=\d*+\s?[A-Z(])"
_REACTION = rf"{_BEGINS}(?:{_SIDE}{_ARROW}|{_HAS_COUNT}{_SIDE}\s?=\s?){_SIDE}(?![\w(])"
_MOLECULE = rf"(?<!\w)(?=[A-Z][A-Za-z()]*+[\d₀-₉_]){_PART}{{2,}}+(?![\w(])"
FORMULA = rf"(?:{_REACTION}|{_MOLECULE})"  # as a part of a longer pattern
_ALONE = re.compile(FORMULA)
_ELEMENTAL = re.compile(rf"(?:H|N|O|F|P|S|Cl|Br|I){_COUNT}")  # O₃
_WITHOUT_COUNTS = re.compile(r"(?<![^\W_])(?:[A-Z][a-z]?){2,4}(?![^\W_])")  # NaCl
_MANY_CAPITALS = re.compile(r"[A-Z].*[A-Z]")


def plain_formula(text: str) -> str | None:
    """A formula or reaction in plain characters, without spaces, its terms sorted; None if a text is anything else."""
    if not (_ALONE.fullmatch(text) or _ELEMENTAL.fullmatch(text)):
        return None
    plain = re.sub(rf"{_STATE}|[_{{}}\s]", "", re.sub(_ARROW, "=", text))
    return "=".join("+".join(sorted(side.split("+"))) for side in plain.split("="))


def formula_in(text: str) -> str | None:
    """The only formula of several elements in a text, such as NaCl, also without counts; None without one."""
    found = {word for word in _WITHOUT_COUNTS.findall(text) if _MANY_CAPITALS.search(word)}
    return found.pop() if len(found) == 1 else None
