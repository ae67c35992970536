"""The questions of a task, whose dataset is downloaded once, or of a file, and how they are asked and scored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cerebrum_cli.batch.readers import open_input
from cerebrum_cli.batch.rows import parse_template
from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, PullError, UsageError
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.text import did_you_mean, pip_install
from cerebrum_cli.eval.questions import Question
from cerebrum_cli.eval.reading import (
    CHOICE_TEMPLATE,
    QUESTION_TEMPLATE,
    BadRow,
    QuestionSet,
    Row,
    parse_lines,
    read_questions,
)
from cerebrum_cli.eval.scorers import (
    SCORING_RULES,
    Match,
    ReplyScorer,
    code_scorer,
    is_in_words,
    reply_scorer,
    rules_of,
)
from cerebrum_cli.eval.tasks import CODE_TEMPLATE, SUMS, TASK_NAMES, Condition, Preset, Task, find_condition, find_task
from cerebrum_cli.models.cache import Cache, CachedFile
from cerebrum_cli.models.download import Download, git_hash
from cerebrum_cli.models.hub import cache_directory, is_offline, list_repository, unreachable
from cerebrum_cli.models.hub_retries import Progress, RetryPolicy

_PARQUET = ".parquet"
IN_WORDS = "correct answers are words, and final answers must equal them; --match contains accepts them anywhere"


def load_file(path: Path, template: str | None = None) -> tuple[QuestionSet, str]:
    """Read the questions of a file of JSON lines, with its SHA-256.

    Raises UsageError if it has none that can be scored.
    """
    digest = hashlib.sha256()
    with closing(open_input(path)) as source:
        data = b"\n".join(source.lines(0, digest))
    questions = read_questions(parse_lines(data), template=parse_template(template) if template is not None else None)
    return questions, digest.hexdigest()


def load_task(
    task: Task, progress: Progress, template: str | None = None, offline: bool = False
) -> tuple[QuestionSet, str, str]:
    """Read the questions of a task; a dataset that was downloaded once is read from the cache, without the network.

    With them, the SHA-256 of its files, and a remark about where they are from.
    Raises PullError if it cannot be downloaded or read, CerebrumError without the library that reads it.
    """
    if task.file.endswith(_PARQUET):
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise CerebrumError(
                f"the dataset of {task.name} is a parquet file, which needs pyarrow: {error}",
                pip_install('"cerebrum-cli[eval]"'),
            ) from error
    parsed = parse_template(template) if template is not None else None
    cached = _cached_or_downloaded(task, progress, offline)
    data = b"".join(cached.values())
    rows = _parquet_rows(task, cached) if task.file.endswith(_PARQUET) else parse_lines(data)
    [first, *others] = cached
    name = task.file if others else first.name
    origin = f"dataset {task.repo_id}, {name} at commit {first.commit}"
    return read_questions(task.rows(rows), parsed), hashlib.sha256(data).hexdigest(), origin


def _cached_or_downloaded(task: Task, progress: Progress, offline: bool) -> dict[CachedFile, bytes]:
    cache = Cache(cache_directory(), "dataset")
    cached = {file: _read(file) for file in cache.find_files(task.repo_id, task.file, task.files)}
    are_intact = (
        file.digest in (None, hashlib.sha256(data).hexdigest(), git_hash(data)) for file, data in cached.items()
    )
    if cached and all(are_intact):
        return cached
    if offline or is_offline():
        reason = "cerebrum is offline"
    elif problem := unreachable():
        reason = f"the Hub cannot be reached ({problem})"
    else:
        return {file: _read(file) for file in _download(task, progress, cache)}
    state = "damaged" if cached else "not downloaded"
    raise PullError(
        f"the dataset {task.repo_id} of {task.name} is {state}, and {reason}",
        f"run the command once online, or download it: hf download {task.repo_id} --repo-type dataset",
    )


def _download(task: Task, progress: Progress, cache: Cache) -> list[CachedFile]:
    try:
        listing = RetryPolicy(progress).run(list_repository, task.repo_id, kind="dataset")
    except ModelNotFound as error:
        raise PullError(error.message, error.hint) from error
    named = (file for file in listing.files if fnmatchcase(file.name, task.file))
    files = tuple(sorted(named, key=lambda file: file.name))
    if len(files) != task.files:
        count = f"{len(files)} files" if files else "no file"
        raise PullError(
            f"the dataset {task.repo_id} has {count} {task.file} for its split {task.split}",
            "evaluate a JSON Lines file instead, or update cerebrum",
        )
    download = Download(listing, cache, progress)
    download.require_space(files)
    paths = download.fetch(files)
    return [CachedFile(listing.commit, file.name, path) for file, path in zip(files, paths, strict=True)]


def _read(cached: CachedFile) -> bytes:
    try:
        return cached.path.read_bytes()
    except OSError as error:
        raise PullError(f"{cached.path}: {error.strerror or error}", "make it readable") from error


def _parquet_rows(task: Task, cached: Mapping[CachedFile, bytes]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    rows = list[Any]()
    for file, data in cached.items():
        try:
            # `read_table` starts threads, which now and then abort a process that ends.
            table = parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False).read(use_threads=False)
            rows += table.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            problem = f"{task.repo_id}/{file.name} is not a parquet file that pyarrow can read: {error}"
            raise PullError(problem.partition("\n")[0], "report it to the dataset's owner") from error
    yield from enumerate(rows, 1)


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """The questions of a task or a file; `fingerprint` identifies them and how replies are scored.

    `condition` is a preset's, and `remarks` are sentences for the report.
    """

    name: str
    questions: tuple[Question, ...]
    bad_rows: tuple[BadRow, ...]
    fingerprint: Mapping[str, Any]
    scorer: ReplyScorer
    condition: Condition | None = None
    remarks: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return self.condition.samples if self.condition else 1

    @property
    def settings(self) -> Mapping[str, Any]:
        temperature = self.condition.temperature if self.condition else None
        return {} if temperature is None else {"temperature": temperature}


def read_source(
    source: str,
    progress: Progress,
    *,
    preset: Preset | None,
    template: str | None,
    match: Match | None,
    run_code: bool,
    offline: bool,
) -> LoadedTask:
    """Read a file, or a task by its name, which is downloaded unless it is installed.

    Raises UsageError, PullError.
    """
    task = find_task(source)
    path = SUMS if source == SUMS.stem else Path(source)
    if task is None and not exists(path) and not source.endswith(".jsonl"):
        hint = f"use {', '.join(TASK_NAMES)}, or a file such as exam.jsonl"
        raise UsageError(f"unknown task {source!r}", did_you_mean(source, TASK_NAMES) + hint)
    condition = find_condition(preset, source) if preset else None
    is_code = task is not None and task.match == "code"
    if is_code and match:
        raise UsageError(f"--match has no effect on {source}, which runs programs", "omit --match")
    if run_code and not is_code:
        raise UsageError("--run-code applies only to humaneval", "omit --run-code")
    scorer = code_scorer(run_code) if is_code else None  # refused before anything is downloaded
    if task:
        name, match = task.name, match or task.match
        question_set, digest, origin = load_task(task, progress, template, offline)
    else:
        name, match = path.stem, match or "answer"
        question_set, digest = load_file(path, template)
        origin = ""
    questions = question_set.questions
    default = QUESTION_TEMPLATE
    if is_code:
        default = CODE_TEMPLATE
    elif any(question.choices for question in questions):
        default = CHOICE_TEMPLATE
    are_words = match == "answer" and 2 * sum(map(is_in_words, questions)) > len(questions)
    remarks = (origin, *_remarks(task, preset, condition), question_set.note, IN_WORDS if are_words else "")
    return LoadedTask(
        name=name,
        questions=questions,
        bad_rows=question_set.bad_rows,
        fingerprint={
            "task": name,
            "question file": digest,
            "template": template,
            "default template": default,
            "match": match,
            SCORING_RULES: rules_of(match),
        },
        scorer=scorer or reply_scorer(match, questions),
        condition=condition,
        remarks=tuple(remark for remark in remarks if remark),
    )


def _remarks(task: Task | None, preset: Preset | None, condition: Condition | None) -> Iterator[str]:
    """Statements of model cards about a task and the condition in a preset."""
    if task:
        yield task.published and f"settings on the Cerebrum model cards: {task.published}"
        yield task.note
    if preset and condition:
        yield f"preset {preset.name}: {condition.published}"
        yield from (f"{preset.source} does not state {detail}" for detail in condition.unstated)
        yield condition.note
