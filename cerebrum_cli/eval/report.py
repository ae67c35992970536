"""The report of a run: accuracy, majority votes and pass@k with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from math import fsum

from cerebrum_cli.answers.equality import equals_reference
from cerebrum_cli.core.ask import Votes
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.eval.estimates import Estimate, QuestionVotes, estimate, majorities, mean, pass_at, vote_sizes
from cerebrum_cli.eval.questions import Basis, QuestionId, Sample
from cerebrum_cli.replies.majority_vote import MajorityVote

MAJORITY, WITH_PROGRAMS = "maj", "checked"  # kinds of votes
Samples = Sequence[Sample]  # of a run, or of one question
SamplesByQuestion = Sequence[Samples]


@frozen
class VoteCost:
    """The accuracy of a kind of vote of some `samples`, and its mean number of tokens a question."""

    kind: str
    samples: int
    accuracy: Estimate
    tokens: float


@frozen
class Checked:
    """How many questions have an answer that a reply and a program came to, or have not, and how often it is right."""

    n: int
    accuracy: Estimate


@frozen
class Report:
    """Estimates of a run of up to `samples` samples a question.

    `n` is the number of questions with a sample, of which `complete` have all. A question's samples are averaged first:
    `accuracy` is the mean over the `n` questions. `maj` and `pass_at` are over the complete ones, for each k of
    `vote_sizes`; empty if there are none. Every sample is correct, or wrong, or has no answer: `cut_off` is the share
    of those that reached a limit first, `no_answer` of the others. `stated` and `guessed` are the shares by how answers
    were found, None where none is extracted, and `without_guesses` is the accuracy if guessed ones are wrong. `chance`
    is the accuracy of guessing choices, if there are any, `with_skipped` the accuracy if skipped samples count as
    wrong, if there are any. Of a run with programs, `votes` are the ways to vote, `checked` and `unchecked` the votes
    of all samples, and `no_program` the share of samples without a program, such as truncated ones. `unsupported` is
    the share of samples whose programs need a part of Python that Monty lacks.
    """

    task: str
    model: str
    n: int
    complete: int
    samples: int
    accuracy: Estimate
    maj: Mapping[int, Estimate]
    pass_at: Mapping[int, Estimate]
    no_answer: float
    cut_off: float
    tokens_per_answer: float
    seconds_per_question: float | None
    stated: float | None
    guessed: float | None
    chance: float | None
    without_guesses: Estimate
    with_skipped: Estimate | None = None
    votes: tuple[VoteCost, ...] = ()
    checked: Checked | None = None
    unchecked: Checked | None = None
    no_program: float = 0.0
    unsupported: float = 0.0


def summarize(task: str, run: Samples, samples: int, seconds: float | None, checks: bool = False) -> Report:
    """Summarize a run of one model, which may be in progress: one or more samples, in any order.

    `samples` is how many of them each question gets, `seconds` the time that the whole run took, if it is known. If the
    run `checks`, programs vote, too.
    """
    questions = list(group_by_question(run).values())
    complete = [question for question in questions if len(question) == samples]
    report = Report(
        task=task,
        model=run[0].model,
        n=len(questions),
        complete=len(complete),
        samples=samples,
        accuracy=mean_accuracy(questions),
        maj=majority_estimates(complete, with_programs=False),
        pass_at=_pass_at_estimates(complete, samples),
        no_answer=mean_of(run, "is_unanswered"),
        cut_off=mean_of(run, "is_cut_off"),
        tokens_per_answer=mean_of(run, "completion_tokens"),
        seconds_per_question=seconds and seconds / len(questions),
        stated=_share_with_basis(run, "stated"),
        guessed=_share_with_basis(run, "guessed"),
        chance=_accuracy_of_guessing(questions),
        without_guesses=mean_accuracy(questions, "is_correct_without_guess"),
        unsupported=mean([sample.program_unsupported for sample in run]),
    )
    if not checks or not complete:
        return report
    checked = by_check(complete)
    return replace(
        report,
        votes=tuple(vote_costs(complete)),
        checked=checked.get(True),
        unchecked=checked.get(False),
        no_program=mean([sample.program is None for sample in run]),
    )


def majority_estimates(questions: SamplesByQuestion, with_programs: bool) -> dict[int, Estimate]:
    """maj@k of questions with as many samples each."""
    clusters = clusters_of(questions)
    shares = majorities([votes_of(question, with_programs) for question in questions])
    return {k: estimate(scores, clusters) for k, scores in shares.items()}


def vote_costs(questions: SamplesByQuestion) -> list[VoteCost]:
    """Votes of samples, and of samples with programs, on questions of as many samples each."""
    samples = list(chain.from_iterable(questions))
    tokens = mean_of(samples, "completion_tokens")
    costs = []
    for kind in (MAJORITY, WITH_PROGRAMS):
        if kind == WITH_PROGRAMS:
            tokens += mean_of(samples, "program_tokens")
        for k, accuracy in majority_estimates(questions, kind == WITH_PROGRAMS).items():
            costs.append(VoteCost(kind, k, accuracy, k * tokens))
    return costs


def by_check(questions: SamplesByQuestion) -> dict[bool, Checked]:
    """The votes of all samples by whether both a reply and a program came to the answer; without those of no answer."""
    scores = defaultdict(list)
    clusters = defaultdict(list)
    for question in questions:
        votes = votes_of(question)
        if leader := votes.vote.tally.winner:
            scores[leader.is_checked].append(votes.correct[leader.form])
            clusters[leader.is_checked].append(question[0].cluster_key)
    return {key: Checked(len(right), estimate(right, clusters[key])) for key, right in scores.items()}


def _pass_at_estimates(questions: SamplesByQuestion, samples: int) -> dict[int, Estimate]:
    """pass@k of questions with so many samples each."""
    if not questions:
        return {}
    clusters = clusters_of(questions)
    correct = [sum(sample.correct for sample in question) for question in questions]
    return {k: estimate([pass_at(samples, count, k) for count in correct], clusters) for k in vote_sizes(samples)}


def _share_with_basis(run: Samples, basis: Basis) -> float | None:
    if not any(sample.basis for sample in run):
        return None
    return mean([sample.basis == basis for sample in run])


def _accuracy_of_guessing(questions: SamplesByQuestion) -> float | None:
    counts = [len(question[0].choices) for question in questions]
    if not any(counts):
        return None
    return fsum(1 / count for count in counts if count) / len(counts)


def group_by_question(run: Iterable[Sample]) -> dict[QuestionId, list[Sample]]:
    questions: dict[QuestionId, list[Sample]] = {}
    for sample in sorted(run, key=lambda sample: sample.sample):
        questions.setdefault(sample.id, []).append(sample)
    return questions


def mean_accuracy(questions: SamplesByQuestion, attribute: str = "correct") -> Estimate:
    return estimate([mean_of(question, attribute) for question in questions], clusters_of(questions))


def mean_of(samples: Samples, attribute: str) -> float:
    return mean([getattr(sample, attribute) for sample in samples])


def votes_of(question: Samples, with_programs: bool = True, votes: Votes | None = None) -> QuestionVotes:
    """A question's samples as votes; of several, one that ended in a repetition votes for nothing.

    Their programs vote, too, unless it is without them. Samples of one form should all be correct or all wrong; if they
    are not, the first of them decides.
    """
    vote = MajorityVote(votes or Votes(1, len(question)))
    correct: dict[str | None, bool] = {None: False}
    for sample in question:
        answer = sample.answer
        if sample.finish_reason == "repetition" and len(question) > 1:
            answer = None
        output = sample.program_output if with_programs else None
        vote.count(answer, sample.basis == "stated", output)
        correct.setdefault(vote.tally.answers[-1].form, sample.correct)
    for sample, counted in zip(question, vote.tally.answers, strict=True):
        if counted.computed_form not in correct:
            is_equal = equals_reference(counted.computed, sample.reference)
            correct[counted.computed_form] = is_equal or vote.comes_to(sample.program_output, sample.reference)
    return QuestionVotes(vote, correct)


def clusters_of(questions: SamplesByQuestion) -> list[object]:
    return [question[0].cluster_key for question in questions]


def report_object(report: Report) -> JsonDict:
    whole = asdict(report)
    object = {key: whole[key] for key in ("task", "model", "n", "samples")}
    object["accuracy"], object["interval"] = whole["accuracy"].values()
    keys = ["maj", "pass_at", "no_answer", "cut_off", "tokens_per_answer", "seconds_per_question"]
    keys += [key for key in ("chance", "stated", "guessed") if whole[key] is not None]
    object |= {key: whole[key] for key in keys}
    if report.stated is not None:
        object["accuracy_without_guesses"], object["interval_without_guesses"] = whole["without_guesses"].values()
    if report.with_skipped:
        object["accuracy_with_skipped"], object["interval_with_skipped"] = whole["with_skipped"].values()
    if report.votes:
        object |= {key: whole[key] for key in ("votes", "checked", "unchecked", "no_program")}
    if report.unsupported:
        object["unsupported"] = report.unsupported
    return object
