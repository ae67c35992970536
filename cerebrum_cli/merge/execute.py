"""Write the file of a plan in chunks; an error or interruption leaves no file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.adapter import TensorInfo, encode_header
from cerebrum_cli.merge.methods import input_tensors
from cerebrum_cli.merge.output_file import HashedFile, WrittenFile, translate_os_errors
from cerebrum_cli.merge.plan import OutputTensor, Plan, padded_size
from cerebrum_cli.merge.weights import CodecFactory, TensorEvaluator, block_scale

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
        return len(self.header) + sum(padded_size(tensor.size) for tensor in self.tensors)


def plan_file(plan: Plan, path: Path) -> OutputFile:
    """The file that a plan is written to."""
    return OutputFile(path, encode_header(plan.metadata, map(tensor_info, plan.tensors)), plan.tensors)


def tensor_info(tensor: OutputTensor) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.shape, tensor.type, tensor.size)


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
            on_progress(job.done, job.total)
        if job.is_complete:
            on_progress(job.total, job.total)
    except BaseException:
        job.is_cancelled = True
        while job.is_started and not job.is_finished:
            time.sleep(PROGRESS_INTERVAL_S)
        if not job.is_complete:  # otherwise the file has been renamed already
            raise
    return job.result()


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
    _written: WrittenFile | None = None
    _error: BaseException | None = None

    @property
    def total(self) -> int:
        """Size of the file in bytes."""
        return self.file.size

    def run(self) -> None:
        """Write the file; store the result or the exception."""
        self.is_started = True
        try:
            self._written = self._write()
        except BaseException as error:  # raised by result(), in the waiting thread
            self._error = error
        finally:
            self.is_finished = True

    @property
    def is_complete(self) -> bool:
        return self._written is not None

    def result(self) -> WrittenFile:
        """The written file; raises the exception that prevented it."""
        if self._error is not None:
            raise self._error
        assert self._written, "the job is finished"
        return self._written

    def _write(self) -> WrittenFile:
        self._raise_if_cancelled()
        with (
            translate_os_errors(self.file.path),
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
        yield bytes(padded_size(tensor.size) - tensor.size)


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
