"""Write the file of a plan in chunks; an error or interruption leaves no file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.files import commit_file, translate_os_errors, unfinished_file, write_all
from cerebrum_cli.gguf.parser import aligned
from cerebrum_cli.merge.methods import input_tensors
from cerebrum_cli.merge.plan import Plan
from cerebrum_cli.merge.weights import CodecFactory, TensorEvaluator, block_scale
from cerebrum_cli.models.library import OnProgress

PROGRESS_INTERVAL_S = 0.02  # between two progress reports


def execute(plan: Plan, path: Path, codec: CodecFactory, threads: int, on_progress: OnProgress) -> str:
    """Write a plan to a file, report bytes done and total, and return the file's SHA-256.

    Raises MergeError if it cannot be written or weights cannot be computed, ModelFileError for an unreadable source.
    A separate thread does the work, so that the exception of a signal handler is raised here, in the waiting thread,
    and never while a lock is taken or the file is renamed.
    """
    writer = MergeWriter(plan, path, codec, threads)
    try:
        Thread(target=writer.run, name="merge", daemon=True).start()
        while not writer.is_finished:
            time.sleep(PROGRESS_INTERVAL_S)  # not join(): an exception raised in it loses the thread (Python 3.11)
            on_progress(writer.done, plan.size)
        if writer.sha256:
            on_progress(plan.size, plan.size)
    except BaseException:
        writer.is_cancelled = True
        while writer.is_started and not writer.is_finished:
            time.sleep(PROGRESS_INTERVAL_S)
        if not writer.sha256:  # otherwise the file has been renamed already
            raise
    if writer.error:
        raise writer.error
    assert writer.sha256, "the writer is finished"
    return writer.sha256


class Cancelled(Exception):
    """The merge was cancelled."""


@dataclass(slots=True)
class MergeWriter:
    """A merge being written by a thread: its progress, cancellation flag and result."""

    plan: Plan
    path: Path
    codec: CodecFactory
    threads: int
    done: int = 0
    is_cancelled: bool = False
    is_started: bool = False
    is_finished: bool = False
    sha256: str | None = None
    error: BaseException | None = None

    def run(self) -> None:
        self.is_started = True
        try:
            self.sha256 = self._write()
        except BaseException as error:  # raised by the waiting thread
            self.error = error
        finally:
            self.is_finished = True

    def _write(self) -> str:
        self._raise_if_cancelled()
        digest, hashing = hashlib.sha256(), Future[None]()
        hashing.set_result(None)
        with (
            translate_os_errors(MergeError, self.path, ", or write elsewhere", "write to another disk"),
            unfinished_file(self.path, 0o666, is_required=True) as part,
            ThreadPoolExecutor(1) as pool,
            TensorEvaluator(self.codec, self.threads) as evaluator,
        ):
            for chunk in chunks(self.plan, evaluator):
                self._raise_if_cancelled()
                hashing.result()
                hashing = pool.submit(digest.update, chunk)
                write_all(part.file.fileno(), chunk)
                self.done += len(chunk)
            self._raise_if_cancelled()
            hashing.result()
            os.fsync(part.file.fileno())
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


def require_supported_types(plan: Plan, codec: CodecFactory) -> None:
    """Raise MergeError for a type that the codec cannot read or write, before anything is written."""
    computed = [tensor for tensor in plan.tensors if not (tensor.is_copy or block_scale(tensor.op, tensor))]
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
            raise MergeError(
                f"{tensor.name} is {tensor.kind.name}, which cannot be written without an importance matrix",
                "choose another type with --type, such as Q4_K",
            )
