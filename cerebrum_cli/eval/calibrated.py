"""What the votes of a run can promise: which questions could be decided by the share of the winner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cerebrum_cli.core.ask import SHARE_PLACES, Votes
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.eval.report import Samples, group_by_question, votes_of
from cerebrum_cli.eval.stored_runs import CHECK, Run, report_of
from cerebrum_cli.terminal.tables import print_table
from cerebrum_cli.trust.calibration import (
    CONFIDENCE,
    CalibrationKey,
    LabelledVote,
    Promises,
    calibrate_votes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cerebrum_cli.terminal.streams import Streams


@frozen
class VoteDetails:
    """What can be promised if the questions of a run calibrate its votes."""

    run: Run
    samples: Samples
    promised: Promises

    @property
    def object(self) -> JsonDict:
        return {"share_promised": {} if self.promised.are_none else self.promised.object}

    def print(self, streams: Streams) -> None:
        """Print what can be promised, if anything."""
        if self.promised.are_none:
            return
        streams.answer("\n")
        rows = [(f"{error:.0%}", share) for error, share in self.promised.texts.items()]
        print_table(streams, ("wanted error", f"share decided, with {CONFIDENCE:.0%} confidence"), rows)

    def draw(self) -> Figure:
        from cerebrum_cli.eval.plot import draw_report

        return draw_report(report_of(self.run, self.samples), None if self.promised.are_none else self.promised)

    def compare(self, other: VoteDetails, names: Sequence[str]) -> str:
        """How many questions two runs would decide at one error; nothing if neither can promise anything."""
        if self.promised.are_none and other.promised.are_none:
            return ""
        return self.promised.compare(other.promised, names)


def vote_details(run: Run, samples: Samples) -> VoteDetails | None:
    """What the votes on the questions with all samples can promise; None without such questions."""
    most = run.samples_per_question
    if most == 1 or run.match == "code":  # programs are not put to a vote
        return None
    rows = labelled_votes(samples, Votes(most, most, checks=CHECK in run.fingerprint))
    if not rows:
        return None
    promised = calibrate_votes(rows, CalibrationKey("", "", (), ""), "").promises
    return VoteDetails(run, samples, promised)


def labelled_votes(samples: Samples, votes: Votes) -> list[LabelledVote]:
    """The votes on the questions that have all samples."""
    questions = group_by_question(samples).values()
    return [labelled_vote(question, votes) for question in questions if len(question) == votes.maximum]


def labelled_vote(question: Samples, votes: Votes) -> LabelledVote:
    """The share that the winner of a question's vote has when that would end, and whether it is right."""
    for number in range(1, len(question) + 1):
        counted = votes_of(question[:number], votes.checks, votes)
        if counted.vote.tally.is_decided:
            break
    tally = counted.vote.tally
    return LabelledVote(
        round(tally.agreement, SHARE_PLACES), tally.winner is not None and counted.correct[tally.winner.form]
    )
