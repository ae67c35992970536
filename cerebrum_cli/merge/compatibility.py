"""Whether models can be merged at all: one architecture, one shape, one vocabulary; what differs is named. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import HEAD, Table

SAME_SHAPE_HINT = "merge models of one shape"
HINT = "merge models of one architecture, shape and vocabulary"
VOCABULARY = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges")
MAY_DIFFER = ("block_count", "context_length", "vocab_size")  # layers are counted, the vocabulary is compared itself
# What llama.cpp takes where a file does not say; of all other keys one that only one file has is no difference.
DEFAULTS = {"rope.freq_base": 10000.0, "expert_count": 0, "rope.scaling.type": "none"}


def require_compatible(tables: Sequence[Table]) -> None:
    """Raise MergeError with the first key in which a model differs from the first one."""
    first = tables[0]
    for table in tables[1:]:
        for key, actual, expected in differences(table, first):
            what = f"{table.name} differs from {first.name} in {key}: {display(actual)} and {display(expected)}"
            raise MergeError(what, HINT)
        require_global_tensors(table, first)
        require_global_tensors(first, table)


def differences(table: Table, first: Table) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key in which two models differ in a way that matters, and what they have there."""
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
    """Yield where two vocabularies differ: of two lists how long they are, or the first item that is not the same."""
    for key in VOCABULARY:
        actual, expected = content_or_default(table, key, None), content_or_default(first, key, None)
        if actual == expected or (None in (actual, expected) and key == "tokenizer.ggml.pre"):  # older files have none
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
    """Yield the tensors of no layer and of the first one whose shapes differ."""
    for actual, expected in (
        (table.global_tensors, first.global_tensors),
        (table.layer_tensors(0), first.layer_tensors(0)),
    ):
        for suffix, tensor in actual.items():
            if suffix in expected and tensor.shape != expected[suffix].shape and not has_per_layer_values(table, first):
                yield f"the shape of {tensor.name}", tensor.shape, expected[suffix].shape


def require_global_tensors(table: Table, other: Table) -> None:
    """Raise MergeError for a tensor of no layer that a model lacks; where there is no head, embeddings are one."""
    if missing := next(
        (name for name in other.global_tensors if name not in table.global_tensors and name != HEAD), None
    ):
        raise MergeError(f"{table.name} has no {missing}, as {other.name} has", HINT)


def is_per_layer(key: str, *tables: Table) -> bool:
    """Return whether a hyperparameter has an item for each layer in any of these models."""
    return any(table.is_per_layer(key) for table in tables)


def has_per_layer_values(*tables: Table) -> bool:
    """Return whether the layers of a model may not all be of one shape."""
    return any(table.is_per_layer(key) for table in tables for key in table.metadata)


def content_or_default(table: Table, key: str, default: Any) -> Any:
    """Return what a model has under a key, or else what is usual."""
    value = table.metadata.get(key)
    return default if value is None else value.content


def display(value: Any) -> str:
    """Return a value as an error tells it."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None:
        return "nothing"
    text = ascii(value) if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
