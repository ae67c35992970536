"""Check that models can be merged: the same architecture, shape and vocabulary. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import HEAD, Table

SAME_SHAPE_HINT = "merge models of the same shape"
HINT = "merge models with the same architecture, shape and vocabulary"
VOCABULARY = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges")
MAY_DIFFER = (
    "block_count",
    "context_length",
    "vocab_size",
)  # stacks may differ in layers; vocabularies are compared token by token
# llama.cpp's values for missing keys. Any other key that only one file has is not a difference.
DEFAULTS = {"rope.freq_base": 10000.0, "expert_count": 0, "rope.scaling.type": "none"}


def require_compatible(tables: Sequence[Table]) -> None:
    """Raise MergeError for the first difference between the first model and another."""
    first = tables[0]
    for table in tables[1:]:
        for key, actual, expected in differences(table, first):
            problem = f"{table.name} differs from {first.name} in {key}: {display(actual)} and {display(expected)}"
            raise MergeError(problem, HINT)
        require_global_tensors(table, first)
        require_global_tensors(first, table)


def differences(table: Table, first: Table) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key whose values make two models incompatible, with both values."""
    if table.architecture != first.architecture:
        yield "general.architecture", table.architecture, first.architecture
        return
    prefix = f"{first.architecture}."
    for key in sorted({*table.metadata, *first.metadata}):
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name not in MAY_DIFFER and not is_per_layer(key, table, first):
            actual, expected = (content_or_default(each, key, DEFAULTS.get(name)) for each in (table, first))
            if None not in (actual, expected) and actual != expected:
                yield key, actual, expected
    yield from vocabulary_differences(table, first)
    yield from shape_differences(table, first)


def vocabulary_differences(table: Table, first: Table) -> Iterator[tuple[str, Any, Any]]:
    """Yield the differences of two vocabularies: for lists the lengths, or the first differing item."""
    for key in VOCABULARY:
        actual, expected = content_or_default(table, key, None), content_or_default(first, key, None)
        if actual == expected or (None in (actual, expected) and key == "tokenizer.ggml.pre"):  # missing in older files
            continue
        if isinstance(actual, tuple) and isinstance(expected, tuple):
            if len(actual) == len(expected):
                index = next(index for index, item in enumerate(actual) if item != expected[index])
                yield f"{key}[{index}]", actual[index], expected[index]
            else:
                yield f"the length of {key}", len(actual), len(expected)
        else:
            yield key, actual, expected


def shape_differences(table: Table, first: Table) -> Iterator[tuple[str, Any, Any]]:
    """Yield the tensors outside of layers, and of the first layer, whose shapes differ."""
    for actual, expected in (
        (table.global_tensors, first.global_tensors),
        (table.layer_tensors(0), first.layer_tensors(0)),
    ):
        for suffix, tensor in actual.items():
            if suffix in expected and tensor.shape != expected[suffix].shape and not has_per_layer_values(table, first):
                yield f"the shape of {tensor.name}", tensor.shape, expected[suffix].shape


def require_global_tensors(table: Table, other: Table) -> None:
    """Raise MergeError for a missing tensor outside of layers; without a head the embeddings are used for it."""
    if missing := next(
        (name for name in other.global_tensors if name not in table.global_tensors and name != HEAD), None
    ):
        raise MergeError(f"{table.name} has no {missing}, unlike {other.name}", HINT)


def is_per_layer(key: str, *tables: Table) -> bool:
    """Whether a hyperparameter is an array over layers in any of these models."""
    return any(table.is_per_layer(key) for table in tables)


def has_per_layer_values(*tables: Table) -> bool:
    """Whether layers of a model may differ in shape."""
    return any(table.is_per_layer(key) for table in tables for key in table.metadata)


def content_or_default(table: Table, key: str, default: Any) -> Any:
    """Content of a metadata key, or the default if it is missing."""
    value = table.metadata.get(key)
    return default if value is None else value.content


def display(value: Any) -> str:
    """Format a value for an error message, at most 63 characters."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None:
        return "nothing"
    text = ascii(value) if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
