"""Many chains of thought for one question, and a vote over the answers they come to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Any

from cerebrum_cli.answers.vote import Count, Tally, Votes
from cerebrum_cli.application.inference.reply import LONG_PROMPT, Reply, ReplyCollector
from cerebrum_cli.application.inference.responder import GenerationRequest, Replies, Responder
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import Event, FinishEvent, TallyEvent, TokenEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.engine import raise_refusals

TEMPERATURE = 0.7  # of a vote for which none is given: at 0 all chains would be one


class MajorityVote:
    """The chains of one question, the ballot on them, and what is still to be asked.

    Chains are cast in the order of their seeds, whoever ends first: so the outcome, and how many it took, hang on the
    seeds alone. With `stops_early` those that cannot change it any more are ended.
    """

    def __init__(self, votes: Votes, stops_early: bool = True) -> None:
        self._stops_early = stops_early
        self.ballot = Tally(votes if stops_early else Votes(votes.maximum, votes.maximum))
        self.replies: dict[int, Reply] = {}  # by sample; those that have been cast
        self.asked = self.ballot.votes.minimum
        self._gatherers: dict[int, ReplyCollector] = {}
        self._held: dict[int, Reply] = {}  # that wait for a chain before them
        self._ended = 0

    def put(self, asked: GenerationRequest) -> GenerationRequest:
        """Return a question as it is to be asked for this vote."""
        return replace(asked, n=self.asked, logprobs=True)

    def take(self, event: TokenEvent | FinishEvent, replies: Replies) -> bool:
        """Take an event of one of the chains, and ask for more or less of them; True where the vote has moved on."""
        index, sample = event.sequence
        gatherer = self._gatherers.setdefault(sample, ReplyCollector())
        gatherer.emit(event)
        reply = gatherer.reply
        if reply is None:
            return False
        self._ended += 1
        if reply.finish.reason == "cancelled" or self.is_over:  # it ended by itself before it heard of that
            return False
        self._held[sample] = reply
        cast = self.ballot.total
        while not self.is_over and (next_one := self._held.pop(self.ballot.total, None)):
            self.replies[self.ballot.total] = next_one
            self.ballot = self.ballot.add(self.ballot.total, next_one.final_answer, next_one.probability)
        self._steer(index, replies)
        return self.ballot.total > cast

    @property
    def most(self) -> int:
        """The most chains there may be."""
        return self.ballot.votes.maximum

    @property
    def has_long_prompt(self) -> bool:
        """Whether so much of the prompt was evaluated, for one of the chains, that this should not be done again."""
        ended = (gatherer.reply for gatherer in self._gatherers.values())
        return self.is_over and any(reply.evaluated > LONG_PROMPT for reply in ended if reply)

    def has_slow_prefill(self, tokens: int) -> bool:
        """Return whether the first tokens of the prompt were evaluated for one of the chains, and so many take long."""
        ended = (gatherer.reply for gatherer in self._gatherers.values())
        return any(reply.has_slow_prefill(tokens) for reply in ended if reply)

    @property
    def running(self) -> int:
        """How many chains have not ended."""
        return self.asked - self._ended

    @property
    def is_over(self) -> bool:
        """Whether the vote has been taken, and not only been interrupted."""
        return self.ballot.total == self.most or (self._stops_early and self.ballot.is_decided)

    @property
    def tally_event(self) -> TallyEvent:
        """How the vote stands."""
        tally = tuple((count.answer, count.count) for count in self.ballot.counts)
        return TallyEvent(tally, self.ballot.total, self.running)

    @property
    def winner(self) -> Count | None:
        """The answer that won; None where no chain has come to one."""
        return self.ballot.winner

    @property
    def final_answer(self) -> str | None:
        """The answer that won, as most of its chains wrote it; None where no chain has come to one."""
        return self.winner.answer if self.winner else None

    @property
    def sample(self) -> ReplyCollector | None:
        """The chain to be shown: the most probable one of those that won, or of all where none has an answer."""
        likeliest = max(self.replies, key=lambda sample: self.replies[sample].probability, default=None)
        sample = likeliest if self.ballot.winning_sample is None else self.ballot.winning_sample
        return None if sample is None else self._gatherers[sample]

    @property
    def reply(self) -> Reply | None:
        """What that chain says."""
        return self.sample.reply if self.sample else None

    def _steer(self, index: int, replies: Replies) -> None:
        if self._stops_early and self.ballot.is_decided:
            if self.running:
                replies.abort(index)
        elif not self.running:  # in rounds, so that the outcome does not depend on when this is heard
            wanted = self.ballot.samples_to_start(0)
            self.asked += wanted
            replies.add_samples(index, wanted)


def vote(responder: Responder, asked: GenerationRequest, poll: MajorityVote) -> Generator[Event, None, None]:
    """Yield the events of a vote: those of its chains, and a TallyEvent whenever one has been cast."""
    yield from responder.load()
    with closing(responder.replies([responder.tokenize_request(poll.put(asked))])) as replies:
        for event in raise_refusals(replies):
            yield event
            if isinstance(event, (TokenEvent, FinishEvent)) and poll.take(event, replies):
                yield poll.tally_event


def require_sampling(settings: Settings) -> None:
    """Raise UsageError where all chains of a vote would be the same one."""
    if settings.temperature == 0:
        raise UsageError(
            "--votes samples several chains, and at temperature 0 all are the same",
            f"leave --temperature out ({TEMPERATURE} then), or give one above 0",
        )


def votes_object(poll: MajorityVote) -> dict[str, Any]:
    """Return what `--json` tells of a vote: every chain that has ended by itself, in the order of their seeds."""
    winner = poll.winner
    return {
        "samples": poll.ballot.total,
        "winner": winner and winner.answer,
        "tally": [{"answer": count.answer, "count": count.count} for count in poll.ballot.counts],
        "agreement": round(poll.ballot.agreement, 4),
        "chains": [
            {
                "seed": reply.finish.seed,
                "text": reply.text,
                "final_answer": reply.final_answer,
                "finish_reason": reply.finish.reason,
            }
            for _, reply in sorted(poll.replies.items())
        ],
    }
