"""Replies are scored: by their final answer, by the letter of a choice, or by their text."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from cases import rows

from cerebrum_cli.eval.runs import Match
from cerebrum_cli.eval.scorers import ScoredAnswer, Written, opened_scorer


def score(
    text: str, reference: str, choices: Sequence[str] = (), match: Match = "answer", is_complete: bool = True
) -> ScoredAnswer:
    with opened_scorer(match) as scorer:
        [found] = scorer([Written(text, is_complete, "?", reference, tuple(choices))])
        return found


@pytest.mark.parametrize(("case", "text", "given", "expected"), rows("scored_replies"))
def test_reply_is_scored_by_its_answer(case: str, text: str, given: dict[str, Any], expected: list[Any]) -> None:
    """Expected are the answer, whether it is correct, and for some whether it is stated."""
    assert [*score(text, **given)][: len(expected)] == expected, case


@pytest.mark.slow
def test_choice_is_found_in_linear_time() -> None:
    def seconds(text: str) -> float:
        start = time.process_time()
        score(text, "B", ("oxygen", "carbon dioxide", "nitrogen", "argon"))
        return time.process_time() - start

    longer = ("A. ", "A or ", "answer ", "answer is ", "not A is best ", "\n\n", "argon ", "(A) ", "answer (", "\n- ")
    for unit in (*"ABab.,:( \n", *longer):
        # a quadratic pattern takes three seconds for 30,000 characters, and a quarter of that for half
        assert seconds(unit * (15_000 // len(unit))) < 0.2 or seconds(unit * (30_000 // len(unit))) < 1.0, unit
