"""Merges of real files against mergekit's published formulas, written out again here in double precision."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_models import Shape, write_chatml

from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.ground.errors import MergeError
from cerebrum_cli.merge.execute import execute, files, require_codec
from cerebrum_cli.merge.gguf_file import read_table
from cerebrum_cli.merge.metadata import Origin, Provenance
from cerebrum_cli.merge.methods import along
from cerebrum_cli.merge.plan import planned
from cerebrum_cli.merge.recipe import parse_recipe
from cerebrum_cli.merge.target import NUMBERS, Target

Weights = NDArray[np.float64]
Model = Mapping[str, Weights]

LAYERS = 3
CODEC = LlamaCodec()
OWN_TYPES = Target()


class Kind(NamedTuple):
    """The types of a file's matrices: of most of them, and of those that llama.cpp gives more bits."""

    most: str
    some: str

    def of(self, name: str, dimensions: int) -> str:
        """Return the type of a tensor."""
        if dimensions == 1:
            return "F32"
        return self.some if name.endswith(("ffn_down.weight", "attn_v.weight", "output.weight")) else self.most


KINDS = tuple(Kind(*names) for names in (("F32", "F32"), ("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_K", "Q6_K")))
# Of the largest weight of 256: how far apart neighbouring weights can be.
STEPS = {"F32": 1e-6, "F16": 2**-10, "Q8_0": 1 / 127, "Q6_K": 1 / 16, "Q4_K": 2 / 7}


def read(path: Path) -> dict[str, Weights]:
    """Return the weights of a file as the `gguf` package reads them, row length last."""
    found = {}
    for each in gguf.GGUFReader(path).tensors:
        shape = tuple(int(length) for length in reversed(each.shape))
        found[each.name] = gguf.dequantize(each.data, each.tensor_type).reshape(shape).astype(np.float64)
    return found


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    """Return the types and bytes of a file's tensors."""
    return {each.name: (int(each.tensor_type), each.data.tobytes()) for each in gguf.GGUFReader(path).tensors}


def encoded(values: Weights, name: str) -> NDArray[np.uint8]:
    """Return rows of weights as a type."""
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
    return np.frombuffer(CODEC.quantize(rows, NUMBERS[name]), np.uint8).reshape(len(rows), -1)


def rounded(values: Weights, name: str) -> Weights:
    """Return weights as they are in a type."""
    weights: Weights = gguf.dequantize(encoded(values, name), gguf.GGMLQuantizationType[name]).astype(np.float64)
    return weights.reshape(values.shape)


def write(template: Path, path: Path, model: Model, kind: Kind) -> Path:
    """Write a model in other types, with the metadata of another one."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in gguf.GGUFReader(template).fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for name, values in model.items():
        type_name = kind.of(name, values.ndim)
        data = encoded(values, type_name)
        rows = data.view(np.float32) if type_name == "F32" else data
        shape = (*values.shape[:-1], rows.shape[-1])
        writer.add_tensor(name, rows.reshape(shape), raw_dtype=gguf.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unlike(model: dict[str, Weights], first: Model) -> dict[str, Weights]:
    """Return a model with tensors that stand to those of the first as random ones never do."""
    random = np.random.default_rng(7)
    noise = random.standard_normal((512, 256)) / 16
    model = {name: random.uniform(0.5, 2.0, 256) if "_norm" in name else each for name, each in model.items()}
    return model | {
        "output_norm.weight": 3 * first["output_norm.weight"],
        "blk.0.attn_q.weight": -2 * first["blk.0.attn_q.weight"],
        "blk.0.ffn_up.weight": first["blk.0.ffn_up.weight"] + 0.5 * noise,
        "blk.1.ffn_up.weight": first["blk.1.ffn_up.weight"] + 0.01 * noise,
        "blk.1.attn_k.weight": 0 * first["blk.1.attn_k.weight"],
    }
