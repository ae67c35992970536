"""The questions of a task, whose dataset is downloaded once, or of a file, and how they are asked and scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from cerebrum_cli.batch.readers import open_input
from cerebrum_cli.batch.rows import Template, parse_template
from cerebrum_cli.core.errors import CerebrumError, PullError, UsageError
from cerebrum_cli.core.files import exists, translate_os_errors
from cerebrum_cli.core.text import did_you_mean, format_count, pip_install
from cerebrum_cli.eval.presets import Condition, Preset, find_condition
from cerebrum_cli.eval.questions import Match, Question
from cerebrum_cli.eval.reading import CHOICE_TEMPLATE, QUESTION_TEMPLATE, BadRow, Row, read_questions, split_lines
from cerebrum_cli.eval.scorers import (
    SCORING_RULES,
    is_in_words,
    reply_scorer,
    require_run_code,
    rules_of,
)
from cerebrum_cli.eval.tasks import SUMS, TASK_NAMES, TASKS, Task
from cerebrum_cli.library.cache import Cache, CachedFile
from cerebrum_cli.library.download import Download, Progress, RetryPolicy, git_hash
from cerebrum_cli.library.hub import cache_directory, is_offline, list_repository, unreachable

IN_WORDS = "correct answers are words, and final answers must equal them; --match contains accepts them anywhere"


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """The questions of a task or a file; `fingerprint` identifies them and how replies are scored.

    `examples` are asked, and answered by their solutions, before each question. `condition` is a preset's, or has the
    defaults, and `remarks` are sentences for the report.
    """

    name: str
    questions: tuple[Question, ...]
    bad_rows: tuple[BadRow, ...]
    fingerprint: Mapping[str, Any]
    match: Match
    condition: Condition
    remarks: tuple[str, ...] = ()
    examples: tuple[Question, ...] = ()
    stop: tuple[str, ...] = ()


def read_source(
    source: str,
    progress: Progress,
    *,
    preset: Preset | None,
    template: str | None,
    examples: Path | None,
    match: Match | None,
    run_code: bool,
    offline: bool,
) -> LoadedTask:
    """Read a file, or a task by its name, which is downloaded unless it is installed.

    Raises UsageError, PullError.
    """
    task = TASKS.get(source)
    path = SUMS if source == SUMS.stem else Path(source)
    if task is None and not exists(path) and not source.endswith(".jsonl"):
        hint = f"use {', '.join(TASK_NAMES)}, or a file such as exam.jsonl"
        raise UsageError(f"unknown task {source!r}", did_you_mean(source, TASK_NAMES) + hint)
    condition = find_condition(preset, source) if preset else Condition(source)
    match = _choose_match(source, task, match, run_code)
    rows, digest, origin = load_dataset(task, progress, offline) if task else _read_file(path)
    # The cards ask questions verbatim; how they ask for code is not stated.
    asked = task if task and not template and (preset is None or task.match == "code") else None
    protocol, text = None if examples else asked, asked.template if asked else template
    parsed = None if text is None else parse_template(text)
    found = read_questions(rows, parsed, task.convert if task else None)
    shown, shown_digest = tuple[Question, ...](), None
    if examples:
        shown, shown_digest = _read_examples(examples, parsed)
    elif protocol and protocol.shots:
        example_rows, shown_digest, _ = load_dataset(replace(protocol, file=protocol.shots_file), progress, offline)
        shown = read_questions(example_rows, parsed).questions[: protocol.shots]
    reply_scorer(match, found.questions, run_code).close()  # what it refuses is refused before a model is loaded
    fingerprint = {
        "task": path.stem,
        "question file": digest,
        "template": text or _default_template(found.questions),
        "protocol": f"{protocol.name} {protocol.version}" if protocol else None,
        "example file": shown_digest,
        "match": match,
        SCORING_RULES: rules_of(match),
    }
    remarks = [origin, *_remarks(task, protocol, preset, condition), found.note]
    if shown:
        remarks.append(f"{format_count(len(shown), 'example')} before each question")
    if match == "answer" and 2 * sum(map(is_in_words, found.questions)) > len(found.questions):
        remarks.append(IN_WORDS)
    stop = asked.stop if asked else ()
    stated = tuple(remark for remark in remarks if remark)
    return LoadedTask(path.stem, found.questions, found.bad_rows, fingerprint, match, condition, stated, shown, stop)


def _choose_match(source: str, task: Task | None, match: Match | None, run_code: bool) -> Match:
    """How to score replies. Raises UsageError for options that do not apply, before anything is downloaded."""
    if task and task.match == "code":
        if match:
            raise UsageError(f"--match has no effect on {source}, which runs programs", "omit --match")
        require_run_code(run_code)
    elif run_code:
        raise UsageError("--run-code applies only to humaneval, humaneval+ and mbpp", "omit --run-code")
    return match or (task.match if task else "answer")


def _read_file(path: Path) -> tuple[Iterable[Row], str, str]:
    digest = sha256()
    with closing(open_input(path)) as file:
        data = b"\n".join(file.lines(0, digest))
    return split_lines(data), digest.hexdigest(), ""


def _read_examples(path: Path, template: Template | None) -> tuple[tuple[Question, ...], str]:
    """The examples in a question file, and its SHA-256. Raises UsageError for a row that cannot be read."""
    rows, digest, _ = _read_file(path)
    found = read_questions(rows, template)
    if found.bad_rows:
        raise UsageError(f"{path}, line {found.bad_rows[0].line}: {found.bad_rows[0].reason}", "correct the file")
    return found.questions, digest


def _default_template(questions: Iterable[Question]) -> str:
    return CHOICE_TEMPLATE if any(question.choices for question in questions) else QUESTION_TEMPLATE


def _remarks(task: Task | None, protocol: Task | None, preset: Preset | None, condition: Condition) -> Iterator[str]:
    """Sentences from the tables of tasks and presets; some are empty."""
    if protocol:
        yield f"protocol {protocol.name}, version {protocol.version}: {protocol.follows}"
    if task:
        yield task.published and f"settings on the Cerebrum model cards: {task.published}"
        yield task.note
    if preset:
        yield f"preset {preset.name}: {condition.published}"
        yield from (f"{preset.source} does not state {detail}" for detail in condition.unstated)
        yield condition.note


def load_dataset(task: Task, progress: Progress, offline: bool = False) -> tuple[Iterable[Row], str, str]:
    """The rows of a task's dataset, the SHA-256 of its files, and a remark about where they are from.

    A dataset that was downloaded once is read from the cache, without the network. Raises PullError if it cannot be
    downloaded or read, CerebrumError without the library that reads it.
    """
    cache = Cache(cache_directory(), "dataset")
    with translate_os_errors(PullError, cache.directory):
        files = {file: file.path.read_bytes() for file in cache.find_files(task.repo_id, task.file, task.files)}
        are_intact = (file.digest in (None, sha256(data).hexdigest(), git_hash(data)) for file, data in files.items())
        if not files or not all(are_intact):
            files = _download(task, progress, cache, offline)
    data = b"".join(files.values())
    rows = _parquet_rows(task, files) if task.file.endswith(".parquet") else split_lines(data)
    [first, *others] = files
    origin = f"dataset {task.repo_id}, {task.file if others else first.name} at commit {first.commit}"
    return rows, sha256(data).hexdigest(), origin


def _parquet_rows(task: Task, files: Mapping[CachedFile, bytes]) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CerebrumError(
            f"the dataset of {task.name} is a parquet file, which needs pyarrow: {error}",
            pip_install('"cerebrum-cli[eval]"'),
        ) from error
    rows = list[Any]()
    for file, data in files.items():
        try:
            # `read_table` starts threads, which now and then abort a process that ends.
            table = parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False).read(use_threads=False)
            rows += table.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            problem = f"{task.repo_id}/{file.name} is not a parquet file that pyarrow can read: {error}"
            raise PullError(problem.partition("\n")[0], "report it to the dataset's owner") from error
    yield from enumerate(rows, 1)


def _download(task: Task, progress: Progress, cache: Cache, offline: bool) -> dict[CachedFile, bytes]:
    reason = "cerebrum is offline" if offline or is_offline() else ""
    if not reason and (problem := unreachable()):
        reason = f"the Hub cannot be reached ({problem})"
    if reason:
        raise PullError(
            f"the dataset {task.repo_id} of {task.name} is not downloaded, or damaged, and {reason}",
            f"run the command once online, or download it: hf download {task.repo_id} --repo-type dataset",
        )
    listing = RetryPolicy(progress).run(list_repository, task.repo_id, kind="dataset")
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
    return {
        CachedFile(listing.commit, file.name, path): path.read_bytes() for file, path in zip(files, paths, strict=True)
    }
