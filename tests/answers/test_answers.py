"""Final answers are extracted from chains of thought, in linear time."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.answers.canonical import matches_gold
from cerebrum_cli.answers.extract import final_answer

CASES: list[dict[str, str | None]] = json.loads(
    (Path(__file__).parents[1] / "data" / "answers.json").read_text(encoding="utf-8")
)

MARKUP = (
    *("The answer is ", "answer", "Answer:", "answer to the ", "\\boxed{", "\\boxed{}", "\\fbox ", "#### ", "\n"),
    *("\\frac{", "\\frac12", "\\text{", "\\,", "\\\\", "{", "}", "(", ")", "[", "$", "**", "`", '"', "'", "<<", ">>"),
    *(".", "!", "...", " ", ",", "1,234", "1", "-", "e", "/", "%", "a.b. ", "Dr. ", "not ", ", since ", "(A) ", "= "),
    *("= 1", "=\n", "≈", "since x = ", "so ", "which is 1 ", "1 or ", "3:15 p.m.", "1 000 ", "10^", "? ", ". A", "! A"),
    *("is two ", "two ", "is only "),
)
prose = st.text(max_size=80)
marked_up = st.lists(st.sampled_from(MARKUP) | st.text(max_size=3), max_size=25).map("".join)
integers = st.integers().map(str)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=4).map(lambda number: f"{number:f}")
fractions = st.builds(lambda over, under: f"{over}/{under}", st.integers(), st.integers(min_value=1))
numbers = integers | decimals | fractions


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_final_answer_of_a_chain_of_thought(case: dict[str, str | None]) -> None:
    assert final_answer(case["text"] or "") == case["answer"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *(('"What is 2 + 3?" is "The answer is 5."', "5"), ("He said 'the answer is 5.'", "5")),
        *(('So "The answer is yes".', "yes"), ("“The answer is Paris.”", "Paris"), ('The answer is 5"', '5"')),
        *(("The answer is the boys'", "the boys'"), ('The answer is "Paris".', "Paris")),
    ],
)
def test_final_answer_leaves_out_the_quotes_around_its_statement(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@given(prose | marked_up)
def test_final_answer_is_none_or_not_empty(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or answer == answer.strip() != ""


@given(prose | marked_up, numbers)
def test_final_answer_is_the_last_stated_number(before: str, number: str) -> None:
    assert final_answer(f"{before} The answer is {number}.") == number
    assert final_answer(f"{before} The answer is ${number}$. Let me check.") == number
    assert final_answer(f"{before} $\\boxed{{{number}}}$.") == number
    assert final_answer(f"{before}\n#### {number}") == number


@given(prose | marked_up, numbers)
def test_final_answer_ignores_a_truncated_statement(before: str, number: str) -> None:
    assert final_answer(f"{before} The answer is {number}. The answer is") == number
    assert final_answer(f"{before} The answer is {number}. So $\\boxed{{") == number


@given(st.integers(min_value=1000))
def test_final_answer_drops_thousands_separators(number: int) -> None:
    assert final_answer(f"The answer is {number:,}.") == str(number)


@given(st.fractions())
def test_final_answer_keeps_the_value_of_a_latex_fraction(fraction: Fraction) -> None:
    written = f"\\frac{{{fraction.numerator}}}{{{fraction.denominator}}}"
    assert Fraction(final_answer(f"The answer is ${written}$.") or "") == fraction


@pytest.mark.slow
@pytest.mark.parametrize("unit", [*MARKUP, "\\frac{1}{", "\\boxed{\\boxed{", "\\frac{\\frac{1}{2}}{", "\n#### ", '."'])
@pytest.mark.parametrize("opening", ["", "The answer is ", "\\boxed{"])
def test_final_answer_takes_linear_time(unit: str, opening: str) -> None:
    text = opening + unit * (30_000 // len(unit))
    start = time.process_time()
    final_answer(text)
    assert time.process_time() - start < 1.0  # a quadratic pattern takes three


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        *(("18", "18"), ("$18.00", "18"), ("1,234 apples", "1234"), ("2520000", "2,520,000"), ("1/2", "0.5")),
        *(("60%", "60"), ("60\\%", "60"), ("sixty percent", "60"), ("60% of the students", "60"), ("12.5%", "12.5")),
        *(("60%", "0.6"), ("100%", "1"), ("60", "60%"), ("60", "60\\%"), ("0.6", "60%"), ("-5%", "-5")),
        *(("8 p.m.", "8"), ("8:00 AM", "8"), ("8 o'clock", "8"), ("7 fewer apples", "7"), ("5 years younger", "5")),
        *(("20% increase", "20"), ("$20 profit", "20"), ("7", "7 fewer"), ("(B) 12", "B")),
        ("The Eiffel Tower", "Eiffel tower"),
    ],
)
def test_matches_gold_accepts_the_unit_that_one_of_both_lacks(answer: str, gold: str) -> None:
    assert matches_gold(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        *((None, "60"), (None, "None"), ("", "60"), ("60.5", "60"), ("-60", "60"), ("60!", "60"), ("60 or 40", "60")),
        *(("0.6", "60"), ("600%", "60"), ("60%", "$60"), ("60% of 200", "60"), ("60%, 40%", "60"), ("60% + 2", "60")),
        *(("0.6%", "0.6"), ("1%", "1"), ("6", "60%"), ("50 cents", "0.5"), ("$0.50", "50")),
        *(("8:30", "8"), ("20:00", "8"), ("8 p.m.", "20"), ("8 p.m.", "8 a.m."), ("7 less than 10", "7")),
        *(("$20 loss", "20"), ("20% decrease", "20"), ("20% increase", "20% decrease"), ("-20%", "20")),
    ],
)
def test_matches_gold_refuses_another_amount(answer: str | None, gold: str) -> None:
    assert not matches_gold(answer, gold)


@given(numbers, numbers)
def test_matches_gold_compares_numbers_by_value(answer: str, gold: str) -> None:
    assert matches_gold(answer, gold) == (Fraction(answer) == Fraction(gold))
