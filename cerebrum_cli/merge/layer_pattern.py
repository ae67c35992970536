"""Architectures whose layers alternate by layer number, so that a moved layer would be evaluated differently. Pure.

The periods are from the calls of `load_swa_pattern`, and `n_no_rope_layer_step`, in llama.cpp's src/models (0c1e57098).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import lcm

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import Table

# Sliding-window attention in all but one of this many layers, unless the file states the window layer by layer.
WINDOW_PERIODS = {
    "afmoe": 4,
    "cohere2": 4,
    "cohere2moe": 4,
    "exaone-moe": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "laguna": 4,
    "llama4": 4,
    "olmo2": 4,
    "plamo3": 8,
    "smallthinker": 4,
}
# Layers without position encoding, or with another kind of attention. No metadata states these layer by layer.
FIXED_PERIODS = {"afmoe": 4, "llama4": 4, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "smollm3": 4}


def require_layer_pattern(tables: Mapping[str, Table], layers: Iterable[tuple[int, Sequence[tuple[str, int]]]]) -> None:
    """Raise MergeError if a layer moves to a number at which its architecture evaluates it differently."""
    patterns = {name: layer_pattern(table) for name, table in tables.items()}
    if len(set(patterns.values())) > 1:
        raise MergeError("the models' layer patterns differ (attention.sliding_window_pattern)", "merge other files")
    for number, sources in layers:
        for name, layer in sources:
            if (number - layer) % (period := lcm(*patterns[name])):
                problem = f"layer {layer} of {name} would become layer {number}, which {tables[name].architecture}"
                raise MergeError(f"{problem} evaluates differently", f"move layers by multiples of {period}")


def layer_pattern(table: Table) -> tuple[int, int]:
    """Period of the differences that no file states, and of sliding windows that this file does not state per layer."""
    architecture = table.architecture
    fixed = table.hyperparameter("full_attention_interval") or FIXED_PERIODS.get(architecture, 1)
    stated = table.layer_value(f"{architecture}.attention.sliding_window_pattern", 0)  # a flag per layer, or a period
    if stated is None and (architecture == "gemma2" or table.hyperparameter("attention.sliding_window")):
        return fixed, WINDOW_PERIODS.get(architecture, 1)  # llama.cpp has a default window for gemma2 only
    return fixed, 1 if stated is None else int(stated) or 1
