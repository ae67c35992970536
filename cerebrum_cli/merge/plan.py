"""Plan a merge: from a recipe and tensor tables to the tensors of the result and the operation of each. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import ALIGNMENT, EMBEDDING, HEAD, Table, Tensor, Value
from cerebrum_cli.gguf.types import TENSOR_TYPES, TensorType
from cerebrum_cli.merge.compatibility import SAME_SHAPE_HINT, require_compatible
from cerebrum_cli.merge.conversion import hugging_face_names
from cerebrum_cli.merge.layer_pattern import require_layer_pattern
from cerebrum_cli.merge.metadata import PlannedModel, Provenance, merged_metadata
from cerebrum_cli.merge.methods import Copy, Inputs, Position, TensorOp, base_tensor, tensor_op
from cerebrum_cli.merge.parameter_lookup import unmatched_filters
from cerebrum_cli.merge.recipe import Recipe, Slice, Source
from cerebrum_cli.merge.target_types import Target

HEAD_PREFIX = "output"  # of the tensors after the last layer: output_norm.weight, output.weight


class OutputTensor(NamedTuple):
    """A tensor of the merge: its shape, row length first, its ggml type number, and the operation that computes it."""

    name: str
    shape: tuple[int, ...]
    type: int
    op: TensorOp

    @property
    def kind(self) -> TensorType:
        return TENSOR_TYPES[self.type]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.kind.bytes_of(prod(self.shape))

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are copied from a source."""
        return isinstance(self.op, Copy) and self.op.tensor.type == self.type


class Layer(NamedTuple):
    """A layer of the merge, with the model name and layer number of each source."""

    number: int
    sources: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned merge: metadata and tensors in file order, and the sources of each layer."""

    metadata: Mapping[str, Value]
    tensors: tuple[OutputTensor, ...]
    layers: tuple[Layer, ...]
    unmatched_filters: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors)


class Step(NamedTuple):
    """One layer to compute: its slice, relative depth in it, and layer number in each source."""

    slice: Slice
    t: float
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Planner:
    """A recipe, and the tables of its models by their names in it."""

    recipe: Recipe
    tables: Mapping[str, Table]
    target: Target

    def plan(self, provenance: Provenance) -> Plan:
        """Plan the merge. Raises MergeError if the models do not fit the recipe or each other."""
        require_compatible([self.tables[model] for model in self.recipe.models])
        steps = tuple(self._steps())
        tensors = (
            *self._global_tensors(steps[0], False),
            *self._layer_tensors(steps),
            *self._global_tensors(steps[-1], True),
        )
        layers = tuple(Layer(index, self._source_layers(step)) for index, step in enumerate(steps))
        require_layer_pattern(self.tables, layers)
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        planned = PlannedModel([self._base_layer(step) for step in steps], shapes)
        metadata = merged_metadata(self.recipe, self.tables, planned, self.target, provenance)
        return Plan(metadata, tensors, layers, self._unmatched_filters())

    @property
    def _architecture(self) -> str:
        return self.tables[self.recipe.models[0]].architecture

    def _unmatched_filters(self) -> tuple[str, ...]:
        every = {name: None for table in self.tables.values() for name in table.tensors}
        names = [each for name in every for each in hugging_face_names(name, self._architecture)]
        return unmatched_filters(self.recipe, names)

    def _steps(self) -> Iterator[Step]:
        """Yield the layers of the merge in order. Raises MergeError if a source lacks a layer."""
        for number, part in enumerate(self.recipe.slices):
            ranges = [self._range(number, source) for source in part.sources]
            lengths = {end - start for start, end in ranges}
            if len(lengths) > 1:
                counts = ", ".join(
                    f"{source.model} {end - start}" for source, (start, end) in zip(part.sources, ranges, strict=True)
                )
                raise MergeError(f"slices[{number}]: layer counts differ: {counts}", "give each source a layer_range")
            [length] = lengths
            for index in range(length):
                t = index / (length - 1) if length > 1 else 1.0
                yield Step(part, t, tuple(start + index for start, _ in ranges))

    def _range(self, number: int, source: Source) -> tuple[int, int]:
        layers = self.tables[source.model].n_layers
        start, end = source.layer_range or (0, layers)
        if end > layers:
            problem = f"slices[{number}]: layer_range [{start}, {end}] of {source.model}, which has {layers} layers"
            raise MergeError(problem, f"end it at {layers} or below")
        return start, end

    def _source_layers(self, step: Step) -> tuple[tuple[str, int], ...]:
        return tuple((source.model, layer) for source, layer in zip(step.slice.sources, step.layers, strict=True))

    def _base_layer(self, step: Step) -> tuple[Table, int]:
        """Source layer that determines types and metadata: the base model's, otherwise the first."""
        origins = self._source_layers(step)
        model, layer = next((each for each in origins if each[0] == step.slice.base_model), origins[0])
        return self.tables[model], layer

    def _layer_tensors(self, steps: Sequence[Step]) -> Iterator[OutputTensor]:
        for index, step in enumerate(steps):
            by_source = [self.tables[model].layer_tensors(layer) for model, layer in self._source_layers(step)]
            for suffix in by_source[0]:
                position = Position(self.recipe, step.slice, f"blk.{index}.{suffix}", step.t, self._architecture)
                yield self._output(position, self._inputs(step, by_source, suffix))
            self._require_same_tensors(step, by_source)

    def _global_tensors(self, step: Step, is_after: bool) -> Iterator[OutputTensor]:
        """Yield the tensors before the first layer, or after the last one."""
        by_source = [self.tables[source.model].global_tensors for source in step.slice.sources]
        if is_after and self._has_head:  # without one the embeddings are used, but the merge has the first slice's
            by_source = [{**outer, HEAD: head_tensor(outer)} for outer in by_source]
        for suffix in by_source[0]:
            if suffix.startswith(HEAD_PREFIX) == is_after:
                position = Position(self.recipe, step.slice, suffix, 0.0, self._architecture)
                yield self._output(position, self._inputs(step, by_source, suffix))

    def _slice_models(self, index: int) -> tuple[str, ...]:
        return tuple(source.model for source in self.recipe.slices[index].sources)

    def _inputs(self, step: Step, by_source: Sequence[Mapping[str, Tensor]], suffix: str) -> Inputs:
        """A tensor of each source. Raises MergeError if one is missing or has another shape."""
        inputs = []
        for source, tensors in zip(step.slice.sources, by_source, strict=True):
            tensor, first = tensors.get(suffix), by_source[0][suffix]
            name = self.tables[source.model].name
            if tensor is None:
                raise MergeError(f"{name} has no {first.name}", SAME_SHAPE_HINT)
            if tensor.shape != first.shape:
                sizes = f"{list(tensor.shape)} and {list(first.shape)}"
                raise MergeError(f"{name} differs in the shape of {first.name}: {sizes}", SAME_SHAPE_HINT)
            inputs.append((source, tensor))
        return inputs

    def _require_same_tensors(self, step: Step, by_source: Sequence[Mapping[str, Tensor]]) -> None:
        """Raise MergeError if a source's layer has a tensor that the first source's lacks."""
        for source, tensors in zip(step.slice.sources, by_source, strict=True):
            if extra := sorted(tensors.keys() - by_source[0].keys()):
                name, first = self.tables[source.model].name, self.tables[step.slice.sources[0].model].name
                raise MergeError(f"{first} has no {tensors[extra[0]].name}, unlike {name}", SAME_SHAPE_HINT)

    def _output(self, position: Position, inputs: Inputs) -> OutputTensor:
        first = base_tensor(position, inputs)
        is_head = position.name == HEAD or (position.name == EMBEDDING and not self._has_head)
        return OutputTensor(
            position.name, first.shape, self.target.type_of(first, is_head), tensor_op(position, inputs)
        )

    @property
    def _has_head(self) -> bool:
        """Whether the merge has an output head besides its embeddings."""
        last = [self.tables[source.model].global_tensors for source in self.recipe.slices[-1].sources]
        return any(HEAD in outer for outer in last) or self._slice_models(0) != self._slice_models(-1)


def head_tensor(outer: Mapping[str, Tensor]) -> Tensor:
    """Output head of a model: its own tensor, or the embeddings."""
    return outer.get(HEAD) or outer[EMBEDDING]


def plan_merge(recipe: Recipe, tables: Mapping[str, Table], target: Target, provenance: Provenance) -> Plan:
    """Plan a recipe for models. Raises MergeError if they do not fit it or each other."""
    return Planner(recipe, tables, target).plan(provenance)


def padded_size(size: int) -> int:
    """Round a size up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
