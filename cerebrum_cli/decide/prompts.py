"""What a model is asked: the text, the question, and the choices in some order; and how its reply may begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts
from cerebrum_cli.decide.given_choices import Choice, GivenChoices, Order


@frozen
class ChoiceListing:
    """How prompts list the choices: in one order or in several, with letters before them or without."""

    in_one_order: bool = False
    by_letter: bool = False

    def require(self, votes: int | None, is_score: bool, prefix: str = "") -> None:
        """Raise UsageError for votes or a score that it excludes; errors name options with a prefix."""
        if votes and self.in_one_order:
            raise UsageError.conflict(f"{prefix}votes", f"{prefix}fast")
        if self.by_letter and (votes or is_score):
            raise UsageError.conflict(f"{prefix}letters", f"{prefix}{'votes' if votes else 'score'}")

    @property
    def method(self) -> str:
        orders = "one order" if self.in_one_order else "averaged orders"
        return f"letters, {orders}" if self.by_letter else orders

    def orders(self, choices: GivenChoices) -> Sequence[Order]:
        """The orders of the prompts. Raises UsageError if there are too few letters."""
        if self.by_letter and len(choices.items) > len(ascii_uppercase):
            raise UsageError(f"there are {len(choices.items)} choices for 26 letters", "omit --letters")
        return choices.orders[:1] if self.in_one_order else choices.orders

    def text(self, question: str, choices: GivenChoices, order: Order) -> str:
        """The question with its choices, listed in an order."""
        return lettered_text(question, choices, order) if self.by_letter else question_text(question, choices, order)

    def replies(self, choices: GivenChoices, order: Order) -> GivenChoices:
        """The choices by what a reply gives for them: their names, or their letters in this order."""
        if not self.by_letter:
            return choices
        letters = (Choice(ascii_uppercase[order.index(position)]) for position in range(len(order)))
        return replace(choices, items=tuple(letters))


def lettered_text(question: str, choices: GivenChoices, order: Order) -> str:
    lines = [f"{question}\n"]
    for letter, position in zip(ascii_uppercase, order, strict=False):
        lines.append(f"{letter}) {described(choices.items[position])}")
    return "\n".join([*lines, "", "Answer with the letter of one choice."])


def question_text(question: str, choices: GivenChoices, order: Order) -> str:
    """The question with its choices, listed in an order."""
    if choices.is_score:
        least, largest = choices.names[0], choices.names[-1]
        return f"{question}\n\nAnswer with a whole number from {least} to {largest}."
    listed = [choices.items[position] for position in order]
    if not any(choice.description or ";" in choice.name for choice in listed):
        return f"{question}\n\nAnswer with one of these: {'; '.join(choice.name for choice in listed)}."
    lines = [f"{question}\n", "Answer with the name of one of these:"]
    lines += [f"- {described(choice)}" for choice in listed]
    return "\n".join(lines)


def described(choice: Choice) -> str:
    return f"{choice.name}: {choice.description}" if choice.description else choice.name


def spellings(text: str) -> Texts:
    """How a reply may begin with a text: also with a space or a capital letter before the rest of it."""
    capitalized = text[:1].upper() + text[1:]
    return tuple(dict.fromkeys((text, f" {text}", capitalized, f" {capitalized}")))
