"""Decide by votes: a probability is the share of sampled replies, each of which may reason before it names a choice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

from cerebrum_cli.core.ask import Ask, Votes
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, NoAnswer, UsageError
from cerebrum_cli.core.events import Event, RefusedEvent
from cerebrum_cli.core.grammar import schema_grammar
from cerebrum_cli.decide.choice_questions import Asked, ChoiceQuestion, DecisionEvent
from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome, Row

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model


def vote(
    model: Model, asked: Iterable[Asked], samples: int, in_order: bool
) -> Generator[Event | DecisionEvent, None, None]:
    """Decide questions by as many samples each; yield each as soon as it is decided, and events in between."""
    rows = (row_of(model, each, samples) for each in asked)
    with closing(model.run_rows(rows, in_order=in_order)) as events:
        for event in events:
            if not isinstance(event, Outcome):
                yield event
            elif isinstance(event.result, RefusedEvent):
                key, _ = event.row.key
                yield DecisionEvent(key, event.result.error)
            elif isinstance(event.result, MajorityVote) and event.result.is_over:
                key, question = event.row.key
                yield DecisionEvent(key, shares_of_samples(question, event.result))


def row_of(model: Model, asked: Asked, samples: int) -> Row:
    """The row of a question, whose replies are names of choices."""
    _, question = asked
    choices = question.choices
    settings = model.source.settings.for_samples("--votes")
    grammar = schema_grammar({"enum": list(choices.names)})
    try:
        model.source.check(grammar)
    except UsageError as problem:
        return Row(asked, problem)
    conversation = question.listed(question.layouts[0], settings.system)
    return Row(asked, Ask(conversation, settings, grammar), MajorityVote(Votes(samples, samples)))


def shares_of_samples(question: ChoiceQuestion, vote: MajorityVote) -> Decision | CerebrumError:
    """The shares of the choices among the samples that name one."""
    if not vote.replies:
        return vote.refusals[0].error
    counts = Counter(json.loads(reply.text) for reply in vote.replies.values() if reply.vote is not None)
    if not counts:
        return NoAnswer("no sample names a choice", "raise --max-tokens")
    names = question.choices.names
    shares = tuple(counts[name] / counts.total() for name in names)
    named = counts.total() / len(vote.replies)
    return Decision(names, shares, named, f"{counts.total()} votes", question.choices.is_score)
