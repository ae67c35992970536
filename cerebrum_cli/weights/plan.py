"""Plan a merge: the tensors of the result, the type of each, the operation that computes it, and the metadata. Pure.

The metadata is what still holds of that of the sources, and the provenance of the merge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import Texts, format_count
from cerebrum_cli.gguf.contents import EMBEDDING, HEAD, TENSOR_TYPES, Shape, Tensors, TensorType, Value, aligned
from cerebrum_cli.gguf.header import MAX_LAYERS, Header, header_from_tables, parse_tables
from cerebrum_cli.weights.compatibility import (
    SAME_SHAPE_HINT,
    LayerSources,
    TablesByName,
    require_compatible,
    require_layer_pattern,
)
from cerebrum_cli.weights.methods import TensorOp, TensorPosition, copy_of, input_tensors, tensor_op
from cerebrum_cli.weights.mixtures import ModelShape
from cerebrum_cli.weights.recipe import Recipe, Slice, SliceSource
from cerebrum_cli.weights.table import Table, encode_header
from cerebrum_cli.weights.target import Target, model_shape
from cerebrum_cli.weights.tensor_names import hugging_face_names

Metadata = dict[str, Value]
Origins = Sequence[tuple[str, int]]  # a model and the number of a layer in it, for each layer

# Keys that describe a source file and do not hold for a merge of it.
_NOT_INHERITED = """
version organization author basename finetune description quantized_by size_label url doi uuid repo_url parameter_count
alignment file_type
"""
_DROPPED = frozenset(f"general.{key}" for key in _NOT_INHERITED.split())
# The tokenizer may be another model's.
_PREFIXES = "general.source. general.base_model. split. cerebrum. imatrix. quantize.imatrix. tokenizer."
_DROPPED_PREFIXES = tuple(_PREFIXES.split())


def merged_metadata(
    recipe: Recipe,
    tables: TablesByName,
    origins: Origins,
    file_type: int | None,
    name: str,
    texts: Mapping[str, str],
) -> Metadata:
    """Build the metadata of a merge; tokenizer and chat template come from the recipe's `tokenizer_source`.

    `origins` are the model and layer that the metadata of each layer comes from. The `name` and `texts` are its own.
    """
    first = tables[recipe.base_model or recipe.models[0]]
    dropped = _DROPPED_PREFIXES
    if len({table.text("general.license") for table in tables.values()}) > 1:
        dropped = (*dropped, "general.license")
    metadata = {}
    for key, value in first.metadata.items():
        if key not in _DROPPED and not key.startswith(dropped):
            metadata[key] = value
    for key, value in tables[recipe.tokenizer_model].metadata.items():
        if key.startswith("tokenizer."):
            metadata[key] = value
    metadata |= hyperparameters(first, tables, origins)
    metadata["general.name"] = Value("STRING", name)
    if file_type is not None:
        metadata["general.file_type"] = Value("UINT32", file_type)
    metadata |= base_models(tables.values())
    for key, content in texts.items():
        metadata[key] = Value("STRING", content)
    return metadata


def hyperparameters(first: Table, tables: TablesByName, origins: Origins) -> Metadata:
    """Hyperparameters that may differ from the first model's: number of layers, context length, per-layer arrays."""
    block_count, context_length = (f"{first.architecture}.{key}" for key in ("block_count", "context_length"))
    result = {block_count: Value("UINT32", len(origins))}
    lengths = []
    for table in tables.values():
        if table.whole_number("context_length") is not None:
            lengths.append(table.metadata[context_length])
        for key, value in table.metadata.items():
            if key not in result and table.is_per_layer(key):
                values = tuple(layer_value(key, tables[model], layer) for model, layer in origins)
                result[key] = value._replace(content=values)
    if lengths:
        result[context_length] = min(lengths, key=lambda value: value.content)
    return result


def layer_value(key: str, table: Table, layer: int) -> Any:
    value = table.layer_value(key, layer)
    if value is None:
        raise MergeError(f"{table.name} has no {key}, which another model has for each layer", SAME_SHAPE_HINT)
    return value


def base_models(tables: Iterable[Table]) -> Metadata:
    unique: dict[str, Table] = {}  # a recipe may have two names for one model
    for table in tables:
        unique.setdefault(table.name, table)
    result = {"general.base_model.count": Value("UINT32", len(unique))}
    for number, (reference, table) in enumerate(unique.items()):
        name = table.text("general.name") or reference
        result[f"general.base_model.{number}.name"] = Value("STRING", name)
    return result


HEAD_PREFIX = "output"  # of the tensors after the last layer: output_norm.weight, output.weight


class OutputTensor(NamedTuple):
    """A tensor of the merge: its shape, its ggml type number, and the operation that computes it.

    `unfit` is the name of the type that it should have, if its rows are not whole blocks of that.
    """

    name: str
    shape: Shape
    type: int
    op: TensorOp
    unfit: str = ""

    @property
    def kind(self) -> TensorType:
        return TENSOR_TYPES[self.type]

    @property
    def size(self) -> int:
        return self.kind.bytes_of(prod(self.shape))

    @property
    def is_copy(self) -> bool:
        source = input_tensors(self.op)[0]
        return self.op == copy_of(source) and source.type == self.type


@dataclass(frozen=True)
class Plan:
    """A planned merge: metadata and tensors in file order, and the sources of each layer."""

    metadata: Metadata
    tensors: tuple[OutputTensor, ...]
    layers: tuple[LayerSources, ...]
    unmatched_filters: Texts = ()

    @cached_property
    def header(self) -> bytes:
        return encode_header(self.metadata, (tensor[:3] for tensor in self.tensors))

    @property
    def size(self) -> int:
        return len(self.header) + sum(aligned(tensor.size) for tensor in self.tensors)

    def unfit_notice(self, type: str | None) -> NoticeEvent | None:
        """Which tensors have other types, as their rows are not whole blocks of a requested one; None if all fit."""
        counts = Counter((tensor.unfit, tensor.kind.name) for tensor in self.tensors if tensor.unfit)
        if not counts:
            return None
        tensors = format_count(counts.total(), "tensor")
        problem = (
            f"{tensors} cannot be quantized as {type} prescribes: the row length is not divisible by the block size"
        )
        used = [f"{used} instead of {unfit} ({count})" for (unfit, used), count in counts.items()]
        return NoticeEvent(problem, f"other types are used: {', '.join(used)}")

    def header_at(self, path: Path) -> Header:
        """The header of the planned file, as it will be read from a path."""
        return header_from_tables(path, parse_tables(path, self.header, self.size))


class MergeStep(NamedTuple):
    """One layer to compute: its slice, relative depth in it, and the model and layer number of each source."""

    slice: Slice
    t: float
    sources: LayerSources


@dataclass(frozen=True)
class MergePlanner:
    recipe: Recipe
    tables: TablesByName
    target: Target

    def plan(self, name: str, texts: Mapping[str, str]) -> Plan:
        """Plan a merge with these texts in its metadata. Raises MergeError if the models or the recipe do not fit."""
        require_compatible([self.tables[model] for model in self.recipe.models])
        steps = self._steps
        if len(steps) > MAX_LAYERS:
            raise MergeError(f"the merge would have {len(steps):,} layers", f"llama.cpp loads at most {MAX_LAYERS}")
        tensors = (
            *self._global_tensors(steps[0], False),
            *self._layer_tensors(),
            *self._global_tensors(steps[-1], True),
        )
        layers = tuple(step.sources for step in steps)
        require_layer_pattern(self.tables, layers)
        origins = [step.sources[step.slice.base] for step in steps]
        own_type = self.tables[origins[0][0]].content("general.file_type")
        file_type = self.target.file_type(own_type if isinstance(own_type, int) else None)
        metadata = merged_metadata(self.recipe, self.tables, origins, file_type, name, texts)
        return Plan(metadata, tensors, layers, self._unmatched_filters())

    @cached_property
    def _architecture(self) -> str:
        return self.tables[self.recipe.models[0]].architecture

    def _unmatched_filters(self) -> Texts:
        names: list[str] = []
        for table in self.tables.values():
            for tensor in table.tensors:
                names += hugging_face_names(tensor, self._architecture)
        text = "\n".join(names)
        return tuple(filter for filter in self.recipe.filters if filter not in text)

    @cached_property
    def _steps(self) -> Sequence[MergeStep]:
        steps = []
        for number, part in enumerate(self.recipe.slices):
            ranges = [self._layer_range(source, f"slices[{number}]") for source in part.sources]
            counts = [end - start for start, end in ranges]
            if len({*counts}) > 1:
                found = ", ".join(f"{model} {count}" for model, count in zip(part.models, counts, strict=True))
                raise MergeError(f"slices[{number}]: layer counts differ: {found}", "give each source a layer_range")
            last = counts[0] - 1
            for index in range(counts[0]):
                layers = [start + index for start, _ in ranges]
                sources = tuple(zip(part.models, layers, strict=True))
                steps.append(MergeStep(part, index / last if last else 1.0, sources))
        return steps

    def _layer_range(self, source: SliceSource, place: str) -> tuple[int, int]:
        n_layers = self.tables[source.model].n_layers
        start, end = source.layer_range or (0, n_layers)
        if end > n_layers:
            problem = f"layer_range [{start}, {end}] of {source.model}, which has {n_layers} layers"
            raise MergeError(f"{place}: {problem}", f"end it at {n_layers} or below")
        return start, end

    def _layer_tensors(self) -> Iterator[OutputTensor]:
        for index, step in enumerate(self._steps):
            by_source = [self.tables[model].tensors_by_layer.get(layer, {}) for model, layer in step.sources]
            first = by_source[0]
            names = [self.tables[model].name for model in step.slice.models]
            for name, tensors in zip(names, by_source, strict=True):
                for suffix in sorted(tensors.keys() - first.keys()):
                    raise MergeError(f"{names[0]} has no {tensors[suffix].name}, unlike {name}", SAME_SHAPE_HINT)
            for suffix in first:
                yield self._output(f"blk.{index}.{suffix}", step.t, step, by_source, suffix)

    def _global_tensors(self, step: MergeStep, is_after: bool) -> Iterator[OutputTensor]:
        by_source = []
        for model in step.slice.models:
            table = self.tables[model]
            tensors = dict(table.global_tensors)
            if EMBEDDING not in tensors:
                raise MergeError(f"{table.name} has no {EMBEDDING}", SAME_SHAPE_HINT)
            if is_after and self._has_head:  # without one the embeddings are used, but the merge has the first slice's
                tensors.setdefault(HEAD, tensors[EMBEDDING])
            by_source.append(tensors)
        for name in by_source[0]:
            if name.startswith(HEAD_PREFIX) == is_after:
                yield self._output(name, 0.0, step, by_source, name)

    def _output(self, name: str, t: float, step: MergeStep, by_source: Sequence[Tensors], suffix: str) -> OutputTensor:
        inputs, first = [], by_source[0][suffix]
        for source, tensors in zip(step.slice.sources, by_source, strict=True):
            table = self.tables[source.model]
            tensor = tensors.get(suffix)
            if tensor is None:
                raise MergeError(f"{table.name} has no {first.name}", SAME_SHAPE_HINT)
            if tensor.shape != first.shape:
                raise MergeError(
                    f"{table.name} differs in the shape of {first.name}: {list(tensor.shape)} and {list(first.shape)}",
                    SAME_SHAPE_HINT,
                )
            inputs.append((source, tensor))
        position = TensorPosition(self.recipe, step.slice, name, t, self._architecture, inputs)
        is_head = name == HEAD or (name == EMBEDDING and not self._has_head)
        kind, unfit = self.target.type_of(name, position.base, is_head, self._shape)
        return OutputTensor(name, first.shape, kind, tensor_op(position), unfit)

    @cached_property
    def _shape(self) -> ModelShape:
        return model_shape(self.tables[self.recipe.models[0]], len(self._steps))

    @property
    def _has_head(self) -> bool:
        first, last = self.recipe.slices[0].models, self.recipe.slices[-1].models
        return first != last or any(HEAD in self.tables[model].global_tensors for model in last)
