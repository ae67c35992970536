"""LoRA adapters of a model, and checks that they fit it, by their headers alone.

llama.cpp aborts on some adapters that do not fit, and ignores others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.parser import Tables, Tensor, Value, quoted, read_tables
from cerebrum_cli.gguf.table import EMBEDDING, HEAD

ALPHA = "adapter.lora.alpha"
ACTIVATION = "adapter.alora.invocation_tokens"  # of an adapter that applies only after these tokens
A, B = ".lora_a", ".lora_b"
Factors = tuple[Tensor, Tensor]  # of the change to one tensor of a model
IGNORED = "_norm.weight"  # changed norms, which llama.cpp does not apply
_NOT_MULTIPLIED = ("I8", "I16", "I32", "I64", "F64")  # ggml types without a kernel for products
_HINT = "use an adapter that was made for this model"
_CONVERT = "name a LoRA adapter in GGUF format, as llama.cpp's convert_lora_to_gguf.py writes it"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter applied to a model: its file, and the bytes of its weights."""

    path: Path
    scale: float
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.path}:{self.scale}"

    @property
    def identity(self) -> str:
        return f"{self.sha256}:{self.scale}"


def adapter_size(path: Path, model_paths: Iterable[Path]) -> int:
    """Bytes of an adapter's weights. Raises ModelFileError if it does not fit a model."""
    adapter = read_tables(path, whole=True)
    parts = [read_tables(part) for part in model_paths]
    _check_metadata(path, adapter, str(parts[0].metadata.get("general.architecture")))
    alpha = adapter.values.get(ALPHA, Value("FLOAT32", 0.0))
    if alpha.type != "FLOAT32" or not math.isfinite(alpha.content):
        raise ModelFileError(path, f"damaged: its {ALPHA} is {quoted(str(alpha.content))} of type {alpha.type}")
    tensors = {tensor.name: tensor for part in parts for tensor in part.tensors}
    pairs = _pairs(path, adapter.tensors)
    for name, pair in pairs.items():
        if problem := _misfit(name, pair, tensors):
            raise ModelFileError(path, problem, _HINT)
    return sum(factor.size for pair in pairs.values() for factor in pair)


def _check_metadata(path: Path, adapter: Tables, architecture: str) -> None:
    metadata = adapter.metadata
    kind, made_for = (str(metadata.get(key)) for key in ("adapter.type", "general.architecture"))
    activated = "an activated LoRA adapter, which applies only after certain tokens, and is not supported"
    mismatch = f"made for the architecture {quoted(made_for)}, but the model's is {quoted(architecture)}"
    for is_wrong, problem, hint in (
        (metadata.get("general.type") != "adapter", "a model, not an adapter", _CONVERT),
        (kind != "lora", f"an adapter of type {quoted(kind)}, not lora", _CONVERT),
        (ACTIVATION in metadata, activated, "use an ordinary LoRA adapter"),
        (made_for != architecture, mismatch, _HINT),
    ):
        if is_wrong:
            raise ModelFileError(path, problem, hint)


def _pairs(path: Path, tensors: Iterable[Tensor]) -> dict[str, Factors]:
    factors: dict[str, dict[str, Tensor]] = {A: {}, B: {}}
    for tensor in tensors:
        base = tensor.name[: -len(A)]
        suffix = tensor.name[-len(A) :]
        if suffix in factors:
            factors[suffix][base] = tensor
        elif not tensor.name.endswith(IGNORED):
            raise ModelFileError(path, f"the tensor {quoted(tensor.name)} is not part of a LoRA adapter", _CONVERT)
    if alone := next(iter(sorted(factors[A].keys() ^ factors[B].keys())), None):
        raise ModelFileError(path, f"incomplete: missing tensor {quoted(alone + (A if alone in factors[B] else B))}")
    if not factors[A]:
        raise ModelFileError(path, "an adapter that changes no tensor", _CONVERT)
    return {base: (tensor, factors[B][base]) for base, tensor in factors[A].items()}


def _misfit(name: str, pair: Factors, model: Mapping[str, Tensor]) -> str | None:
    tensor = model.get(name)
    if tensor is None:
        return f"it changes the tensor {quoted(name)}, which the model does not have"
    if len(tensor.shape) < 2 or tensor.kind.name == "NVFP4":
        return f"it changes {quoted(name)}, which is not a matrix that llama.cpp can adapt"
    if name == EMBEDDING and HEAD not in model:
        return f"it changes {quoted(name)}, which is also this model's output matrix: llama.cpp cannot apply that"
    for factor in pair:
        if factor.kind.name in _NOT_MULTIPLIED or not factor.size:
            return f"the tensor {quoted(factor.name)} is of type {factor.kind.name}, which cannot be multiplied"
    shape, a, b = ((*matrix.shape, *(1,) * (4 - len(matrix.shape))) for matrix in (tensor, *pair))
    if name == EMBEDDING:  # llama.cpp multiplies other tensors by their factors, but looks embeddings up
        is_fitting = a[0] == b[0] and shape[:2] == (b[1], a[1])
    else:
        is_fitting = a[1] == b[0] and shape[:2] == (a[0], b[1])
    if not (is_fitting and shape[2:] == a[2:] == b[2:]):
        shapes = " and ".join("×".join(map(str, factor.shape)) for factor in pair)
        return f"it changes {quoted(name)} by {shapes}, but the model's is {'×'.join(map(str, tensor.shape))}"
    return None
