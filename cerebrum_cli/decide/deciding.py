"""Decide: ask a model which of several choices answers a question, and get the probability of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import Event
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, Decided
from cerebrum_cli.decide.given_choices import Choice, choices_of, score_choices
from cerebrum_cli.decide.prompts import ChoiceListing

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model


def decide(model: Model, questions: Sequence[ChoiceQuestion], votes: int | None = None) -> Iterator[Event | Decided]:
    """Decide questions together; yield each as soon as it is decided, and events in between.

    With `votes`, as many replies to each are sampled. After a cancel the stream ends early. Raises EngineError, and
    UsageError for a model that always reasons, unless it votes.
    """
    yield from model.load()
    if votes:
        from cerebrum_cli.decide.by_votes import vote

        yield from vote(model, questions, votes)
    else:
        from cerebrum_cli.decide.by_likelihood import read_decisions

        yield from read_decisions(model, questions)


def decide_one(
    model: Model,
    conversation: Conversation,
    choices: Iterable[str] | Mapping[str, str],
    score: tuple[int, int] | None,
    votes: int | None,
    in_one_order: bool,
    by_letter: bool,
) -> Decision:
    """The decision of one question. Raises UsageError, PromptTooLong, FormatError, EngineError, EndpointError."""
    listing = ChoiceListing(in_one_order, by_letter)
    listing.require(votes, is_score=score is not None)
    if score is not None:
        given = score_choices(*score)
    elif isinstance(choices, Mapping):
        given = choices_of(Choice(*item) for item in choices.items())
    else:
        names = list(choices)
        if isinstance(choices, str) or not all(isinstance(name, str) for name in names):
            raise UsageError.invalid("choices", choices, "a list of texts")
        given = choices_of(map(Choice, names))
    for event in decide(model, [ChoiceQuestion(conversation, given, listing)], votes):
        if isinstance(event, Decided):
            if isinstance(event.result, CerebrumError):
                raise event.result
            return event.result
    raise UsageError("the decision was cancelled", "call it again")
