"""Check that models can be merged: the same architecture, shape and vocabulary, and layers at numbers they fit. Pure.

llama.cpp evaluates some layers differently by their number, alternating or at an end of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import lcm
from typing import Any

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.text import truncate
from cerebrum_cli.gguf.contents import HEAD
from cerebrum_cli.gguf.sizes import facts_of
from cerebrum_cli.weights.table import Table

TablesByName = Mapping[str, Table]  # by the names of the models in the recipe
LayerSources = tuple[tuple[str, int], ...]  # of a layer of the merge: the model and layer number of each source

SAME_SHAPE_HINT = "merge models of the same shape"
HINT = "merge models with the same architecture, shape and vocabulary"
VOCABULARY = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges")
# Stacks may differ in layers, and vocabularies are compared token by token.
MAY_DIFFER = ("block_count", "context_length", "vocab_size")
# llama.cpp's values for missing keys. Any other key that only one file has is not a difference.
DEFAULTS = {"rope.freq_base": 10000.0, "expert_count": 0, "rope.scaling.type": "none"}
# Counts of layers at an end of the model that differ from the others.
LAYER_COUNTS = ("leading_dense_block_count", "nextn_predict_layers", "attention.shared_kv_layers")
# Embeddings of all layers in one tensor.
EMBEDDING_PER_LAYER = "per_layer_token_embd.weight"


def require_compatible(tables: Sequence[Table]) -> None:
    """Raise MergeError for the first difference between the first model and another."""
    first = tables[0]
    for table in tables[1:]:
        for difference in differences(table, first):
            raise MergeError(f"{table.name} differs from {first.name} in {difference}", HINT)
        if missing := sorted(table.global_tensors.keys() - first.global_tensors.keys() - {HEAD}):
            raise MergeError(f"{first.name} has no {missing[0]}, unlike {table.name}", HINT)


def differences(table: Table, first: Table) -> Iterator[str]:
    if table.architecture != first.architecture:
        yield f"general.architecture: {display(table.architecture)} and {display(first.architecture)}"
        return
    prefix = f"{first.architecture}."
    for key in sorted({*table.metadata, *first.metadata}):
        name = key.removeprefix(prefix)
        is_per_layer = table.is_per_layer(key) or first.is_per_layer(key)
        if key.startswith(prefix) and name not in MAY_DIFFER and not is_per_layer:
            actual, expected = table.content(key, DEFAULTS.get(name)), first.content(key, DEFAULTS.get(name))
            if None not in (actual, expected) and actual != expected:
                yield f"{key}: {display(actual)} and {display(expected)}"
    for key in VOCABULARY:
        actual, expected = table.content(key), first.content(key)
        is_unknown = key == "tokenizer.ggml.pre" and None in (actual, expected)  # missing in older files
        if actual != expected and not is_unknown:
            yield key


def display(value: Any) -> str:
    return truncate(ascii(list(value) if isinstance(value, tuple) else value), 60)


def require_layer_pattern(tables: TablesByName, layers: Sequence[LayerSources]) -> None:
    """Raise MergeError if a layer moves to a number at which its architecture evaluates it differently."""
    patterns = {layer_pattern(table) for table in tables.values()}
    if len(patterns) > 1:
        raise MergeError("the models' layer patterns differ (attention.sliding_window_pattern)", "merge other files")
    moves = []
    for number, sources in enumerate(layers):
        moves += [(number, name, layer) for name, layer in sources if layer != number]
    for name, table in tables.items():
        has_special_layers = EMBEDDING_PER_LAYER in table.global_tensors or any(map(table.whole_number, LAYER_COUNTS))
        if has_special_layers and (moves or len(layers) != table.n_layers):
            raise MergeError(
                f"{name} has {table.n_layers} layers of several kinds or with embeddings of their own",
                "keep all layers of such a model, in order",
            )
    period = lcm(*patterns.pop())
    for number, name, layer in moves:
        if (number - layer) % period:
            problem = f"layer {layer} of {name} would become layer {number}, which {tables[name].architecture}"
            raise MergeError(f"{problem} evaluates differently", f"move layers by multiples of {period}")


def layer_pattern(table: Table) -> tuple[int, int]:
    """Period of the differences that no file states, and of sliding windows that this file does not state per layer."""
    architecture = table.architecture
    facts = facts_of(architecture)
    attention = table.whole_number("full_attention_interval") or facts.layer_period
    fixed = lcm(attention, table.whole_number("interleave_moe_layer_step") or 1)
    stated = table.whole_number("attention.sliding_window_pattern", 0)  # a flag per layer, or a period
    if stated is None and (architecture == "gemma2" or table.hyperparameter("attention.sliding_window")):
        return fixed, abs(facts.window_period) or 1
    return fixed, 1 if stated is None else int(stated) or 1
