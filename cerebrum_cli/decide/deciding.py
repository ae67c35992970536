"""Decide: ask a model which of several choices answers a question, and get the probability of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.text import format_count
from cerebrum_cli.decide.by_likelihood import read_decisions
from cerebrum_cli.decide.by_votes import vote
from cerebrum_cli.decide.choice_questions import Asked, ChoiceQuestion, DecisionEvent, require_listing
from cerebrum_cli.decide.given_choices import Choice, choices_of, score_choices

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model

LEAST_NAMED = 0.05  # share of replies that name a choice, below which a notice says that few do
REPHRASE = "rephrase the question, or name the choices as the model would"


def decide(
    model: Model, asked: Iterable[Asked], votes: int | None = None, in_order: bool = False
) -> Iterator[Event | DecisionEvent]:
    """Decide questions; yield each as soon as it is decided, or votes in their order, and events in between.

    With `votes`, as many replies to each are sampled. After a cancel the stream ends early. Raises EngineError, and
    UsageError for a model that always reasons, unless it votes.
    """
    yield from model.load()
    decided = vote(model, asked, votes, in_order) if votes else read_decisions(model, asked)
    questions = unnamed = 0
    with closing(decided):
        for event in decided:
            if isinstance(event, DecisionEvent) and isinstance(event.result, Decision):
                questions += 1
                unnamed += event.result.named < LEAST_NAMED
            yield event
    if unnamed:
        share = f"{unnamed:,} of {format_count(questions, 'question')}"
        yield NoticeEvent(f"the model would rather answer something else than a choice ({share})", REPHRASE)


def decide_one(
    model: Model,
    conversation: Conversation,
    choices: Iterable[str] | Mapping[str, str],
    score: tuple[int, int] | None,
    votes: int | None,
    by_letter: bool,
) -> Decision:
    """The decision of one question. Raises UsageError, PromptTooLong, FormatError, EngineError, EndpointError."""
    require_listing(by_letter, votes, is_score=score is not None)
    if score is not None:
        given = score_choices(*score)
    elif isinstance(choices, Mapping):
        given = choices_of(Choice(*item) for item in choices.items())
    else:
        names = list(choices)
        if isinstance(choices, str) or not all(isinstance(name, str) for name in names):
            raise UsageError.invalid("choices", choices, "a list of texts")
        given = choices_of(map(Choice, names))
    asked = [(None, ChoiceQuestion(conversation, given, by_letter))]
    for event in decide(model, asked, votes):
        if isinstance(event, DecisionEvent):
            if isinstance(event.result, CerebrumError):
                raise event.result
            return event.result
    raise UsageError("the decision was cancelled", "call it again")
