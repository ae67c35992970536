"""The report of a run, from its samples as they were marked or marked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.application.evaluation.marking import Unmarked, marker
from cerebrum_cli.application.evaluation.runs import Run
from cerebrum_cli.evals.question import Question
from cerebrum_cli.evals.report import Report, summarize
from cerebrum_cli.evals.sample import Sample


def form_of(sample: Sample) -> str | None:
    """Normal form of a sample's answer; None without one."""
    return None if sample.answer is None else canonical(sample.answer)


def report_of(run: Run, samples: Sequence[Sample]) -> Report:
    """The report of a run, of which there is at least one sample."""
    notes = run.record.notes
    seconds = notes.get("seconds", 0.0) * len(samples) / max(1, notes.get("timed_samples", 0))
    report = summarize(run.task, samples, run.samples_per_question, form_of, seconds)
    return replace(report, maj=()) if run.match == "code" else report  # programs are not put to a vote


def rescored(run: Run, samples: Sequence[Sample], run_code: bool = False) -> list[Sample]:
    """Extract and compare the answers again. Raises UsageError for code that must not be run."""
    questions = tuple(Question(0, sample.id, "", sample.gold, sample.choices) for sample in samples)
    mark = marker(run.match, questions, run_code)
    marked = []
    for sample, question in zip(samples, questions, strict=True):
        text = f"```python\n{sample.answer}\n```" if run.match == "code" else sample.text  # a program is whole already
        found = mark(Unmarked(text, question, sample.finish_reason == "stop"))
        marked.append(sample if sample.is_skipped else replace(sample, answer=found.answer, correct=found.correct))
    return marked
