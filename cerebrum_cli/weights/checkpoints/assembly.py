"""Assemble the bytes of GGUF tensors from safetensors: join, reorder, convert or compute them."""

from __future__ import annotations

from collections.abc import Iterator

from cerebrum_cli.core.files import Paths
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.gguf.contents import ReadBytes
from cerebrum_cli.weights.checkpoints.safetensors import StoredTensors


@frozen
class Assembly:
    """Stored tensors of the same shape, such as those of all experts, concatenated.

    With `head_rows`, the two halves of each head's rows are interleaved: llama.cpp rotates adjacent rows, Hugging Face
    pairs the first half with the second. Rows have `row_bytes`.
    """

    parts: StoredTensors
    row_bytes: int
    head_rows: int = 0

    @property
    def paths(self) -> Paths:
        return tuple(dict.fromkeys(part.path for part in self.parts))

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def read(self, read: ReadBytes, begin: int, size: int) -> bytes:
        if not self.head_rows:
            return self._join(read, begin, begin + size)
        import numpy as np

        head = self.head_rows * self.row_bytes
        first = begin // head * head
        last = -(-(begin + size) // head) * head
        rows = np.frombuffer(self._join(read, first, last), np.uint8)
        halves = rows.reshape(-1, 2, self.head_rows // 2, self.row_bytes)
        return halves.swapaxes(1, 2).tobytes()[begin - first :][:size]

    def _join(self, read: ReadBytes, begin: int, end: int) -> bytes:
        return b"".join(self._pieces(read, begin, end))

    def _pieces(self, read: ReadBytes, begin: int, end: int) -> Iterator[bytes]:
        start = 0  # of a part, in all of them
        for part in self.parts:
            first, last = max(begin, start), min(end, start + part.size)
            if first < last:
                yield read(part.path, part.offset + first - start, last - first)
            start += part.size


@frozen
class Converted:
    """A small tensor in single precision, with a constant added to each weight."""

    stored: Assembly
    type: str
    constant: float = 0.0

    @property
    def paths(self) -> Paths:
        return self.stored.paths

    def read(self, read: ReadBytes, begin: int, size: int) -> bytes:
        import numpy as np

        data = self.stored.read(read, 0, self.stored.size)
        if self.type == "BF16":
            weights = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        else:
            weights = np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[self.type]).astype("<f4")
        return (weights + np.float32(self.constant)).tobytes()[begin : begin + size]


@frozen
class Constant:
    """Weights that follow from the configuration."""

    data: bytes
    paths: Paths = ()

    def read(self, read: ReadBytes, begin: int, size: int) -> bytes:  # noqa: ARG002
        return self.data[begin : begin + size]
