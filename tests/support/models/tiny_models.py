"""Tiny real GGUF models: random weights, real vocabularies, small enough to write and load in a test."""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from command_line import ROOT
from gguf_files import add_values, write_file

from scripts.nano.byte_alphabet import byte_alphabet
from scripts.nano.mistral_vocabulary import MetadataValue, tokenizer_metadata

CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# llama.cpp 0c1e57098 recognizes some of these by their text, whatever their type here: <|endoftext|>, <|im_end|> and
# <|end|> end a generation; <|start|>, <|channel|> and <|message|> become USER_DEFINED while loading.
SPECIAL_TOKENS = {
    **dict.fromkeys(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), CONTROL),
    **dict.fromkeys(("<think>", "</think>"), USER_DEFINED),
    **dict.fromkeys(("<|start|>", "<|channel|>", "<|message|>", "<|end|>"), CONTROL),
}
Values = npt.NDArray[Any]
Draw = Callable[[str, tuple[int, ...], np.random.Generator], tuple[Values, Any]]
"""Draws weights for a tensor's name and dimensions; also gives their type if it is not the array's."""

MERGES = ("Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r", "o u", "s t", "Ġa n", "Ġan d")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a transformer; the heads divide the width."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 128


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row of tests/data/tiny_architectures.toml."""

    name: str
    keys: Mapping[str, str | float]
    tensors: Mapping[str, Sequence[str | int]]
    layer_tensors: Mapping[str, Sequence[str | int]]


TABLES = tomllib.loads((ROOT / "tests" / "data" / "tiny_architectures.toml").read_text(encoding="utf-8"))
LLAMA, MIXTRAL, GEMMA2, MAMBA = (Architecture(**TABLES[name]) for name in ("llama", "mixtral", "gemma2", "mamba"))

# Constants instead of noise, by the end of a tensor's name. In Gemma the layers must outweigh the embedding, or the
# tied output would repeat the input whatever precedes it, and a test that compares replies would not notice a wrong
# cache. Mamba's A is negative, or its state would grow without bound; its time steps are short, or it would forget.
CONSTANTS = {
    "post_attention_norm.weight": 4.0,
    "post_ffw_norm.weight": 4.0,
    "_norm.weight": 1.0,
    "ssm_conv1d.bias": 0.0,
    "ssm_dt.bias": -4.0,
    "ssm_a": -1.0,
    "ssm_d": 1.0,
}
SEVEN_B = Shape(layers=32, width=256, heads=8, kv_heads=2, ffn=512)  # layers of Mistral-7B, a 16th of the width
BIGRAM_SHAPE = Shape(layers=1, width=512, heads=8, kv_heads=1, ffn=32)  # at least as wide as the vocabulary
FULL_PRECISION = ("ssm_a", "ssm_conv1d.weight")  # and vectors: llama.cpp has no half-precision kernel for these


def write_mistral(path: Path, *, name: str = "tiny mistral", chat_template: str | None = None, **options: Any) -> Path:
    """Write a Llama with Mistral-7B's vocabulary of 32,000 tokens; like the files of 2023, without a template."""
    return _write_llama(path, {**tokenizer_metadata(), **described(name, chat_template)}, **options)


def write_chatml(
    path: Path,
    *,
    name: str = "tiny chatml",
    chat_template: str | None = CHATML_TEMPLATE,
    sampling: Mapping[str, float] | None = None,
    general: Mapping[str, MetadataValue] | None = None,
    **options: Any,
) -> Path:
    """Write a Llama with a byte-level BPE vocabulary of 275 tokens, including ChatML's and thinking tokens.

    `sampling` is what it recommends, `general` what else its file states.
    """
    stated: dict[str, MetadataValue] = {f"general.{key}": value for key, value in (general or {}).items()}
    stated |= {f"general.sampling.{key}": value for key, value in (sampling or {}).items()}
    return _write_llama(path, {**bpe_metadata(), **described(name, chat_template), **stated}, **options)


def _write_llama(
    path: Path, metadata: Mapping[str, MetadataValue], seed: int = 0, context_length: int = 2048, shape: Shape = Shape()
) -> Path:
    return _write(path, LLAMA, _transformer_sizes(shape, context_length), metadata, seed)


def write_recurrent(path: Path) -> Path:
    """Write a Mamba, whose state cannot be rolled back. Vocabulary of `write_chatml`."""
    metadata = {**bpe_metadata(), **described("tiny mamba", CHATML_TEMPLATE)}
    return _write(path, MAMBA, {"context_length": 2048, "layers": 2, "width": 32}, metadata, 0)


def write_sliding_window(path: Path, *, window: int = 32) -> Path:
    """Write a Gemma 2, whose first layer has a sliding window. Vocabulary of `write_chatml`."""
    metadata = {**bpe_metadata(), **described("tiny gemma2", CHATML_TEMPLATE)}
    return _write(path, GEMMA2, {**_transformer_sizes(Shape(), 2048), "window": window}, metadata, 0)


def write_vocabulary(path: Path, architecture: str, **keys: int | bool) -> Path:
    """Write what llama.cpp needs of an architecture to load the vocabulary alone, and hyperparameters of its own."""
    metadata = {**bpe_metadata(), **described(f"tiny {architecture}", CHATML_TEMPLATE)}
    metadata |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    tensors = {"token_embd.weight": LLAMA.tensors["token_embd.weight"]}
    shape = Architecture(architecture, LLAMA.keys, tensors, {})
    return _write(path, shape, _transformer_sizes(Shape(), 256), metadata, 0)


def write_quantized(
    path: Path,
    *,
    seed: int = 0,
    shape: Shape = SEVEN_B,
    experts: int = 0,
    encoding: str = "Q4_K_M",
    name: str = "tiny quantized",
    chat_template: str | None = CHATML_TEMPLATE,
    vocabulary: Mapping[str, MetadataValue] | None = None,
) -> Path:
    """Write a Llama, or with `experts` a Mixtral, of Mistral-7B's structure; no two tensors are equal.

    Its matrices are Q4_K and Q6_K, mixed as in llama.cpp's Q4_K_M, or all of another type. The default is the
    vocabulary of `write_chatml`.
    """
    from gguf import LlamaFileType

    file_type = int(LlamaFileType[f"MOSTLY_{encoding}"])
    metadata = {**(vocabulary or bpe_metadata()), **described(name, chat_template), "general.file_type": file_type}
    sizes = {**_transformer_sizes(shape, 2048), "experts": experts}
    return _write(path, MIXTRAL if experts else LLAMA, sizes, metadata, seed, partial(_quantized, encoding))


def write_bigrams(path: Path, *follows: str, chat_template: str = CHATML_TEMPLATE, logit: float = 20.0) -> Path:
    """Write a transformer in which each of these tokens follows the one before it; after all others, all are alike.

    The embedding of a token is an axis of its own, attention and layers add nothing, and the output is the table.
    """
    metadata = {**bpe_metadata(), **described("bigrams", chat_template)}
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    ids = {str(token).replace("Ċ", "\n").replace("Ġ", " "): id for id, token in enumerate(tokens)}
    pairs = [(ids[token], ids[following]) for token, following in pairwise(follows)]

    def draw(name: str, dimensions: tuple[int, ...], _: np.random.Generator) -> tuple[Values, Any]:
        values = np.full(dimensions, name.endswith("norm.weight"), np.float32)
        if name == "token_embd.weight":
            np.fill_diagonal(values, 1)
        if name == "output.weight":
            for token, following in pairs:
                values[following, token] = logit / np.sqrt(BIGRAM_SHAPE.width)  # by which the norm multiplies
        return values, None

    return _write(path, LLAMA, _transformer_sizes(BIGRAM_SHAPE, 4096), metadata, 0, draw)


def _transformer_sizes(shape: Shape, context_length: int) -> dict[str, int]:
    head_width = shape.width // shape.heads
    return {
        **asdict(shape),
        "context_length": context_length,
        "head_width": head_width,
        "kv_width": head_width * shape.kv_heads,
    }


def described(name: str, chat_template: str | None) -> dict[str, MetadataValue]:
    template = {} if chat_template is None else {"tokenizer.chat_template": chat_template}
    return {"general.name": name, **template}


def bpe_metadata(size: int | None = None) -> dict[str, MetadataValue]:
    """Metadata of the vocabulary: special tokens first, as in SmolLM2, then the 256 bytes, then the merged tokens.

    With a `size`, it has as many tokens: some are unused, and if there is no room for all bytes, it has ASCII's only.
    """
    special, merged = list(SPECIAL_TOKENS), [merge.replace(" ", "") for merge in MERGES]
    alphabet = byte_alphabet()
    if size is not None and size < len(special) + len(alphabet) + len(merged):
        alphabet = [alphabet[byte] for byte in (0x0A, *range(0x20, 0x7F))]
    tokens = [*special, *alphabet, *merged]
    types = [SPECIAL_TOKENS.get(token, NORMAL) for token in tokens]
    unused = [f"<unused_{index}>" for index in range(len(tokens), size or 0)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*tokens, *unused],
        "tokenizer.ggml.token_type": [*types, *(UNUSED for _ in unused)],
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": special.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": special.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": special.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
    }


def _write(
    path: Path,
    architecture: Architecture,
    sizes: Mapping[str, int],
    metadata: Mapping[str, MetadataValue],
    seed: int,
    draw: Draw | None = None,
) -> Path:
    from gguf import GGUFWriter

    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    sizes = {**sizes, "vocabulary": len(tokens)}
    keys = {
        f"{architecture.name}.{key}": sizes[value] if isinstance(value, str) else value
        for key, value in architecture.keys.items()
    }
    writer = GGUFWriter(path, architecture.name)
    add_values(writer, {**metadata, **keys})
    random = np.random.default_rng(seed)
    for name, dimensions in tensor_shapes(architecture, sizes):
        values, kind = (draw or _values)(name, dimensions, random)
        writer.add_tensor(name, values, raw_dtype=kind)
    write_file(writer)
    return path


def tensor_shapes(architecture: Architecture, sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    names = dict(architecture.tensors)
    for layer in range(sizes["layers"]):
        names |= {f"blk.{layer}.{name}": dimensions for name, dimensions in architecture.layer_tensors.items()}
    for name, dimensions in names.items():
        yield name, tuple(sizes[size] if isinstance(size, str) else size for size in dimensions)


def _values(name: str, dimensions: tuple[int, ...], random: np.random.Generator) -> tuple[Values, Any]:
    precision = np.float32 if len(dimensions) == 1 or name.endswith(FULL_PRECISION) else np.float16
    for ending, constant in CONSTANTS.items():
        if name.endswith(ending):
            return np.full(dimensions, constant, precision), None
    weights = random.standard_normal(dimensions, np.float32)
    weights /= np.float32(np.sqrt(dimensions[-1]))
    return weights.astype(precision), None


def _quantized(
    encoding: str, name: str, dimensions: tuple[int, ...], random: np.random.Generator
) -> tuple[Values, Any]:
    """Draw a tensor of a quantized file: norms and expert gates at full precision."""
    from gguf import GGMLQuantizationType, quants

    from benchmarks import mistral_shape

    noise = random.standard_normal(dimensions, np.float32)
    if len(dimensions) == 1 or "ffn_gate_inp" in name:
        return (noise / 16 + (len(dimensions) == 1)).astype(np.float32), None
    if encoding != "Q4_K_M":
        kind = GGMLQuantizationType[encoding]
        return quants.quantize(noise / np.float32(np.sqrt(dimensions[-1])), kind), kind
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    is_sensitive = ("attn_v" in name or "ffn_down" in name) and mistral_shape.uses_more_bits(layer)
    mixed = mistral_shape.Q6_K if is_sensitive or name == "output.weight" else mistral_shape.Q4_K
    blocks = mistral_shape.tensor_data(mistral_shape.Tensor(name, dimensions, mixed), random)
    return blocks.reshape(*dimensions[:-1], -1), mixed.type
