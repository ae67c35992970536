"""What is decided: a question with its choices, as a prompt lists them; and what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts
from cerebrum_cli.decide.given_choices import Choice, GivenChoices, Order


@frozen
class ChoiceQuestion:
    """A conversation whose last message ends with a question, and the choices, which may be listed after letters.

    If the message begins with the question instead, and a text follows, `opening` is the question. Raises UsageError
    for a conversation that ends with the beginning of a reply.
    """

    conversation: Conversation
    choices: GivenChoices
    by_letter: bool = False
    opening: str = ""

    def __post_init__(self) -> None:
        if self.conversation.prefill:
            raise UsageError("the last message is not a question", "remove the assistant's message at the end")

    @property
    def orders(self) -> Sequence[Order]:
        """The orders in which prompts list the choices. Raises UsageError if there are too few letters."""
        count = len(self.choices.items)
        if self.choices.is_yes_or_no and not self.by_letter:
            return [(self.choices.find("yes"), self.choices.find("no"))]  # as people say it
        if self.by_letter and count > len(ascii_uppercase):
            raise UsageError(f"there are {count} choices for 26 letters", "omit --letters")
        return self.choices.orders

    @property
    def method(self) -> str:
        """How the prompts list the choices."""
        orders = "one order" if len(self.orders) == 1 else "averaged orders"
        return f"letters, {orders}" if self.by_letter else orders

    def listed(self, order: Order, system: str | None) -> Conversation:
        """The conversation with the choices in an order, and with a system prompt if it has none of its own."""
        conversation = self.conversation
        if conversation.system_prompt is None:
            conversation = replace(conversation, system_prompt=system)
        if self.by_letter:
            return conversation.with_question(lettered_text(conversation.question, self.choices, order))
        return conversation.with_question(question_text(conversation.question, self.choices, order, self.opening))

    def answers(self, order: Order) -> Texts:
        """What a reply gives for each choice: its name, or its letter in this order."""
        if not self.by_letter:
            return self.choices.names
        return tuple(ascii_uppercase[order.index(position)] for position in range(len(order)))


class AskedQuestion(NamedTuple):
    """A question, or why there is none; `key` is for the caller."""

    key: Any
    question: ChoiceQuestion | CerebrumError


class Decided(NamedTuple):
    """The key of a question, and its decision, or why there is none."""

    key: Any
    result: Decision | CerebrumError


def require_listing(by_letter: bool, votes: int | None, is_score: bool, prefix: str = "") -> None:
    """Raise UsageError for letters with votes or a score; errors name options with a prefix."""
    if by_letter and (votes or is_score):
        raise UsageError.conflict(f"{prefix}letters", f"{prefix}{'votes' if votes else 'score'}")


def lettered_text(question: str, choices: GivenChoices, order: Order) -> str:
    lines = [f"{question}\n"]
    for letter, position in zip(ascii_uppercase, order, strict=False):
        lines.append(f"{letter}) {described(choices.items[position])}")
    return "\n".join([*lines, "", "Answer with the letter of one choice."])


def question_text(question: str, choices: GivenChoices, order: Order, opening: str = "") -> str:
    """The question with its choices, listed in an order: at the end, and yes or no as soon as it is asked."""
    if choices.is_score:
        least, largest = choices.names[0], choices.names[-1]
        return f"{question}\n\nAnswer with a whole number from {least} to {largest}."
    listed = [choices.items[position] for position in order]
    if choices.is_yes_or_no:
        asked = opening or question
        return f"{asked} Answer with one word, {listed[0].name} or {listed[1].name}.{question.removeprefix(asked)}"
    if not any(choice.description or ";" in choice.name for choice in listed):
        return f"{question}\n\nAnswer with one of these: {'; '.join(choice.name for choice in listed)}."
    lines = [f"{question}\n", "Answer with the name of one of these:"]
    lines += [f"- {described(choice)}" for choice in listed]
    return "\n".join(lines)


def described(choice: Choice) -> str:
    return f"{choice.name}: {choice.description}" if choice.description else choice.name
