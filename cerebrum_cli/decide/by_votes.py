"""Decide by votes: a probability is the share of sampled replies, each of which may reason before it names a choice."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from cerebrum_cli.core.ask import Ask, Votes
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, NoAnswer, UsageError
from cerebrum_cli.core.events import Event, RefusedEvent
from cerebrum_cli.core.grammar import schema_grammar
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, Decided
from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome, Row

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model


def vote(model: Model, questions: Sequence[ChoiceQuestion], samples: int) -> Iterator[Event | Decided]:
    """Decide questions by as many samples each; yield each as soon as it is decided, and events in between.

    The samples of a question are spread over the orders of its choices.
    """
    settings = model.source.settings.for_samples("--votes")
    missing = Counter[int]()  # votes of questions that are not over
    found: dict[int, list[MajorityVote]] = defaultdict(list)

    def rows() -> Iterator[Row]:
        for number, question in enumerate(questions):
            shares = spread(samples, len(question.choices.orders))
            missing[number] = len(shares)
            try:
                grammar = schema_grammar({"enum": list(question.choices.names)})
                model.source.check(grammar)
            except UsageError as problem:
                missing[number] = 1
                yield Row(number, problem)
                continue
            for order, share in zip(question.choices.orders, shares, strict=False):
                asked = Ask(question.listed(order, settings.system), settings, grammar)
                yield Row(number, asked, MajorityVote(Votes(share, share)))

    with closing(model.run_rows(rows())) as events:
        for event in events:
            if not isinstance(event, Outcome):
                yield event
                continue
            number = event.row.key
            if isinstance(event.result, RefusedEvent):
                if missing.pop(number, 0):
                    yield Decided(number, event.result.error)
            elif isinstance(event.result, MajorityVote) and event.result.is_over and number in missing:
                found[number].append(event.result)
                missing[number] -= 1
                if not missing[number]:
                    yield Decided(number, counted(questions[number], found.pop(number)))


def spread(samples: int, orders: int) -> list[int]:
    """As many samples for each order, or one more for the first; none for orders without a sample."""
    each, more = divmod(samples, orders)
    shares = [each + 1] * more + [each] * (orders - more)
    return [share for share in shares if share]


def counted(question: ChoiceQuestion, votes: Sequence[MajorityVote]) -> Decision | CerebrumError:
    """The shares of the choices among the samples that name one."""
    counts: Counter[str] = Counter()
    for vote in votes:
        counts.update(json.loads(reply.text) for reply in vote.replies.values() if reply.vote is not None)
    if not counts:
        return NoAnswer("no sample names a choice", "raise --max-tokens")
    names = question.choices.names
    shares = tuple(counts[name] / counts.total() for name in names)
    return Decision(names, shares, f"{counts.total()} votes", question.choices.is_score)
