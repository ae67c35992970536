"""LoRA adapters of a model, and checks that they fit it, by their headers alone.

llama.cpp aborts on some adapters that do not fit, and ignores others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.gguf.contents import EMBEDDING, HEAD, Shape, Tables, Tensor, Tensors, Value, quoted
from cerebrum_cli.gguf.header import read_tables

ALPHA = "adapter.lora.alpha"
ACTIVATION = "adapter.alora.invocation_tokens"  # of an adapter that applies only after these tokens
A, B = ".lora_a", ".lora_b"
IGNORED = "_norm.weight"  # changed norms, which llama.cpp does not apply
_NOT_MULTIPLIED = ("I8", "I16", "I32", "I64", "F64")  # ggml types without a kernel for products
_HINT = "use an adapter that was made for this model"
_CONVERT = "name a LoRA adapter in GGUF format, as llama.cpp's convert_lora_to_gguf.py writes it"


@frozen
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
    tensors = {tensor.name: tensor for part in parts for tensor in part.tensors}
    size = 0
    for name, a, b in _pairs(path, adapter.tensors):
        if problem := _misfit(name, a, b, tensors):
            raise ModelFileError(path, problem, _HINT)
        size += a.size + b.size
    return size


def _check_metadata(path: Path, adapter: Tables, architecture: str) -> None:
    metadata = adapter.metadata
    if metadata.get("general.type") != "adapter":
        raise ModelFileError(path, "a model, not an adapter", _CONVERT)
    kind = str(metadata.get("adapter.type"))
    if kind != "lora":
        raise ModelFileError(path, f"an adapter of type {quoted(kind)}, not lora", _CONVERT)
    if ACTIVATION in metadata:
        problem = "an activated LoRA adapter, which applies only after certain tokens, and is not supported"
        raise ModelFileError(path, problem, "use an ordinary LoRA adapter")
    made_for = str(metadata.get("general.architecture"))
    if made_for != architecture:
        problem = f"made for the architecture {quoted(made_for)}, but the model's is {quoted(architecture)}"
        raise ModelFileError(path, problem, _HINT)
    alpha = adapter.values.get(ALPHA, Value("FLOAT32", 0.0))
    if alpha.type != "FLOAT32" or not math.isfinite(alpha.content):
        raise ModelFileError(path, f"damaged: its {ALPHA} is {quoted(str(alpha.content))} of type {alpha.type}")


def _pairs(path: Path, tensors: Iterable[Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    """The names of the tensors of a model that an adapter changes, each with the two factors of the change."""
    factors = {}
    for tensor in tensors:
        if tensor.name.endswith((A, B)):
            factors[tensor.name] = tensor
        elif not tensor.name.endswith(IGNORED):
            raise ModelFileError(path, f"the tensor {quoted(tensor.name)} is not part of a LoRA adapter", _CONVERT)
    if not factors:
        raise ModelFileError(path, "an adapter that changes no tensor", _CONVERT)
    names = sorted({name.removesuffix(A).removesuffix(B) for name in factors})
    for name in names:
        for factor in (name + A, name + B):
            if factor not in factors:
                raise ModelFileError(path, f"incomplete: missing tensor {quoted(factor)}")
    return [(name, factors[name + A], factors[name + B]) for name in names]


def _misfit(name: str, a: Tensor, b: Tensor, model: Tensors) -> str | None:
    tensor = model.get(name)
    shown = quoted(name)
    if tensor is None:
        return f"it changes the tensor {shown}, which the model does not have"
    if len(tensor.shape) < 2 or tensor.kind.name == "NVFP4":
        return f"it changes {shown}, which is not a matrix that llama.cpp can adapt"
    if name == EMBEDDING and HEAD not in model:
        return f"it changes {shown}, which is also this model's output matrix: llama.cpp cannot apply that"
    for factor in (a, b):
        if factor.kind.name in _NOT_MULTIPLIED or not factor.size:
            return f"the tensor {quoted(factor.name)} is of type {factor.kind.name}, which cannot be multiplied"
    if not _is_product(name, tensor.shape, a.shape, b.shape):
        shapes = f"{_shape_text(a)} and {_shape_text(b)}"
        return f"it changes {shown} by {shapes}, but the model's is {_shape_text(tensor)}"
    return None


def _is_product(name: str, shape: Shape, a: Shape, b: Shape) -> bool:
    """Whether factors of these shapes make a change of this shape."""
    rows, columns, *others = _four_dimensions(shape)
    a_rows, a_columns, *a_others = _four_dimensions(a)
    b_rows, b_columns, *b_others = _four_dimensions(b)
    if not others == a_others == b_others:
        return False
    if name == EMBEDDING:  # llama.cpp multiplies other tensors by their factors, but looks embeddings up
        return a_rows == b_rows and (rows, columns) == (b_columns, a_columns)
    return a_columns == b_rows and (rows, columns) == (a_rows, b_columns)


def _four_dimensions(shape: Shape) -> Shape:
    return (*shape, 1, 1, 1)[:4]


def _shape_text(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))
