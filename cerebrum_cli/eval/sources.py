"""The questions of a task, whose dataset is downloaded once, or of a file, and how they are asked and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cerebrum_cli.answers.final import is_in_words
from cerebrum_cli.core.errors import PullError, UsageError
from cerebrum_cli.core.events import Progress
from cerebrum_cli.core.files import exists, file_sha256
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.row_fields import parse_template
from cerebrum_cli.core.text import Texts, did_you_mean
from cerebrum_cli.eval.answered import CHOICES
from cerebrum_cli.eval.reading import CHOICE_TEMPLATE, QUESTION_TEMPLATE, question_options, read_questions
from cerebrum_cli.eval.runs import TASK
from cerebrum_cli.eval.scores import Match, require_run_code
from cerebrum_cli.eval.tasks import SUMS, TASK_NAMES, TASKS, Task
from cerebrum_cli.library.online import fetch_dataset
from cerebrum_cli.rows.input_file import InputFile
from cerebrum_cli.rows.read import Input, InputOptions, RowList
from cerebrum_cli.rows.row import REFERENCE

if TYPE_CHECKING:
    from cerebrum_cli.eval.eval_options import EvalOptions

FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz")  # suffixes of files with questions
IN_WORDS = "correct answers are words: a reply is correct if its answer, its first or its last line contains them"


@frozen
class LoadedTask:
    """The questions of a task or a file; `fingerprint` is how they are asked, `digest` that of the file.

    `remarks` are sentences for the report.
    """

    questions: RowList
    fingerprint: JsonObject
    digest: str
    remarks: Texts


def find_task(source: str, options: EvalOptions) -> Task:
    """The task of a name or a file, as options and a preset have it asked and scored. Raises UsageError."""
    task = _named_task(source)
    if options.match and task.match == "code":
        raise UsageError(f"--match has no effect on {task.name}, which runs programs", "omit --match")
    task = replace(task, match=cast(Match | None, options.match) or task.match)
    require_run_code(task.match, options.run_code)
    if options.template or (options.preset and task.match != "code"):
        # The cards ask questions verbatim; how they ask for code is not stated.
        task = replace(task, template=options.template or "", follows="")
    return task


def _named_task(source: str) -> Task:
    if source in TASKS:
        return TASKS[source]
    if source == SUMS.stem:
        return Task(name=source, file=str(SUMS))
    if not exists(Path(source)) and Path(source).suffix not in FILES:
        hint = f"use {', '.join(TASK_NAMES)}, or a file such as exam.jsonl; lm-eval's tasks: cerebrum lm-eval"
        raise UsageError(f"unknown task {source!r}", did_you_mean(source, TASK_NAMES) + hint)
    return Task(name=Path(source).stem, file=source)


def load_task(task: Task, progress: Progress, options: EvalOptions) -> LoadedTask:
    """Read the questions of a task, which are downloaded unless they are there. Raises UsageError, PullError."""
    template = parse_template(task.template) if task.template else None
    reading = question_options(template, task.convert, options.answer or "answer", options.delimiter)
    if task.repo_id:
        questions, digest, origin = load_dataset(task, reading, progress, options.offline)
    else:
        path = Path(task.file)
        with reading.open(path, None) as rows:
            questions, digest, origin = read_questions([rows]), file_sha256(path) or "", ""
    expected = [row.expected for _, row in questions.rows if not row.error]
    has_choices = any(CHOICES in row for row in expected)
    remarks = [origin]
    if task.follows:
        remarks.append(f"protocol {task.name}, version {task.version}: {task.follows}")
    if task.published:
        remarks.append(f"settings on the Cerebrum model cards: {task.published}")
    remarks.append(task.note)
    in_words = [row for row in expected if CHOICES not in row and is_in_words(references_of(row)[0])]
    if task.match == "answer" and 2 * len(in_words) > len(expected):
        remarks.append(IN_WORDS)
    fingerprint = {
        TASK: task.name,
        "template": task.template or (CHOICE_TEMPLATE if has_choices else QUESTION_TEMPLATE),
        "protocol": task.protocol,
        **({"answer column": options.answer} if options.answer else {}),
    }
    return LoadedTask(questions, fingerprint, digest, tuple(filter(None, remarks)))


def references_of(expected: JsonObject) -> Sequence[str]:
    """The right answers that are known of a row."""
    reference = expected[REFERENCE]
    return [reference] if isinstance(reference, str) else reference


def load_dataset(task: Task, reading: InputOptions, progress: Progress, offline: bool) -> tuple[RowList, str, str]:
    """The questions of a task's dataset, the SHA-256 of its files, and a remark on their origin.

    A dataset that was downloaded once is read from the cache, without the network. Raises PullError if it cannot be
    downloaded or read, also without the library that reads it.
    """
    files = fetch_dataset(task.name, task.repo_id, task.file, task.files, progress, offline)
    [first, *others] = files
    name = task.file if others else first.name
    origin = f"dataset {task.repo_id}, {name} at commit {first.commit}"
    digest = sha256(b"".join(file.path.read_bytes() for file in files)).hexdigest()
    paths = {f"{task.repo_id}/{file.name}": file.path for file in files}
    return read_questions(_inputs(paths, reading)), digest, origin


def _inputs(paths: Mapping[str, Path], reading: InputOptions) -> Iterator[Input]:
    """Yield the rows of files with names, while each is open."""
    for name, path in paths.items():
        try:
            with InputFile(path, name=name, if_damaged="report it to the dataset's owner") as file:
                yield reading.rows_of(file, path)
        except UsageError as error:
            raise PullError(error.message, error.hint) from error
