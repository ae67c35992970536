"""Plan a merge: the layers of the result, what each of its tensors is the sum of, and the metadata. Pure.

The metadata is what still holds of that of the sources, and the provenance of the merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.contents import EMBEDDING, HEAD, Tensor, Tensors, Value
from cerebrum_cli.gguf.header import MAX_LAYERS
from cerebrum_cli.weights.compatibility import (
    SAME_SHAPE_HINT,
    LayerSources,
    TablesByName,
    require_compatible,
    require_layers_in_place,
)
from cerebrum_cli.weights.plan import Metadata, Plan, Term, plan_tensors
from cerebrum_cli.weights.recipe import Recipe, Slice, Source
from cerebrum_cli.weights.table import Table
from cerebrum_cli.weights.target import file_type_of, model_shape

# Keys that describe a source file and do not hold for a merge of it.
_NOT_INHERITED = """
version organization author basename finetune description quantized_by size_label url doi uuid repo_url parameter_count
alignment file_type
"""
_DROPPED = frozenset(f"general.{key}" for key in _NOT_INHERITED.split())
# The tokenizer may be another model's.
_PREFIXES = "general.source. general.base_model. split. cerebrum. imatrix. quantize.imatrix. tokenizer."
_DROPPED_PREFIXES = tuple(_PREFIXES.split())
_AFTER_LAYERS = "output"  # how the names of tensors after the last layer begin: output_norm.weight, output.weight
# Factors of RoPE, which follow from the configuration and are not weights.
_CONSTANTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class Layer(NamedTuple):
    """A layer of the result: its slice, and the model and number of the layer of each source."""

    slice: Slice
    sources: LayerSources


def plan_merge(
    recipe: Recipe, tables: TablesByName, type: str | None, name: str, texts: Mapping[str, str]
) -> tuple[Plan, Sequence[LayerSources]]:
    """Plan a merge to a type, or to the types of its sources, and the sources of its layers.

    The `name` and `texts` are metadata of its own. Raises MergeError for models that do not fit each other,
    UsageError for a recipe that does not fit them.
    """
    require_compatible([tables[model] for model in recipe.models])
    layers = list(_layers(recipe, tables))
    if len(layers) > MAX_LAYERS:
        raise recipe.invalid(f"the merge would have {len(layers):,} layers", f"llama.cpp loads at most {MAX_LAYERS}")
    sources = [layer.sources for layer in layers]
    sums = dict(_sums(tables, layers))
    require_layers_in_place(tables, sources)
    shape = model_shape(tables[recipe.base_model], len(layers))
    metadata = _metadata(recipe, tables, len(layers))
    own_type = tables[recipe.slices[0].models[0]].content("general.file_type")
    if type is not None:
        own_type = file_type_of(type)
    if isinstance(own_type, int):
        metadata["general.file_type"] = Value("UINT32", own_type)
    for key, text in {"general.name": name, **texts}.items():
        metadata[key] = Value("STRING", text)
    return Plan(metadata, plan_tensors(sums, type, shape)), sources


def _layers(recipe: Recipe, tables: TablesByName) -> Iterator[Layer]:
    for number, part in enumerate(recipe.slices):
        ranges = [_layer_range(recipe, source, tables[source.model].n_layers, number) for source in part.sources]
        counts = [len(numbers) for numbers in ranges]
        if len({*counts}) > 1:
            found = ", ".join(f"{model} {count}" for model, count in zip(part.models, counts, strict=True))
            raise recipe.invalid(f"slices[{number}]: layer counts differ: {found}", "give each source a layer_range")
        for numbers in zip(*ranges, strict=True):
            yield Layer(part, tuple(zip(part.models, numbers, strict=True)))


def _layer_range(recipe: Recipe, source: Source, n_layers: int, slice_number: int) -> range:
    start, end = source.layer_range or (0, n_layers)
    if end > n_layers:
        problem = f"layer_range [{start}, {end}] of {source.model}, which has {n_layers} layers"
        raise recipe.invalid(f"slices[{slice_number}]: {problem}", f"end it at {n_layers} or below")
    return range(start, end)


def _sums(tables: TablesByName, layers: Sequence[Layer]) -> Iterator[tuple[str, Sequence[Term]]]:
    """Yield the tensors of the merge: name, and terms of the sum."""
    first, last = layers[0].slice, layers[-1].slice
    before = [_global_tensors(tables[model]) for model in first.models]
    after = [_global_tensors(tables[model]) for model in last.models]
    if first.models != last.models or any(HEAD in tensors for tensors in after):
        for tensors in after:  # a model without a head uses its own embeddings; the merge has those of the first slice
            tensors.setdefault(HEAD, tensors[EMBEDDING])
    for name in before[0]:
        if not name.startswith(_AFTER_LAYERS):
            yield name, _terms(tables, first, before, name)
    for number, layer in enumerate(layers):
        for part, terms in _layer_sums(tables, layer):
            yield f"blk.{number}.{part}", terms
    for name in after[0]:
        if name.startswith(_AFTER_LAYERS):
            yield name, _terms(tables, last, after, name)


def _layer_sums(tables: TablesByName, layer: Layer) -> Iterator[tuple[str, Sequence[Term]]]:
    by_source: list[Tensors] = [tables[model].tensors_by_layer.get(number, {}) for model, number in layer.sources]
    models = [tables[model].name for model in layer.slice.models]
    for model, tensors in zip(models, by_source, strict=True):
        for part in sorted(tensors.keys() - by_source[0].keys()):
            raise MergeError(f"{models[0]} has no {tensors[part].name}, unlike {model}", SAME_SHAPE_HINT)
    for part in by_source[0]:
        yield part, _terms(tables, layer.slice, by_source, part)


def _global_tensors(table: Table) -> dict[str, Tensor]:
    if EMBEDDING not in table.global_tensors:
        raise MergeError(f"{table.name} has no {EMBEDDING}", SAME_SHAPE_HINT)
    return dict(table.global_tensors)


def _terms(tables: TablesByName, part: Slice, by_source: Sequence[Tensors], name: str) -> Sequence[Term]:
    """A tensor of each source by its name among these, with the coefficient of the source."""
    first = by_source[0][name]
    terms = []
    for source, tensors in zip(part.sources, by_source, strict=True):
        model = tables[source.model].name
        if name not in tensors:
            raise MergeError(f"{model} has no {first.name}", SAME_SHAPE_HINT)
        tensor = tensors[name]
        if tensor.shape != first.shape:
            shapes = f"{list(tensor.shape)} and {list(first.shape)}"
            raise MergeError(f"{model} differs in the shape of {first.name}: {shapes}", SAME_SHAPE_HINT)
        terms.append(Term(tensor, source.coefficient))
    return [Term(first, 1.0)] if name in _CONSTANTS else terms


def _metadata(recipe: Recipe, tables: TablesByName, n_layers: int) -> Metadata:
    """The metadata that the sources give a merge; its context is the smallest of theirs."""
    base, tokenizer = tables[recipe.base_model], tables[recipe.tokenizer_model]
    dropped = _DROPPED_PREFIXES
    if len({table.text("general.license") for table in tables.values()}) > 1:
        dropped = (*dropped, "general.license")
    metadata = {}
    for key, value in base.metadata.items():
        if key not in _DROPPED and not key.startswith(dropped):
            metadata[key] = value
    for key, value in tokenizer.metadata.items():
        if key.startswith("tokenizer."):
            metadata[key] = value
    metadata[f"{base.architecture}.block_count"] = Value("UINT32", n_layers)
    lengths = [length for table in tables.values() if (length := table.whole_number("context_length"))]
    if lengths:
        metadata[f"{base.architecture}.context_length"] = Value("UINT32", min(lengths))
    return metadata | _base_models(tables.values())


def _base_models(tables: Iterable[Table]) -> Metadata:
    unique: dict[str, Table] = {}  # a recipe may have two names for one model
    for table in tables:
        unique.setdefault(table.name, table)
    result = {"general.base_model.count": Value("UINT32", len(unique))}
    for number, (reference, table) in enumerate(unique.items()):
        name = table.text("general.name") or reference
        result[f"general.base_model.{number}.name"] = Value("STRING", name)
    return result
