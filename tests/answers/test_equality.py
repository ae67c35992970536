"""When two answers are one vote, and when an answer equals a reference."""

import pytest
from hypothesis import given, strategies as st

from cerebrum_cli.answers.equality import canonical, equals_reference

EQUAL = [
    ("18", "18.", "18.0", "$18$", "$18", "\\$18", "18 dollars", "018", "**18**", "\\boxed{18}", "x = 18", "18 apples"),
    ("1234.5", "1,234.50", "$1,234.50", "1 234.5", "1.234,50 €"),
    ("1/2", "0.5", ".5", "\\frac12", "\\frac{1}{2}", "\\dfrac{1}{2}", "½", "2/4"),
    ("5/2", "2 1/2", "2 and 1/2", "2.5"),
    ("-3", "−3", "minus 3"),
    ("602000", "6.02 × 10^5", "6.02 \\times 10^{5}", "6.02e5", "602,000", "602 thousand"),
    ("12", "12 km", "12km", "12 cm²", "12 cm^2", "12 km/h", "12 °C", "12 m/s"),
    ("(1, 2)", "(1,2)", "\\left( 1, 2 \\right)", "(1, 4/2)"),
    ("[0, 1/2)", "[0, \\frac12)", "[0,0.5)"),
    ("{-2, 2}", "{2, -2}", "\\{2, -2\\}", "\\pm 2", "x = 2 or x = -2", "2 or -2"),
    ("1000000", "10^6", "1,000,000", "1 million"),
    ("1, 2, 3", "1, 2 and 3", "1,2,3", "1, 2, and 3"),
    ("x=3, y=-2", "x = 3, y = -2", "y = -2 and x = 3"),
    ("2x+3", "2x + 3", "$2x+3$"),
    ("3√2", "3\\sqrt{2}", "3\\sqrt2", "3 \\cdot \\sqrt{2}"),
    ("π/4", "\\frac{\\pi}{4}", "$\\pi/4$"),
    ("yes", "Yes", "Yes.", "true", "**yes**"),
    ("eiffel tower", "The Eiffel Tower.", "the Eiffel Tower", '"Eiffel Tower"'),
    ("red, blue, green", "Red, Blue, and Green", "red, blue and green"),
    ("canberra", "Canberra", "`Canberra`"),
]
DIFFERENT = [
    *(("C. S. Lewis", "C. Darwin"), ("1 in 4", "1 in 5"), ("No. 5", "no"), ("C", "C++"), ("C", "C#"), ("B", "B+")),
    *(("3x^2", "3"), ("14x", "14"), ("e^{2x}", "e^{2}x"), ("(1, 2)", "(2, 1)"), ("[2, 5)", "(2, 5]"), ("5!", "5")),
    *(("x > 3", "x < 3"), ("x ≥ 3", "x > 3"), ("5 dozen", "5"), ("2 or -2", "2"), ("3:45", "3:54"), ("5-6", "5")),
    *(("44 BC", "44 AD"), ("500 BCE", "500 CE"), ("4 July", "4 August"), ("<s>", "</s>"), (";", ",")),
    *(("Georgia (country)", "Georgia (state)"), ("__init__", "init")),
    *(("x=3, y=-2", "x=-2, y=3"), ("192.168.1.1", "192.168"), ("+1", "-1"), ("2^10", "2^11")),
]


@pytest.mark.parametrize("spellings", EQUAL, ids=[spellings[0] for spellings in EQUAL])
def test_spellings_of_an_answer_are_one_vote(spellings: tuple[str, ...]) -> None:
    assert {spelling: canonical(spelling) for spelling in spellings} == dict.fromkeys(
        spellings, canonical(spellings[0])
    )


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_different_answers_are_two_votes(first: str, second: str) -> None:
    assert canonical(first) != canonical(second)
    assert not equals_reference(first, second) and not equals_reference(second, first)


def test_answers_of_the_table_differ() -> None:
    assert len({canonical(spellings[0]) for spellings in EQUAL}) == len(EQUAL)


@pytest.mark.parametrize(
    ("answer", "reference", "is_equal"),
    [
        *(("35%", "0.35", True), ("35%", "35", True), ("0.35%", "0.35", False), ("0.35", "35%", True)),
        *(("5, -2", "\\{-2, 5\\}", True), ("2, 3", "(3, 2)", False), (None, "5", False), ("Rome", "rome", True)),
    ],
)
def test_answer_equals_a_reference(answer: str | None, reference: str, is_equal: bool) -> None:
    assert equals_reference(answer, reference) == is_equal


@pytest.mark.parametrize("answer", ["1e9999", "6 × 10^5000", "1/0", "1 1/0"])
def test_number_that_is_too_large_stays_as_it_is_written(answer: str) -> None:
    assert canonical(answer) == canonical(f"{answer}.") != canonical("6")


@given(st.fractions(max_denominator=10**6))
def test_fraction_is_its_own_form(value: st.SearchStrategy[object]) -> None:
    assert canonical(str(value)) == str(value)


@given(st.text(max_size=300))
def test_any_text_has_a_form_that_is_stable(text: str) -> None:
    assert canonical(text) == canonical(f" {text} ")
