"""Encodings of weights: which are fast on a processor, and writing a model in one, in a child process."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine import child_process

CHILD = "cerebrum_cli.engine.llama.quantize"
METADATA_BYTES = 16 * 2**20  # upper bound for vocabulary and norms, so that a size is never underestimated


@dataclass(frozen=True, slots=True)
class Encoding:
    """A type of weights, with its number in llama.cpp (`llama_ftype`).

    A processor with all features of one of the `fast_features` sets has fast kernels for it. Features are named as by
    `llama_print_system_info`.
    """

    name: str
    file_type: int
    bytes_per_weight: float
    fast_features: tuple[frozenset[str], ...]

    def size(self, parameters: int) -> int:
        """Approximate file size in bytes."""
        return int(parameters * self.bytes_per_weight) + METADATA_BYTES


def _any(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(each.split()) for each in alternatives)


# Source: the kernels in llamafile/sgemm.cpp, repack.cpp and amx of ggml-cpu (llama.cpp 0c1e57098). Without BF16
# instructions, BF16 is converted to F32 and is no faster than F16.
ENCODINGS = (
    Encoding("BF16", 32, 2.0, _any("AVX512_BF16 LLAMAFILE")),
    Encoding("F16", 1, 2.0, _any("F16C LLAMAFILE", "FP16_VA LLAMAFILE")),
    Encoding("Q8_0", 7, 34 / 32, _any("AVX2 LLAMAFILE", "DOTPROD LLAMAFILE", "DOTPROD REPACK", "AMX_INT8")),
    Encoding("Q4_0", 2, 18 / 32, _any("AVX2 REPACK", "DOTPROD REPACK", "AMX_INT8")),
)


def fast_encodings(features: Iterable[str], original: str | None) -> tuple[Encoding, ...]:
    """Encodings with fast kernels on a processor with these features, except that of the original."""
    available = frozenset(features)
    return tuple(
        each
        for each in ENCODINGS
        if each.name != original and any(needed <= available for needed in each.fast_features)
    )


def encode_file(source: Path, target: Path, encoding: Encoding) -> Generator[tuple[int, int], None, None]:
    """Write a model into one file, yielding the numbers of tensors done and in total.

    EngineError if llama.cpp fails. Closing the generator early kills the process and deletes the file.
    """
    child = child_process.start(CHILD)
    is_complete = False
    try:
        child_process.send(child, {"source": str(source), "target": str(target), "file_type": encoding.file_type})
        assert child.stdout
        for line in child.stdout:
            message = json.loads(line)
            if "error" in message:
                raise EngineError(f"llama.cpp cannot write {encoding.name}: {message['error']}", message["hint"])
            is_complete = message["done"] == "all"
            if not is_complete:
                yield message["done"], message["total"]
        if not is_complete:
            raise EngineError(f"llama.cpp ended with {child_process.exit_status(child)} while writing {encoding.name}")
    finally:
        child_process.kill(child)
        if not is_complete:
            target.unlink(missing_ok=True)
