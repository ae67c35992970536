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

VOTE_TEMPERATURE = 0.7  # of a vote for which none is given: at 0 all chains would be one


class MajorityVote:
    """The chains of one question, the ballot on them, and what is still to be asked.

    Chains are cast in the order of their seeds, whoever ends first: so the outcome, and how many it took, hang on the
    seeds alone. With `stops_early` those that cannot change it any more are ended.
    """

    def __init__(self, votes: Votes, stops_early: bool = True) -> None:
        self._stops_early = stops_early
        self.tally = Tally(votes if stops_early else Votes(votes.most, votes.most))
        self.replies: dict[int, Reply] = {}  # by sample; those that have been cast
        self.requested = self.tally.votes.least
        self._collectors: dict[int, ReplyCollector] = {}
        self._waiting: dict[int, Reply] = {}  # that wait for a chain before them
        self._ended = 0

    def with_samples(self, request: GenerationRequest) -> GenerationRequest:
        """Return a question as it is to be asked for this vote."""
        return replace(request, n=self.requested, logprobs=True)

    def add_event(self, event: TokenEvent | FinishEvent, replies: Replies) -> bool:
        """Take an event of one of the chains, and ask for more or less of them; True where the vote has moved on."""
        index, sample = event.sequence
        collector = self._collectors.setdefault(sample, ReplyCollector())
        collector.emit(event)
        reply = collector.reply
        if reply is None:
            return False
        self._ended += 1
        if reply.finish.reason == "cancelled" or self.is_over:  # it ended by itself before it heard of that
            return False
        self._waiting[sample] = reply
        finished = self.tally.samples
        while not self.is_over and (next_one := self._waiting.pop(self.tally.samples, None)):
            self.replies[self.tally.samples] = next_one
            self.tally = self.tally.add(self.tally.samples, next_one.final_answer, next_one.probability)
        self._steer(index, replies)
        return self.tally.samples > finished

    @property
    def max_samples(self) -> int:
        """The most chains there may be."""
        return self.tally.votes.most

    @property
    def has_long_prompt(self) -> bool:
        """Whether so much of the prompt was evaluated, for one of the chains, that this should not be done again."""
        ended = (gatherer.reply for gatherer in self._collectors.values())
        return self.is_over and any(reply.evaluated > LONG_PROMPT for reply in ended if reply)

    def has_slow_prefill(self, tokens: int) -> bool:
        """Return whether the first tokens of the prompt were evaluated for one of the chains, and so many take long."""
        ended = (gatherer.reply for gatherer in self._collectors.values())
        return any(reply.has_slow_prefill(tokens) for reply in ended if reply)

    @property
    def running(self) -> int:
        """How many chains have not ended."""
        return self.requested - self._ended

    @property
    def is_over(self) -> bool:
        """Whether the vote has been taken, and not only been interrupted."""
        return self.tally.samples == self.max_samples or (self._stops_early and self.tally.is_decided)

    @property
    def tally_event(self) -> TallyEvent:
        """How the vote stands."""
        tally = tuple((count.answer, count.count) for count in self.tally.counts)
        return TallyEvent(tally, self.tally.samples, self.running)

    @property
    def winner(self) -> Count | None:
        """The answer that won; None where no chain has come to one."""
        return self.tally.winner

    @property
    def final_answer(self) -> str | None:
        """The answer that won, as most of its chains wrote it; None where no chain has come to one."""
        return self.winner.answer if self.winner else None

    @property
    def best_sample(self) -> ReplyCollector | None:
        """The chain to be shown: the most probable one of those that won, or of all where none has an answer."""
        likeliest = max(self.replies, key=lambda sample: self.replies[sample].probability, default=None)
        sample = likeliest if self.tally.winning_sample is None else self.tally.winning_sample
        return None if sample is None else self._collectors[sample]

    @property
    def reply(self) -> Reply | None:
        """What that chain says."""
        return self.best_sample.reply if self.best_sample else None

    def _steer(self, index: int, replies: Replies) -> None:
        if self._stops_early and self.tally.is_decided:
            if self.running:
                replies.abort(index)
        elif not self.running:  # in rounds, so that the outcome does not depend on when this is heard
            wanted = self.tally.wanted(0)
            self.requested += wanted
            replies.add_samples(index, wanted)


def run_vote(responder: Responder, request: GenerationRequest, majority: MajorityVote) -> Generator[Event, None, None]:
    """Yield the events of a vote: those of its chains, and a TallyEvent whenever one has been cast."""
    yield from responder.load()
    with closing(responder.generate([responder.tokenize_request(majority.with_samples(request))])) as replies:
        for event in raise_refusals(replies):
            yield event
            if isinstance(event, (TokenEvent, FinishEvent)) and majority.add_event(event, replies):
                yield majority.tally_event


def require_sampling(settings: Settings) -> None:
    """Raise UsageError where all chains of a vote would be the same one."""
    if settings.temperature == 0:
        raise UsageError(
            "--votes samples several chains, and at temperature 0 all are the same",
            f"leave --temperature out ({VOTE_TEMPERATURE} then), or give one above 0",
        )


def votes_object(vote: MajorityVote) -> dict[str, Any]:
    """Return what `--json` tells of a vote: every chain that has ended by itself, in the order of their seeds."""
    winner = vote.winner
    return {
        "samples": vote.tally.samples,
        "winner": winner and winner.answer,
        "tally": [{"answer": count.answer, "count": count.count} for count in vote.tally.counts],
        "agreement": round(vote.tally.agreement, 4),
        "chains": [
            {
                "seed": reply.finish.seed,
                "text": reply.text,
                "final_answer": reply.final_answer,
                "finish_reason": reply.finish.reason,
            }
            for _, reply in sorted(vote.replies.items())
        ],
    }
