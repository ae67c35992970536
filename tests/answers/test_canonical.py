"""Canonical forms: equivalent answers share one form, others do not; for any text, in linear time."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.answers.extract import final_answer


class Group(TypedDict):
    """Spellings of one answer."""

    name: str
    answers: list[str]


GROUPS: list[Group] = json.loads((Path(__file__).parents[1] / "data" / "canonical.json").read_text(encoding="utf-8"))
SPELLINGS = [answer for group in GROUPS for answer in group["answers"]]

MARKUP = (
    *("\\boxed{", "\\frac{", "\\frac12", "\\text{", "\\sqrt", "\\pm", "\\pi", "\\,", "\\\\", "\\begin{pmatrix}"),
    *("^\\circ", "{", "}", "(", ")", "[", "]", "$", "**", "*", "`", "'", ".", "!", ",", ";", ":", "&", "1", "-"),
    *("e", "/", "%", "=", "x", "√", "^", "_", "½", "²", "₂", "±", "∈", "≈", "°", "1,234", "0.5", "10^", "12"),
    *("half", "million", "yes", "A", "km", "ﬁ", "İ", '"', " ", " and ", " or ", "twelve ", "hundred ", "a "),
    *("the ", "b) ", " per cent", "6 p.m.", "※ "),
)
texts = st.text(max_size=60) | st.lists(st.sampled_from(MARKUP) | st.text(max_size=3), max_size=20).map("".join)
numbers = st.fractions(max_denominator=10**6) | st.integers().map(Fraction)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: str(group["name"]))
def test_canonical_spellings_of_an_answer_have_one_form(group: Group) -> None:
    assert {answer: canonical(answer) for answer in group["answers"]} == dict.fromkeys(
        group["answers"], canonical(group["answers"][0])
    )


def test_canonical_different_answers_have_different_forms() -> None:
    names: dict[str, set[str]] = {}
    for group in GROUPS:
        names.setdefault(canonical(group["answers"][0]), set()).add(group["name"])
    assert [shared for shared in names.values() if len(shared) > 1] == []


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        *(("80%", "4/5"), ("18 apples", "18"), ("Yes, it is", "yes"), ("(b)", "B"), ("x = \\pm 2", "{-2, 2}")),
        *(("The Eiffel Tower.", "eiffel tower"), ("\\frac{2\\pi}{3}", "2π/3"), ("[0, \\frac12)", "[0, 1/2)"), ("", "")),
    ],
)
def test_canonical_form_is_readable(answer: str, form: str) -> None:
    assert canonical(answer) == form


@pytest.mark.slow
def test_canonical_form_survives_extraction_from_a_reply() -> None:
    extracted = {answer: canonical(final_answer(f"So \\boxed{{{answer}}}") or "") for answer in SPELLINGS}
    assert extracted == {answer: canonical(answer) for answer in SPELLINGS}


@given(texts)
def test_canonical_is_idempotent(text: str) -> None:
    form = canonical(text)
    assert canonical(form) == form


@given(
    st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS), st.sampled_from(["{}, {}", "({}, {})", "{} or {}", "{} {}"])
)
def test_canonical_of_combined_answers_is_idempotent(one: str, other: str, together: str) -> None:
    form = canonical(together.format(one, other))
    assert canonical(form) == form


@given(numbers, numbers)
def test_canonical_numbers_are_equal_if_their_forms_are(one: Fraction, other: Fraction) -> None:
    assert (canonical(str(one)) == canonical(str(other))) == (one == other)


@given(numbers, st.integers(min_value=1, max_value=10**6))
def test_canonical_fraction_is_in_lowest_terms(number: Fraction, factor: int) -> None:
    over, under = number.numerator * factor, number.denominator * factor
    for written in (f"{over}/{under}", f"\\frac{{{over}}}{{{under}}}", f"{over} / {under} cups", f"x = {over}/{under}"):
        assert canonical(written) == str(number)


@given(st.decimals(min_value=-(10**12), max_value=10**12, places=4))
def test_canonical_decimal_is_a_fraction(number: Decimal) -> None:
    value = str(Fraction(number))
    for written in (f"{number:f}", f"{number:,f}", f"${number:,f}", f"{number:e}", f"{number * 100:f}%"):
        assert canonical(written) == value


@given(st.integers(min_value=1), st.integers(min_value=1, max_value=99), st.integers(min_value=2, max_value=100))
def test_canonical_mixed_number_is_a_sum(whole: int, over: int, under: int) -> None:
    value = whole + Fraction(over, under)
    assert (canonical(f"{whole} {over}/{under}") == str(value)) == (over < under or under == over == 0)


@pytest.mark.parametrize(
    "text", ["1e999999999", "10^999999999", "9 x 10^-999999", "1e" + "9" * 900, "9" * 900 + "e300"]
)
def test_canonical_leaves_huge_exponents_as_text(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text) != ""


@pytest.mark.parametrize(
    "unit", [*MARKUP, "((", "x=", "1, ", "\u0300\u0315", "ﷺ", "\\frac{1}{", "\\sqrt{", "1 000", "a b "]
)
@pytest.mark.parametrize("size", [990, 50_000])
def test_canonical_takes_linear_time(unit: str, size: int) -> None:
    text = unit * (size // len(unit))
    start = time.process_time()
    canonical(text)
    assert time.process_time() - start < 5.0  # a quadratic pattern takes longer
