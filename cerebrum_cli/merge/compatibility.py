"""Whether models can be merged at all: one architecture, one shape, one vocabulary; what differs is named. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import HEAD, Table

ONE_SHAPE = "merge models of one shape"
DO = "merge models of one architecture, shape and vocabulary"
VOCABULARY = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges")
MAY_DIFFER = ("block_count", "context_length", "vocab_size")  # layers are counted, the vocabulary is compared itself
# What llama.cpp takes where a file does not say; of all other keys one that only one file has is no difference.
USUAL = {"rope.freq_base": 10000.0, "expert_count": 0, "rope.scaling.type": "none"}


def require_alike(tables: Sequence[Table]) -> None:
    """Raise MergeError with the first key in which a model differs from the first one."""
    first = tables[0]
    for table in tables[1:]:
        for key, theirs, ours in differences(table, first):
            what = f"{table.name} differs from {first.name} in {key}: {shown(theirs)} and {shown(ours)}"
            raise MergeError(what, DO)
        require_outer(table, first)
        require_outer(first, table)


def differences(table: Table, first: Table) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key in which two models differ in a way that matters, and what they have there."""
    if table.architecture != first.architecture:
        yield "general.architecture", table.architecture, first.architecture
        return
    prefix = f"{first.architecture}."
    for key in sorted({*table.metadata, *first.metadata}):
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name not in MAY_DIFFER and not has_items_per_layer(key, table, first):
            theirs, ours = (content(each, key, USUAL.get(name)) for each in (table, first))
            if None not in (theirs, ours) and theirs != ours:
                yield key, theirs, ours
    yield from vocabulary_differences(table, first)
    yield from shape_differences(table, first)


def vocabulary_differences(table: Table, first: Table) -> Iterator[tuple[str, Any, Any]]:
    """Yield where two vocabularies differ: of two lists how long they are, or the first item that is not the same."""
    for key in VOCABULARY:
        theirs, ours = content(table, key, None), content(first, key, None)
        if theirs == ours or (None in (theirs, ours) and key == "tokenizer.ggml.pre"):  # older files have none
            continue
        if isinstance(theirs, tuple) and isinstance(ours, tuple):
            if len(theirs) == len(ours):
                at = next(index for index, item in enumerate(theirs) if item != ours[index])
                yield f"{key}[{at}]", theirs[at], ours[at]
            else:
                yield f"the length of {key}", len(theirs), len(ours)
        else:
            yield key, theirs, ours


def shape_differences(table: Table, first: Table) -> Iterator[tuple[str, Any, Any]]:
    """Yield the tensors of no layer and of the first one whose shapes differ."""
    for theirs, ours in ((table.outer, first.outer), (table.layer(0), first.layer(0))):
        for suffix, tensor in theirs.items():
            if suffix in ours and tensor.shape != ours[suffix].shape and not varies(table, first):
                yield f"the shape of {tensor.name}", tensor.shape, ours[suffix].shape


def require_outer(table: Table, other: Table) -> None:
    """Raise MergeError for a tensor of no layer that a model lacks; where there is no head, embeddings are one."""
    if missing := next((name for name in other.outer if name not in table.outer and name != HEAD), None):
        raise MergeError(f"{table.name} has no {missing}, as {other.name} has", DO)


def has_items_per_layer(key: str, *tables: Table) -> bool:
    """Return whether a hyperparameter has an item for each layer in any of these models."""
    return any(table.says_per_layer(key) for table in tables)


def varies(*tables: Table) -> bool:
    """Return whether the layers of a model may not all be of one shape."""
    return any(table.says_per_layer(key) for table in tables for key in table.metadata)


def content(table: Table, key: str, usual: Any) -> Any:
    """Return what a model has under a key, or else what is usual."""
    value = table.metadata.get(key)
    return usual if value is None else value.content


def shown(value: Any) -> str:
    """Return a value as an error tells it."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None:
        return "nothing"
    text = ascii(value) if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
