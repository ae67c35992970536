"""The score of a run while it is running."""

from __future__ import annotations

from collections.abc import Sequence

from cerebrum_cli.core.events import ScoreEvent
from cerebrum_cli.evals.estimates import Interval, interval_of
from cerebrum_cli.evals.question import QuestionId
from cerebrum_cli.evals.sample import Sample


class RunningScore:
    """Counts samples as they are marked; a question is finished once all its samples are there."""

    def __init__(self, questions: int, samples: int) -> None:
        self.all_questions = questions
        self.done = self.skipped = self.questions = 0
        self._samples = samples
        self._marks: dict[QuestionId, list[bool | None]] = {}
        self._scores: list[float] = []
        self._clusters: list[object] = []
        self._unanswered = self._cut_off = 0

    @property
    def total(self) -> int:
        """Number of samples of the whole run."""
        return self.all_questions * self._samples

    @property
    def accuracy(self) -> float | None:
        """Mean over the finished questions without a skipped sample; None without any."""
        return sum(self._scores) / len(self._scores) if self._scores else None

    @property
    def interval(self) -> Interval | None:
        """95% interval of the accuracy; None without one."""
        return interval_of(self._scores, self._clusters) if self._scores else None

    @property
    def no_answer(self) -> float:
        """Share of samples that ended by themselves without stating an answer."""
        return self._share(self._unanswered)

    @property
    def cut_off(self) -> float:
        """Share of samples that were cut off before they stated an answer."""
        return self._share(self._cut_off)

    @property
    def event(self) -> ScoreEvent:
        """The progress of the run."""
        return ScoreEvent(
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
            self._scores.append(sum(counted) / len(counted))
            self._clusters.append((last.id,) if last.cluster is None else last.cluster)

    def _share(self, count: int) -> float:
        counted = self.done - self.skipped
        return count / counted if counted else 0.0
