"""Write a model anew in another encoding, in a process of its own, and know which encodings are fast where."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.bench import child_process as children

CHILD = "cerebrum_cli.engine.llama.quantize"
METADATA = 16 * 2**20  # bytes of vocabulary and norms, at most: an estimate must not be too small


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to write weights: llama.cpp's number of it (`llama_ftype`), and what it takes of a disk.

    `fast` are the sets of features, as `llama_print_system_info` names them, any of which makes many rows fast.
    """

    name: str
    file_type: int
    bytes_per_weight: float
    fast: tuple[frozenset[str], ...]

    def size(self, parameters: int) -> int:
        """Return about how many bytes a file of so many weights takes."""
        return int(parameters * self.bytes_per_weight) + METADATA


def _any(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(each.split()) for each in alternatives)


# Source: which types ggml-cpu's llamafile/sgemm.cpp, repack.cpp and amx have kernels for (llama.cpp 0c1e57098). BF16
# without its own instructions is read as F32, which F16 is as fast at.
ENCODINGS = (
    Encoding("BF16", 32, 2.0, _any("AVX512_BF16 LLAMAFILE")),
    Encoding("F16", 1, 2.0, _any("F16C LLAMAFILE", "FP16_VA LLAMAFILE")),
    Encoding("Q8_0", 7, 34 / 32, _any("AVX2 LLAMAFILE", "DOTPROD LLAMAFILE", "DOTPROD REPACK", "AMX_INT8")),
    Encoding("Q4_0", 2, 18 / 32, _any("AVX2 REPACK", "DOTPROD REPACK", "AMX_INT8")),
)


def encodings_for(features: Iterable[str], original: str | None) -> tuple[Encoding, ...]:
    """Return the encodings a processor with these features has fast kernels for, but the original's own."""
    there = frozenset(features)
    return tuple(each for each in ENCODINGS if each.name != original and any(need <= there for need in each.fast))


def encoded(source: Path, target: Path, encoding: Encoding) -> Generator[tuple[int, int], None, None]:
    """Write all weights of a model into one file, and yield how many tensors are done, of how many.

    EngineError where llama.cpp cannot. Whatever ends this first ends the process too, and leaves no file.
    """
    child = children.started(CHILD)
    is_whole = False
    try:
        children.tell(child, {"source": str(source), "target": str(target), "file_type": encoding.file_type})
        assert child.stdout
        for line in child.stdout:
            told = json.loads(line)
            if "error" in told:
                raise EngineError(f"llama.cpp cannot write it as {encoding.name}: {told['error']}", told["do"])
            is_whole = told["done"] == "all"
            if not is_whole:
                yield told["done"], told["total"]
        if not is_whole:
            raise EngineError(f"llama.cpp ended with {children.ending(child)} while it wrote {encoding.name}")
    finally:
        children.end(child)
        if not is_whole:
            target.unlink(missing_ok=True)
