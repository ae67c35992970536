"""What is decided: a question with its choices; and what is found."""

from __future__ import annotations

from typing import NamedTuple

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.decide.given_choices import GivenChoices


@frozen
class ChoiceQuestion:
    """A conversation whose last message ends with a question, the choices, and whether one order is enough."""

    conversation: Conversation
    choices: GivenChoices
    is_fast: bool = False


class Decided(NamedTuple):
    """The number of a question, counted from 0, and its decision, or why there is none."""

    number: int
    result: Decision | CerebrumError
