"""LoRA adapters with random weights for tiny models."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf_files import add_values, write_file

Factors = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""The factors A and B of the change to each tensor, as matrices of which B @ A is the change."""

ATTENTION = ("blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight")
RANK, ALPHA = 4, 6.0


def factors_for(model: Path, names: Iterable[str] = ATTENTION, seed: int = 0, size: float = 1.0) -> Factors:
    """Random factors for tensors of a model, strong enough to change its replies."""
    random = np.random.default_rng(seed)
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in gguf.GGUFReader(model).tensors}
    found = {}
    for name in names:
        columns, rows, *more = shapes[name]
        a = random.standard_normal((*more, RANK, columns), np.float32) * np.float32(size / np.sqrt(columns))
        found[name] = a, random.standard_normal((*more, rows, RANK), np.float32)
    return found


def write_adapter(
    path: Path,
    factors: Factors,
    *,
    alpha: Any = ALPHA,
    metadata: Mapping[str, Any] | None = None,
    change: Callable[[str, npt.NDArray[Any]], tuple[str, npt.NDArray[Any]]] = lambda name, values: (name, values),
) -> Path:
    """Write an adapter as llama.cpp's converter does; `change` replaces the name and values of a tensor.

    A float becomes a FLOAT32, and only numpy's a FLOAT64.
    """
    described = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    described |= {"adapter.lora.alpha": alpha, **(metadata or {})}
    writer = gguf.GGUFWriter(path, str(described.pop("general.architecture")))
    doubles = {key: value for key, value in described.items() if isinstance(value, np.float64)}
    for key, value in doubles.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.FLOAT64)
    add_values(writer, {key: value for key, value in described.items() if key not in doubles})
    for name, (a, b) in factors.items():
        for suffix, values in ((".lora_a", a), (".lora_b", b)):
            writer.add_tensor(*change(name + suffix, values))
    write_file(writer)
    return path
