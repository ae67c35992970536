"""The operation of each merge method on one tensor: a weighted sum, or a spherical interpolation. Pure.

The formulas are mergekit's (merge_methods/{passthrough,linear,slerp,generalized_task_arithmetic}.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.parser import Tensor
from cerebrum_cli.gguf.table import split_layer
from cerebrum_cli.merge.recipe import Recipe, Slice, SliceSource
from cerebrum_cli.merge.tensor_names import CONSTANTS, hugging_face_names, stored_offset

COEFFICIENT_TOLERANCE = 1e-9  # rounding errors of a sum of coefficients stay below this
DOT_THRESHOLD = 0.9995  # cosine above which mergekit interpolates linearly
MIN_NORM = 1e-8  # norm, or sum of weights, below which mergekit does not divide by it


class Term(NamedTuple):
    tensor: Tensor
    coefficient: float


class Sum(NamedTuple):
    """A weighted sum of one tensor or more, plus a constant; a copy is a sum of one tensor, with coefficient 1."""

    terms: tuple[Term, ...]
    constant: float = 0.0


class Slerp(NamedTuple):
    """Spherical interpolation from the first tensor (t = 0) to the second, whose weights are stored plus `offset`."""

    t: float
    first: Tensor
    second: Tensor
    offset: float = 0.0


TensorOp = Sum | Slerp


def copy_of(tensor: Tensor) -> Sum:
    return Sum((Term(tensor, 1.0),))


def input_tensors(op: TensorOp) -> tuple[Tensor, ...]:
    return (op.first, op.second) if isinstance(op, Slerp) else tuple(term.tensor for term in op.terms)


Inputs = Sequence[tuple[SliceSource, Tensor]]


class TensorPosition(NamedTuple):
    """A tensor of the merge and its slice; `t` is its relative depth there, 0 to 1, or 0 outside of layers."""

    recipe: Recipe
    slice: Slice
    name: str
    t: float
    architecture: str

    def parameter(self, name: str, source: SliceSource | None = None, tensor: Tensor | None = None) -> float | None:
        """A parameter for this tensor: the source's, or the slice's, or the recipe's; None if no filter matches.

        For a tensor of a source, filters match the layer number there, as in mergekit.
        """
        stored = tensor.name if tensor and split_layer(self.name)[0] is not None else self.name
        names = hugging_face_names(stored, self.architecture)
        levels = (*([source.parameters] if source else []), self.slice.parameters, self.recipe.parameters)
        for value, filter in (row for level in levels for row in level.get(name, ())):
            if filter is None or any(filter in tensor_name for tensor_name in names):
                return interpolate(value, self.t) if isinstance(value, tuple) else value
        return None

    def required(self, name: str, source: SliceSource | None = None, tensor: Tensor | None = None) -> float:
        value = self.parameter(name, source, tensor)
        if value is None:
            missing = f"{name} of {source.model}" if source else name
            raise MergeError(
                f"the recipe has no {missing} for {self.name}", "add a value without a filter at the end of the list"
            )
        return value

    @property
    def offset(self) -> float:
        return stored_offset(self.name, self.architecture)


def interpolate(gradient: tuple[float, ...], t: float) -> float:
    position = t * (len(gradient) - 1)
    before = int(position)
    after = min(before + 1, len(gradient) - 1)
    share = position - before
    return (1.0 - share) * gradient[before] + share * gradient[after]


def tensor_op(position: TensorPosition, inputs: Inputs) -> TensorOp:
    if position.name in CONSTANTS:
        return copy_of(base_tensor(position, inputs))
    method = position.recipe.method
    if method == "slerp":
        return slerp(position, inputs)
    terms = {"passthrough": passthrough, "linear": linear, "task_arithmetic": task_arithmetic}[method](position, inputs)
    return simplify(terms, position.offset)


def base_tensor(position: TensorPosition, inputs: Inputs) -> Tensor:
    """Tensor whose type and shape the result has: the base model's, otherwise the first."""
    return next((tensor for source, tensor in inputs if source.model == position.slice.base_model), inputs[0][1])


def split_base(position: TensorPosition, inputs: Inputs) -> tuple[Tensor, Inputs]:
    index = next(index for index, (source, _) in enumerate(inputs) if source.model == position.slice.base_model)
    return inputs[index][1], [*inputs[:index], *inputs[index + 1 :]]


def passthrough(position: TensorPosition, inputs: Inputs) -> list[Term]:
    [(source, tensor)] = inputs
    scale = position.parameter("scale", source, tensor)
    return [Term(tensor, 1.0 if scale is None else scale)]


def linear(position: TensorPosition, inputs: Inputs) -> list[Term]:
    """Weighted sum; the weights are divided by their sum unless `normalize` is false."""
    weights = [position.required("weight", source, tensor) for source, tensor in inputs]
    divisor = 1.0 if position.parameter("normalize") == 0 else sum(weights)
    if abs(divisor) < COEFFICIENT_TOLERANCE:
        raise MergeError(f"the weights for {position.name} add up to 0", "change one, or set normalize: false")
    return [Term(tensor, weight / divisor) for (_, tensor), weight in zip(inputs, weights, strict=True)]


def task_arithmetic(position: TensorPosition, inputs: Inputs) -> list[Term]:
    """The base plus the others' weighted differences, times `lambda`; weights are divided by their sum on request."""
    base, others = split_base(position, inputs)
    weights = [position.required("weight", source, tensor) for source, tensor in others]
    divisor = sum(weights) if position.parameter("normalize") else 1.0
    factor = position.parameter("lambda")
    factor = (1.0 if factor is None else factor) / (divisor if abs(divisor) >= MIN_NORM else 1.0)
    terms = [Term(tensor, weight * factor) for (_, tensor), weight in zip(others, weights, strict=True)]
    return [Term(base, 1.0 - sum(term.coefficient for term in terms)), *terms]


def slerp(position: TensorPosition, inputs: Inputs) -> TensorOp:
    t, (base, [(_, other)]) = position.required("t"), split_base(position, inputs)
    if base == other or t == 0:
        return copy_of(base)
    return copy_of(other) if t == 1 else Slerp(t, base, other, position.offset)


def simplify(terms: Iterable[Term], offset: float) -> TensorOp:
    """Combine terms of the same tensor; a copy if a single tensor with coefficient 1 remains.

    The tensors are stored with `offset` added to their weights, and so is the result.
    """
    coefficients: dict[Tensor, float] = {}
    for tensor, coefficient in terms:
        coefficients[tensor] = coefficients.get(tensor, 0.0) + coefficient
    nonzero = [Term(tensor, value) for tensor, value in coefficients.items() if abs(value) > COEFFICIENT_TOLERANCE]
    nonzero = nonzero or [Term(next(iter(coefficients)), 0.0)]
    if len(nonzero) == 1 and abs(nonzero[0].coefficient - 1) < COEFFICIENT_TOLERANCE:
        return copy_of(nonzero[0].tensor)
    return offset_sum(nonzero, offset)


def offset_sum(terms: Iterable[Term], offset: float) -> Sum:
    """Weighted sum of tensors that are stored with `offset` added to their weights, and so is the result."""
    terms = tuple(terms)
    missing = 1.0 - sum(term.coefficient for term in terms)
    return Sum(terms, offset * missing if abs(missing) > COEFFICIENT_TOLERANCE else 0.0)


def slerp_coefficients(t: float, first: float, second: float, product: float) -> tuple[float, float]:
    """Coefficients of two tensors for slerp at `t`, from their norms and dot product."""
    cosine = product / (first if first > MIN_NORM else 1.0) / (second if second > MIN_NORM else 1.0)
    if abs(cosine) > DOT_THRESHOLD:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin(angle - angle * t) / math.sin(angle), math.sin(angle * t) / math.sin(angle)
