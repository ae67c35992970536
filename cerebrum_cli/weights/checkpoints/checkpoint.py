"""Read a checkpoint as llama.cpp's converter would write it: metadata and tensors, whose bytes stay in the shards."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.json_types import MAX_NUMBER, JsonObject
from cerebrum_cli.gguf.contents import EMBEDDING, HEAD, TYPE_NUMBERS, Tensor, Value, Values, quoted
from cerebrum_cli.weights.checkpoints.assembly import Assembly, Constant, Converted
from cerebrum_cli.weights.checkpoints.configuration import OWN_CONFIGURATION, USE_GGUF, Configuration, configuration
from cerebrum_cli.weights.checkpoints.safetensors import (
    FLOATS,
    PULL_AGAIN,
    StoredTensor,
    StoredTensors,
    read_json,
    read_shards,
)
from cerebrum_cli.weights.checkpoints.vocabulary import read_vocabulary, tokenizer_files
from cerebrum_cli.weights.table import ARCHITECTURE, Table

CONFIG = "config.json"
_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_OUTPUT_NORM = "output_norm.weight"
_EXPERT = "*"  # stands for the number of an expert
_PERMUTED = ("attn_q", "attn_k")
_ROUTER = ".ffn_gate_inp."  # a matrix, which llama.cpp needs in single precision
_ROPE_FACTORS = "rope_freqs.weight"
_DAMAGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error)
_USE_ALL = f"use all files of the weights, or {USE_GGUF}"
# Parts of names: tensors of other media, and buffers that follow from the configuration.
_UNUSED = ("vision_tower.", "multi_modal_projector.", "rotary_emb.inv_freq")
_SAMPLING = {"temp": "temperature", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}

Stored = Mapping[str, StoredTensor]


def read_configuration(folder: Path) -> Configuration:
    """The configuration of a checkpoint. Raises ModelFileError for one that cannot be converted."""
    path = folder / CONFIG
    content = read_json(path)
    try:
        return configuration(path, content)
    except _DAMAGED as error:
        raise ModelFileError(path, f"invalid: {error!r}", OWN_CONFIGURATION) from error


def read_checkpoint(folder: Path, name: str) -> Table:
    """Read a checkpoint under a name. Raises ModelFileError if it is damaged or cannot be converted."""
    config = read_configuration(folder)
    architecture = config.family.architecture
    shards = _of_language(read_shards(folder))
    try:
        hyperparameters = config.metadata()
        tensors = {tensor.name: tensor for tensor in _tensors(config, shards)}
    except _DAMAGED as error:
        raise ModelFileError(config.path, f"invalid: {error!r}", OWN_CONFIGURATION) from error
    files = tokenizer_files(folder)
    rows = tensors[EMBEDDING].shape[1]
    config.require_possible("vocab_size", rows)
    vocabulary = read_vocabulary(files, config.content, rows)
    metadata = {
        ARCHITECTURE: Value("STRING", architecture),
        "general.type": Value("STRING", "model"),
        "general.name": Value("STRING", name),
        "general.quantization_version": Value("UINT32", 2),
        **hyperparameters,
        **_sampling(files.generation),
        **vocabulary,
    }
    return Table(name, metadata, tensors)


def _of_language(shards: Stored) -> dict[str, StoredTensor]:
    """Tensors of the language model, by their names in a text-only checkpoint."""
    tensors = {}
    for name, tensor in shards.items():
        if not any(part in name for part in _UNUSED):
            name = name.replace("language_model.", "")
            tensors[name.replace("model.lm_head.", "lm_head.")] = tensor
    return tensors


def _tensors(config: Configuration, stored: Stored) -> Iterator[Tensor]:
    """Yield the tensors. Raises ModelFileError if one is missing or left over."""
    folder = config.path.parent
    unused = dict(stored)
    for name, stored_name, is_optional in _names(config):
        names = [stored_name]
        if _EXPERT in stored_name:
            experts = range(config.integer("num_local_experts"))
            names = [stored_name.replace(_EXPERT, str(number)) for number in experts]
        missing = [each for each in names if each not in unused]
        if not missing:
            yield _tensor(name, tuple(map(unused.pop, names)), config)
        elif not is_optional:
            raise ModelFileError(folder, f"has no tensor {missing[0]}", _USE_ALL)
    if factors := config.rope_factors():
        data = struct.pack(f"<{len(factors)}f", *factors)
        yield Tensor(_ROPE_FACTORS, (len(factors),), TYPE_NUMBERS["F32"], config.path, 0, Constant(data))
    if unused:
        raise ModelFileError(folder, f"cannot convert the tensor {quoted(min(unused))}", USE_GGUF)


def _names(config: Configuration) -> Iterator[tuple[str, str, bool]]:
    """Yield the names of all tensors in GGUF and in the checkpoint, and whether they may be missing."""
    yield EMBEDDING, _EMBEDDING, False
    for layer in range(config.n_layers):
        for part, stored in config.family.parts.items():
            name, stored_name = f"blk.{layer}.{part}", f"model.layers.{layer}.{stored}"
            yield f"{name}.weight", f"{stored_name}.weight", False
            if part in config.family.biased:
                yield f"{name}.bias", f"{stored_name}.bias", True
    yield _OUTPUT_NORM, _NORM, False
    # A head that is tied to the embeddings may be stored, and may have been trained apart.
    yield HEAD, _HEAD, bool(config.content.get("tie_word_embeddings", True))


def _tensor(name: str, parts: StoredTensors, config: Configuration) -> Tensor:
    _require_fit(name, parts, config)
    first = parts[0]
    head_rows = 0
    if config.family.interleaved and name.split(".")[-2] in _PERMUTED:
        head_rows = config.integer("head_dim")
        if head_rows % 2 or first.shape[0] % head_rows:
            raise config.invalid("head_dim")
    assembly = Assembly(parts, first.size // first.shape[0], head_rows)
    shape = tuple(reversed(first.shape))
    if len(parts) > 1:
        shape = (*shape, len(parts))
    if len(shape) > 1 and _ROUTER not in name:
        return Tensor(name, shape, TYPE_NUMBERS[first.type], first.path, 0, assembly)
    offset = config.family.norm_offset if name.endswith("norm.weight") else 0.0
    return Tensor(name, shape, TYPE_NUMBERS["F32"], first.path, 0, Converted(assembly, first.type, offset))


def _require_fit(name: str, parts: StoredTensors, config: Configuration) -> None:
    """Raise ModelFileError if the parts of a tensor fit neither each other nor the configuration."""
    first = parts[0]
    if first.type not in FLOATS:
        hint = "convert a copy in F32, F16 or BF16, or use a GGUF: cerebrum search NAME"
        raise ModelFileError(first.path, f"cannot convert {first.type} weights", hint)
    if any((part.shape, part.type) != (first.shape, first.type) for part in parts) or not first.shape:
        raise ModelFileError(first.path, f"damaged: the parts of {name} differ, or have no shape", PULL_AGAIN)
    part, kind = name.split(".")[-2:]
    shape = tuple(reversed(first.shape))
    expected = config.shape_of(part) if kind == "weight" else None
    if expected and shape != expected:
        problem = f"{name} has the shape {shape[::-1]}, but {expected[::-1]} follows from {CONFIG}"
        raise ModelFileError(first.path, problem, OWN_CONFIGURATION)


def _sampling(content: JsonObject) -> Values:
    """Settings that the model's makers recommend, in generation_config.json; without those that no sampler has."""
    values = {}
    for key, name in _SAMPLING.items():
        number = content.get(name)
        if isinstance(number, int | float) and abs(number) < MAX_NUMBER:  # which NaN is not
            values[f"general.sampling.{key}"] = Value("FLOAT32", float(content[name]))
    top_k = content.get("top_k")
    if isinstance(top_k, int) and 0 <= top_k < 1 << 31:
        values["general.sampling.top_k"] = Value("INT32", top_k)
    return values
