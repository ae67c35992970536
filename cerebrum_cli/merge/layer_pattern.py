"""Layers that llama.cpp evaluates differently by their number, alternating or at an end of the model. Pure.

The periods are from the calls of `load_swa_pattern`, and `n_no_rope_layer_step`, in llama.cpp's src/models (0c1e57098).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# Counts of layers at an end of the model that differ from the others: the key, whether they come first, and their kind.
_COUNTS = (
    ("leading_dense_block_count", True, "without experts"),
    ("nextn_predict_layers", False, "for multi-token prediction"),
    ("attention.shared_kv_layers", False, "with shared keys and values"),
)
# Embeddings of all layers in one tensor.
_EMBEDDING_PER_LAYER = "per_layer_token_embd.weight"
# Layers without position encoding, or with another kind of attention. No metadata states these layer by layer.
FIXED_PERIODS = {"afmoe": 4, "llama4": 4, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "smollm3": 4}


def require_layer_pattern(tables: Mapping[str, Table], layers: Sequence[tuple[int, Sequence[tuple[str, int]]]]) -> None:
    """Raise MergeError if a layer moves to a number at which its architecture evaluates it differently."""
    patterns = {name: layer_pattern(table) for name, table in tables.items()}
    if len(set(patterns.values())) > 1:
        raise MergeError("the models' layer patterns differ (attention.sliding_window_pattern)", "merge other files")
    stays = all(number == layer for number, sources in layers for _, layer in sources)
    for name, table in tables.items():
        if _EMBEDDING_PER_LAYER in table.global_tensors and not (stays and len(layers) == table.n_layers):
            problem = f"{name} has embeddings for each of its {table.n_layers} layers, which cannot be stacked"
            raise MergeError(problem, "keep all layers of such a model, in order")
    for number, sources in layers:
        for name, layer in sources:
            if (number - layer) % (period := lcm(*patterns[name])):
                problem = f"layer {layer} of {name} would become layer {number}, which {tables[name].architecture}"
                raise MergeError(f"{problem} evaluates differently", f"move layers by multiples of {period}")


def layer_pattern(table: Table) -> tuple[int, int]:
    """Period of the differences that no file states, and of sliding windows that this file does not state per layer."""
    architecture = table.architecture
    attention = table.whole_number("full_attention_interval") or FIXED_PERIODS.get(architecture, 1)
    fixed = lcm(attention, table.whole_number("interleave_moe_layer_step") or 1)
    stated = table.whole_number("attention.sliding_window_pattern", 0)  # a flag per layer, or a period
    if stated is None and (architecture == "gemma2" or table.hyperparameter("attention.sliding_window")):
        return fixed, WINDOW_PERIODS.get(architecture, 1)  # llama.cpp has a default window for gemma2 only
    return fixed, 1 if stated is None else int(stated) or 1


def layer_counts(layers: Sequence[tuple[Table, int]]) -> dict[str, int]:
    """Hyperparameters of a merge that count its first or last layers of another kind, given the source of each layer.

    Raises MergeError if some would be elsewhere, which llama.cpp cannot load.
    """
    result = {}
    for key, is_first, kind in _COUNTS:
        counts = [table.whole_number(key) for table, _ in layers]
        flags = [
            layer < (count or 0) if is_first else layer >= table.n_layers - (count or 0)
            for (table, layer), count in zip(layers, counts, strict=True)
        ]
        if flags != sorted(flags, reverse=is_first):
            number = flags.index(True, flags.index(False)) if is_first else flags.index(True)
            table, layer = layers[number]
            problem = f"layer {layer} of {table.name}, a layer {kind}, would become layer {number} of {len(layers)}"
            raise MergeError(problem, f"keep layers {kind} {'first' if is_first else 'last'}, or leave them out")
        if any(count is not None for count in counts):
            result[key] = sum(flags)
    return result
