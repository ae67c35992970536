"""Check that models can be merged: the same architecture, shape and vocabulary, and layers that can be moved. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
# Counts of layers at an end of the model that differ from the others, and distances of those that differ.
LAYER_COUNTS = ("leading_dense_block_count", "nextn_predict_layers", "attention.shared_kv_layers")
LAYER_PERIODS = ("attention.sliding_window_pattern", "full_attention_interval", "interleave_moe_layer_step")
NOT_PER_LAYER = ("rope.dimension_sections", "rope.scaling.")  # beginnings of keys of other arrays
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
        if key.startswith(prefix) and name not in MAY_DIFFER:
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


def require_layers_in_place(tables: TablesByName, layers: Sequence[LayerSources]) -> None:
    """Raise MergeError if layers move in a model that llama.cpp evaluates differently by the number of a layer."""
    is_moved = any(layer != number for number, sources in enumerate(layers) for _, layer in sources)
    for table in tables.values():
        if (is_moved or len(layers) != table.n_layers) and has_several_kinds_of_layers(table):
            problem = f"the {table.n_layers} layers of {table.name} are of several kinds, by their numbers"
            raise MergeError(problem, "keep all layers of such a model, in order")


def has_several_kinds_of_layers(table: Table) -> bool:
    facts = facts_of(table.architecture)
    if facts.window_period or facts.layer_period > 1 or EMBEDDING_PER_LAYER in table.global_tensors:
        return True
    if any(map(table.hyperparameter, LAYER_COUNTS)):
        return True
    if any(table.hyperparameter(key) not in (None, 0, 1) for key in LAYER_PERIODS):
        return True
    prefix = f"{table.architecture}."
    for key, value in table.metadata.items():
        is_array = value.type == "ARRAY" and key.startswith(prefix)
        if is_array and not key.removeprefix(prefix).startswith(NOT_PER_LAYER):
            return True
    return False
