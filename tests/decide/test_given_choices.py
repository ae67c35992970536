"""Choices from the command line and from files, the orders in which they are listed, and how a reply names one."""

from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest
from cases import rows
from hypothesis import given, strategies as st

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, placed_question, question_text
from cerebrum_cli.decide.given_choices import MANY, Choice, GivenChoices, choices_of, parse_choices, parse_score
from cerebrum_cli.decide.readings import average, log_shares


def numbered(count: int, name: str = "choice {}") -> GivenChoices:
    return choices_of(Choice(name.format(number)) for number in range(count))


@pytest.mark.parametrize(("value", "expected"), rows("given_choices"))
def test_choices_of_the_command_line(value: str, expected: list[list[str]]) -> None:
    assert [[*choice] for choice in parse_choices(value).items] == expected


def test_choices_of_a_file_may_have_commas_and_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "teams.txt"
    path.write_text('billing\tinvoices, payments\r\n\nlost, or stolen\nother=all else\n"quoted" \t"by" x\n')
    assert parse_choices(str(path)).items == (
        ("billing", "invoices, payments"),
        ("lost, or stolen", ""),
        ("other=all else", ""),
        ('"quoted"', '"by" x'),
    )


@pytest.mark.parametrize(("value", "problem"), rows("refused_choices"))
def test_choices_that_cannot_be_told_apart_are_refused(value: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_choices(value)
    assert caught.value.message == problem
    assert caught.value.hint


def test_a_score_is_a_range_of_whole_numbers() -> None:
    assert parse_score("-1..2").names == ("-1", "0", "1", "2")
    for wrong in ("5..1", "1..1", "1..101", "1-5", "a..b", "", "1..2..3"):
        with pytest.raises(UsageError):
            parse_score(wrong)


@pytest.mark.parametrize(("count", "orders"), [(2, 2), (3, 6), (4, 4), (MANY, 4), (MANY + 1, 2), (100, 2)])
def test_long_lists_have_fewer_orders(count: int, orders: int) -> None:
    assert len(numbered(count).orders) == orders


@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_choice_is_as_often_at_each_place(count: int) -> None:
    orders = numbered(count).orders
    for place in range(count):
        assert sorted(order[place] for order in orders) == sorted([*range(count)] * (len(orders) // count))


def test_a_question_lists_its_choices_and_what_they_mean() -> None:
    assert question_text("Which?", numbered(2), (1, 0)) == "Which? Answer with one of these: choice 1; choice 0."
    assert question_text("Is it?", parse_choices("No,yes"), (1, 0)) == "Is it? Answer with one word, yes or No."
    text = question_text("Which?", parse_choices("a=first,b"), (0, 1))
    assert text == "Which?\n\nAnswer with the name of one of these:\n- a: first\n- b"


@pytest.mark.parametrize(
    ("written", "prompts"),
    [
        ("Is it? {text}", ["Is it? {A} {text}", "{text} Is it? {A}"]),
        ("{text}\nIs it?", ["{text}\nIs it? {A}", "Is it? {A}\n{text}"]),
        ("Read. Is it?\n\nText: {text}", ["Read. Is it? {A}\n\nText: {text}", "Text: {text}\n\nRead. Is it? {A}"]),
        ("Is it? {text} Sure?", ["Is it? {text} Sure? {A}", "Sure? {A} Is it? {text}"]),
        ("Is it {a}? {text}", ["Is it {a}? {text} {A}"]),
        ("{text} Is it {{}}?", ["{text} Is it {{}}? {A}"]),
    ],
)
def test_yes_or_no_is_asked_on_both_sides_of_the_text(written: str, prompts: list[str]) -> None:
    choices, placed = parse_choices("No,yes"), placed_question(written)
    question = ChoiceQuestion(Conversation().user(written), choices, placed=placed)
    asked = "Answer with one word, yes or No."
    listed = [question.listed(layout, None).question for layout in question.layouts]
    assert listed == [prompt.replace("{A}", asked) for prompt in prompts]
    by_letter = replace(question, by_letter=True)
    assert len(by_letter.layouts) == 2
    assert by_letter.listed(by_letter.layouts[-1], None).question.count("\n\n") > 1  # a list is a paragraph


def test_a_beginning_of_a_longer_name_counts_without_it() -> None:
    owners = {(1,): 0, (1, 2): 1, (1, 2, 3): 2, (4,): 1}
    logprobs = {(1,): -0.1, (1, 2): -1.0, (1, 2, 3): -2.0, (4,): -3.0}
    shares = [exp(share) for share in log_shares(owners, logprobs)]
    expected = [exp(-0.1) - exp(-1), exp(-1) - exp(-2) + exp(-3), exp(-2)]
    assert shares == pytest.approx([each / sum(expected) for each in expected])


def test_very_unlikely_beginnings_still_differ() -> None:
    shares = [exp(share) for share in log_shares({(1, 2): 0, (1, 3): 1}, {(1, 2): -200.0, (1, 3): -200.0 - log(3)})]
    assert shares == pytest.approx([0.75, 0.25])


@given(st.lists(st.lists(st.floats(-30, 0), min_size=3, max_size=3), min_size=1, max_size=6))
def test_an_average_does_not_depend_on_the_order_of_what_is_averaged(readings: list[list[float]]) -> None:
    assert average(sorted(readings)) == average(readings)
    assert sum(average(readings)) == pytest.approx(1)
