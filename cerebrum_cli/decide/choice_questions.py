"""What is decided: a question with its choices; and what is found."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.decide.given_choices import GivenChoices, Order
from cerebrum_cli.decide.prompts import ChoiceListing


@frozen
class ChoiceQuestion:
    """A conversation whose last message ends with a question, the choices, and how prompts list these.

    Raises UsageError for a conversation that ends with the beginning of a reply.
    """

    conversation: Conversation
    choices: GivenChoices
    listing: ChoiceListing = ChoiceListing()

    def __post_init__(self) -> None:
        if self.conversation.prefill:
            raise UsageError("the last message is not a question", "remove the assistant's message at the end")

    def listed(self, order: Order, system: str | None) -> Conversation:
        """The conversation with the choices in an order, and with a system prompt if it has none of its own."""
        conversation = self.conversation
        if conversation.system_prompt is None:
            conversation = replace(conversation, system_prompt=system)
        return conversation.with_question(self.listing.text(conversation.question, self.choices, order))


class Decided(NamedTuple):
    """The number of a question, counted from 0, and its decision, or why there is none."""

    number: int
    result: Decision | CerebrumError
