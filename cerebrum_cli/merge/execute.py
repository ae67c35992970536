"""Carry out a plan: headers and tensors into files, piece by piece; whatever ends this first leaves none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.adapter import ARCHITECTURE, TensorInfo, encode_header
from cerebrum_cli.gguf.table import Value
from cerebrum_cli.merge.methods import input_tensors
from cerebrum_cli.merge.output_files import OutputFiles, WrittenFile
from cerebrum_cli.merge.plan import OutputTensor, Plan, padded_size, split_tensors
from cerebrum_cli.merge.weights import CodecFactory, TensorEvaluator, block_scale

PROGRESS_INTERVAL_S = 0.02  # how often whoever waits is told how far it is

OnProgress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of a merge: all that stands before its tensors, and these."""

    path: Path
    header: bytes
    tensors: tuple[OutputTensor, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.header) + sum(padded_size(tensor.size) for tensor in self.tensors)


def plan_files(plan: Plan, path: Path, limit: int | None = None) -> tuple[OutputFile, ...]:
    """Return the files of a plan, split where one would be larger than `limit` bytes."""
    whole = OutputFile(path, encode_header(plan.metadata, map(tensor_info, plan.tensors)), plan.tensors)
    if limit is None or whole.size <= limit:
        return (whole,)
    headers = [len(encode_header(part_metadata(plan, number, 0), ())) for number in (0, 1)]
    split = split_tensors(plan.tensors, (headers[0], headers[1]), limit)
    result = []
    for number, tensors in enumerate(split):
        name = f"{path.stem}-{number + 1:05}-of-{len(split):05}{path.suffix}"
        metadata = part_metadata(plan, number, len(split))
        result.append(OutputFile(path.with_name(name), encode_header(metadata, map(tensor_info, tensors)), tensors))
    return tuple(result)


def part_metadata(plan: Plan, number: int, count: int) -> dict[str, Value]:
    """Return the metadata of one part of so many: only the first has that of the model."""
    own = plan.metadata if number == 0 else {ARCHITECTURE: plan.metadata[ARCHITECTURE]}
    return {
        **own,
        "split.no": Value("UINT16", number),
        "split.count": Value("UINT16", count),
        "split.tensors.count": Value("INT32", len(plan.tensors)),
    }


def tensor_info(tensor: OutputTensor) -> TensorInfo:
    """Return a tensor as a header tells of it."""
    return TensorInfo(tensor.name, tensor.shape, tensor.type, tensor.size)


def execute(
    files: Sequence[OutputFile], codec: CodecFactory, threads: int, on_progress: OnProgress
) -> tuple[WrittenFile, ...]:
    """Write files, telling the bytes that are written, of how many, every now and then.

    MergeError where they cannot be written or weights cannot be worked out, ModelFileError for a source that cannot
    be read. A thread of its own does the work: what a signal raises comes to the one that waits here, where it finds
    no lock half taken and no file half named.
    """
    job = Job(files, codec, threads)
    try:
        Thread(target=job.run, name="merge", daemon=True).start()
        while not job.is_finished:
            time.sleep(
                PROGRESS_INTERVAL_S
            )  # and no join: what a signal raises in one makes it forget the thread (Python 3.11)
            on_progress(job.done, job.total)
    except BaseException:
        job.is_cancelled = True
        while job.is_started and not job.is_finished:
            time.sleep(PROGRESS_INTERVAL_S)
        if not job.is_complete:  # otherwise the files had their names already
            raise
    return job.result()


class Cancelled(Exception):
    """Whoever waited for a merge has gone."""


@dataclass(slots=True)
class Job:
    """A merge that is being written: how many bytes are, of how many, and whether anybody still wants it."""

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
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    def run(self) -> None:
        """Do it to its end, or to its error."""
        self.is_started = True
        try:
            self._written = self._write()
        except BaseException as error:  # it is raised where it is waited for
            self._error = error
        finally:
            self.is_finished = True

    @property
    def is_complete(self) -> bool:
        """Whether all files are there."""
        return bool(self._written)

    def result(self) -> tuple[WrittenFile, ...]:
        """Return what was written, or raise what kept it from that."""
        if self._error is not None:
            raise self._error
        return self._written

    def _write(self) -> tuple[WrittenFile, ...]:
        self._raise_if_cancelled()
        with OutputFiles() as delivery, TensorEvaluator(self.codec, self.threads) as weights:
            for file in self.files:
                with delivery.file(file.path) as target:
                    for piece in chunks(file, weights):
                        self._raise_if_cancelled()
                        target.write(piece)
                        self.done += len(piece)
            self._raise_if_cancelled()
            return delivery.commit()

    def _raise_if_cancelled(self) -> None:
        if self.is_cancelled:
            raise Cancelled


def chunks(file: OutputFile, weights: TensorEvaluator) -> Iterator[bytes]:
    """Yield the bytes of a file."""
    yield file.header
    for tensor in file.tensors:
        yield from weights.chunks(tensor)
        yield bytes(padded_size(tensor.size) - tensor.size)


def require_supported_types(plan: Plan, codec: CodecFactory) -> None:
    """Raise MergeError for a type that weights cannot be read from or written in, before anything is."""
    computed = [each for each in plan.tensors if not (each.is_copy or block_scale(each.op, each))]
    if not computed:
        return
    instance = codec()
    for tensor in computed:
        for source in input_tensors(tensor.op):
            if not instance.readable(source.type):
                raise MergeError(f"{source.name} is {source.kind.name}, which cannot be read here", "merge other files")
        if not instance.writable(tensor.type):
            what = f"{tensor.name} is {tensor.kind.name}, which cannot be written without knowing which weights matter"
            raise MergeError(what, "name another type with --type, as Q4_K")
