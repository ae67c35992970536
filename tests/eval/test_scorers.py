"""Replies are scored: by their final answer, by the letter of a choice, or by their text."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval import scorers
from cerebrum_cli.eval.questions import Question
from cerebrum_cli.eval.scorers import SCORING_VERSION, Match, ScoredAnswer, SearchTimeout, reply_scorer

GASES = ("oxygen", "carbon dioxide", "nitrogen", "argon")
WEIGHTS = ("42 lb", "42 kg", "2 more", "44 kg")
MEANING_B = (
    "B) carbon dioxide\n\nPlants use it in photosynthesis.",
    "The answer is B (carbon dioxide).",
    "Answer: B — carbon dioxide",
    "Therefore, B is the answer.",
    "B\n\nExplanation: plants give off oxygen, so option A is wrong.",
    "B\n\nBecause, unlike nitrogen, option A is made.",
    "Sure! The correct answer is:\n\nB. carbon dioxide",
    "Therefore, the correct option is (B).",
    "The best answer is B.",
    "My final answer: B",
    "Answer: [B]",
    "<answer>B</answer>",
    r"\boxed{\text{B}}",
    r"\boxed{B. carbon dioxide}",
    r"$\boxed{\textbf{(B)}}$",
    "**B**",
    "**B. carbon dioxide**",
    "Option B: carbon dioxide is taken in.",
    "(B)",
    "[B]",
    "b",
    "b)",
    "B.",
    '{"reasoning": "Not A.", "answer": "B"}',
    "The answer is **B**.",
    "The correct answer is option B: carbon dioxide.",
    "The answer is: B) carbon dioxide",
    "I think the answer is B.",
    "I would go with B.",
    "It's B.",
    "Option C is incorrect because it is inert. Therefore the answer is B",
    "B is correct because A is wrong.",
    "The answer is B, since A, C and D are ruled out.",
    "The answer is not A. It is B.",
    "The answer cannot be A, so it must be B.",
    "A is incorrect. C is incorrect. So B.",
    "Neither A nor C is right; the answer is B.",
    "Carbon dioxide",
    "The gas is carbon dioxide.",
    "It is 'carbon dioxide', not oxygen.",
    "The correct answer is carbon dioxide.",
    "**Carbon dioxide**\n\nOxygen is given off instead.",
    "### Answer\n\nB. carbon dioxide\n\n### Explanation\n\nOption A is given off.",
    "**Answer:** B\n\n**Explanation:** A is not used.",
    "The answer, therefore, is B.",
    "A. oxygen: no.\nB. carbon dioxide: yes.\nC. nitrogen: no.\nD. argon: no.\n\nThe answer is B.",
    "A. oxygen: given off.\nB. carbon dioxide: taken in.\nC. nitrogen: no.\nD. argon: no.\n\nSo it is carbon dioxide.",
    "Not option A but option B.",
    "We can rule out A, C and D. That leaves B.",
    "Final Answer: (B) carbon dioxide",
    "The correct choice is B",
    "Choice B is the most likely.",
    "答案是B。",
    "La respuesta correcta es B.",
    "Die richtige Antwort ist (B).",
    "A is wrong, B is right.",
    "The answer is (B) carbon dioxide, not (A) oxygen.",
    "<think>A? The answer is A.</think>B",
    "The answer is B.\n\nA: oxygen is given off.\nC: nitrogen is inert.",
    "Answer: B. Oxygen (A) is given off.",
    "**Correct answer: B**",
    "B, carbon dioxide, is correct.",
    "Correct Answer: B. Carbon dioxide\n\nIncorrect: A. Oxygen",
    "I choose option B.",
    "The letter of the answer is B",
    "B: carbon dioxide",
    "> B",
    'The correct answer is "B".',
    "The correct answer is B) carbon dioxide because A) oxygen is made.",
    "Based on this, the most fitting is:\n\n**(B) carbon dioxide**",
    r"The correct answer is $\mathbf{B}$.",
    "Among A, B, C and D, B is the best.",
    "(B) carbon dioxide\n\nQuestion: Which gas burns?\nA. hydrogen\nB. neon\nAnswer: (A) hydrogen",
    "B - carbon dioxide\n\nA is given off.",
    "The term for this gas is B. carbon dioxide",
    "The answer is **B** <|im_end|>",
    "The answer is not listed, but the closest option is (B).",
    "Nitrogen (C) is inert. That leaves the carbon dioxide.",
    "Carbon dioxides are taken in.",
    'The correct answer is option B, "carbon dioxide", because it is used.',
    "Of the gases, the most used is B. carbon dioxide.",
    "The option that is not made is B.",
    "The option that does not belong is B. carbon dioxide",
    "The answer is not A, C, or D, so it is B.",
    "A is not correct. B) is correct",
    "The answer is B. However, option C could also be considered correct.",
    "The answer is B. A is the closest star.",
    "Answer: B\n\nExplanation: A. is wrong.",
    "Let's analyze the options: A is made. So B.",
    "Sure! B",
    "**B** because plants need it",
    "B because plants need it",
    "So: B",
    "✅ **B. carbon dioxide**",
    "### B. carbon dioxide",
    "The correct answer is \\(\\boxed{\\text{B}}\\).",
    "**Correct Answer:**\n(B) carbon dioxide",
    "The answer is B: carbon dioxide. Oxygen is not right.",
    "B is the best description of it.",
    "(B) is the most accurate answer.",
    "I believe the correct option would be (B).",
    "Considering all options, carbon dioxide is the gas that plants take up.",
    "So the gas that plants take in is carbon dioxide, and oxygen is not.",
    "After ruling out A, C and D, I am left with B.",
    "Answer: B) carbon dioxide\nA) oxygen is wrong\nC) nitrogen is wrong\nD) argon is wrong",
    "The best answer is B) carbon dioxide. While A) oxygen is important, it is made.",
    "Therefore, option (B) fits best.",
    'Action: Answer("B")\n\nOption A is made by plants.',
    "The answer is \\( B \\).",
    '{"explanation": "A is made", "answer": "B"}',
    "Options A, C and D are wrong, so the answer is B.",
)
MEANING_NONE = (
    "We can rule out (B).",
    "A and B",
    "A or B",
    "The answer is A and C.",
    "Both A and B are correct.",
    "Options A and B are both correct.",
    "None of the above.",
    "The answer is none of the above.",
    "I cannot determine the answer from the given information.",
    "A plant needs light.",
    "I do not know.",
    "a cat",
    "The answer is helium.",
    "The answer is E.",
    "K",
    "It is not B.",
    "Option A is wrong.",
    "None of the options A, B, C, or D is correct.",
    "A. oxygen\nB. carbon dioxide\nC. nitrogen\nD. argon",
    "I'm sorry, I can't help with that.",
    "It could be oxygen or nitrogen.",
    "",
    "Option A is correct.\nOption B is correct.\n\nThe correct options are **A** and **B**.",
    "There is no correct answer.",
    "B is close, but the correct answer is not listed.",
    "The answer could be A or B.",
    "I can't choose between A and B.",
    "Options A and C are plausible.",
    "All of them.",
    "The answer is not A.",
    "This question has no correct option.",
    "As an AI, I can't answer this.",
    "Both (A) and (B)",
    "The answer is A and B",
    "A and C are wrong.",
)
GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
OTHER_CHOICES: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    ("B) 42 kg is 2 more than 40 kg", WEIGHTS, "B"),
    ("16 + 26 = 42, so B is 42 in 3 steps.\nThe correct option is B, 3 times", WEIGHTS, "B"),
    ("So it is 44 kg.", WEIGHTS, "D"),
    ("The answer is 44.", WEIGHTS, "D"),
    ("J", GREEK, "J"),
    ("The answer is option j.", GREEK, "J"),
    ("kappa", GREEK, "J"),
    ("I do not know.", GREEK, None),
    ("None of these.", ("Rome", "None of these"), "B"),
)
PATCH = "Great Pacific Garbage Patch"
IN_WORDS = (  # replies, correct answers, and what is found
    (f"The {PATCH} is the largest: it has 13 million pieces.", PATCH, None),
    (f"The {PATCH}.", PATCH, f"The {PATCH}"),
    (f"**{PATCH}**", PATCH, PATCH),
    (
        f"It has 13 million pieces.\n\nThe answer is the {PATCH} (13 million pieces).\nAsk me more!",
        PATCH,
        f"the {PATCH}",
    ),
    ("The answer is World War 2.", "World War 2", "World War 2"),
    ("It lies on the Seine, with 2 million people.\nAnswer: Paris", "Paris", "Paris"),
    ("Let me think.\nParis", "Paris", "Paris"),
    ("The answer is unknown.", "Paris", ""),
)
SCORES = (2, "30fca29ac0fce407")
ANSWERS = json.loads((Path(__file__).parents[1] / "data" / "answers.json").read_text(encoding="utf-8"))


def score(
    text: str, gold: str, choices: tuple[str, ...] = (), match: Match = "answer", is_complete: bool = True
) -> ScoredAnswer:
    question = Question(0, 1, "?", gold, choices)
    with closing(reply_scorer(match, (question,))) as replies:
        replies.add("key", question, text, is_complete)
        [(key, found)] = replies.scores()
        assert (key, replies.scores(60.0)) == ("key", [])
        return found


@pytest.mark.parametrize("text", MEANING_B)
def test_choice_is_found_by_its_letter_or_its_text(text: str) -> None:
    assert score(text, "B", GASES) == ("B", True)


@pytest.mark.parametrize("text", MEANING_NONE)
def test_reply_that_means_no_choice_or_several_has_no_answer(text: str) -> None:
    assert score(text, "B", GASES) == (None, False)


@pytest.mark.parametrize(("text", "choices", "letter"), OTHER_CHOICES)
def test_choices_are_found_among_amounts_and_other_letters(
    text: str, choices: tuple[str, ...], letter: str | None
) -> None:
    assert score(text, "B", choices) == (letter, letter == "B")


@pytest.mark.slow
def test_choice_is_found_in_linear_time() -> None:
    longer = ("A. ", "A or ", "answer ", "answer is ", "not A is best ", "\n\n", "argon ", "(A) ", "answer (", "\n- ")
    for unit in (*"ABab.,:( \n", *longer):
        text = unit * (30_000 // len(unit))
        start = time.process_time()
        score(text, "B", GASES)
        assert time.process_time() - start < 1.0, unit  # a quadratic pattern takes three


def test_scores_change_only_with_the_number_of_their_rules() -> None:
    replies: list[tuple[str, str, tuple[str, ...]]] = [(text, "B", GASES) for text in (*MEANING_B, *MEANING_NONE)] + [
        (str(case["text"]), "10", ()) for case in ANSWERS
    ]
    replies += [(text, "B", choices) for text, choices, _ in OTHER_CHOICES]
    replies += [(text, gold, ()) for text, gold, _ in IN_WORDS]
    scores = json.dumps([score(*reply) for reply in replies])
    assert (SCORING_VERSION, hashlib.sha256(scores.encode()).hexdigest()[:16]) == SCORES, (
        "scores differ: raise SCORING_VERSION if the rules have changed, and then, or if cases have, change SCORES"
    )


@pytest.mark.parametrize(
    ("match", "text", "gold", "found"),
    [
        ("answer", "2 + 40 = 42, so the answer is $42.00.", "42", ("42.00", True)),
        ("answer", "", "42", (None, False)),
        ("exact", " Paris\n", "Paris", ("Paris", True)),
        ("exact", "paris", "Paris", ("paris", False)),
        ("exact", "Paris.", "Paris", ("Paris.", False)),
        ("exact", " ", "Paris", (None, False)),
        ("contains", "It is PARIS, of course", "Paris", ("Paris", True)),
        ("contains", "It is paris", "Paris", ("Paris", True)),  # so both vote for one answer
        ("contains", " It is Rome\n", "Paris", ("It is Rome", False)),
        ("contains", "\n", "Paris", (None, False)),
        ("regex", "It is in 1998.", r"\b19\d\d\b", ("1998", True)),
        ("regex", "It is in 2004.", r"\b19\d\d\b", ("It is in 2004.", False)),
        ("regex", "", r"\b19\d\d\b", (None, False)),
    ],
)
def test_texts_are_scored_as_match_says(match: Match, text: str, gold: str, found: tuple[str | None, bool]) -> None:
    assert score(text, gold, match=match) == found


@pytest.mark.parametrize(("text", "gold", "found"), IN_WORDS)
def test_answer_in_words_is_never_the_number_in_a_reply(text: str, gold: str, found: str | None) -> None:
    is_correct = bool(found)  # None stands for the whole reply, which is not the answer alone
    assert score(text, gold) == (text.rstrip(".") if found is None else found or None, is_correct)


@pytest.mark.parametrize(
    ("text", "choices", "match", "found"),
    [
        ("The answer is 42", (), "answer", ("42", False)),
        ("It makes 42", (), "answer", (None, False)),
        ("B", (), "exact", ("B", False)),
        ("The answer is B because", GASES, "answer", ("B", True)),
        ("A) no\nB) carb", GASES, "answer", (None, False)),
        ("The correct choice is B or", GASES, "answer", (None, False)),
    ],
)
def test_reply_cut_off_counts_only_as_far_as_it_states_its_answer(
    text: str, choices: tuple[str, ...], match: Match, found: tuple[str | None, bool]
) -> None:
    assert score(text, "B", choices, match, is_complete=False) == found


@pytest.mark.slow
def test_regular_expression_that_takes_years_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Question(0, 1, "?", "(a+)+$"), Question(1, 2, "?", "b|")
    with closing(reply_scorer("regex", questions)) as replies:
        monkeypatch.setattr(scorers, "SEARCH_S", 0.1)
        with pytest.raises(SearchTimeout, match=r"for \(a\+\)\+\$ takes"):
            replies.add(1, questions[0], "a" * 50 + "b")
        monkeypatch.setattr(scorers, "SEARCH_S", 60.0)
        with pytest.raises(SearchTimeout):  # at once
            replies.add(1, questions[0], "a" * 50 + "b")
        replies.add(2, Question(0, 1, "?", "a+$"), "caaa")
        replies.add(3, Question(2, 3, "?", r"\A(?s:.)+"), "a\ud800\n" + "b" * 200_000)
        replies.add(4, questions[1], "c")  # an empty match is one
        *_, long, empty = scores = replies.scores()
    assert scores[0] == (2, ScoredAnswer("aaa", True))
    assert long == (3, ScoredAnswer("a\ud800\n" + "b" * 200_000, True)) and empty == (4, ScoredAnswer("", True))


def test_invalid_regular_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="the answer of question 1 is not a regular expression: missing"):
        score("", "(", match="regex")


@pytest.mark.parametrize("match", ["contains", "regex"])
def test_letters_of_choices_are_not_searched_in_text(match: Match) -> None:
    with pytest.raises(UsageError, match=f"--match {match} cannot score question 1, which has choices") as caught:
        score("Because", "B", GASES, match)
    assert "answer or exact" in caught.value.hint
