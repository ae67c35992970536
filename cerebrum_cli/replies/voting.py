"""Sample several replies to one question, and take the majority of their final answers."""

from __future__ import annotations

from dataclasses import replace

from cerebrum_cli.core.events import (
    AlternativesEvent,
    FinishEvent,
    NoticeEvent,
    RefusedEvent,
    SequenceId,
    TallyEvent,
    TokenEvent,
)
from cerebrum_cli.core.votes import Votes
from cerebrum_cli.engine.engine import Completions
from cerebrum_cli.replies.reply import Reply, mean_probability
from cerebrum_cli.replies.tally import Tally

SampleEvent = TokenEvent | FinishEvent | RefusedEvent | AlternativesEvent
NOT_CHECKED = "no reply and program agree on an answer"
MAJORITY = 0.5
MORE_SAMPLES = "take more samples, or ask a more specific question"  # hint for a vote without a clear winner


class MajorityVote:
    """A vote on the samples of one request: their replies, the tally, and how many samples to request.

    Samples are counted in the order of their seeds, whichever finishes first: the outcome and the number of samples
    depend on the seeds alone. Samples that can no longer change the outcome are stopped. If answers are tied in the
    end, their samples are evaluated again to compare their probabilities: to know those of all samples, each step would
    need a softmax over the whole vocabulary.
    """

    def __init__(self, votes: Votes) -> None:
        self.index = 0  # of the question among several
        self.tally = Tally(votes)
        self.replies: dict[int, Reply] = {}  # of the samples in the tally
        self.requested = votes.minimum
        self.finished_samples: list[Reply] = []  # also those that were not counted
        self.refusals: list[RefusedEvent] = []  # of the samples in the tally
        self._waiting: dict[int, Reply | RefusedEvent] = {}  # finished, but an earlier sample has not
        self._finished = 0
        self._logprobs: dict[int, list[float]] = {}  # of the tokens of tied samples
        self.inspected: set[int] = set()  # of these, those that are being evaluated again

    def add(self, sequence: SequenceId, outcome: Reply | RefusedEvent, completions: Completions) -> bool:
        """Add a sample that has finished; start or stop others; return whether the tally changed."""
        index, sample, _ = sequence
        self._finished += 1
        is_cancelled = isinstance(outcome, Reply) and outcome.finish.reason == "cancelled"
        if isinstance(outcome, Reply):
            self.finished_samples.append(outcome)
        if is_cancelled or self.is_over:  # it may finish before the abort reaches it
            return False
        self._waiting[sample] = outcome
        before = self.tally.samples
        while not self.is_over and (ready := self._waiting.pop(self.tally.samples, None)):
            if isinstance(ready, RefusedEvent):  # a sample without an answer
                self.refusals.append(ready)
                self.tally = self.tally.add(None)
            else:
                self.replies[self.tally.samples] = ready
                self.tally = self.tally.add(ready.vote, ready.probability, ready.is_answer_stated, ready.program)
        if self.is_over:
            completions.abort(index)
            self._inspect_tied(index, completions)
        elif not self.running and (count := self.tally.missing_samples):
            # in rounds: the outcome must not depend on when samples finish
            self.requested += count
            completions.add_samples(index, count)
        return self.tally.samples > before

    def _inspect_tied(self, index: int, completions: Completions) -> None:
        tied = {sample: tuple(self.replies[sample].sampled) for sample in self.tally.tied_samples}
        if tied and completions.inspect(index, tied):
            self._logprobs = {sample: [] for sample in tied}
            self.inspected = set(tied)

    def add_inspected(self, event: SampleEvent) -> bool:
        """Process an event of a sample that is evaluated again; return whether the tie is broken."""
        sample = event.sequence.sample
        if isinstance(event, AlternativesEvent):
            if not self.replies[sample].is_forced(event.position):
                self._logprobs[sample].append(event.given.logprob)
        elif isinstance(event, FinishEvent) and event.reason != "cancelled":
            self.inspected.remove(sample)
            if self.is_over:
                probabilities = {each: mean_probability(logprobs) for each, logprobs in self._logprobs.items()}
                self.tally = self.tally.with_probabilities(probabilities)
        return self.is_over

    @property
    def bounds(self) -> tuple[int, int]:
        return self.tally.votes.minimum, self.tally.votes.maximum

    @property
    def running(self) -> int:
        return self.requested - self._finished

    @property
    def is_over(self) -> bool:
        """Whether the vote is complete; False after an interrupt."""
        return self.tally.is_decided and not self.inspected

    @property
    def tally_event(self) -> TallyEvent:
        counts = tuple((count.answer, count.count) for count in self.tally.counts)
        return TallyEvent(counts, self.tally.samples, *self.bounds)

    @property
    def final_answer(self) -> str | None:
        """The winning answer as most of its samples wrote it; None while no sample has a final answer."""
        return self.tally.winner.answer if self.tally.winner else None

    @property
    def reply(self) -> Reply | None:
        """The sample to show: the first one with the winning answer; without an answer, of all; None before any.

        If only programs come to that answer, it is the first with such a program.
        """
        if not self.replies:
            return None
        sample = self.tally.winning_sample
        if sample is None:
            sample = min(self.replies)
        return self.replies[sample]

    @property
    def text(self) -> str:
        """The text of the sample to show; if only its program comes to the winning answer, also that and its output."""
        reply, leader = self.reply, self.tally.leader
        if reply is None:
            return ""
        if reply.program is None or leader is None or leader.replies:
            return reply.text
        return f"{reply.text}\n\n```python\n{reply.program.code.strip()}\n```\n\n{reply.program.output}"

    @property
    def notice(self) -> NoticeEvent | None:
        """A notice that no answer has won, or that several are tied."""
        tally, leader = self.tally, self.tally.leader
        if leader is None:
            return None
        votes, number = tally.votes, tally.samples
        if tally.winner:
            if not tally.tied:
                return None
            problem = f"{len(tally.tied)} answers are tied with {leader.count} of {number} votes each"
        elif leader.satisfies(replace(votes, needed=1)):
            problem = f"the leading answer has {leader.count} of {number} votes, fewer than --min-votes {votes.needed}"
        elif leader.is_checked:
            needed = f"the {votes.needed_checked} programs that min_checked requires"
            problem = f"the leading answer has {leader.programs} of {needed}"
        else:
            problem = f"{NOT_CHECKED} (min_checked={votes.needed_checked})"
        return NoticeEvent(problem, MORE_SAMPLES)

    @property
    def doubt(self) -> NoticeEvent | None:
        """A notice that the answer that has won is not checked by a program, or has no majority."""
        tally, leader = self.tally, self.tally.leader
        if leader is None or leader.is_checked:
            return None
        if tally.votes.checks:
            return NoticeEvent(f"{NOT_CHECKED}, so the winner is not checked", MORE_SAMPLES)
        if tally.agreement >= MAJORITY:
            return None
        return NoticeEvent(f"the winner has only {leader.count} of {tally.samples} votes", MORE_SAMPLES)
