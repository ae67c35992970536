"""Accuracy of votes against what they cost: of one greedy reply, of samples, and of samples with programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from cerebrum_cli.eval.comparison import paired_interval
from cerebrum_cli.eval.estimates import Estimate, estimate, majorities, mean, winner
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import (
    GREEDY,
    MAJORITY,
    WITH_PROGRAMS,
    Checked,
    Report,
    VoteCost,
    accuracy_of,
    clusters_of,
    group_by_question,
    votes_of,
)


def with_votes(report: Report, run: Sequence[Sample], greedy: Sequence[Sample]) -> Report:
    """The report of a run with programs, with the votes on its complete questions.

    The `greedy` samples are reported if there is one of each of these questions.
    """
    complete = [question for question in group_by_question(run).values() if len(question) == report.samples]
    if not complete:
        return report
    by_id, checks = group_by_question(greedy), by_check(complete)
    others = [by_id.get(question[0].id, []) for question in complete]
    return replace(
        report,
        votes=tuple(vote_costs(complete, others if all(others) else [], report.seconds_per_question)),
        checked=checks.get(True),
        unchecked=checks.get(False),
        no_program=mean([sample.program is None for sample in run]),
    )


def vote_costs(
    questions: Sequence[Sequence[Sample]], greedy: Sequence[Sequence[Sample]], seconds: float | None
) -> list[VoteCost]:
    """The votes on questions of as many samples each, for every k of `vote_sizes`.

    `greedy` has the replies to the same questions at temperature 0, in the same order, or nothing. The `seconds` that a
    question took are divided in proportion to tokens.
    """
    clusters, count = clusters_of(questions), len(questions[0])
    samples = [sample for question in questions for sample in question]
    tokens = {
        MAJORITY: mean([sample.completion_tokens for sample in samples]),
        WITH_PROGRAMS: mean([sample.completion_tokens + sample.program_tokens for sample in samples]),
    }
    per_token = None if seconds is None else seconds / (count * max(1.0, tokens[WITH_PROGRAMS]))
    votes = {kind: majorities([votes_of(question, kind == WITH_PROGRAMS) for question in questions]) for kind in tokens}
    plain = {k * tokens[MAJORITY]: shares for k, shares in votes[MAJORITY].items()}
    costs = list[VoteCost]()
    if greedy:
        accuracy = estimate([accuracy_of(question) for question in greedy], clusters)
        cost = mean([sample.completion_tokens for question in greedy for sample in question])
        costs.append(VoteCost(GREEDY, 1, accuracy, cost, per_token and per_token * cost))
    for kind, sizes in votes.items():
        for k, shares in sizes.items():
            cost, gain = k * tokens[kind], None
            if kind == WITH_PROGRAMS and cost <= max(plain):
                gains = [here - there for here, there in zip(shares, at_tokens(plain, cost), strict=True)]
                gain = Estimate(mean(gains), paired_interval(gains, clusters))
            costs.append(VoteCost(kind, k, estimate(shares, clusters), cost, per_token and per_token * cost, gain))
    return costs


def by_check(questions: Sequence[Sequence[Sample]]) -> dict[bool, Checked]:
    """The votes of all samples by whether both a reply and a program came to the answer; without those of no answer."""
    right: dict[bool, list[float]] = {}
    clusters: dict[bool, list[object]] = {}
    for question, cluster in zip(questions, clusters_of(questions) or range(len(questions)), strict=True):
        votes = votes_of(question)
        if won := winner(votes):
            is_checked = won.form in {vote.form for vote in votes} & {vote.computed for vote in votes}
            right.setdefault(is_checked, []).append(won.correct)
            clusters.setdefault(is_checked, []).append(cluster)
    return {key: Checked(len(scores), estimate(scores, clusters[key])) for key, scores in right.items()}


def at_tokens(votes: Mapping[float, Sequence[float]], tokens: float) -> Sequence[float]:
    """Accuracies of the questions at a number of tokens: between those of two votes by their tokens, or of the nearest.

    The votes are in the order of their tokens.
    """
    for (less, before), (more, after) in pairwise(votes.items()):
        if less <= tokens <= more:
            share = (tokens - less) / (more - less) if more > less else 0.0
            return [(1 - share) * low + share * high for low, high in zip(before, after, strict=True)]
    return votes[min(votes) if tokens < min(votes) else max(votes)]
