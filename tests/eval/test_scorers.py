"""Replies are scored: by their final answer, by the letter of a choice, or by their text."""

import time

import pytest

from cerebrum_cli.eval.runs import Match
from cerebrum_cli.eval.scorers import ScoredAnswer, Written, opened_scorer

GASES = ("oxygen", "carbon dioxide", "nitrogen", "argon")
PATCH = "Great Pacific Garbage Patch"
IN_WORDS = (  # replies, correct answers, and what is found
    (f"The {PATCH} lies there: it has 13 million pieces.", PATCH, None),
    (f"The {PATCH}", PATCH, f"The {PATCH}"),
    (f"**{PATCH}**", PATCH, PATCH),
    (
        f"It has 13 million pieces.\n\nThe answer is the {PATCH} (13 million pieces).\nAsk me more!",
        PATCH,
        f"the {PATCH} (13 million pieces)",
    ),
    ("The answer is World War 2.", "World War 2", "World War 2"),
    ("It lies on the Seine, with 2 million people.\nAnswer: Paris", "Paris", "Paris"),
    ("Let me think.\nParis", "Paris", "Paris"),
    ("The answer is unknown.", "Paris", ""),
    ("Let me think.\nThe capital of France is **Paris**.", "Paris", "Paris"),
)
CHOICES: list[tuple[str, tuple[str, ...], str | None]] = [
    ("B) carbon dioxide\n\nPlants use it in photosynthesis.", GASES, "B"),
    ("The answer is not A, but B.", GASES, "B"),
    ("A) oxygen is released.\n\nSo the correct option is (B).", GASES, "B"),
    ("Plants take up carbon dioxide.", GASES, "B"),
    ("I would say A or B.", GASES, None),
    ("helium", GASES, None),
]


def score(
    text: str, reference: str, choices: tuple[str, ...] = (), match: Match = "answer", is_complete: bool = True
) -> ScoredAnswer:
    with opened_scorer(match) as scorer:
        [found] = scorer([Written(text, is_complete, "?", reference, choices)])
        return found


@pytest.mark.parametrize(("text", "choices", "letter"), CHOICES)
def test_choice_is_found_by_its_letter_or_its_text(text: str, choices: tuple[str, ...], letter: str | None) -> None:
    """No letter: the reply means no choice, or several."""
    assert score(text, "B", choices)[:2] == (letter, letter == "B")


@pytest.mark.parametrize(
    ("text", "choices", "basis"),
    [
        ("So 3 + 4 = 7.\nThe answer is 7.", (), "stated"),
        ("3 + 4 = \\boxed{7}", (), "stated"),
        ("**7**", (), "stated"),
        ("She has 3 + 4 = 7 apples.", (), "guessed"),
        ("I do not know.", (), "missing"),
        ("The answer is B.", GASES, "stated"),
        ("B) carbon dioxide, since plants need it.", GASES, "stated"),
        ("Plants take up carbon dioxide from the air around them.", GASES, "guessed"),
        ("She has 3 + 5, and that makes 8 apples left.", ("6", "8"), "guessed"),
        ("I am not sure.", GASES, "missing"),
    ],
)
def test_answer_is_stated_guessed_or_missing(text: str, choices: tuple[str, ...], basis: str) -> None:
    found = score(text, "B", choices)
    assert basis == ("missing" if found.answer is None else "stated" if found.is_stated else "guessed")


def seconds(text: str) -> float:
    """CPU time to score a reply."""
    start = time.process_time()
    score(text, "B", GASES)
    return time.process_time() - start


@pytest.mark.slow
def test_choice_is_found_in_linear_time() -> None:
    longer = ("A. ", "A or ", "answer ", "answer is ", "not A is best ", "\n\n", "argon ", "(A) ", "answer (", "\n- ")
    for unit in (*"ABab.,:( \n", *longer):
        # a quadratic pattern takes three seconds for 30,000 characters, and a quarter of that for half
        assert seconds(unit * (15_000 // len(unit))) < 0.2 or seconds(unit * (30_000 // len(unit))) < 1.0, unit


@pytest.mark.parametrize(
    ("match", "text", "reference", "found"),
    [
        ("answer", "2 + 40 = 42, so the answer is $42.00.", "42", ("42.00", True)),
        ("answer", "", "42", (None, False)),
        ("exact", " Paris\n", "Paris", ("Paris", True)),
        ("exact", "paris", "Paris", ("paris", False)),
    ],
)
def test_texts_are_scored_as_match_says(
    match: Match, text: str, reference: str, found: tuple[str | None, bool]
) -> None:
    assert score(text, reference, match=match)[:2] == found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes, they do: 3 steps", "yes"),
        ("**No**, 3 < 5.", "no"),
        ("**Yes** because 12 > 5", "yes"),
        ("Yes. There are 12 of them.", "yes"),
        ("Да, их 12.", "yes"),
        ("不是。", "no"),
        ("No - it takes 4 days.", "no"),
        ("Yes\n\nIt has 3 sides.", "yes"),
        ("No one of the 12 knows.", None),
    ],
)
def test_yes_or_no_at_the_beginning_counts_where_it_is_asked_for(text: str, answer: str | None) -> None:
    assert score(text, "yes")[:2] == (answer, answer == "yes")


@pytest.mark.parametrize(("text", "reference", "found"), IN_WORDS)
def test_answer_in_words_is_never_the_number_in_a_reply(text: str, reference: str, found: str | None) -> None:
    is_correct = found != ""  # None stands for the whole reply
    assert score(text, reference)[:2] == (text if found is None else found or None, is_correct)


@pytest.mark.parametrize(
    ("text", "choices", "match", "found"),
    [
        ("The answer is 42", (), "answer", ("42", False)),
        ("It makes 42", (), "answer", (None, False)),
        ("The answer is B because", GASES, "answer", ("B", True)),
        ("A) no\nB) carb", GASES, "answer", (None, False)),
        ("The correct choice is B or", GASES, "answer", (None, False)),
    ],
)
def test_reply_cut_off_counts_only_as_far_as_it_states_its_answer(
    text: str, choices: tuple[str, ...], match: Match, found: tuple[str | None, bool]
) -> None:
    assert score(text, "B", choices, match, is_complete=False)[:2] == found
