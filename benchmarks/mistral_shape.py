"""Write a model with Mistral-7B's shape and random weights in Q4_K_M: same speed and memory use, no download.

Usage: python benchmarks/mistral_shape.py OUT.gguf
"""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType
from mistral_vocabulary import MetadataValue, tokenizer_metadata

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCABULARY, CONTEXT = 32, 4096, 32, 8, 14336, 32000, 32768
HEAD_WIDTH = WIDTH // HEADS
KV_WIDTH = HEAD_WIDTH * KV_HEADS

METADATA: Mapping[str, MetadataValue] = {
    "general.name": "Mistral-7B's shape, random weights",
    "general.file_type": int(LlamaFileType.MOSTLY_Q4_K_M),
    "general.quantization_version": 2,
    "llama.block_count": LAYERS,
    "llama.context_length": CONTEXT,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": FFN,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": HEAD_WIDTH,
    "llama.rope.freq_base": 10000.0,
    "llama.vocab_size": VOCABULARY,
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """Storage of a block of weights: its type, number of weights, size in bytes and scales.

    `scales` maps the byte offset of each half-precision scale to the value for which the weights have standard
    deviation 1 when all other bytes are uniform noise. Tensors of an encoding without scales are all ones.
    """

    type: GGMLQuantizationType
    weights: int
    size: int
    scales: Mapping[int, float]


F32 = Encoding(GGMLQuantizationType.F32, 1, 4, {})
# A weight is d * scale * q - dmin * minimum with 6-bit scales and minima and 4-bit q: dmin = 7.5 d centers the weights
# on zero, with a standard deviation of 258 d. In Q6_K it is d * scale * (q - 32) with 8-bit scales and 6-bit q: 1366 d.
Q4_K = Encoding(GGMLQuantizationType.Q4_K, 256, 144, {0: 1 / 258, 2: 7.5 / 258})
Q6_K = Encoding(GGMLQuantizationType.Q6_K, 256, 210, {208: 1 / 1366})


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to write; the row length is the last of its dimensions."""

    name: str
    dimensions: tuple[int, ...]
    encoding: Encoding

    @property
    def blocks(self) -> int:
        return prod(self.dimensions) // self.encoding.weights

    @property
    def size(self) -> int:
        return self.blocks * self.encoding.size


def write_mistral_7b(path: Path, *, seed: int = 0) -> None:
    """Write the file (4.37 GB), with one tensor in memory at a time."""
    writer = GGUFWriter(path, "llama")
    for key, value in {**METADATA, **tokenizer_metadata()}.items():
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        writer.add_key_value(key, value, GGUFValueType.UINT32 if is_integer else GGUFValueType.get_type(value))
    tensors = tuple(model_tensors())
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.dimensions, np.dtype(np.float32), tensor.size, raw_dtype=tensor.encoding.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.Generator(np.random.SFC64(seed))
    for tensor in tensors:
        writer.write_tensor_data(tensor_data(tensor, random))
    writer.close()


def model_tensors() -> Iterator[Tensor]:
    """Tensors with their encodings in llama.cpp's Q4_K_M."""
    yield Tensor("token_embd.weight", (VOCABULARY, WIDTH), Q4_K)
    for layer in range(LAYERS):
        sensitive = Q6_K if uses_more_bits(layer) else Q4_K
        yield Tensor(f"blk.{layer}.attn_norm.weight", (WIDTH,), F32)
        yield Tensor(f"blk.{layer}.attn_q.weight", (WIDTH, WIDTH), Q4_K)
        yield Tensor(f"blk.{layer}.attn_k.weight", (KV_WIDTH, WIDTH), Q4_K)
        yield Tensor(f"blk.{layer}.attn_v.weight", (KV_WIDTH, WIDTH), sensitive)
        yield Tensor(f"blk.{layer}.attn_output.weight", (WIDTH, WIDTH), Q4_K)
        yield Tensor(f"blk.{layer}.ffn_norm.weight", (WIDTH,), F32)
        yield Tensor(f"blk.{layer}.ffn_gate.weight", (FFN, WIDTH), Q4_K)
        yield Tensor(f"blk.{layer}.ffn_up.weight", (FFN, WIDTH), Q4_K)
        yield Tensor(f"blk.{layer}.ffn_down.weight", (WIDTH, FFN), sensitive)
    yield Tensor("output_norm.weight", (WIDTH,), F32)
    yield Tensor("output.weight", (VOCABULARY, WIDTH), Q6_K)


def uses_more_bits(layer: int) -> bool:
    """Whether attn_v and ffn_down of a layer are Q6_K (`use_more_bits` in llama.cpp's llama-quant.cpp)."""
    eighth = LAYERS // 8
    return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def tensor_data(tensor: Tensor, random: np.random.Generator) -> npt.NDArray[Any]:
    """Random bytes of a tensor, scaled so that activations keep their magnitude."""
    if not tensor.encoding.scales:
        return np.ones(tensor.dimensions, np.float32)
    noise = random.integers(0, 2**64, -(-tensor.size // 8), np.uint64).view(np.uint8)
    blocks = noise[: tensor.size].reshape(tensor.blocks, tensor.encoding.size)
    for offset, scale in tensor.encoding.scales.items():
        half = np.array([scale / np.sqrt(tensor.dimensions[-1])], "<f2")
        blocks[:, offset : offset + 2] = half.view(np.uint8)
    return blocks


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/mistral_shape.py OUT.gguf")
    out = Path(sys.argv[1])
    start = time.perf_counter()
    write_mistral_7b(out)
    print(f"{out}: {out.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s")
