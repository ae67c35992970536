"""Decide by votes: a probability is the share of sampled replies, each of which may reason before it names a choice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, NoAnswer, UsageError
from cerebrum_cli.core.events import Event, RefusedEvent
from cerebrum_cli.core.grammar import schema_grammar
from cerebrum_cli.core.votes import Votes
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, Decided
from cerebrum_cli.replies.reply import MajorityVote, Outcome, Row

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model


def vote(model: Model, questions: Sequence[ChoiceQuestion], samples: int) -> Iterator[Event | Decided]:
    """Decide questions by as many samples each; yield each as soon as it is decided, and events in between."""
    votes = Votes(samples, samples)
    settings = model.source.settings.for_samples("--votes")

    def rows() -> Iterator[Row]:
        for number, question in enumerate(questions):
            try:
                grammar = schema_grammar({"enum": list(question.choices.names)})
                model.source.check(grammar)
            except UsageError as problem:
                yield Row(number, problem)
                continue
            asked = Ask(question.listed(question.choices.orders[0], settings.system), settings, grammar)
            yield Row(number, asked, MajorityVote(votes))

    with closing(model.run_rows(rows())) as events:
        for event in events:
            if not isinstance(event, Outcome):
                yield event
            elif isinstance(event.result, RefusedEvent):
                yield Decided(event.row.key, event.result.error)
            elif isinstance(event.result, MajorityVote) and event.result.is_over:
                yield Decided(event.row.key, counted(questions[event.row.key], event.result))


def counted(question: ChoiceQuestion, vote: MajorityVote) -> Decision | CerebrumError:
    """The shares of the choices among the samples that name one."""
    counts: Counter[str] = Counter()
    for reply in vote.replies.values():
        if reply.vote is not None:
            counts[json.loads(reply.text)] += 1
    if not counts:
        return NoAnswer("no sample names a choice", "raise --max-tokens")
    names = question.choices.names
    shares = tuple(counts[name] / counts.total() for name in names)
    return Decision(names, shares, f"{counts.total()} votes", question.choices.is_score)
