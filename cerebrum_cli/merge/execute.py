"""Write the file of a plan in chunks; an error or interruption leaves no file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.files import fsync_directory, translate_os_errors, write_all
from cerebrum_cli.core.locks import PART, lock_file
from cerebrum_cli.gguf.parser import aligned
from cerebrum_cli.gguf.table import encode_header
from cerebrum_cli.merge.methods import input_tensors
from cerebrum_cli.merge.plan import OutputTensor, Plan
from cerebrum_cli.merge.weights import CodecFactory, TensorEvaluator, block_scale

MAX_UNHASHED = 4  # chunks written but not hashed yet
PROGRESS_INTERVAL_S = 0.02  # between two progress reports

OnProgress = Callable[[int, int], None]
"""Called with the bytes done and the total."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """The file of a merge: its header and tensors."""

    path: Path
    header: bytes
    tensors: tuple[OutputTensor, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.header) + sum(aligned(tensor.size) for tensor in self.tensors)


class WrittenFile(NamedTuple):
    """A complete file: its path, size in bytes, and SHA-256."""

    path: Path
    size: int
    sha256: str


def plan_file(plan: Plan, path: Path) -> OutputFile:
    """The file that a plan is written to."""
    return OutputFile(path, encode_header(plan.metadata, (tensor[:3] for tensor in plan.tensors)), plan.tensors)


def execute(file: OutputFile, codec: CodecFactory, threads: int, on_progress: OnProgress) -> WrittenFile:
    """Write a file and report progress.

    Raises MergeError if it cannot be written or weights cannot be computed, ModelFileError for an unreadable source.
    A separate thread does the work, so that the exception of a signal handler is raised here, in the waiting thread,
    and never while a lock is taken or the file is renamed.
    """
    job = Job(file, codec, threads)
    try:
        Thread(target=job.run, name="merge", daemon=True).start()
        while not job.is_finished:
            time.sleep(PROGRESS_INTERVAL_S)  # not join(): an exception raised in it loses the thread (Python 3.11)
            on_progress(job.done, file.size)
        if job.written:
            on_progress(file.size, file.size)
    except BaseException:
        job.is_cancelled = True
        while job.is_started and not job.is_finished:
            time.sleep(PROGRESS_INTERVAL_S)
        if not job.written:  # otherwise the file has been renamed already
            raise
    if job.error:
        raise job.error
    assert job.written, "the job is finished"
    return job.written


class Cancelled(Exception):
    """The merge was cancelled."""


@dataclass(slots=True)
class Job:
    """A merge being written by a thread: its progress, cancellation flag and result."""

    file: OutputFile
    codec: CodecFactory
    threads: int
    done: int = 0
    is_cancelled: bool = False
    is_started: bool = False
    is_finished: bool = False
    written: WrittenFile | None = None
    error: BaseException | None = None

    def run(self) -> None:
        """Write the file; store the result or the exception."""
        self.is_started = True
        try:
            self.written = self._write()
        except BaseException as error:  # raised by the waiting thread
            self.error = error
        finally:
            self.is_finished = True

    def _write(self) -> WrittenFile:
        self._raise_if_cancelled()
        with (
            write_errors(self.file.path),
            HashedFile(self.file.path) as target,
            TensorEvaluator(self.codec, self.threads) as evaluator,
        ):
            for chunk in chunks(self.file, evaluator):
                self._raise_if_cancelled()
                target.write(chunk)
                self.done += len(chunk)
            self._raise_if_cancelled()
            return target.commit()

    def _raise_if_cancelled(self) -> None:
        if self.is_cancelled:
            raise Cancelled


def chunks(file: OutputFile, evaluator: TensorEvaluator) -> Iterator[bytes]:
    """Yield the bytes of a file in chunks."""
    yield file.header
    for tensor in file.tensors:
        yield from evaluator.chunks(tensor)
        yield bytes(aligned(tensor.size) - tensor.size)


def require_supported_types(plan: Plan, codec: CodecFactory) -> None:
    """Raise MergeError for a type that the codec cannot read or write, before anything is written."""
    computed = [each for each in plan.tensors if not (each.is_copy or block_scale(each.op, each))]
    if not computed:
        return
    instance = codec()
    for tensor in computed:
        for source in input_tensors(tensor.op):
            if not instance.readable(source.type):
                raise MergeError(
                    f"{source.name} is {source.kind.name}, which cannot be dequantized", "merge other files"
                )
        if not instance.writable(tensor.type):
            problem = f"{tensor.name} is {tensor.kind.name}, which cannot be written without an importance matrix"
            raise MergeError(problem, "choose another type with --type, such as Q4_K")


class HashedFile:
    """A file that appears complete or not at all: until `commit`, its name ends in `.part`.

    A thread hashes each chunk while the next one is produced. Opening raises MergeError, also if another merge is
    writing the file; the methods raise OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._part = path.with_name(path.name + PART)
        self._digest = hashlib.sha256()
        self._hashing: deque[Future[None]] = deque()
        self._resources = contextlib.ExitStack()
        self._is_committed = False

    def __enter__(self) -> HashedFile:
        with contextlib.ExitStack() as opened, write_errors(self.path):
            self._pool = opened.enter_context(ThreadPoolExecutor(1))
            busy = MergeError(f"another cerebrum merge is writing {self.path}", "wait until it has finished")
            self._file = opened.enter_context(lock_file(self._part, busy))  # locked until it is complete
            opened.callback(self._remove)  # while it is still locked
            self._file.truncate(0)
            self._resources = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def write(self, data: bytes) -> None:
        if len(self._hashing) >= MAX_UNHASHED:
            self._hashing.popleft().result()
        self._hashing.append(self._pool.submit(self._digest.update, data))
        write_all(self._file.fileno(), data)
        self.size += len(data)

    def commit(self) -> WrittenFile:
        """Flush the file to disk and give it its name."""
        while self._hashing:
            self._hashing.popleft().result()
        os.fsync(self._file.fileno())
        self._part.replace(self.path)
        self._is_committed = True
        fsync_directory(self.path.parent)
        return WrittenFile(self.path, self.size, self._digest.hexdigest())

    def _remove(self) -> None:
        if not self._is_committed:
            self._part.unlink(missing_ok=True)


def write_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    """Raise MergeError for an OSError."""
    return translate_os_errors(MergeError, path, ", or write elsewhere", "write to another disk")
