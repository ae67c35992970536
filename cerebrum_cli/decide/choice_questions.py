"""What is decided: a question about a text with its choices, as prompts list them; and what is found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any, NamedTuple, TypeAlias

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts
from cerebrum_cli.decide.given_choices import Choice, GivenChoices, Order

QUESTION_LAST = re.compile(r".*\}\S*(?P<space>\s+)(?P<question>[^{}]*[.?!])", re.DOTALL)
QUESTION_FIRST = re.compile(r"(?P<question>[^{}]*[.?!])(?P<space>\s+).*\}.*", re.DOTALL)


@frozen
class PlacedQuestion:
    """A question with which a message begins or ends, and the white space between it and the text."""

    question: str
    is_first: bool = False
    space: str = "\n\n"

    def text_in(self, message: str) -> str:
        """The message without the question."""
        if self.is_first:
            return message.removeprefix(self.question + self.space)
        return message.removesuffix(self.question).removesuffix(self.space)


class Layout(NamedTuple):
    """The order in which a prompt lists the choices, and whether the question stands before the text."""

    order: Order
    is_first: bool


@frozen
class ChoiceQuestion:
    """A question about the last message of a conversation, and the choices, which may be listed after letters.

    The message begins or ends with the question; prompts ask a `placed` one after the text, and yes or no on both
    sides of it. Raises UsageError for a conversation that ends with the beginning of a reply.
    """

    conversation: Conversation
    choices: GivenChoices
    by_letter: bool = False
    placed: PlacedQuestion | None = None

    def __post_init__(self) -> None:
        if self.conversation.prefill:
            raise UsageError("the last message is not a question", "remove the assistant's message at the end")

    @property
    def text(self) -> str:
        """What a placed question is about."""
        return self.placed.text_in(self.conversation.question) if self.placed else ""

    @property
    def layouts(self) -> Sequence[Layout]:
        """The layouts of all prompts; yes or no is asked first where the question was written.

        Raises UsageError if there are too few letters.
        """
        count = len(self.choices.items)
        if self.choices.is_yes_or_no and not self.by_letter:
            order = self.choices.find("yes"), self.choices.find("no")  # as people say it
            places = [self.placed.is_first, not self.placed.is_first] if self.placed and self.text else [False]
            return [Layout(order, is_first) for is_first in places]
        if self.by_letter and count > len(ascii_uppercase):
            raise UsageError(f"there are {count} choices for 26 letters", "omit --letters")
        return [Layout(order, is_first=False) for order in self.choices.orders]

    @property
    def method(self) -> str:
        """How the prompts list the choices."""
        prompts = "one prompt" if len(self.layouts) == 1 else "averaged prompts"
        return f"letters, {prompts}" if self.by_letter else prompts

    def listed(self, layout: Layout, system: str | None) -> Conversation:
        """The conversation with the question and its choices, and with a system prompt if it has none of its own."""
        conversation, text = self.conversation, self.text
        if conversation.system_prompt is None:
            conversation = replace(conversation, system_prompt=system)
        if not self.placed or not text:
            return conversation.with_question(self.asked(conversation.question, layout.order))
        asked = self.asked(self.placed.question, layout.order)
        space = "\n\n" if "\n" in asked else self.placed.space
        return conversation.with_question(f"{asked}{space}{text}" if layout.is_first else f"{text}{space}{asked}")

    def asked(self, question: str, order: Order) -> str:
        """A question with its choices, listed in an order."""
        write = lettered_text if self.by_letter else question_text
        return write(question, self.choices, order)

    def answers(self, order: Order) -> Texts:
        """What a reply gives for each choice: its name, or its letter in this order."""
        if not self.by_letter:
            return self.choices.names
        return tuple(ascii_uppercase[order.index(position)] for position in range(len(order)))


Asked: TypeAlias = tuple[Any, ChoiceQuestion]  # a question, and a key for the caller


class DecisionEvent(NamedTuple):
    """The key of a question that was asked, and its decision, or why there is none."""

    key: Any
    result: Decision | CerebrumError


def placed_question(template: str) -> PlacedQuestion | None:
    """The question with which a template ends or begins; None if it has fields, or stands between them.

    Without fields it is added at the end of prompts.
    """
    if "{" not in template:
        return PlacedQuestion(template)
    last, first = QUESTION_LAST.fullmatch(template), QUESTION_FIRST.fullmatch(template)
    found = last or first
    if not found or "{{" in template:
        return None
    return PlacedQuestion(found["question"], is_first=not last, space=found["space"])


def require_listing(by_letter: bool, votes: int | None, is_score: bool, prefix: str = "") -> None:
    """Raise UsageError for letters with votes or a score; errors name options with a prefix."""
    if by_letter and (votes or is_score):
        raise UsageError.conflict(f"{prefix}letters", f"{prefix}{'votes' if votes else 'score'}")


def lettered_text(question: str, choices: GivenChoices, order: Order) -> str:
    lines = [f"{question}\n"]
    for letter, position in zip(ascii_uppercase, order, strict=False):
        lines.append(f"{letter}) {described(choices.items[position])}")
    return "\n".join([*lines, "", "Answer with the letter of one choice."])


def question_text(question: str, choices: GivenChoices, order: Order) -> str:
    """The question with its choices, listed in an order, in the words of a person."""
    if choices.is_score:
        return f"{question} Answer with a whole number from {choices.names[0]} to {choices.names[-1]}."
    listed = [choices.items[position] for position in order]
    if choices.is_yes_or_no:
        return f"{question} Answer with one word, {listed[0].name} or {listed[1].name}."
    if not any(choice.description or ";" in choice.name for choice in listed):
        return f"{question} Answer with one of these: {'; '.join(choice.name for choice in listed)}."
    lines = [f"{question}\n", "Answer with the name of one of these:"]
    lines += [f"- {described(choice)}" for choice in listed]
    return "\n".join(lines)


def described(choice: Choice) -> str:
    return f"{choice.name}: {choice.description}" if choice.description else choice.name
