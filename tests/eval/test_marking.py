"""Replies are marked: by their final answer, by the letter of a choice, or by their text."""

from __future__ import annotations

import pytest

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval.marking import Mark, Match, Unmarked, marker
from cerebrum_cli.eval.questions import Question

GASES = ("oxygen", "carbon dioxide", "nitrogen", "argon")
WEIGHTS = ("42 lb", "42 kg", "2 more", "44 kg")
NAMING_B = (
    *("B", "b", "(b)", "Option B", "I choose B.", "So B is correct.", "Carbon Dioxide.", "The gas is CO2 (B)."),
    *("Let me think.\n\n**B) carbon dioxide**\n", "The answer is B) carbon dioxide.", "The correct choice is B."),
    *("The answer is Carbon dioxide (B).", "The answer is (B) carbon dioxide, not (A) oxygen."),
    "The correct choice is **B) carbon dioxide**.",
)
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
        *((text, GASES, "B") for text in NAMING_B),
        ("Not option A but option B.", GASES, None),
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
        ("The answer is helium.", GASES, "helium"),  # none of the choices
        ("The answer is E.", GASES, "E"),
        ("K", GASES, "K"),
    ],
)
def test_choices_are_marked_by_letter_or_text(text: str, choices: tuple[str, ...], letter: str | None) -> None:
    found = mark(text, "B", choices)
    assert found == (letter, letter == "B")


class CountedText(str):
    """A text that counts how often the answer in it was extracted, which begins with its line ends."""

    extractions = 0

    def replace(self, old: str, new: str, count: int = -1) -> str:  # type: ignore[override]
        self.extractions += old == "\r\n"
        return super().replace(old, new, count)


def test_choices_are_marked_with_a_single_extraction() -> None:
    """Extraction is what takes the time of marking."""
    for text in ("So B is correct.", "The answer is b", "A plant needs light."):
        reply = CountedText(text)
        mark(reply, "B", GASES)
        assert reply.extractions == 1


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
def test_texts_are_marked_as_match_says(match: Match, text: str, gold: str, found: tuple[str | None, bool]) -> None:
    assert mark(text, gold, match=match) == found


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
    assert mark(text, "B", choices, match, is_complete=False) == found


def test_invalid_regular_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="the answer of question 1 is not a regular expression: missing"):
        mark("", "(", match="regex")


@pytest.mark.parametrize("match", ["contains", "regex"])
def test_letters_of_choices_are_not_searched_in_text(match: Match) -> None:
    with pytest.raises(UsageError, match=f"--match {match} cannot score question 1, which has choices") as caught:
        mark("Because", "B", GASES, match)
    assert "answer or exact" in caught.value.hint
