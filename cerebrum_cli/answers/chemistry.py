"""Formulas of molecules and equations of reactions, as patterns: C6H12O6, H₂SO₄, 2Mg + O2 → 2MgO."""

from __future__ import annotations

import re

_COUNT = r"(?:_?\{?\d++\}?|[₀-₉]++)"
_PARTS = rf"(?:[A-Z][a-z]?{_COUNT}?+|\((?:[A-Z][a-z]?{_COUNT}?+)++\){_COUNT}?+)"
_FORMULA = rf"(?<!\w)(?=[A-Z][A-Za-z()]*+[\d₀-₉_])(?:{_PARTS}){{2,}}+(?![\w(])"
_SIDE = rf"(?:\d++\s?)?(?:{_PARTS})++(?:\s\+\s(?:\d++\s?)?(?:{_PARTS})++)*+"
_ARROW = r"\s?(?:→|⇌|->|\\(?:to|rightarrow)\b)\s?"
_REACTION = rf"(?<!\w)(?:{_SIDE}{_ARROW}{_SIDE}|(?=[^=\n]{0, 80}[A-Z][a-z]?[\d₀-₉]){_SIDE}\s=\s{_SIDE})(?![\w(])"
FORMULA = rf"(?:{_REACTION}|{_FORMULA})"  # as a part of a longer pattern
_ALONE = re.compile(FORMULA)


def plain_formula(text: str) -> str | None:
    """A formula or reaction in plain characters, without spaces; None if the text is anything else."""
    text = re.sub(_ARROW, "=", text)
    if not _ALONE.fullmatch(text):
        return None
    return re.sub(r"[_{}\s]", "", text)
