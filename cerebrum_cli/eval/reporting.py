"""The report of a run, from its samples as they were marked or marked again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache

from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.eval.marking import Unmarked, marker
from cerebrum_cli.eval.question import Question
from cerebrum_cli.eval.report import Report, summarize
from cerebrum_cli.eval.runs import Run
from cerebrum_cli.eval.sample import Sample

_canonical = lru_cache(maxsize=10_000)(canonical)  # samples that vote state few different answers


def form_of(sample: Sample) -> str | None:
    """Normal form of a sample's answer; None without one."""
    return None if sample.answer is None else _canonical(sample.answer)


def report_of(run: Run, samples: Sequence[Sample]) -> Report:
    """The report of a run, of which at least one sample counts. Skipped ones take no time."""
    notes = run.record.notes
    seconds = notes["seconds"] * len(samples) / notes["timed_samples"] if notes.get("timed_samples") else None
    counted = [sample for sample in samples if not sample.is_skipped]
    report = summarize(run.task, counted, run.samples_per_question, form_of, seconds)
    return replace(report, maj=()) if run.match == "code" else report  # programs are not put to a vote


def rescored(run: Run, samples: Sequence[Sample], run_code: bool = False) -> list[Sample]:
    """Extract and compare the answers again. Raises UsageError for code that must not be run."""
    questions = tuple(Question(0, sample.id, "", sample.gold, sample.choices) for sample in samples)
    marked = list(samples)
    with closing(marker(run.match, questions, run_code)) as replies:
        for at, (sample, question) in enumerate(zip(samples, questions, strict=True)):
            if not sample.is_skipped:
                replies.add(at, Unmarked(_text(run, sample), question, sample.finish_reason == "stop"))
        while marks := replies.marks(wait=True):
            for at, mark in marks:
                marked[at] = replace(marked[at], answer=mark.answer, correct=mark.correct)
    return marked


def _text(run: Run, sample: Sample) -> str:
    """The text to mark again; of a program the whole one, which its reply may have stated only in part."""
    if run.match != "code":
        return sample.text
    return "" if sample.answer is None else f"```python\n{sample.answer}\n```"
