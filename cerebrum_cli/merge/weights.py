"""Compute the bytes of a merge's tensors in order, in chunks: copied, or computed by several threads.

Only a few chunks are in memory at a time: reading waits until earlier chunks are written.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from cerebrum_cli.core.errors import EngineError, MergeError, ModelFileError
from cerebrum_cli.gguf.parser import Tensor
from cerebrum_cli.merge.methods import Copy, Slerp, Sum, TensorOp, Term, input_tensors, offset_sum, slerp_coefficients
from cerebrum_cli.merge.plan import OutputTensor

if TYPE_CHECKING:
    from cerebrum_cli.engine.llama.codec import LlamaCodec

    Codec = LlamaCodec  # converts weights from and to ggml types; thread-safe

T = TypeVar("T")
Floats = npt.NDArray[np.float32]

EXPERTS = "_exps."  # in the names of tensors that hold all experts of a layer
COPY_BYTES = 1 << 20  # size of a copied chunk
PENDING_PER_THREAD = 3  # chunks computed or queued per thread
CHUNK_WEIGHTS = 1 << 18  # weights in a computed chunk: 1 MB as floats
# Byte offsets of the half-precision scales in a type's blocks (structs of ggml-common.h, llama.cpp 0c1e57098). All
# weights of a block are multiples of them, so multiplying the scales multiplies the tensor.
SCALE_OFFSETS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}


CodecFactory = Callable[[], "Codec"]  # only called when weights have to be computed
Rows = tuple[int, int]  # consecutive rows of a tensor: the first one, and their number


@dataclass
class TensorEvaluator:
    """Compute tensors with a thread pool; the context manager ends the threads and closes the source files."""

    open_codec: CodecFactory
    threads: int
    _pool: ThreadPoolExecutor = field(init=False)
    _files: dict[Path, int] = field(default_factory=dict, init=False)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    def __enter__(self) -> TensorEvaluator:
        self._pool = self._open.enter_context(ThreadPoolExecutor(self.threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def chunks(self, output: OutputTensor) -> Iterator[bytes]:
        """Yield the bytes of a tensor. Raises ModelFileError for an unreadable source, MergeError on overflow."""
        if isinstance(output.op, Slerp) and len(output.shape) > 2 and EXPERTS in output.name:
            for expert in expert_outputs(output, output.op):
                yield from self.chunks(expert)
            return
        for tensor in input_tensors(output.op):
            self._open_file(tensor.path)  # here, before threads read it
        op = self._slerp_as_sum(output.op) if isinstance(output.op, Slerp) else output.op
        if isinstance(op, Copy) and op.tensor.type == output.type:
            yield from self._copy(op.tensor)
        elif scale := block_scale(op, output):
            for data in self._copy(scale.tensor):
                yield scale_blocks(data, scale)
        else:
            total = op if isinstance(op, Sum) else Sum((Term(op.tensor, 1.0),))
            task = partial(self._sum, self._codec, total, output)
            yield from self._run_in_order(partial(task, rows) for rows in row_ranges(output.shape))

    def _copy(self, tensor: Tensor) -> Iterator[bytes]:
        whole = COPY_BYTES // tensor.kind.block_bytes * tensor.kind.block_bytes
        for begin in range(0, tensor.size, whole):
            yield self._read(tensor, begin, min(whole, tensor.size - begin))

    @cached_property
    def _codec(self) -> Codec:
        return self.open_codec()

    def _sum(self, codec: Codec, op: Sum, output: OutputTensor, rows: Rows) -> bytes:
        total = np.full((rows[1], output.shape[0]), op.constant, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for tensor, coefficient in op.terms:
                total += np.float32(coefficient) * self._dequantize(codec, tensor, rows)
        if not np.isfinite(total).all():
            raise MergeError(
                f"{output.name} would have infinite or NaN weights",
                "check the numbers in the recipe, and the source models",
            )
        try:
            return codec.quantize(total, output.type)
        except EngineError as error:
            raise MergeError(f"{output.name}: {error.message}", error.hint) from error

    def _slerp_as_sum(self, op: Slerp) -> Sum:
        """Convert slerp to a weighted sum; its coefficients depend on all weights of both tensors."""
        task = partial(self._dot_products, self._codec, op)
        measured = self._run_in_order(partial(task, rows) for rows in row_ranges(op.first.shape))
        first, second, product = (float(total) for total in np.sum(list(measured), axis=0))
        coefficients = slerp_coefficients(op.t, sqrt(first), sqrt(second), product)
        return offset_sum((Term(op.first, coefficients[0]), Term(op.second, coefficients[1])), op.offset)

    def _dot_products(self, codec: Codec, op: Slerp, rows: Rows) -> tuple[float, ...]:
        """Sums of squares of some rows of both tensors, and their dot product."""
        first, second = (
            self._dequantize(codec, tensor, rows).ravel().astype(np.float64) - op.offset
            for tensor in (op.first, op.second)
        )
        with np.errstate(over="ignore", invalid="ignore"):
            return tuple(float(np.einsum("i,i", *pair)) for pair in ((first, first), (second, second), (first, second)))

    def _dequantize(self, codec: Codec, tensor: Tensor, rows: Rows) -> Floats:
        (first, length), row_length, bytes_of = rows, tensor.shape[0], tensor.kind.bytes_of
        out = np.empty((length, row_length), np.float32)
        codec.dequantize(self._read(tensor, bytes_of(first * row_length), bytes_of(out.size)), tensor.type, out)
        return out

    def _read(self, tensor: Tensor, begin: int, size: int) -> bytes:
        try:
            data = os.pread(self._files[tensor.path], size, tensor.offset + begin)
        except OSError as error:
            raise ModelFileError(tensor.path, f"cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise ModelFileError(tensor.path, "the file was truncated during the merge")
        return data

    def _open_file(self, path: Path) -> None:
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise ModelFileError(path, f"cannot be read: {error.strerror}") from error
            self._open.callback(os.close, self._files[path])

    def _run_in_order(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        running: deque[Future[T]] = deque()
        try:
            for task in tasks:
                running.append(self._pool.submit(task))
                if len(running) >= PENDING_PER_THREAD * self.threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def row_ranges(shape: tuple[int, ...]) -> Iterator[Rows]:
    rows = prod(shape[1:])
    step = max(1, CHUNK_WEIGHTS // shape[0])
    return ((first, min(step, rows - first)) for first in range(0, rows, step))


def expert_outputs(output: OutputTensor, op: Slerp) -> Iterator[OutputTensor]:
    """Divide a tensor into its experts, each of which is interpolated separately."""
    for number in range(prod(output.shape[2:])):
        ends = (expert_tensor(op.first, number), expert_tensor(op.second, number))
        yield output._replace(shape=output.shape[:2], op=Slerp(op.t, *ends, op.offset))


def expert_tensor(tensor: Tensor, number: int) -> Tensor:
    size = tensor.kind.bytes_of(prod(tensor.shape[:2]))
    return tensor._replace(shape=tensor.shape[:2], offset=tensor.offset + number * size)


def block_scale(op: TensorOp, output: OutputTensor) -> Term | None:
    """The only term of a sum that can be computed by multiplying block scales, without quantizing again."""
    if isinstance(op, Sum) and len(op.terms) == 1 and op.constant == 0 and op.terms[0].tensor.type == output.type:
        return op.terms[0] if output.kind.name in SCALE_OFFSETS else None
    return None


def scale_blocks(data: bytes, scale: Term) -> bytes:
    kind = scale.tensor.kind
    blocks = np.frombuffer(bytearray(data), np.uint8).reshape(-1, kind.block_bytes)
    for offset in SCALE_OFFSETS[kind.name]:
        halves = np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            halves = (halves * np.float32(scale.coefficient)).astype("<f2")
        if not np.isfinite(halves).all():
            raise MergeError(
                f"{scale.tensor.name} times {scale.coefficient:g} overflows its type",
                "use a smaller scale, or another type with --type",
            )
        blocks[:, offset : offset + 2] = halves.view(np.uint8)
    return blocks.tobytes()
