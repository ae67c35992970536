"""The score of a run while it is running."""

from __future__ import annotations

from collections import Counter

from cerebrum_cli.core.events import ScoreEvent
from cerebrum_cli.evals.estimates import Interval, Totals, interval_of_totals
from cerebrum_cli.evals.question import QuestionId
from cerebrum_cli.evals.sample import Sample


class RunningScore:
    """Counts samples as they are marked; questions count once all their samples are there."""

    def __init__(self, questions: int, samples: int) -> None:
        self.all_questions = questions
        self.done = self.skipped = 0
        self._samples = samples
        self._marks: dict[QuestionId, list[bool]] = {}
        self._questions, self._sum = 0, 0.0
        self._clusters: dict[object, Totals] = {}
        self._totals: Counter[Totals] = Counter()  # so that an interval takes no longer with more questions
        self._unanswered = self._cut_off = 0

    @property
    def total(self) -> int:
        """Number of samples of the whole run."""
        return self.all_questions * self._samples

    @property
    def questions(self) -> int:
        """Number of finished questions that count."""
        return self._questions

    @property
    def accuracy(self) -> float | None:
        """Mean over the finished questions; None without any."""
        return self._sum / self._questions if self._questions else None

    @property
    def interval(self) -> Interval | None:
        """95% interval of the accuracy; None without a finished question."""
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
    def event(self) -> ScoreEvent:
        """The progress of the run."""
        return ScoreEvent(
            self.done,
            self.total,
            self.questions,
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
            return
        if sample.answer is None and not sample.correct:
            self._cut_off += sample.is_cut_off
            self._unanswered += not sample.is_cut_off
        marks = self._marks.setdefault(sample.id, [])
        marks.append(sample.correct)
        if len(marks) == self._samples:
            del self._marks[sample.id]
            self._add_score(sum(marks) / len(marks), (sample.id,) if sample.cluster is None else sample.cluster)

    def _add_score(self, score: float, cluster: object) -> None:
        self._questions += 1
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
