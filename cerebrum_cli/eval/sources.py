"""The questions of a task or a file, and the condition under which they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import exists
from cerebrum_cli.eval.datasets import LoadedQuestions, Source, load_file, load_task
from cerebrum_cli.eval.marking import Marker, Match, code_marker, marker
from cerebrum_cli.eval.presets import Condition, Preset, find_condition
from cerebrum_cli.eval.question import Question
from cerebrum_cli.eval.reading import BadRow, Fields
from cerebrum_cli.eval.tasks import TASKS, Task, find_task
from cerebrum_cli.models.retries import Progress


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """The questions of a task or a file; `fingerprint` identifies them and how replies are marked.

    `condition` is a preset's, and `remarks` are sentences for the report.
    """

    name: str
    questions: tuple[Question, ...]
    bad_rows: tuple[BadRow, ...]
    fingerprint: Mapping[str, Any]
    marker: Marker
    condition: Condition | None = None
    remarks: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Samples of each question that the condition asks for."""
        return self.condition.samples if self.condition else 1

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that the condition asks for."""
        temperature = self.condition.temperature if self.condition else None
        return {} if temperature is None else {"temperature": temperature}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How the questions are read and marked, as the command line says; None leaves it to the task."""

    question_field: str | None = None
    answer_field: str | None = None
    template: str | None = None
    match: Match | None = None
    run_code: bool = False


def read_source(
    source: str, options: ReadOptions, preset: Preset | None, progress: Progress, offline: bool
) -> LoadedTask:
    """Read a file, or a task by its name, which is downloaded unless it is installed.

    Raises UsageError, PullError.
    """
    task = find_task(source)
    if task is None and not exists(Path(source)) and not source.endswith(".jsonl"):
        known = [each.name for each in TASKS]
        near = next(iter(get_close_matches(source, known, 1)), None)
        hint = f"did you mean {near}?" if near else f"use {', '.join(known)}, or a file such as exam.jsonl"
        raise UsageError(f"unknown task {source!r}", hint)
    condition = find_condition(preset, source) if preset else None
    remarks = (*_task_remarks(task), *_condition_remarks(preset, condition))
    match: Match = "code" if task and task.scorer == "code" else options.match or "answer"
    if match == "code" and options.match:
        raise UsageError(f"--match has no effect on {source}, whose programs are tested", "omit --match")
    if match != "code" and options.run_code:
        raise UsageError("--run-code applies only to humaneval", "omit --run-code")
    run_code = code_marker(options.run_code) if match == "code" else None  # refused before anything is downloaded
    loaded = _load(task, source, options, progress, offline)
    found, origin = loaded.questions, loaded.source
    return LoadedTask(
        name=task.name if task else Path(source).stem,
        questions=found.questions,
        bad_rows=found.bad_rows,
        fingerprint={
            "task": task.name if task else Path(source).stem,
            "question file": origin.sha256,
            "dataset": origin.repo_id and f"{origin.repo_id} at {origin.commit}",
            "question field": options.question_field,
            "answer field": options.answer_field,
            "template": options.template,
            "match": match,
        },
        marker=run_code or marker(match, found.questions),
        condition=condition,
        remarks=(*_origin_remarks(origin), *remarks, *([found.note] if found.note else [])),
    )


def _load(task: Task | None, source: str, options: ReadOptions, progress: Progress, offline: bool) -> LoadedQuestions:
    if task is None:
        fields = Fields(options.question_field or "question", options.answer_field or "answer")
        return load_file(Path(source), fields, options.template)
    if options.question_field or options.answer_field:
        option = "--question-field" if options.question_field else "--answer-field"
        raise UsageError(
            f"{option} applies only to question files: the fields of {task.name} are known", f"omit {option}"
        )
    return load_task(task, progress, options.template, offline)


def _origin_remarks(origin: Source) -> tuple[str, ...]:
    """Which version of a dataset was asked."""
    return (f"dataset {origin.repo_id}, {origin.file} at commit {origin.commit}",) if origin.repo_id else ()


def _task_remarks(task: Task | None) -> tuple[str, ...]:
    if task is None:
        return ()
    return tuple(filter(None, (f"settings on the Cerebrum model cards: {task.published}", task.note)))


def _condition_remarks(preset: Preset | None, condition: Condition | None) -> tuple[str, ...]:
    """What a preset's card states and leaves open, with its figures."""
    if preset is None or condition is None:
        return ()
    figures = tuple(f"published: {figure.metric} {figure.value:.4f}" for figure in condition.figures)
    unstated = tuple(f"{preset.source} does not state {each}" for each in condition.unstated)
    return (f"preset {preset.name}: {condition.published}", *figures, *unstated, *filter(None, (condition.note,)))
