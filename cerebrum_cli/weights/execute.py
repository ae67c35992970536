"""Compute a planned merge and write its file in chunks, copied, or computed by several threads.

An error or interruption leaves no file. Only a few chunks are in memory at a time: reading waits until earlier chunks
are written.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from threading import Thread
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cerebrum_cli.core.errors import EngineError, MergeError, ModelFileError
from cerebrum_cli.core.events import OnProgress
from cerebrum_cli.core.files import commit_file, reading_model, translate_os_errors, unfinished_file, write_all
from cerebrum_cli.gguf.contents import Shape, Tensor, aligned
from cerebrum_cli.weights.plan import OutputTensor, Plan, Sum

T = TypeVar("T")
Floats = npt.NDArray[np.float32]

COPY_BYTES = 1 << 20  # size of a copied chunk
PENDING_PER_THREAD = 3  # chunks computed or queued per thread
CHUNK_WEIGHTS = 1 << 18  # weights in a computed chunk: 1 MB as floats
# Of the types of a checkpoint: how a weight is read as an integer, and the bits of its exponent.
_EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}

Rows = tuple[int, int]  # consecutive rows of a tensor: the first one, and their number


class TensorEvaluator(ExitStack):
    """Compute tensors with a thread pool; the end of its context ends the threads and closes the source files."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads
        self._pool = self.enter_context(ThreadPoolExecutor(threads))
        self._files: dict[Path, int] = {}

    def chunks(self, output: OutputTensor) -> Iterator[bytes]:
        """Yield the bytes of a tensor. Raises ModelFileError for a source that is damaged, MergeError on overflow."""
        for tensor in output.inputs:
            for path in tensor.source.paths if tensor.source else (tensor.path,):
                if path not in self._files:  # opened here, before threads read it
                    with reading_model(path):
                        self._files[path] = self.enter_context(path.open("rb", buffering=0)).fileno()
        if isinstance(output.origin, Sum):
            ranges = row_ranges(output.shape)
            yield from self._run_in_order(partial(self._sum, output.origin, output, rows) for rows in ranges)
            return
        for begin in range(0, output.size, COPY_BYTES):
            yield self._read(output.origin, begin, min(COPY_BYTES, output.size - begin))

    def _sum(self, origin: Sum, output: OutputTensor, rows: Rows) -> bytes:
        from cerebrum_cli.weights import codec

        total = np.zeros((rows[1], output.shape[0]), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for tensor, coefficient in origin.terms:
                total += np.float32(coefficient) * self._dequantize(tensor, rows)
        if not np.isfinite(total).all():
            raise MergeError(
                f"{output.name} would have infinite or NaN weights",
                "check the numbers in the recipe, and the source models",
            )
        try:
            return codec.quantize(total, output.type)
        except EngineError as error:
            raise MergeError(f"{output.name}: {error.message}", error.hint) from error

    def _dequantize(self, tensor: Tensor, rows: Rows) -> Floats:
        from cerebrum_cli.weights import codec

        first, length = rows
        row_length = tensor.shape[0]
        out = np.empty((length, row_length), np.float32)
        begin, size = tensor.kind.bytes_of(first * row_length), tensor.kind.bytes_of(out.size)
        codec.dequantize(self._read(tensor, begin, size), tensor.type, out)
        return out

    def _read(self, tensor: Tensor, begin: int, size: int) -> bytes:
        begin += tensor.offset
        if tensor.source:
            data = tensor.source.read(self._read_file, begin, size)
            require_numbers(data, tensor)
            return data
        return self._read_file(tensor.path, begin, size)

    def _read_file(self, path: Path, begin: int, size: int) -> bytes:
        with reading_model(path):
            data = os.pread(self._files[path], size, begin)
        if len(data) != size:
            raise ModelFileError(path, "the file was truncated while being read")
        return data

    def _run_in_order(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        running: deque[Future[T]] = deque()
        try:
            for task in tasks:
                running.append(self._pool.submit(task))
                if len(running) >= PENDING_PER_THREAD * self._threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def require_numbers(data: bytes, tensor: Tensor) -> None:
    """Raise ModelFileError for weights of a checkpoint that are infinite or NaN: their exponents have all bits set."""
    layout, exponent = _EXPONENTS[tensor.kind.name]
    if ((np.frombuffer(data, layout) & exponent) == exponent).any():
        hint = "download it again; if it was published like this, use another model"
        raise ModelFileError(tensor.path, f"{tensor.name} has infinite or NaN weights", hint)


def row_ranges(shape: Shape) -> Iterator[Rows]:
    rows = prod(shape[1:])
    step = max(1, CHUNK_WEIGHTS // shape[0])
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


PROGRESS_INTERVAL_S = 0.02  # between two progress reports


def execute(plan: Plan, path: Path, threads: int, on_progress: OnProgress) -> str:
    """Write a plan to a file, report bytes done and total, and return the file's SHA-256.

    Raises MergeError if it cannot be written or weights cannot be computed, ModelFileError for an unreadable source.
    A separate thread does the work, so that the exception of a signal handler is raised here, in the waiting thread,
    and never while a lock is taken or the file is renamed.
    """
    writer = MergeWriter(plan, path, threads)
    try:
        Thread(target=writer.run, name="merge", daemon=True).start()
        while writer.result is None:
            time.sleep(PROGRESS_INTERVAL_S)  # not join(): an exception raised in it loses the thread (Python 3.11)
            on_progress(writer.done, plan.size)
        if isinstance(writer.result, str):
            on_progress(plan.size, plan.size)
    except BaseException:
        writer.is_cancelled = True
        while writer.is_started and writer.result is None:
            time.sleep(PROGRESS_INTERVAL_S)
        if not isinstance(writer.result, str):  # otherwise the file has been renamed already
            raise
    if isinstance(writer.result, BaseException):
        raise writer.result
    return writer.result


class Cancelled(Exception):
    """The merge was cancelled."""


@dataclass(slots=True)
class MergeWriter:
    """A merge being written by a thread: its progress, cancellation flag, and in the end its digest or an error."""

    plan: Plan
    path: Path
    threads: int
    done: int = 0
    is_cancelled: bool = False
    is_started: bool = False
    result: str | BaseException | None = None

    def run(self) -> None:
        self.is_started = True
        try:
            self.result = self._write()
        except BaseException as error:  # raised by the waiting thread
            self.result = error

    def _write(self) -> str:
        self._raise_if_cancelled()
        digest = hashlib.sha256()
        with (
            translate_os_errors(MergeError, self.path, ", or write elsewhere"),
            unfinished_file(self.path, 0o666) as part,
            ThreadPoolExecutor(1) as pool,
            TensorEvaluator(self.threads) as evaluator,
        ):
            hashing = pool.submit(digest.update, b"")
            for chunk in chunks(self.plan, evaluator):
                hashing.result()
                hashing = pool.submit(digest.update, chunk)
                write_all(part.file.fileno(), chunk)
                self.done += len(chunk)
                self._raise_if_cancelled()
            hashing.result()
            commit_file(part, self.path)
            return digest.hexdigest()

    def _raise_if_cancelled(self) -> None:
        if self.is_cancelled:
            raise Cancelled


def chunks(plan: Plan, evaluator: TensorEvaluator) -> Iterator[bytes]:
    yield plan.header
    for tensor in plan.tensors:
        yield from evaluator.chunks(tensor)
        yield bytes(aligned(tensor.size) - tensor.size)


def require_supported_types(plan: Plan) -> None:
    """Raise MergeError for a type that cannot be read or written, before anything is written."""
    for tensor in plan.tensors:
        if tensor.is_copy:
            continue
        from cerebrum_cli.weights import codec

        for source in tensor.inputs:
            if not codec.readable(source.type):
                raise MergeError(
                    f"{source.name} is {source.kind.name}, which cannot be dequantized", "merge other files"
                )
        if not codec.writable(tensor.type):
            raise MergeError(
                f"{tensor.name} is {tensor.kind.name}, which cannot be written without an importance matrix",
                "choose another type with --type, such as Q4_K_M",
            )
