"""A recipe and what its models' files say, made into the tensors of the merge and what becomes of each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import ALIGNMENT, EMBEDDING, HEAD, Table, Tensor, Value
from cerebrum_cli.gguf.types import TENSOR_TYPES, TensorType
from cerebrum_cli.merge.compatibility import SAME_SHAPE_HINT, require_compatible
from cerebrum_cli.merge.layer_pattern import require_layer_pattern
from cerebrum_cli.merge.metadata import PlannedModel, Provenance, merged_metadata
from cerebrum_cli.merge.methods import Copy, Inputs, Position, TensorOp, base_tensor, tensor_op
from cerebrum_cli.merge.parameter_lookup import unmatched_filters
from cerebrum_cli.merge.recipe import Recipe, Slice, Source
from cerebrum_cli.merge.target_types import Target
from cerebrum_cli.merge.tensor_names import hugging_face_name

TENSOR_INFO_BYTES, DIMENSION_BYTES = (
    24,
    8,
)  # bytes that a header has for each tensor beside its name, and for each of its dimensions
HEAD_PREFIX = "output"  # how the names of tensors behind the last layer begin


class OutputTensor(NamedTuple):
    """A tensor of the merge: row length first, ggml's number of its type, and what becomes it."""

    name: str
    shape: tuple[int, ...]
    type: int
    op: TensorOp

    @property
    def kind(self) -> TensorType:
        """Its type."""
        return TENSOR_TYPES[self.type]

    @property
    def size(self) -> int:
        """The bytes it takes."""
        return self.kind.bytes_of(prod(self.shape))

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of a source."""
        return isinstance(self.op, Copy) and self.op.tensor.type == self.type


class Layer(NamedTuple):
    """A layer of the merge, and the layers it is made of: the name of each model, and which layer of it."""

    number: int
    sources: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge that can be carried out: metadata and tensors in the order of the file, and where its layers are from."""

    metadata: Mapping[str, Value]
    tensors: tuple[OutputTensor, ...]
    layers: tuple[Layer, ...]
    unmatched_filters: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        """The number of weights."""
        return sum(prod(tensor.shape) for tensor in self.tensors)


class Step(NamedTuple):
    """One layer to be made: in which slice, how far through it, and which layer of each source."""

    slice: Slice
    t: float
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Planner:
    """A recipe and the tables of its models by the names it gives them."""

    recipe: Recipe
    tables: Mapping[str, Table]
    target: Target

    def plan(self, provenance: Provenance) -> Plan:
        """Return the plan of the merge. MergeError where the models do not fit the recipe or each other."""
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
        return unmatched_filters(self.recipe, [hugging_face_name(name, self._architecture) for name in every])

    def _steps(self) -> Iterator[Step]:
        """Yield the layers of the merge in order. MergeError where a model does not have the layers it should."""
        for number, part in enumerate(self.recipe.slices):
            ranges = [self._range(number, source) for source in part.sources]
            lengths = {end - start for start, end in ranges}
            if len(lengths) > 1:
                said = ", ".join(
                    f"{source.model} {end - start}" for source, (start, end) in zip(part.sources, ranges, strict=True)
                )
                raise MergeError(f"slices[{number}]: numbers of layers differ: {said}", "give layer_range for each")
            [length] = lengths
            for index in range(length):
                t = index / (length - 1) if length > 1 else 1.0
                yield Step(part, t, tuple(start + index for start, _ in ranges))

    def _range(self, number: int, source: Source) -> tuple[int, int]:
        layers = self.tables[source.model].n_layers
        start, end = source.layer_range or (0, layers)
        if end > layers:
            what = f"slices[{number}]: layer_range [{start}, {end}] of {source.model}, which has {layers} layers"
            raise MergeError(what, f"end it at {layers} at most")
        return start, end

    def _source_layers(self, step: Step) -> tuple[tuple[str, int], ...]:
        return tuple((source.model, layer) for source, layer in zip(step.slice.sources, step.layers, strict=True))

    def _base_layer(self, step: Step) -> tuple[Table, int]:
        """Return the model and layer that a layer has its types of: the base's, else the first."""
        origins = self._source_layers(step)
        model, layer = next((each for each in origins if each[0] == step.slice.base_model), origins[0])
        return self.tables[model], layer

    def _layer_tensors(self, steps: Sequence[Step]) -> Iterator[OutputTensor]:
        for index, step in enumerate(steps):
            held = [self.tables[model].layer_tensors(layer) for model, layer in self._source_layers(step)]
            for suffix in held[0]:
                position = Position(self.recipe, step.slice, f"blk.{index}.{suffix}", step.t, self._architecture)
                yield self._output(position, self._inputs(step, held, suffix))
            self._require_same_tensors(step, held)

    def _global_tensors(self, step: Step, behind: bool) -> Iterator[OutputTensor]:
        """Yield the tensors before the first layer, or behind the last one."""
        held = [self.tables[source.model].global_tensors for source in step.slice.sources]
        if behind and self._has_head:  # a model without one reads its embeddings, and those here are the first slice's
            held = [{**outer, HEAD: head_tensor(outer)} for outer in held]
        for suffix in held[0]:
            if suffix.startswith(HEAD_PREFIX) == behind:
                position = Position(self.recipe, step.slice, suffix, float(behind), self._architecture)
                yield self._output(position, self._inputs(step, held, suffix))

    def _slice_models(self, index: int) -> tuple[str, ...]:
        return tuple(source.model for source in self.recipe.slices[index].sources)

    def _inputs(self, step: Step, held: Sequence[Mapping[str, Tensor]], suffix: str) -> Inputs:
        """Return a tensor of each source. MergeError where one has none of this name, or of another shape."""
        given = []
        for source, tensors in zip(step.slice.sources, held, strict=True):
            tensor, first = tensors.get(suffix), held[0][suffix]
            name = self.tables[source.model].name
            if tensor is None:
                raise MergeError(f"{name} has no {first.name}", SAME_SHAPE_HINT)
            if tensor.shape != first.shape:
                sizes = f"{list(tensor.shape)} and {list(first.shape)}"
                raise MergeError(f"{name} differs in the shape of {first.name}: {sizes}", SAME_SHAPE_HINT)
            given.append((source, tensor))
        return given

    def _require_same_tensors(self, step: Step, held: Sequence[Mapping[str, Tensor]]) -> None:
        """Raise MergeError where a source has a tensor in its layer that the first one has not."""
        for source, tensors in zip(step.slice.sources, held, strict=True):
            if more := sorted(tensors.keys() - held[0].keys()):
                name, first = self.tables[source.model].name, self.tables[step.slice.sources[0].model].name
                raise MergeError(f"{first} has no {tensors[more[0]].name}, as {name} has", SAME_SHAPE_HINT)

    def _output(self, position: Position, given: Inputs) -> OutputTensor:
        first = base_tensor(position, given)
        is_head = position.name == HEAD or (position.name == EMBEDDING and not self._has_head)
        return OutputTensor(position.name, first.shape, self.target.type_of(first, is_head), tensor_op(position, given))

    @property
    def _has_head(self) -> bool:
        """Whether the merge says tokens by something else than its embeddings."""
        last = [self.tables[source.model].global_tensors for source in self.recipe.slices[-1].sources]
        return any(HEAD in outer for outer in last) or self._slice_models(0) != self._slice_models(-1)


def head_tensor(outer: Mapping[str, Tensor]) -> Tensor:
    """Return what a model says tokens by: its head, or its embeddings."""
    return outer.get(HEAD) or outer[EMBEDDING]


def plan_merge(recipe: Recipe, tables: Mapping[str, Table], target: Target, provenance: Provenance) -> Plan:
    """Return how a recipe is carried out on models. MergeError where they do not fit it or each other."""
    return Planner(recipe, tables, target).plan(provenance)


def split_tensors(
    tensors: Iterable[OutputTensor], headers: tuple[int, int], limit: int | None
) -> list[tuple[OutputTensor, ...]]:
    """Return tensors in files of at most so many bytes each, or one tensor.

    `headers` are the bytes of a header without tensors: of the first file, and of each other.
    """
    result: list[list[OutputTensor]] = [[]]
    size = headers[0] + ALIGNMENT
    for tensor in tensors:
        taken = (
            padded_size(tensor.size)
            + TENSOR_INFO_BYTES
            + DIMENSION_BYTES * len(tensor.shape)
            + len(tensor.name.encode())
        )
        if limit and result[-1] and size + taken > limit:
            result.append([])
            size = headers[1] + ALIGNMENT
        result[-1].append(tensor)
        size += taken
    return [tuple(part) for part in result]


def padded_size(size: int) -> int:
    """Return bytes with what is left free behind them."""
    return -(-size // ALIGNMENT) * ALIGNMENT
