"""The questions of a task, whose dataset is downloaded once, or of a file, and how they are asked and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cerebrum_cli.answers.final import is_in_words
from cerebrum_cli.batch.readers import InputFile
from cerebrum_cli.core.errors import PullError, UsageError
from cerebrum_cli.core.events import Progress
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.row_fields import Template, parse_template
from cerebrum_cli.core.text import Texts, did_you_mean, format_count
from cerebrum_cli.eval.presets import Preset
from cerebrum_cli.eval.questions import Match, Questions
from cerebrum_cli.eval.reading import CHOICE_TEMPLATE, QUESTION_TEMPLATE, BadRow, read_questions
from cerebrum_cli.eval.scorers import (
    SCORING_RULES,
    reply_scorer,
    require_run_code,
    rules_of,
)
from cerebrum_cli.eval.tasks import SUMS, TASK_NAMES, TASKS, Task
from cerebrum_cli.library.online import fetch_dataset

if TYPE_CHECKING:
    from cerebrum_cli.eval.eval_options import EvalOptions

IN_WORDS = "correct answers are words: a reply is correct if its answer, its first or its last line contains them"


@frozen
class LoadedTask:
    """The questions of a task or a file; `fingerprint` identifies them and how replies are scored.

    `examples` are asked, and answered by their solutions, before each question. `remarks` are sentences for the
    report.
    """

    questions: Questions
    bad_rows: tuple[BadRow, ...]
    fingerprint: JsonObject
    match: Match
    remarks: Texts
    examples: Questions
    stop: Texts


def read_source(source: str, progress: Progress, options: EvalOptions, preset: Preset | None) -> LoadedTask:
    """Read a file, or a task by its name, which is downloaded unless it is installed. Raises UsageError, PullError."""
    task = find_task(source)
    match = _choose_match(task, options)
    asked = as_asked(task, preset, options)
    parsed = parse_template(asked.template) if asked.template else None
    data, digest, origin = load_dataset(task, progress, options.offline)
    found = read_questions(data, parsed, task.convert)
    shown, shown_digest = _read_examples(asked, parsed, progress, options.offline)
    reply_scorer(match, found.questions).close()  # what it refuses is refused before a model is loaded
    has_choices = any(question.choices for question in found.questions)
    fingerprint = {
        "task": task.name,
        "question file": digest,
        "template": asked.template or (CHOICE_TEMPLATE if has_choices else QUESTION_TEMPLATE),
        "protocol": asked.protocol,
        "example file": shown_digest,
        "match": match,
        SCORING_RULES: rules_of(match),
    }
    remarks = [origin, *_remarks(asked, preset), *_remarks_on_questions(found.questions, shown, match)]
    return LoadedTask(
        questions=found.questions,
        bad_rows=found.bad_rows,
        fingerprint=fingerprint,
        match=match,
        remarks=tuple(filter(None, remarks)),
        examples=shown,
        stop=asked.stop,
    )


def _remarks_on_questions(questions: Questions, examples: Questions, match: Match) -> Iterator[str]:
    if examples:
        yield f"{format_count(len(examples), 'example')} before each question"
    in_words = [question for question in questions if not question.choices and is_in_words(question.reference)]
    if match == "answer" and 2 * len(in_words) > len(questions):
        yield IN_WORDS


def as_asked(task: Task, preset: Preset | None, options: EvalOptions) -> Task:
    """A task with what replaces its protocol: a template, a preset, or examples."""
    if options.template or (preset and task.match != "code"):
        # The cards ask questions verbatim; how they ask for code is not stated.
        task = replace(task, template=options.template or "", follows="", shots_file="", stop=())
    if options.examples:
        task = replace(task, follows="", repo_id="", shots_file=str(options.examples), shots=None)
    return task


def find_task(source: str) -> Task:
    for name in (source, f"{source}@0shot"):
        if name in TASKS:
            return TASKS[name]
    if source == SUMS.stem:
        return Task(name=source, file=str(SUMS))
    if not exists(Path(source)) and not source.endswith(".jsonl"):
        hint = f"use {', '.join(TASK_NAMES)}, or a file such as exam.jsonl; lm-eval's tasks: cerebrum lm-eval"
        raise UsageError(f"unknown task {source!r}", did_you_mean(source, TASK_NAMES) + hint)
    return Task(name=Path(source).stem, file=source)


def _choose_match(task: Task, options: EvalOptions) -> Match:
    """How to score replies. Raises UsageError for options that do not apply, before anything is downloaded."""
    if task.match == "code":
        if options.match:
            raise UsageError(f"--match has no effect on {task.name}, which runs programs", "omit --match")
        require_run_code(options.run_code)
    elif options.run_code:
        raise UsageError("--run-code applies only to humaneval, humaneval+ and mbpp@0shot", "omit --run-code")
    return cast(Match | None, options.match) or task.match


def _read_examples(
    task: Task, template: Template | None, progress: Progress, offline: bool
) -> tuple[Questions, str | None]:
    """The examples of a task, if it has any, and the SHA-256 of their file. Raises UsageError for an unreadable row."""
    if not task.shots_file:
        return (), None
    data, digest, _ = load_dataset(replace(task, file=task.shots_file), progress, offline)
    found = read_questions(data, template)
    for bad in found.bad_rows:
        raise UsageError(f"{task.shots_file}, line {bad.line}: {bad.reason}", "correct the file")
    return found.questions[: task.shots], digest


def _remarks(asked: Task, preset: Preset | None) -> Iterator[str]:
    """Sentences from the tables of tasks and presets; some are empty."""
    if asked.follows:
        yield f"protocol {asked.name}, version {asked.version}: {asked.follows}"
    if asked.published:
        yield f"settings on the Cerebrum model cards: {asked.published}"
    yield asked.note
    if preset:
        yield f"preset {preset.name}: {preset.published}"


def load_dataset(task: Task, progress: Progress, offline: bool) -> tuple[bytes, str, str]:
    """The rows of a task's dataset or file as lines of JSON, the SHA-256 of its files, and a remark on their origin.

    A dataset that was downloaded once is read from the cache, without the network. Raises PullError if it cannot be
    downloaded or read, also without the library that reads it.
    """
    if not task.repo_id:
        with InputFile(Path(task.file)) as file:
            data = b"".join(file.lines())
        return data, sha256(data).hexdigest(), ""
    files = fetch_dataset(task.name, task.repo_id, task.file, task.files, progress, offline)
    [first, *others] = files
    name = task.file if others else first.name
    origin = f"dataset {task.repo_id}, {name} at commit {first.commit}"
    digest = sha256(b"".join(file.path.read_bytes() for file in files)).hexdigest()
    paths = {f"{task.repo_id}/{file.name}": file.path for file in files}
    return b"".join(_json_lines(paths)), digest, origin


def _json_lines(paths: Mapping[str, Path]) -> Iterator[bytes]:
    """Yield the rows of files with names, which may be Parquet, as lines of JSON."""
    for name, path in paths.items():
        try:
            with InputFile(path, name=name) as rows:
                yield from rows.lines("report it to the dataset's owner")
        except UsageError as error:
            raise PullError(error.message, error.hint) from error
