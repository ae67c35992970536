"""Carry out a plan: headers and tensors into files, piece by piece; whatever ends this first leaves none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.ground.errors import MergeError
from cerebrum_cli.merge.gguf_file import ALIGNMENT, Entry, header
from cerebrum_cli.merge.methods import Copy, tensors_of
from cerebrum_cli.merge.plan import Output, Plan, parts
from cerebrum_cli.merge.table import Value
from cerebrum_cli.merge.weights import CodecFactory, Weights, block_scale
from cerebrum_cli.merge.writing import Delivery, Written

Told = Callable[[int, int], None]
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
    whole = header(plan.metadata, map(entry, plan.tensors))
    split = parts(plan.tensors, len(header(plan.metadata, ())), limit)
    if len(split) == 1:
        return (File(path, whole, plan.tensors),)
    found = []
    for number, tensors in enumerate(split):
        metadata = (
            dict(plan.metadata) if number == 0 else {key: plan.metadata[key] for key in ("general.architecture",)}
        )
        metadata["split.no"] = Value("UINT16", number)
        metadata["split.count"] = Value("UINT16", len(split))
        metadata["split.tensors.count"] = Value("INT32", len(plan.tensors))
        name = f"{path.stem}-{number + 1:05}-of-{len(split):05}{path.suffix}"
        found.append(File(path.with_name(name), header(metadata, map(entry, tensors)), tensors))
    return tuple(found)


def entry(tensor: Output) -> Entry:
    """Return a tensor as a header tells of it."""
    return Entry(tensor.name, tensor.shape, tensor.type, tensor.size)


def padded(size: int) -> int:
    """Return bytes with what is left free behind them."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def execute(files: Sequence[File], codec: CodecFactory, threads: int, told: Told) -> tuple[Written, ...]:
    """Write files, telling the bytes that are written, of how many.

    MergeError where they cannot be written or weights cannot be worked out, ModelFileError for a source that cannot
    be read.
    """
    total, done = sum(file.size for file in files), 0
    with Delivery() as delivery, Weights(codec, threads) as weights:
        for file in files:
            with delivery.file(file.path) as target:
                target.write(file.header)
                for tensor in file.tensors:
                    for piece in weights.pieces(tensor):
                        target.write(piece)
                        told(done + target.size, total)
                    target.write(bytes(padded(tensor.size) - tensor.size))
                done += target.size
        return delivery.complete()


def require_codec(plan: Plan, codec: CodecFactory) -> None:
    """Raise MergeError for a type that weights cannot be read from or written in, before anything is."""
    worked = [tensor for tensor in plan.tensors if not is_as_it_is(tensor)]
    able = codec() if worked else None
    for tensor in worked:
        assert able is not None
        for source in tensors_of(tensor.work):
            if not able.readable(source.type):
                raise MergeError(f"{source.name} is {source.kind.name}, which cannot be read here", "merge other files")
        if not able.writable(tensor.type):
            what = f"{tensor.name} is {tensor.kind.name}, which cannot be written without knowing which weights matter"
            raise MergeError(what, "name another type with --type, as Q4_K")


def is_as_it_is(tensor: Output) -> bool:
    """Return whether a tensor comes to be without its weights being read: copied, or its blocks' scales multiplied."""
    is_copy = isinstance(tensor.work, Copy) and tensor.work.tensor.type == tensor.type
    return is_copy or block_scale(tensor.work, tensor) is not None
