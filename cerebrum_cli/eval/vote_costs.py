"""Accuracy of votes against what they cost: of one greedy reply, of samples, and of samples with programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from cerebrum_cli.eval.comparison import paired_interval
from cerebrum_cli.eval.estimates import Estimate, estimate, majorities, mean, winner
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import (
    GREEDY,
    MAJORITY,
    WITH_PROGRAMS,
    Checked,
    VoteCost,
    accuracy_of,
    clusters_of,
    votes_of,
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
    votes = {
        MAJORITY: majorities([votes_of(question, with_programs=False) for question in questions]),
        WITH_PROGRAMS: majorities([votes_of(question) for question in questions]),
    }
    plain = {k * tokens[MAJORITY]: shares for k, shares in votes[MAJORITY].items()}
    costs = list[VoteCost]()
    if greedy:
        accuracy = estimate([accuracy_of(question) for question in greedy], clusters)
        cost = mean([sample.completion_tokens for question in greedy for sample in question])
        costs.append(VoteCost(GREEDY, 1, accuracy, cost, per_token and per_token * cost))
    for kind, sizes in votes.items():
        for k, shares in sizes.items():
            cost, gain = k * tokens[kind], None
            if kind == WITH_PROGRAMS:
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
            is_checked = all(
                won.form in forms for forms in zip(*((vote.form, vote.computed) for vote in votes), strict=True)
            )
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
