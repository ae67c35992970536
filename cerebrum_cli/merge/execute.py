"""Write the files of a plan in chunks; an error or interruption leaves no file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.parser import Value, aligned
from cerebrum_cli.gguf.table import ARCHITECTURE, encode_header
from cerebrum_cli.merge.methods import input_tensors
from cerebrum_cli.merge.output_files import OutputFiles, WrittenFile
from cerebrum_cli.merge.plan import OutputTensor, Plan, split_tensors
from cerebrum_cli.merge.weights import CodecFactory, TensorEvaluator, block_scale

PROGRESS_INTERVAL_S = 0.02  # between two progress reports

OnProgress = Callable[[int, int], None]
"""Called with the bytes done and the total."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of a merge: its header and tensors."""

    path: Path
    header: bytes
    tensors: tuple[OutputTensor, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.header) + sum(aligned(tensor.size) for tensor in self.tensors)


def plan_files(plan: Plan, path: Path, limit: int | None = None) -> tuple[OutputFile, ...]:
    """Divide a plan into files of at most `limit` bytes."""
    whole = OutputFile(path, encode_header(plan.metadata, (tensor[:3] for tensor in plan.tensors)), plan.tensors)
    if limit is None or whole.size <= limit:
        return (whole,)
    headers = [len(encode_header(part_metadata(plan, number, 0), ())) for number in (0, 1)]
    split = split_tensors(plan.tensors, (headers[0], headers[1]), limit)
    result = []
    for number, tensors in enumerate(split):
        name = f"{path.stem}-{number + 1:05}-of-{len(split):05}{path.suffix}"
        metadata = part_metadata(plan, number, len(split))
        result.append(
            OutputFile(path.with_name(name), encode_header(metadata, (tensor[:3] for tensor in tensors)), tensors)
        )
    return tuple(result)


def part_metadata(plan: Plan, number: int, count: int) -> dict[str, Value]:
    """Metadata of one part of a split model; only the first has the model's own."""
    own = plan.metadata if number == 0 else {ARCHITECTURE: plan.metadata[ARCHITECTURE]}
    return {
        **own,
        "split.no": Value("UINT16", number),
        "split.count": Value("UINT16", count),
        "split.tensors.count": Value("INT32", len(plan.tensors)),
    }


def execute(
    files: Sequence[OutputFile], codec: CodecFactory, threads: int, on_progress: OnProgress
) -> tuple[WrittenFile, ...]:
    """Write files and report progress.

    Raises MergeError if they cannot be written or weights cannot be computed, ModelFileError for an unreadable source.
    A separate thread does the work, so that the exception of a signal handler is raised here, in the waiting thread,
    and never while a lock is taken or a file is renamed.
    """
    job = Job(files, codec, threads)
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
        if not job.is_complete:  # otherwise the files have been renamed already
            raise
    return job.result()


class Cancelled(Exception):
    """The merge was cancelled."""


@dataclass(slots=True)
class Job:
    """A merge being written by a thread: its progress, cancellation flag and result."""

    files: Sequence[OutputFile]
    codec: CodecFactory
    threads: int
    done: int = 0
    is_cancelled: bool = False
    is_started: bool = False
    is_finished: bool = False
    _written: tuple[WrittenFile, ...] = ()
    _error: BaseException | None = None

    @property
    def total(self) -> int:
        """Size of all files in bytes."""
        return sum(file.size for file in self.files)

    def run(self) -> None:
        """Write all files; store the result or the exception."""
        self.is_started = True
        try:
            self._written = self._write()
        except BaseException as error:  # raised by result(), in the waiting thread
            self._error = error
        finally:
            self.is_finished = True

    @property
    def is_complete(self) -> bool:
        return bool(self._written)

    def result(self) -> tuple[WrittenFile, ...]:
        """The written files; raises the exception that prevented it."""
        if self._error is not None:
            raise self._error
        return self._written

    def _write(self) -> tuple[WrittenFile, ...]:
        self._raise_if_cancelled()
        with OutputFiles() as outputs, TensorEvaluator(self.codec, self.threads) as evaluator:
            for file in self.files:
                with outputs.file(file.path) as target:
                    for chunk in chunks(file, evaluator):
                        self._raise_if_cancelled()
                        target.write(chunk)
                        self.done += len(chunk)
            self._raise_if_cancelled()
            return outputs.commit()

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
