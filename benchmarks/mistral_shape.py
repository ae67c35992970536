"""Write a model with Mistral-7B's shape and random weights in Q4_K_M: same speed and memory use, no download.

Usage: python -m benchmarks.mistral_shape [--shape NAME] OUT.gguf

NAME is 7b; 1.5b, which has Qwen2.5-1.5B's sizes in Mistral's architecture; or mixtral, eight of Mixtral-8x7B's layers.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType

from scripts.nano.mistral_vocabulary import NORMAL, MetadataValue, tokenizer_metadata

CONTEXT = 32768


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a transformer; the heads divide the width. Of the experts of a layer, two evaluate a token."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    ffn: int = 14336
    vocabulary: int = 32000
    experts: int = 0

    @property
    def head_width(self) -> int:
        return self.width // self.heads


MISTRAL_7B = Shape()
SHAPES = {"7b": MISTRAL_7B, "1.5b": Shape(28, 1536, 12, 2, 8960, 151_936), "mixtral": Shape(layers=8, experts=8)}


def metadata(shape: Shape = MISTRAL_7B) -> dict[str, MetadataValue]:
    """Metadata without a vocabulary."""
    experts = {"llama.expert_count": shape.experts, "llama.expert_used_count": 2} if shape.experts else {}
    return {
        "general.name": "Mistral's shape, random weights",
        "general.file_type": int(LlamaFileType.MOSTLY_Q4_K_M),
        "general.quantization_version": 2,
        "llama.block_count": shape.layers,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_width,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": shape.vocabulary,
        **experts,
    }


def vocabulary(size: int) -> dict[str, MetadataValue]:
    """Mistral's vocabulary, with made-up words after its own where it is larger."""
    found: dict[str, Any] = tokenizer_metadata()
    added = size - len(found["tokenizer.ggml.tokens"])
    found["tokenizer.ggml.tokens"] += [f"\u2581word{number}" for number in range(added)]
    found["tokenizer.ggml.scores"] += [-1e6] * added
    found["tokenizer.ggml.token_type"] += [NORMAL] * added
    return found


@dataclass(frozen=True, slots=True)
class Encoding:
    """Storage of a block of weights: its type, number of weights, size in bytes and scales.

    `scales` maps the byte offset of each half-precision scale to the value for which the weights have standard
    deviation 1 when all other bytes are uniform noise.
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


def write_model(path: Path, shape: Shape = MISTRAL_7B, *, seed: int = 0) -> None:
    """Write the file (of the 7B, 4.37 GB), with one tensor in memory at a time."""
    writer = GGUFWriter(path, "llama")
    for key, value in {**metadata(shape), **vocabulary(shape.vocabulary)}.items():
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        writer.add_key_value(key, value, GGUFValueType.UINT32 if is_integer else GGUFValueType.get_type(value))
    tensors = tuple(model_tensors(shape))
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


def model_tensors(shape: Shape = MISTRAL_7B) -> Iterator[Tensor]:
    """Tensors with their encodings in llama.cpp's Q4_K_M."""
    width, kv_width, ffn = shape.width, shape.head_width * shape.kv_heads, shape.ffn
    experts, suffix = ((shape.experts,), "_exps") if shape.experts else ((), "")
    yield Tensor("token_embd.weight", (shape.vocabulary, width), Q4_K)
    for layer in range(shape.layers):
        sensitive = Q6_K if uses_more_bits(layer, shape.layers) else Q4_K
        yield Tensor(f"blk.{layer}.attn_norm.weight", (width,), F32)
        yield Tensor(f"blk.{layer}.attn_q.weight", (width, width), Q4_K)
        yield Tensor(f"blk.{layer}.attn_k.weight", (kv_width, width), Q4_K)
        yield Tensor(f"blk.{layer}.attn_v.weight", (kv_width, width), sensitive)
        yield Tensor(f"blk.{layer}.attn_output.weight", (width, width), Q4_K)
        yield Tensor(f"blk.{layer}.ffn_norm.weight", (width,), F32)
        if shape.experts:
            yield Tensor(f"blk.{layer}.ffn_gate_inp.weight", (shape.experts, width), F32)
        yield Tensor(f"blk.{layer}.ffn_gate{suffix}.weight", (*experts, ffn, width), Q4_K)
        yield Tensor(f"blk.{layer}.ffn_up{suffix}.weight", (*experts, ffn, width), Q4_K)
        yield Tensor(f"blk.{layer}.ffn_down{suffix}.weight", (*experts, width, ffn), sensitive)
    yield Tensor("output_norm.weight", (width,), F32)
    yield Tensor("output.weight", (shape.vocabulary, width), Q6_K)


def uses_more_bits(layer: int, layers: int = MISTRAL_7B.layers) -> bool:
    """Whether attn_v and ffn_down of a layer are Q6_K (`use_more_bits` in llama.cpp's llama-quant.cpp)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def tensor_data(tensor: Tensor, random: np.random.Generator) -> npt.NDArray[Any]:
    """Random bytes of a tensor, scaled so that activations keep their magnitude; norms are ones."""
    if len(tensor.dimensions) == 1:
        return np.ones(tensor.dimensions, np.float32)
    if not tensor.encoding.scales:  # which experts a token gets
        return random.standard_normal(tensor.dimensions, np.float32)
    noise = random.integers(0, 2**64, -(-tensor.size // 8), np.uint64).view(np.uint8)
    blocks = noise[: tensor.size].reshape(tensor.blocks, tensor.encoding.size)
    for offset, scale in tensor.encoding.scales.items():
        half = np.array([scale / np.sqrt(tensor.dimensions[-1])], "<f2")
        blocks[:, offset : offset + 2] = half.view(np.uint8)
    return blocks


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    options = parser.parse_args()
    start = time.perf_counter()
    write_model(options.out, SHAPES[options.shape])
    print(f"{options.out}: {options.out.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
