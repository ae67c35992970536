"""Canonical forms: equivalent answers share one form, others do not; for any text, in linear time."""

import json
import re
import time
from decimal import Decimal
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import TypedDict

import pytest
from final_answers import final_answer
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.answers.canonical import canonical, equals_reference


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
        *(("80%", "80"), ("18 apples", "18"), ("Yes, it is", "yes"), ("(b)", "B"), ("x = \\pm 2", "{-2, 2}")),
        *(("The Eiffel Tower.", "eiffel tower"), ("\\frac{2\\pi}{3}", "2π/3"), ("[0, \\frac12)", "[0, 1/2)"), ("", "")),
        ("3 5/2", "3 5/2"),  # no mixed number
    ],
)
def test_canonical_form_is_readable(answer: str, form: str) -> None:
    assert canonical(answer) == form


@pytest.mark.slow
def test_canonical_form_survives_extraction_from_a_reply() -> None:
    stated = [answer for answer in SPELLINGS if "determined" not in answer]  # which states that there is none
    extracted = {answer: canonical(final_answer(f"So \\boxed{{{answer}}}") or "") for answer in stated}
    assert extracted == {answer: canonical(answer) for answer in stated}


combined = st.builds(
    str.format,
    st.sampled_from(["{}, {}", "({}, {})", "{} or {}", "{} {}"]),
    st.sampled_from(SPELLINGS),
    st.sampled_from(SPELLINGS),
)


@given(texts | combined)
def test_canonical_is_idempotent(text: str) -> None:
    form = canonical(text)
    assert canonical(form) == form


@given(numbers, st.integers(min_value=1, max_value=10**6))
def test_canonical_fraction_is_in_lowest_terms(number: Fraction, factor: int) -> None:
    over, under = number.numerator * factor, number.denominator * factor
    for written in (f"{over}/{under}", f"\\frac{{{over}}}{{{under}}}", f"{over} / {under} cups", f"x = {over}/{under}"):
        assert canonical(written) == str(number)
    if 0 < number < 1:
        assert canonical(f"7 {over}/{under}") == str(7 + number)


@given(st.decimals(min_value=-(10**12), max_value=10**12, places=4))
def test_canonical_decimal_is_a_fraction(number: Decimal) -> None:
    value = str(Fraction(number))
    for written in (f"{number:f}", f"{number:,f}", f"${number:,f}", f"{number:e}", f"{number:f}%"):
        assert canonical(written) == value


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        *(("18", "18"), ("$18.00", "18"), ("1,234 apples", "1234"), ("2520000", "2,520,000"), ("1/2", "0.5")),
        *(("60%", "60"), ("60\\%", "60"), ("60 percent", "$60"), ("60% of the students", "60"), ("12.5%", "12.5")),
        *(("60%", "0.6"), ("100%", "1"), ("60", "60%"), ("0.6", "x = 60%"), ("60", "60\\%"), ("0.6", "60%")),
        ("3/5", "60 percent"),
        *(("8 p.m.", "8"), ("8:00 AM", "8"), ("8 o'clock", "8"), ("7 fewer apples", "7"), ("5 years younger", "5")),
        *(("20% increase", "20"), ("$20 profit", "20"), ("7", "7 fewer"), ("-5%", "-5"), ("4:30", "4:30 p.m.")),
        *(("(B) 12", "B"), ("x = 5", "5"), ("The Eiffel Tower", "Eiffel tower")),
    ],
)
def test_reference_accepts_the_unit_that_one_of_both_lacks(answer: str, reference: str) -> None:
    assert equals_reference(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        *((None, "60"), (None, "None"), ("", "60"), ("60.5", "60"), ("-60", "60"), ("60!", "60"), ("60 or 40", "60")),
        *(("0.6", "60"), ("600%", "60"), ("60% of 200", "60"), ("60%, 40%", "60"), ("60% + 2", "60"), ("6", "60%")),
        *(("50 cents", "0.5"), ("$0.50", "50"), ("8:30", "8"), ("20:00", "8"), ("8 p.m.", "20"), ("8 p.m.", "8 a.m.")),
        *(("7 less than 10", "7"), ("$20 loss", "20"), ("20% decrease", "20"), ("20% increase", "20% decrease")),
        *(("-20%", "20"), ("two thirds", "2"), ("10 squared", "10"), ("2 dozen", "2"), ("5 ft 6 in", "5")),
    ],
)
def test_reference_refuses_another_amount(answer: str | None, reference: str) -> None:
    assert not equals_reference(answer, reference)


@pytest.mark.slow
def test_reference_accepts_what_votes_count_together() -> None:
    """The exceptions are what a question implies: whether 60% means 60 or 0.6, in which half of the day 8 is, and
    whether the order of a list matters."""
    spellings = [*SPELLINGS[::10], "60%", "60", "0.6", "8", "8:00", "8 p.m.", "8 a.m.", "4:30", "4:30 PM"]
    forms = {spelling: canonical(spelling) for spelling in spellings}
    apart = {
        (answer, reference)
        for answer, reference in product(spellings, repeat=2)
        if forms[answer] != forms[reference] and equals_reference(answer, reference)
    }
    assert {("0.6", "60%"), ("8 p.m.", "8")} <= apart
    assert [
        pair for pair in apart if not re.search(r"%|per ?cent|\d ?[ap]\.?m|\{", " ".join(pair), re.IGNORECASE)
    ] == []


@given(numbers, numbers)
def test_canonical_numbers_and_references_are_equal_by_value(answer: Fraction, reference: Fraction) -> None:
    is_equal = answer == reference
    assert (canonical(str(answer)) == canonical(str(reference))) == is_equal
    assert equals_reference(str(answer), str(reference)) == is_equal


def test_canonical_leaves_huge_exponents_as_text() -> None:
    for text in ("1e999999999", "10^999999999", "9 x 10^-999999", "1e" + "9" * 900, "9" * 900 + "e300"):
        assert canonical(canonical(text)) == canonical(text) != ""


@pytest.mark.parametrize("size", [990, 50_000])
def test_canonical_takes_linear_time(size: int) -> None:
    for unit in (*MARKUP, "((", "x=", "1, ", "\u0300\u0315", "ﷺ", "\\frac{1}{", "\\sqrt{", "1 000", "a b "):
        text = unit * (size // len(unit))
        start = time.process_time()
        canonical(text)
        assert time.process_time() - start < 5.0, unit  # a quadratic pattern takes longer
