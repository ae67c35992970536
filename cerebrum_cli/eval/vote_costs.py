"""Accuracy of votes of a run with programs against what they cost: votes of samples, and of samples with programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from cerebrum_cli.eval.estimates import estimate, mean, winner
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import (
    MAJORITY,
    WITH_PROGRAMS,
    Checked,
    Report,
    VoteCost,
    group_by_question,
    majority_estimates,
    mean_of,
    votes_of,
)


def with_votes(report: Report, run: Sequence[Sample]) -> Report:
    """The report of a run with programs, with the votes on its complete questions."""
    complete = [question for question in group_by_question(run).values() if len(question) == report.samples]
    if not complete:
        return report
    checks = by_check(complete)
    return replace(
        report,
        votes=tuple(vote_costs(complete)),
        checked=checks.get(True),
        unchecked=checks.get(False),
        no_program=mean([sample.program is None for sample in run]),
    )


def vote_costs(questions: Sequence[Sequence[Sample]]) -> list[VoteCost]:
    """The votes on questions of as many samples each, for every k of `vote_sizes`."""
    samples = list(chain.from_iterable(questions))
    tokens = mean_of(samples, "completion_tokens")
    program_tokens = mean_of(samples, "program_tokens")
    costs = []
    for k, accuracy in majority_estimates(questions, with_programs=False).items():
        costs.append(VoteCost(MAJORITY, k, accuracy, k * tokens))
    for k, accuracy in majority_estimates(questions, with_programs=True).items():
        costs.append(VoteCost(WITH_PROGRAMS, k, accuracy, k * (tokens + program_tokens)))
    return costs


def by_check(questions: Sequence[Sequence[Sample]]) -> dict[bool, Checked]:
    """The votes of all samples by whether both a reply and a program came to the answer; without those of no answer."""
    scores = defaultdict[bool, list[float]](list)
    clusters = defaultdict[bool, list[object]](list)
    for question in questions:
        votes = votes_of(question)
        won = winner(votes)
        if won is None:
            continue
        is_stated = any(vote.form == won.form for vote in votes)
        is_computed = any(vote.computed == won.form for vote in votes)
        is_checked = is_stated and is_computed
        scores[is_checked].append(won.correct)
        clusters[is_checked].append(question[0].cluster_key)
    return {key: Checked(len(right), estimate(right, clusters[key])) for key, right in scores.items()}
