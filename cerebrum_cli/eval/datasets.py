"""Questions of a task, whose dataset is downloaded from the Hub once, or of a file of JSON lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cerebrum_cli.batch.input import open_input
from cerebrum_cli.batch.rows import InvalidRow
from cerebrum_cli.batch.template import parse_template
from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, PullError
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.eval.reading import Fields, QuestionSet, Render, Row, parse_lines, read_questions
from cerebrum_cli.eval.tasks import Task
from cerebrum_cli.models.cache import Cache, CachedFile
from cerebrum_cli.models.download import Download, git_hash
from cerebrum_cli.models.hub import cache_directory, is_offline, list_repository
from cerebrum_cli.models.retries import Progress, RetryPolicy

_PARQUET = ".parquet"


@dataclass(frozen=True, slots=True)
class Source:
    """Where questions come from: a file and its digest, and the repository and commit of a dataset."""

    file: str
    sha256: str
    repo_id: str | None = None
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedQuestions:
    """The questions of a source."""

    questions: QuestionSet
    source: Source


def load_file(path: Path, fields: Fields, template: str | None = None) -> LoadedQuestions:
    """Read the questions of a file of JSON lines. Raises UsageError if it has none that can be scored."""
    digest = hashlib.sha256()
    with closing(open_input(path)) as source:
        data = b"\n".join(source.lines(0, digest))
    questions = read_questions(parse_lines(data), fields, _renderer(template))
    return LoadedQuestions(questions, Source(str(path), digest.hexdigest()))


def load_task(task: Task, progress: Progress, template: str | None = None, offline: bool = False) -> LoadedQuestions:
    """Read the questions of a task; a dataset that was downloaded once is read from the cache, without the network.

    Raises PullError if it cannot be downloaded or read, CerebrumError without the library that reads it.
    """
    if task.file.endswith(_PARQUET):
        _require_pyarrow(task)
    render = _renderer(template)
    cached, data = _cached_or_downloaded(task, progress, offline)
    rows = _parquet_rows(task, cached, data) if cached.name.endswith(_PARQUET) else parse_lines(data)
    source = Source(cached.name, hashlib.sha256(data).hexdigest(), task.repo_id, cached.commit)
    return LoadedQuestions(read_questions(task.rows(rows), task.fields, render), source)


def _cached_or_downloaded(task: Task, progress: Progress, offline: bool) -> tuple[CachedFile, bytes]:
    """The file of a task and its bytes."""
    cache = Cache(cache_directory(), "dataset")
    cached = cache.find_file(task.repo_id, task.file)
    if cached is not None:
        data = _read(cached)
        if _is_intact(cached, data):
            return cached, data
    if offline or is_offline():
        state = "not downloaded" if cached is None else "damaged"
        hint = f"run the command once online, or download it: hf download {task.repo_id} --repo-type dataset"
        raise PullError(f"the dataset {task.repo_id} of {task.name} is {state}, and cerebrum is offline", hint)
    cached = _download(task, progress, cache)
    return cached, _read(cached)


def _download(task: Task, progress: Progress, cache: Cache) -> CachedFile:
    try:
        listing = RetryPolicy(progress).run(lambda: list_repository(task.repo_id, kind="dataset"))
    except ModelNotFound as error:
        raise PullError(error.message, error.hint) from error
    files = tuple(file for file in listing.files if fnmatchcase(file.name, task.file))
    if len(files) != 1:
        count = f"{len(files)} files" if files else "no file"
        problem = f"the dataset {task.repo_id} has {count} {task.file} for its split {task.split}"
        raise PullError(problem, "evaluate a JSON Lines file instead, or look for a newer version of cerebrum")
    download = Download(listing, cache, progress)
    download.require_space(files)
    [path] = download.fetch(files)
    return CachedFile(listing.commit, files[0].name, path)


def _read(cached: CachedFile) -> bytes:
    try:
        return cached.path.read_bytes()
    except OSError as error:
        raise PullError(f"{cached.path}: {error.strerror or error}", "make it readable") from error


def _is_intact(cached: CachedFile, data: bytes) -> bool:
    """Whether the bytes of a file have the digest that the cache knows it by, if it knows one."""
    return cached.digest in (None, hashlib.sha256(data).hexdigest(), git_hash(data))


def _renderer(template: str | None) -> Render | None:
    if template is None:
        return None
    parsed = parse_template(template)

    def render(fields: Mapping[str, Any]) -> str:
        try:
            return parsed.render(fields)
        except InvalidRow as invalid:
            raise ValueError(invalid.error.message) from invalid

    return render


def _require_pyarrow(task: Task) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        problem = f"the dataset of {task.name} is a parquet file, which needs pyarrow: {error}"
        raise CerebrumError(problem, pip_install('"cerebrum-cli[eval]"')) from error


def _parquet_rows(task: Task, cached: CachedFile, data: bytes) -> Iterator[Row]:
    """Rows of a parquet file, numbered from 1."""
    import pyarrow
    from pyarrow import parquet

    try:
        # `read_table` starts threads, which now and then abort a process that ends.
        rows = parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False).read(use_threads=False).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        problem = f"{task.repo_id}/{cached.name} is not a parquet file that pyarrow can read: {error}"
        raise PullError(problem.partition("\n")[0], "report it to the dataset's owner") from error
    yield from enumerate(rows, 1)
