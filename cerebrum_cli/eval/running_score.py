"""The score of a run while it is running."""

from __future__ import annotations

from typing import ClassVar

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.row_events import RowProgress
from cerebrum_cli.eval.estimates import Estimate, estimate
from cerebrum_cli.eval.questions import QuestionId, Sample


@frozen
class EvalProgress(RowProgress):
    """Progress of an evaluation, whose rows are samples: `questions` of `all_questions`, and the score of these.

    There is no `estimate` before the first question that counts. `no_answer` and `cut_off` are shares of the samples;
    `skipped` of them could not be generated.
    """

    unit: ClassVar[str] = "question"
    questions: int
    all_questions: int
    estimate: Estimate | None
    no_answer: float
    cut_off: float
    skipped: int

    @property
    def counter(self) -> tuple[int, int]:
        return self.questions, self.all_questions

    @property
    def clauses(self) -> list[str]:
        clauses = []
        if self.estimate:
            low, high = self.estimate.interval
            clauses.append(f"accuracy {self.estimate.value:.3f} ({low:.3f} to {high:.3f})")
        if self.no_answer:
            clauses.append(f"{self.no_answer:.0%} no answer")
        if self.cut_off:
            clauses.append(f"{self.cut_off:.0%} truncated")
        if self.skipped:
            clauses.append(f"{self.skipped} skipped")
        return clauses


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
        self._update_estimate()
        taken = max(1, self.done - self.skipped)
        return EvalProgress(
            self.done,
            self.all_questions * self._samples,
            self.questions,
            self.all_questions,
            self._estimate,
            self._unanswered / taken,
            self._cut_off / taken,
            self.skipped,
        )

    def _update_estimate(self) -> None:
        """Estimate the accuracy again, in time proportional to all scores: of thousands, only now and then."""
        new = len(self._scores) - self._estimated
        if new > self._estimated // 500 or (new and self.questions == self.all_questions):
            self._estimate = estimate(self._scores, self._clusters)
            self._estimated = len(self._scores)

    def add(self, sample: Sample) -> None:
        self.done += 1
        self.skipped += sample.is_skipped
        self._cut_off += sample.is_cut_off
        self._unanswered += sample.is_unanswered
        correct = self._correct.setdefault(sample.id, [])
        correct.append(None if sample.is_skipped else sample.correct)
        if len(correct) < self._samples:
            return
        self.questions += 1
        del self._correct[sample.id]
        if None not in correct:
            self._scores.append(correct.count(True) / self._samples)
            self._clusters.append(sample.cluster_key)
