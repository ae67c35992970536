"""Convert safetensors to GGUF: list types and sizes, estimate the time, write the file and register it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from math import prod
from pathlib import Path
from time import perf_counter

import numpy as np

from cerebrum_cli.checkpoints.checkpoint import read_checkpoint
from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.files import translate_os_errors
from cerebrum_cli.engine.machine import thread_count
from cerebrum_cli.gguf.header import Header, header_from_tables
from cerebrum_cli.gguf.parser import parse_tables
from cerebrum_cli.gguf.table import Table
from cerebrum_cli.gguf.types import TYPE_NUMBERS
from cerebrum_cli.library.installed import Library
from cerebrum_cli.library.model import CONVERTED, InstalledModel
from cerebrum_cli.library.registry import OnProgress
from cerebrum_cli.library.weights import Converter, Weights
from cerebrum_cli.merge.convert import plan_conversion
from cerebrum_cli.merge.execute import CHUNK_WEIGHTS, llama_codec, require_supported_types
from cerebrum_cli.merge.merge import write_plan
from cerebrum_cli.merge.plan import CLOSEST, WRITABLE

ROW = 256  # weights, which all types can divide
TYPES = tuple(name for name in WRITABLE if name not in CLOSEST)  # of which no mixture is better


def converter(library: Library) -> Converter:
    return Converter(plan_types, estimate_seconds, partial(write_conversion, library))


def plan_types(table: Table) -> tuple[Header, Mapping[str, int]]:
    """Header of the file at full precision, and the file size for each type."""
    plans = {name: plan_conversion(table, name, {}) for name in TYPES}
    path, full = Path(table.name), plans["F32"]
    header = header_from_tables(path, parse_tables(path, full.header, full.size))
    return header, {name: plan.size for name, plan in plans.items()}


def estimate_seconds(table: Table, type: str) -> float:
    """Estimate the time of a conversion, without disk access, by converting a few weights."""
    codec, stored = llama_codec(), TYPE_NUMBERS["BF16"]
    sample = np.random.default_rng(0).standard_normal((CHUNK_WEIGHTS // ROW, ROW), np.float32)
    data = codec.quantize(sample, stored)
    started = perf_counter()
    codec.dequantize(data, stored, sample)
    codec.quantize(sample, TYPE_NUMBERS.get(type, TYPE_NUMBERS.get(type[:4], 0)))  # Q4_K of Q4_K_M
    sha256(data)
    weights = sum(prod(tensor.shape) for tensor in table.tensors.values())
    return (perf_counter() - started) * weights / sample.size / thread_count()


def write_conversion(
    library: Library, weights: Weights, type: str, path: Path, name: str, on_progress: OnProgress
) -> InstalledModel:
    """Convert weights in their folder, report bytes done and total, and register the model.

    Raises ModelFileError for damaged weights, MergeError if the file cannot be written, which leaves none.
    """
    texts = {"source": weights.name, "sha256": weights.sha256, "configuration": weights.configuration}
    if weights.listing:
        texts["commit"] = weights.listing.commit
    table = read_checkpoint(weights.folder, weights.name)
    plan = plan_conversion(table, type, {f"{CONVERTED}{key}": text for key, text in texts.items()})
    require_supported_types(plan, llama_codec)
    with translate_os_errors(MergeError, path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return write_plan(library, plan, path, name, "converted", on_progress)
