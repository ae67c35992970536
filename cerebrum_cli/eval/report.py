"""The score of a run while it is running, and its report: accuracy, majority votes and pass@k with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from cerebrum_cli.answers.canonical import canonical, equals_reference
from cerebrum_cli.core.row_events import EvalProgress
from cerebrum_cli.eval.estimates import Clusters, Estimate, Vote, estimate, majorities, mean, pass_at, vote_sizes
from cerebrum_cli.eval.questions import QuestionId, Sample
from cerebrum_cli.replies.tally import Program, comes_to

GREEDY, MAJORITY, WITH_PROGRAMS = "greedy", "maj", "checked"  # kinds of votes
_canonical = lru_cache(maxsize=10_000)(canonical)  # samples that vote state few different answers


class RunningScore:
    """Counts samples as they are scored; a question is finished once all its samples are there.

    It has no score if one of them was skipped.
    """

    def __init__(self, questions: int, samples: int) -> None:
        self.all_questions = questions
        self.done = self.skipped = self.questions = 0
        self._samples = samples
        self._correct: dict[QuestionId, list[bool | None]] = {}
        self._scores: list[float] = []  # of the questions without a skipped sample
        self._clusters: list[object] = []
        self._estimate: Estimate | None = None
        self._estimated = 0  # number of scores that it is of
        self._unanswered = self._cut_off = 0

    @property
    def event(self) -> EvalProgress:
        new = len(self._scores) - self._estimated
        # An estimate takes time in proportion to all scores, so of thousands it is made again only now and then.
        if new > self._estimated // 500 or (new and self.questions == self.all_questions):
            self._estimate, self._estimated = estimate(self._scores, self._clusters), len(self._scores)
        taken = max(1, self.done - self.skipped)
        return EvalProgress(
            self.done,
            self.all_questions * self._samples,
            self.questions,
            self.all_questions,
            self._estimate.value if self._estimate else None,
            self._estimate.interval if self._estimate else None,
            self._unanswered / taken,
            self._cut_off / taken,
            self.skipped,
        )

    def add(self, sample: Sample) -> None:
        self.done += 1
        if sample.is_skipped:
            self.skipped += 1
        elif sample.answer is None and not sample.correct:
            self._cut_off += sample.is_cut_off
            self._unanswered += not sample.is_cut_off
        correct = self._correct.setdefault(sample.id, [])
        correct.append(None if sample.is_skipped else sample.correct)
        if len(correct) < self._samples:
            return
        self.questions += 1
        del self._correct[sample.id]
        if None not in correct:
            self._scores.append(correct.count(True) / self._samples)
            self._clusters.append((sample.id,) if sample.cluster is None else sample.cluster)


@dataclass(frozen=True, slots=True)
class VoteCost:
    """The accuracy of a kind of vote of some `samples`, and its mean tokens and seconds a question.

    `gain` is the paired difference from majority votes that cost as many tokens; None above the largest of them.
    """

    kind: str
    samples: int
    accuracy: Estimate
    tokens: float
    seconds: float | None
    gain: Estimate | None = None

    @property
    def name(self) -> str:
        return self.kind if self.kind == GREEDY else f"{self.kind}@{self.samples}"


@dataclass(frozen=True, slots=True)
class Checked:
    """How many questions have an answer that a reply and a program came to, or have not, and how often it is right."""

    n: int
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Report:
    """Estimates of a run of up to `samples` samples a question.

    `n` is the number of questions with a sample, of which `complete` have all. A question's samples are averaged first:
    `accuracy` is the mean over the `n` questions. `maj` and `pass_at` are over the complete ones, for each k of
    `vote_sizes`; empty if there are none. Every sample is correct, or wrong, or has no answer: `cut_off` is the share
    of those that reached a limit first, `no_answer` of the others. `stated` and `guessed` are the shares by how answers
    were found, None where none is extracted. `chance` is the accuracy of guessing choices, if there are any,
    `with_skipped` the accuracy if skipped samples count as wrong, if there are any. Of a run with programs, `votes` are
    the ways to vote, `checked` and `unchecked` the votes of all samples, and `no_program` the share of samples without
    a program, such as truncated ones.
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
    stated: float | None = None
    guessed: float | None = None
    chance: float | None = None
    with_skipped: Estimate | None = None
    votes: tuple[VoteCost, ...] = ()
    checked: Checked | None = None
    unchecked: Checked | None = None
    no_program: float = 0.0


def summarize(task: str, run: Sequence[Sample], samples: int, seconds: float | None) -> Report:
    """Summarize a run of one model, which may be in progress: one or more samples, in any order.

    `samples` is how many of them each question gets, `seconds` the time that the whole run took, if it is known.
    """
    questions = list(group_by_question(run).values())
    complete = [question for question in questions if len(question) == samples]
    clusters, choices = clusters_of(complete), [len(question[0].choices) for question in questions]
    correct = [sum(sample.correct for sample in question) for question in complete]
    unstated = [sample for sample in run if sample.answer is None and not sample.correct]
    cut_off = sum(sample.is_cut_off for sample in unstated)
    stated, guessed = (mean([sample.basis == basis for sample in run]) for basis in ("stated", "guessed"))
    are_extracted = any(sample.basis for sample in run)
    return Report(
        task=task,
        model=run[0].model,
        n=len(questions),
        complete=len(complete),
        samples=samples,
        accuracy=mean_accuracy(questions),
        maj={
            k: estimate(shares, clusters)
            for k, shares in majorities([votes_of(question, with_programs=False) for question in complete]).items()
        },
        pass_at={
            k: estimate([pass_at(samples, count, k) for count in correct], clusters)
            for k in vote_sizes(samples)
            if correct
        },
        no_answer=(len(unstated) - cut_off) / len(run),
        cut_off=cut_off / len(run),
        tokens_per_answer=mean([sample.completion_tokens for sample in run]),
        seconds_per_question=None if seconds is None else seconds / len(questions),
        stated=stated if are_extracted else None,
        guessed=guessed if are_extracted else None,
        chance=mean([1 / count if count else 0.0 for count in choices]) if any(choices) else None,
    )


def group_by_question(run: Iterable[Sample]) -> dict[QuestionId, list[Sample]]:
    questions: dict[QuestionId, list[Sample]] = {}
    for sample in sorted(run, key=lambda sample: sample.sample):
        questions.setdefault(sample.id, []).append(sample)
    return questions


def mean_accuracy(questions: Sequence[Sequence[Sample]]) -> Estimate:
    return estimate([accuracy_of(question) for question in questions], clusters_of(questions))


def accuracy_of(question: Sequence[Sample]) -> float:
    return mean([sample.correct for sample in question])


def votes_of(question: Sequence[Sample], with_programs: bool = True) -> list[Vote]:
    """A question's samples as votes; of several, one that ended in a repetition votes for nothing.

    Their programs vote, too, unless it is without them.
    """
    votes = []
    for sample in question:
        is_silent = sample.answer is None or (sample.finish_reason == "repetition" and len(question) > 1)
        form = None if is_silent else _canonical(sample.answer or "")
        votes.append(Vote(form, sample.correct, sample.probability, sample.basis == "stated"))
    if not with_programs or all(sample.program_output is None for sample in question):
        return votes
    correct = {vote.form: vote.correct for vote in reversed(votes)}
    for place, (vote, sample) in enumerate(zip(votes, question, strict=True)):
        output, computed = sample.program_output or "", Program("", sample.program_output).answer
        if vote.form is not None and sample.answer and comes_to(output, sample.answer):
            form = vote.form
        elif computed:
            form = _canonical(computed)
        else:
            continue
        is_correct = correct.setdefault(
            form, equals_reference(computed, sample.reference) or comes_to(output, sample.reference)
        )
        votes[place] = vote._replace(computed=form, is_computed_correct=is_correct)
    return votes


def clusters_of(questions: Sequence[Sequence[Sample]]) -> Clusters:
    """Cluster of each question; one without a cluster is its own. None if no question has one."""
    firsts = [question[0] for question in questions]
    if all(sample.cluster is None for sample in firsts):
        return None
    return [(sample.id,) if sample.cluster is None else sample.cluster for sample in firsts]


def report_object(report: Report) -> dict[str, Any]:
    more: dict[str, Any] = {} if report.chance is None else {"chance": report.chance}
    if report.stated is not None:
        more |= {"stated": report.stated, "guessed": report.guessed}
    if skipped := report.with_skipped:
        more |= {"accuracy_with_skipped": skipped.value, "interval_with_skipped": list(skipped.interval)}
    if report.votes:
        more |= {
            "votes": [asdict(vote) for vote in report.votes],
            "checked": report.checked and asdict(report.checked),
            "unchecked": report.unchecked and asdict(report.unchecked),
            "no_program": report.no_program,
        }
    return {
        "task": report.task,
        "model": report.model,
        "n": report.n,
        "samples": report.samples,
        "accuracy": report.accuracy.value,
        "interval": list(report.accuracy.interval),
        "maj": _estimates_object(report.maj),
        "pass_at": _estimates_object(report.pass_at),
        "no_answer": report.no_answer,
        "cut_off": report.cut_off,
        "tokens_per_answer": report.tokens_per_answer,
        "seconds_per_question": report.seconds_per_question,
        **more,
    }


def _estimates_object(estimates: Mapping[int, Estimate]) -> dict[str, dict[str, Any]]:
    return {str(k): {"value": estimate.value, "interval": list(estimate.interval)} for k, estimate in estimates.items()}
