"""Carry out a plan: headers and tensors into files, piece by piece; whatever ends this first leaves none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.adapter import ARCHITECTURE, Entry, header
from cerebrum_cli.gguf.table import Value
from cerebrum_cli.merge.methods import tensors_of
from cerebrum_cli.merge.output_files import Delivery, Written
from cerebrum_cli.merge.plan import Output, Plan, padded, parts
from cerebrum_cli.merge.weights import CodecFactory, Weights, block_scale

TOLD_S = 0.02  # how often whoever waits is told how far it is

OnProgress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a merge: all that stands before its tensors, and these."""

    path: Path
    header: bytes
    tensors: tuple[Output, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.header) + sum(padded(tensor.size) for tensor in self.tensors)


def files(plan: Plan, path: Path, limit: int | None = None) -> tuple[File, ...]:
    """Return the files of a plan, split where one would be larger than `limit` bytes."""
    whole = File(path, header(plan.metadata, map(entry, plan.tensors)), plan.tensors)
    if limit is None or whole.size <= limit:
        return (whole,)
    headers = [len(header(part_metadata(plan, number, 0), ())) for number in (0, 1)]
    split = parts(plan.tensors, (headers[0], headers[1]), limit)
    found = []
    for number, tensors in enumerate(split):
        name = f"{path.stem}-{number + 1:05}-of-{len(split):05}{path.suffix}"
        metadata = part_metadata(plan, number, len(split))
        found.append(File(path.with_name(name), header(metadata, map(entry, tensors)), tensors))
    return tuple(found)


def part_metadata(plan: Plan, number: int, count: int) -> dict[str, Value]:
    """Return the metadata of one part of so many: only the first has that of the model."""
    own = plan.metadata if number == 0 else {ARCHITECTURE: plan.metadata[ARCHITECTURE]}
    return {
        **own,
        "split.no": Value("UINT16", number),
        "split.count": Value("UINT16", count),
        "split.tensors.count": Value("INT32", len(plan.tensors)),
    }


def entry(tensor: Output) -> Entry:
    """Return a tensor as a header tells of it."""
    return Entry(tensor.name, tensor.shape, tensor.type, tensor.size)


def execute(files: Sequence[File], codec: CodecFactory, threads: int, told: OnProgress) -> tuple[Written, ...]:
    """Write files, telling the bytes that are written, of how many, every now and then.

    MergeError where they cannot be written or weights cannot be worked out, ModelFileError for a source that cannot
    be read. A thread of its own does the work: what a signal raises comes to the one that waits here, where it finds
    no lock half taken and no file half named.
    """
    job = Job(files, codec, threads)
    try:
        Thread(target=job.run, name="merge", daemon=True).start()
        while not job.is_over:
            time.sleep(TOLD_S)  # and no join: what a signal raises in one makes it forget the thread (Python 3.11)
            told(job.done, job.total)
    except BaseException:
        job.is_unwanted = True
        while job.is_begun and not job.is_over:
            time.sleep(TOLD_S)
        if not job.is_whole:  # otherwise the files had their names already
            raise
    return job.result()


class Unwanted(Exception):
    """Whoever waited for a merge has gone."""


@dataclass(slots=True)
class Job:
    """A merge that is being written: how many bytes are, of how many, and whether anybody still wants it."""

    files: Sequence[File]
    codec: CodecFactory
    threads: int
    done: int = 0
    is_unwanted: bool = False
    is_begun: bool = False
    is_over: bool = False
    _written: tuple[Written, ...] = ()
    _error: BaseException | None = None

    @property
    def total(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    def run(self) -> None:
        """Do it to its end, or to its error."""
        self.is_begun = True
        try:
            self._written = self._write()
        except BaseException as error:  # it is raised where it is waited for
            self._error = error
        finally:
            self.is_over = True

    @property
    def is_whole(self) -> bool:
        """Whether all files are there."""
        return bool(self._written)

    def result(self) -> tuple[Written, ...]:
        """Return what was written, or raise what kept it from that."""
        if self._error is not None:
            raise self._error
        return self._written

    def _write(self) -> tuple[Written, ...]:
        self._require_wanted()
        with Delivery() as delivery, Weights(self.codec, self.threads) as weights:
            for file in self.files:
                with delivery.file(file.path) as target:
                    for piece in pieces(file, weights):
                        self._require_wanted()
                        target.write(piece)
                        self.done += len(piece)
            self._require_wanted()
            return delivery.complete()

    def _require_wanted(self) -> None:
        if self.is_unwanted:
            raise Unwanted


def pieces(file: File, weights: Weights) -> Iterator[bytes]:
    """Yield the bytes of a file."""
    yield file.header
    for tensor in file.tensors:
        yield from weights.pieces(tensor)
        yield bytes(padded(tensor.size) - tensor.size)


def require_codec(plan: Plan, codec: CodecFactory) -> None:
    """Raise MergeError for a type that weights cannot be read from or written in, before anything is."""
    worked = [each for each in plan.tensors if not (each.is_copy or block_scale(each.op, each))]
    if not worked:
        return
    able = codec()
    for tensor in worked:
        for source in tensors_of(tensor.op):
            if not able.readable(source.type):
                raise MergeError(f"{source.name} is {source.kind.name}, which cannot be read here", "merge other files")
        if not able.writable(tensor.type):
            what = f"{tensor.name} is {tensor.kind.name}, which cannot be written without an importance matrix"
            raise MergeError(what, "choose another type with --type, such as Q4_K")
