"""The final answer of a reply and the rule that finds it, and when two answers are one vote or equal a reference."""

import time

import pytest
from cases import rows
from hypothesis import given, strategies as st

from cerebrum_cli.answers.equality import canonical, equals_reference
from cerebrum_cli.answers.final import compare_answer, final_answer

EQUAL = rows("equal_answers")
CHOICES = ("oxygen", "carbon dioxide", "nitrogen", "argon")
QUESTION = "Which gas do plants take up?\nA) oxygen\nB) carbon dioxide\nC) nitrogen\nD) argon"


# The final answer. Of the questions, those that matter are in the table, and the rule by which an answer is found.


@pytest.mark.parametrize(("question", "reply", "answer", "rule"), rows("final_answers"))
def test_final_answer_is_found_by_its_rule(question: str, reply: str, answer: str | None, rule: str | None) -> None:
    assert final_answer(question, reply) == (None if answer is None else (answer, rule))


def test_truncated_reply_has_only_what_it_states() -> None:
    assert final_answer("How many?", "So there are 12", is_complete=False) is None
    assert final_answer("How many?", "The answer is 12. Let me", is_complete=False) == ("12", "lead-in")


@pytest.mark.parametrize(("question", "reply", "reference", "is_correct"), rows("compared_answers"))
def test_answer_is_compared_with_a_reference(question: str, reply: str, reference: str, is_correct: bool) -> None:
    assert compare_answer(reply, True, reference, (), question).is_correct == is_correct


@pytest.mark.parametrize(("reply", "letter"), rows("named_choices"))
def test_choice_is_named_last_and_not_denied(reply: str, letter: str | None) -> None:
    answer = compare_answer(reply, True, "B", CHOICES).answer
    assert (answer and answer.text) == letter


@given(st.text(max_size=200), st.sampled_from(("", "How many?", "Is it so?", QUESTION)))
def test_any_text_has_an_answer_or_none(text: str, question: str) -> None:
    answer = final_answer(question, text)
    assert answer is None or answer.text == answer.text.strip() != ""


@given(st.text(max_size=80), st.integers(min_value=0))
def test_stated_number_is_read_behind_any_text(before: str, number: int) -> None:
    for statement in (f"\n#### {number}", f"\nSo $\\boxed{{{number}}}$."):
        found = final_answer("", before + statement, kind="number")
        assert found and found.text == str(number)


@pytest.mark.parametrize(
    "part", ["The answer is 5. ", "\\boxed{", "{", "(a) b ", "\n", "? ", '"answer": ', "= 1 ", "a,", "#"]
)
def test_long_reply_is_read_in_time(part: str) -> None:
    text = part * (1_000_000 // len(part))
    for question in ("How many?", "What is it?", "Is it so?", QUESTION):
        started = time.process_time()
        final_answer(question, text)
        assert time.process_time() - started < 2


# Equal answers.


@pytest.mark.parametrize("spellings", EQUAL, ids=[spellings[0] for spellings in EQUAL])
def test_spellings_of_an_answer_are_one_vote(spellings: list[str]) -> None:
    assert {spelling: canonical(spelling) for spelling in spellings} == dict.fromkeys(
        spellings, canonical(spellings[0])
    )


@pytest.mark.parametrize(("first", "second"), rows("different_answers"))
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
