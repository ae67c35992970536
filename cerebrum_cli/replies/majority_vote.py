"""A vote on several replies to one question, and rows, of which many are answered together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cerebrum_cli.core.ask import SHARE_PLACES, Ask, Votes
from cerebrum_cli.core.errors import CerebrumError, NoAnswer
from cerebrum_cli.core.events import FinishEvent, NoticeEvent, RefusedEvent, SequenceId, TallyEvent, TokenEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.replies.reply import Reply

if TYPE_CHECKING:
    from cerebrum_cli.engine.engine import Completions

ReplyEvent = TokenEvent | FinishEvent | RefusedEvent
NOT_CHECKED = "no reply and program agree on an answer"
MAJORITY = 0.5
MORE_SAMPLES = "take more samples, or ask a more specific question"  # hint for a vote without a clear winner


class MajorityVote:
    """A vote on the samples of one request: their replies, the tally, and how many samples to request.

    Samples are counted in the order of their seeds, whichever finishes first: the outcome and the number of samples
    depend on the seeds alone. Samples that can no longer change the outcome are stopped.
    """

    def __init__(self, votes: Votes) -> None:
        from cerebrum_cli.replies.tally import Tally  # most replies need no votes

        self.index = 0  # of the question among several
        self.tally = Tally(votes)
        self.replies: dict[int, Reply] = {}  # of the samples in the tally
        self.requested = votes.minimum
        self.finished_samples: list[Reply] = []  # also those that were not counted
        self.refusals: list[RefusedEvent] = []  # of the samples in the tally
        self._waiting: dict[int, Reply | RefusedEvent] = {}  # finished, but an earlier sample has not
        self._finished = 0

    def add(self, sequence: SequenceId, outcome: Reply | RefusedEvent, completions: Completions) -> bool:
        """Add a sample that has finished; start or stop others; return whether the tally changed."""
        index, sample, _ = sequence
        self._finished += 1
        if isinstance(outcome, Reply):
            self.finished_samples.append(outcome)
            if outcome.finish.reason == "cancelled":
                return False
        if self.is_over:  # it may finish before the abort reaches it
            return False
        self._waiting[sample] = outcome
        before = self.tally.samples
        while not self.is_over and (ready := self._waiting.pop(self.tally.samples, None)):
            self._count_sample(ready)
        if self.is_over:
            completions.abort(index)
        elif not self.running and (count := self.tally.missing_samples):
            # in rounds: the outcome must not depend on when samples finish
            self.requested += count
            completions.add_samples(index, count)
        return self.tally.samples > before

    def _count_sample(self, outcome: Reply | RefusedEvent) -> None:
        """Count the next sample; one that was refused has no answer."""
        if isinstance(outcome, RefusedEvent):
            self.refusals.append(outcome)
            self.tally = self.tally.add(None)
            return
        self.replies[self.tally.samples] = outcome
        answer, is_stated = outcome.vote, outcome.is_answer_stated
        number = None if answer is None or is_stated else outcome.number
        self.tally = self.tally.add(answer, is_stated, outcome.program, number)

    @property
    def bounds(self) -> tuple[int, int]:
        return self.tally.votes.minimum, self.tally.votes.maximum

    @property
    def running(self) -> int:
        return self.requested - self._finished

    @property
    def is_over(self) -> bool:
        """Whether the vote is complete; False after an interrupt."""
        return self.tally.is_decided

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
    def unsupported_programs(self) -> int:
        """The number of programs that Monty cannot run, and that do not vote therefore."""
        programs = (reply.program for reply in self.replies.values())
        return sum(program is not None and program.is_unsupported for program in programs)

    @property
    def mismatch(self) -> NoAnswer | None:
        """Why the sample to show does not match its schema; None if it does."""
        return self.reply.mismatch if self.reply else None

    @property
    def text(self) -> str:
        """The text of the sample to show; if only its program comes to the winning answer, also that and its output."""
        reply, winner = self.reply, self.tally.winner
        if reply is None:
            return ""
        if reply.program is None or winner is None or winner.replies:
            return reply.text
        return f"{reply.text}\n\n```python\n{reply.program.code.strip()}\n```\n\n{reply.program.output}"

    @property
    def notice(self) -> NoticeEvent | None:
        """A notice that several answers are tied."""
        tied = self.tally.tied
        if not tied:
            return None
        votes = f"{tied[0].count} of {self.tally.samples} votes each"
        return NoticeEvent(f"{len(tied)} answers are tied with {votes}", MORE_SAMPLES)

    @property
    def doubt(self) -> NoticeEvent | None:
        """A notice that the answer that has won is not checked by a program, or has no majority."""
        tally, winner = self.tally, self.tally.winner
        if winner is None or winner.is_checked:
            return None
        if tally.votes.checks:
            return NoticeEvent(f"{NOT_CHECKED}, so the winner is not checked", MORE_SAMPLES)
        if tally.agreement >= MAJORITY:
            return None
        return NoticeEvent(f"the winner has only {winner.count} of {tally.samples} votes", MORE_SAMPLES)

    @property
    def object(self) -> JsonDict:
        """The vote as `--json` prints it; its programs only if they check it."""
        tally = self.tally
        counts = [{"answer": count.answer, "count": count.count} for count in tally.counts]
        samples = []
        for number, reply in sorted(self.replies.items()):
            finish = reply.finish
            sample = {"seed": finish.seed, "text": reply.text, "final_answer": reply.vote}
            sample["finish_reason"] = finish.reason
            if tally.votes.checks:
                sample |= reply.program_object | {"checked": tally.answers[number].is_checked}
            samples.append(sample)
        values = {
            "sample_count": tally.samples,
            "winner": self.final_answer,
            "tie": bool(tally.tied),
            "tally": counts,
            "agreement": round(tally.agreement, SHARE_PLACES),
        }
        if tally.votes.checks:
            values["checked"] = tally.winner is not None and tally.winner.is_checked
            for object, count in zip(counts, tally.counts, strict=True):
                object |= {"replies": count.replies, "programs": count.programs}
        return {**values, "samples": samples}


class Continuation(NamedTuple):
    """A text without a prompt format, by its last tokens, of which `n` continuations are sampled."""

    text: str
    tokens: TokenIds
    settings: Settings
    n: int


@frozen
class Row:
    """What is asked, and how it is answered: by the samples of the request, or by the vote on them.

    `key` is for the caller. A row that cannot be asked has an error in place of a request. If it `checks`, or its vote
    does, the model is asked for a program after each sample.
    """

    key: Any
    request: Ask | Continuation | CerebrumError
    vote: MajorityVote | None = None
    checks: bool = False


class Outcome(NamedTuple):
    """A sample of a row has finished, or the whole row, by a vote or a refusal; a cancelled reply is one, too."""

    row: Row
    sample: int
    result: Reply | MajorityVote | RefusedEvent

    @property
    def error(self) -> CerebrumError | None:
        """Why there is no answer, or why it does not match its schema; None if it is good."""
        if isinstance(self.result, RefusedEvent):
            return self.result.error
        if isinstance(self.result, MajorityVote) and self.result.reply is None:
            return self.result.refusals[0].error
        return self.result.mismatch
