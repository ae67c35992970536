"""Replies are marked: by their final answer, by the letter of a choice, or by their text."""

from __future__ import annotations

import pytest

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval.marking import Mark, Match, Unmarked, marker
from cerebrum_cli.eval.questions import Question

GASES = ("oxygen", "carbon dioxide", "nitrogen", "argon")
WEIGHTS = ("42 lb", "42 kg", "2 more", "44 kg")
GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")


def mark(
    text: str, gold: str, choices: tuple[str, ...] = (), match: Match = "answer", is_complete: bool = True
) -> Mark:
    question = Question(0, 1, "?", gold, choices)
    replies = marker(match, (question,))
    replies.add("key", Unmarked(text, question, is_complete))
    [(key, found)] = replies.marks()
    assert (key, replies.marks(wait=True)) == ("key", [])
    return found


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("B", GASES, "B"),
        ("b", GASES, "B"),
        ("(b)", GASES, "B"),
        ("Let me think.\n\n**B) carbon dioxide**\n", GASES, "B"),
        ("The answer is B) carbon dioxide.", GASES, "B"),
        ("The answer is Carbon dioxide (B).", GASES, "B"),
        ("The answer is (B) carbon dioxide, not (A) oxygen.", GASES, "B"),
        ("The correct choice is B.", GASES, "B"),
        ("The correct choice is **B) carbon dioxide**.", GASES, "B"),
        ("Option B", GASES, "B"),
        ("I choose B.", GASES, "B"),
        ("So B is correct.", GASES, "B"),
        ("The gas is CO2 (B).", GASES, "B"),
        ("Not option A but option B.", GASES, None),
        ("Carbon Dioxide.", GASES, "B"),
        ("A plant needs light.", GASES, None),
        ("I do not know.", GREEK, None),
        ("a cat", GASES, None),
        ("B) 42 kg is 2 more than 40 kg", WEIGHTS, "B"),
        ("16 + 26 = 42, so B is 42 in 3 steps.\nThe correct option is B, 3 times", WEIGHTS, "B"),
        ("So it is 44 kg.", WEIGHTS, "D"),
        ("The answer is 44.", WEIGHTS, "D"),
        ("J", GREEK, "J"),
        ("The answer is option j.", GREEK, "J"),
        ("kappa", GREEK, "J"),
    ],
)
def test_choices_are_marked_by_letter_or_text(text: str, choices: tuple[str, ...], letter: str | None) -> None:
    found = mark(text, "B", choices)
    assert found == (letter, letter == "B")


def test_choices_of_a_reply_cut_off_must_be_stated() -> None:
    assert mark("The answer is B because", "B", GASES, is_complete=False) == ("B", True)
    assert mark("A) no\nB) carb", "B", GASES, is_complete=False) == (None, False)
    assert mark("The correct choice is B or", "B", GASES, is_complete=False) == (None, False)


def test_choice_that_is_none_of_them_is_wrong() -> None:
    assert mark("The answer is helium.", "B", GASES) == ("helium", False)
    assert mark("The answer is E.", "B", GASES) == ("E", False)
    assert mark("K", "B", GASES) == ("K", False)


class CountedText(str):
    """A text that counts how often the answer in it was extracted, which begins with its line ends."""

    extractions = 0

    def replace(self, old: str, new: str, count: int = -1) -> str:  # type: ignore[override]
        self.extractions += old == "\r\n"
        return super().replace(old, new, count)


@pytest.mark.parametrize("text", ["So B is correct.", "The answer is b", "A plant needs light."])
def test_choices_are_marked_with_a_single_extraction(text: str) -> None:
    """Extraction is what takes the time of marking."""
    reply = CountedText(text)
    mark(reply, "B", GASES)
    assert reply.extractions == 1


def test_answer_counts_in_any_spelling() -> None:
    assert mark("2 + 40 = 42, so the answer is $42.00.", "42") == ("42.00", True)
    assert mark("The answer is 42", "42", is_complete=False) == ("42", True)
    assert mark("It makes 42", "42", is_complete=False) == (None, False)
    assert mark("", "42") == (None, False)


def test_exact_compares_the_whole_reply() -> None:
    assert mark(" Paris\n", "Paris", match="exact") == ("Paris", True)
    assert mark("paris", "Paris", match="exact") == ("paris", False)
    assert mark("Paris.", "Paris", match="exact") == ("Paris.", False)
    assert mark("Paris", "Paris", match="exact", is_complete=False) == ("Paris", False)
    assert mark(" ", "Paris", match="exact") == (None, False)
    assert mark("B", "B", GASES, match="exact") == ("B", True)


def test_contains_searches_the_reply_in_any_case() -> None:
    assert mark("It is PARIS, of course", "Paris", match="contains") == ("Paris", True)
    assert mark("It is paris", "Paris", match="contains") == ("Paris", True)  # so both vote for one answer
    assert mark(" It is Rome\n", "Paris", match="contains") == ("It is Rome", False)
    assert mark("\n", "Paris", match="contains") == (None, False)


def test_regex_searches_the_reply() -> None:
    assert mark("It is in 1998.", r"\b19\d\d\b", match="regex") == ("1998", True)
    assert mark("It is in 2004.", r"\b19\d\d\b", match="regex") == ("It is in 2004.", False)
    assert mark("", r"\b19\d\d\b", match="regex") == (None, False)
    with pytest.raises(UsageError, match="the answer of question 1 is not a regular expression: missing"):
        mark("", "(", match="regex")


@pytest.mark.parametrize("match", ["contains", "regex"])
def test_letters_of_choices_are_not_searched_in_text(match: Match) -> None:
    with pytest.raises(UsageError, match=f"--match {match} cannot score question 1, which has choices") as caught:
        mark("Because", "B", GASES, match)
    assert "answer or exact" in caught.value.hint
