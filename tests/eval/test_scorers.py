"""Replies are scored: by their final answer, by the letter of a choice, or by their text."""

import hashlib
import json
import time
from contextlib import closing

import pytest

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.eval import scorers
from cerebrum_cli.eval.questions import Match, Question
from cerebrum_cli.eval.scorers import SCORING_VERSION, ScoredAnswer, reply_scorer

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
SCORES = (6, "9042eee61395cd45")
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
    question = Question(0, 1, "?", reference, choices)
    with closing(reply_scorer(match, (question,))) as replies:
        replies.add("key", question, text, is_complete)
        [(key, found)] = replies.scores(0.0)
        assert (key, replies.scores(60.0)) == ("key", [])
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
    assert score(text, "B", choices).basis == basis


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


def test_scores_change_only_with_the_number_of_their_rules() -> None:
    replies: list[tuple[str, str, tuple[str, ...]]] = [(text, "B", choices) for text, choices, _ in CHOICES]
    replies += [(text, reference, ()) for text, reference, _ in IN_WORDS]
    scores = json.dumps([score(*reply) for reply in replies])
    assert (SCORING_VERSION, hashlib.sha256(scores.encode()).hexdigest()[:16]) == SCORES, (
        "scores differ: raise SCORING_VERSION if the rules have changed, and then, or if cases have, change SCORES"
    )


@pytest.mark.parametrize(
    ("match", "text", "reference", "found"),
    [
        ("answer", "2 + 40 = 42, so the answer is $42.00.", "42", ("42.00", True)),
        ("answer", "", "42", (None, False)),
        ("exact", " Paris\n", "Paris", ("Paris", True)),
        ("exact", "paris", "Paris", ("paris", False)),
        ("contains", "It is PARIS, of course", "Paris", ("Paris", True)),
        ("contains", "It is paris", "Paris", ("Paris", True)),  # so both vote for one answer
        ("contains", " It is Rome\n", "Paris", ("It is Rome", False)),
        ("contains", "It is invalid.", "valid", ("It is invalid.", False)),
        ("contains", "It costs $5.", "$5", ("$5", True)),
        ("regex", "It is in 1998.", r"\b19\d\d\b", ("1998", True)),
        ("regex", "It is in 2004.", r"\b19\d\d\b", ("It is in 2004.", False)),
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


@pytest.mark.slow
def test_regular_expression_that_takes_years_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Question(0, 1, "?", "(a+)+$"), Question(1, 2, "?", "b|")
    with closing(reply_scorer("regex", questions)) as replies:
        monkeypatch.setattr(scorers, "SEARCH_S", 0.1)
        with pytest.raises(CerebrumError, match=r"for \(a\+\)\+\$ takes"):
            replies.add(1, questions[0], "a" * 50 + "b")
        monkeypatch.setattr(scorers, "SEARCH_S", 60.0)
        replies.add(2, Question(0, 1, "?", "a+$"), "caaa")
        replies.add(3, Question(2, 3, "?", r"\A(?s:.)+"), "a\ud800\n" + "b" * 200_000)
        replies.add(4, questions[1], "c")  # an empty match is one
        assert replies.scores(0.0) == [
            (2, ScoredAnswer("aaa", True)),
            (3, ScoredAnswer("a\ud800\n" + "b" * 200_000, True)),
            (4, ScoredAnswer("", True)),
        ]


def test_invalid_regular_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="the answer of question 1 is not a regular expression: missing"):
        score("", "(", match="regex")
    for pattern in ("(" * 5000 + ")" * 5000, "a{99999999999}"):
        with pytest.raises(UsageError, match="is not a regular expression: "):
            score("", pattern, match="regex")


@pytest.mark.parametrize("match", ["contains", "regex"])
def test_letters_of_choices_are_not_searched_in_text(match: Match) -> None:
    with pytest.raises(UsageError, match=f"--match {match} cannot score question 1, which has choices") as caught:
        score("Because", "B", GASES, match)
    assert "answer or exact" in caught.value.hint
