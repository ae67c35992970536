"""Tiny checkpoints in Hugging Face's layout, with weights that follow from their names, and what transformers makes of
them.

`scripts/checkpoint_fixtures.py` wrote the files in tests/data/checkpoints. It imports this module in an environment
without the other modules here: nothing but numpy is imported at the top.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

FIXTURES = Path(__file__).resolve().parents[2] / "data" / "checkpoints"
TOKENIZER = FIXTURES.with_name("checkpoint_tokenizer")  # tiny_models.write_chatml's, split like Qwen2's
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CheckpointModel:
    """A random model of one family: its config.json, the shapes of its tensors, and its seed.

    `tokens` are transformers' greedy reply to `prompt`. `logits` follow the last token of `prompt`, `long_logits` that
    of `long_prompt`. Norms have weights around `norm`.
    """

    name: str
    config: Mapping[str, Any]
    shapes: Mapping[str, Sequence[int]]
    seed: int
    norm: float
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: tuple[float, ...]
    long_prompt: tuple[int, ...]
    long_logits: tuple[float, ...]

    def weights(self) -> Iterator[tuple[str, Weights]]:
        """Names and weights, one after another."""
        for name, shape in self.shapes.items():
            yield name, tensor_weights(name, shape, self.seed, self.norm, self.config["tie_word_embeddings"])


def read_model(name: str) -> CheckpointModel:
    """Read what is stored of a model of tests/data/checkpoints."""
    stored: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    for key in ("prompt", "tokens", "logits", "long_prompt", "long_logits"):
        stored[key] = tuple(stored[key])
    return CheckpointModel(name, **stored)


def tensor_weights(name: str, shape: Sequence[int], seed: int, norm: float = 1.0, is_tied: bool = False) -> Weights:
    """Draw the weights of a tensor, which depend on the arguments alone: numbers that bfloat16 and F16 can represent.

    They are uniform, since computing these is exact on every machine. Queries and keys are large, so that
    attention depends on positions; routers, so that no two experts are nearly equal. A head that `is_tied` is a copy.
    """
    if is_tied and name == "lm_head.weight":
        name = "model.embed_tokens.weight"
    drawn = np.random.RandomState(crc32(f"{seed} {name}".encode())).random_sample(tuple(shape)) * 2 - 1
    if len(shape) == 1:
        values = norm + 0.3 * drawn if name.endswith("norm.weight") else 0.5 * drawn
    elif "embed_tokens" in name:
        values = 0.1 * drawn  # or else tied models would repeat their input
    else:
        is_large = any(part in name for part in ("q_proj", "k_proj", "gate.weight", "lm_head"))
        values = drawn * (4.0 if is_large else 2.0) / np.sqrt(shape[-1])
    values[np.abs(values) < 2**-14] = 0  # F16 would round these
    return rounded_to_bfloat16(values.astype(np.float32))


def rounded_to_bfloat16(values: Weights) -> Weights:
    """Round to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def encoded(values: Weights, dtype: str) -> bytes:
    """Bytes of weights as F32, F16 or BF16."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, Weights], dtype: str) -> int:
    """Write a file of tensors, and return the bytes that they take."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        begin, data = len(data), data + encoded(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return len(data)


def write_weights(folder: Path, tensors: Mapping[str, Weights], dtype: str = "BF16", shards: int = 1) -> None:
    """Write the safetensors of a checkpoint; several have an index, and each has consecutive tensors."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    placed = dict[str, str]()
    remaining = iter(tensors.items())
    size = 0
    for number in range(shards):
        count = len(tensors) * (number + 1) // shards - len(placed)
        shard = dict(islice(remaining, count))
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        size += write_safetensors(folder / file, shard, dtype)
        placed |= dict.fromkeys(shard, file)
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": placed})


def write_checkpoint(
    folder: Path,
    model: CheckpointModel,
    *,
    dtype: str = "BF16",
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model with its tokenizer; another `config` of the same model replaces its own."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config or {**model.config, "dtype": DTYPES[dtype]})
    write_weights(folder, dict(model.weights()), dtype, shards)
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    return folder


def older_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration as transformers 4 wrote it."""
    older = dict(config)
    rope = dict(older.pop("rope_parameters"))
    if "full_attention" in rope:
        older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    older["rope_theta"] = rope.pop("rope_theta")
    older["rope_scaling"] = None
    if rope["rope_type"] != "default":
        if rope["rope_type"] != "llama3":
            rope["type"] = rope.pop("rope_type")
        older["rope_scaling"] = rope
    older.pop("layer_types", None)
    if period := older.pop("_sliding_window_pattern", None):
        older["sliding_window_pattern"] = period
    if "num_local_experts" in older and older["model_type"] == "qwen3_moe":
        older["num_experts"] = older.pop("num_local_experts")
    older["torch_dtype"] = older.pop("dtype")
    return older


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
