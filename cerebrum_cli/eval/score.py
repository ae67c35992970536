"""The score of a run while it is running."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cerebrum_cli.core.events import EvalProgress
from cerebrum_cli.eval.estimates import Interval, Totals, interval_of_totals
from cerebrum_cli.eval.question import QuestionId
from cerebrum_cli.eval.sample import Sample


class RunningScore:
    """Counts samples as they are marked; a question is finished once all its samples are there."""

    def __init__(self, questions: int, samples: int) -> None:
        self.all_questions = questions
        self.done = self.skipped = self.questions = 0
        self._samples = samples
        self._marks: dict[QuestionId, list[bool | None]] = {}
        self._counted, self._sum = 0, 0.0  # questions without a skipped sample
        self._clusters: dict[object, Totals] = {}
        self._totals: Counter[Totals] = Counter()  # so that an interval takes no longer with more questions
        self._unanswered = self._cut_off = 0

    @property
    def total(self) -> int:
        """Number of samples of the whole run."""
        return self.all_questions * self._samples

    @property
    def accuracy(self) -> float | None:
        """Mean over the finished questions without a skipped sample; None without any."""
        return self._sum / self._counted if self._counted else None

    @property
    def interval(self) -> Interval | None:
        """95% interval of the accuracy; None without one."""
        return None if self.accuracy is None else interval_of_totals(self.accuracy, self._totals)

    @property
    def no_answer(self) -> float:
        """Share of samples that ended by themselves without stating an answer."""
        return self._share(self._unanswered)

    @property
    def cut_off(self) -> float:
        """Share of samples that were cut off before they stated an answer."""
        return self._share(self._cut_off)

    @property
    def event(self) -> EvalProgress:
        """The progress of the run."""
        return EvalProgress(
            self.done,
            self.total,
            self.questions,
            self.all_questions,
            self.accuracy,
            self.interval,
            self.no_answer,
            self.cut_off,
            self.skipped,
        )

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        self.done += 1
        if sample.is_skipped:
            self.skipped += 1
        elif sample.answer is None and not sample.correct:
            self._cut_off += sample.is_cut_off
            self._unanswered += not sample.is_cut_off
        marks = self._marks.setdefault(sample.id, [])
        marks.append(None if sample.is_skipped else sample.correct)
        if len(marks) == self._samples:
            self._finish(sample, self._marks.pop(sample.id))

    def _finish(self, last: Sample, marks: Sequence[bool | None]) -> None:
        """Count the question of its last sample, given the marks of all."""
        self.questions += 1
        counted = [mark for mark in marks if mark is not None]
        if len(counted) == self._samples:
            self._add_score(sum(counted) / len(counted), (last.id,) if last.cluster is None else last.cluster)

    def _add_score(self, score: float, cluster: object) -> None:
        self._counted += 1
        self._sum += score
        before = self._clusters.get(cluster, Totals(0.0, 0))
        after = self._clusters[cluster] = Totals(before.sum + score, before.size + 1)
        self._totals[after] += 1
        self._totals[before] -= 1
        if self._totals[before] <= 0:
            del self._totals[before]

    def _share(self, count: int) -> float:
        counted = self.done - self.skipped
        return count / counted if counted else 0.0
