"""Calibrate the votes of a run: how likely is the winner of a vote to be right, by its share of the samples?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import format_count
from cerebrum_cli.core.votes import SHARE_PLACES, Votes
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import group_by_question, votes_of
from cerebrum_cli.terminal.tables import print_table
from cerebrum_cli.trust.calibration import CONFIDENCE, LabelledVote, calibrate_votes
from cerebrum_cli.trust.stored import StoredCalibrations, key_of

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.prepared import PreparedEvaluation


def calibrate_run(
    app: App, name: str, prepared: PreparedEvaluation, samples: Sequence[Sample], template: str | None
) -> None:
    """Keep the votes of a run under a name, and print the share decided by wanted error. Raises UsageError."""
    evaluation = prepared.evaluation
    votes = Votes(evaluation.samples, evaluation.samples, checks=evaluation.checks)
    complete = [group for group in group_by_question(samples).values() if len(group) == evaluation.samples]
    if not complete:
        raise UsageError("no question has all samples", "run it again to take the others")
    fingerprint = prepared.source.fingerprint(evaluation.grammar) | {"votes": str(votes), "template": template}
    rows = [labelled_vote(question, votes) for question in complete]
    calibration = calibrate_votes(rows, key_of(fingerprint), date.today().isoformat())
    StoredCalibrations.of_user(app.data_directory).save(name, calibration)
    app.streams.answer("\n")
    shares = [
        (f"{error:.0%}", "none" if share is None else f"{share:.2f}")
        for error, share in calibration.shares_decided().items()
    ]
    print_table(app.streams, ("wanted error", f"share decided, with {CONFIDENCE:.0%} confidence"), shares)
    app.streams.report(f"calibration {name} saved: {format_count(len(rows), 'question')}")


def labelled_vote(question: Sequence[Sample], votes: Votes) -> LabelledVote:
    """The share that the winner of a question's vote has when that would end, and whether it is right."""
    for number in range(1, len(question) + 1):
        counted = votes_of(question[:number], votes.checks, votes)
        if counted.vote.tally.is_decided:
            break
    tally = counted.vote.tally
    return LabelledVote(
        round(tally.agreement, SHARE_PLACES), tally.winner is not None and counted.correct[tally.winner.form]
    )
