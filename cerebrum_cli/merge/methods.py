"""What becomes of one tensor by each merge method: bytes copied, a sum of tensors, or a point on an arc. Pure.

The formulas are mergekit's (merge_methods/{passthrough,linear,slerp,generalized_task_arithmetic}.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import Tensor, split_layer
from cerebrum_cli.merge.parameter_lookup import lookup_parameter
from cerebrum_cli.merge.recipe import Recipe, Slice, Source
from cerebrum_cli.merge.tensor_names import hugging_face_name

COEFFICIENT_TOLERANCE = 1e-9  # a coefficient this near to 1 or 0 differs from it by the rounding of a sum only
DOT_THRESHOLD = 0.9995  # cosine from which mergekit goes straight from one end to the other
MIN_NORM = 1e-8  # norm up to which mergekit divides by none


class Term(NamedTuple):
    """A tensor and what it is multiplied by."""

    tensor: Tensor
    coefficient: float


class Copy(NamedTuple):
    """A tensor as it is."""

    tensor: Tensor


class Sum(NamedTuple):
    """Tensors multiplied and added; at least one."""

    terms: tuple[Term, ...]


class Slerp(NamedTuple):
    """The point `t` of the way from one tensor to another around the origin."""

    t: float
    first: Tensor
    second: Tensor


TensorOp = Copy | Sum | Slerp


def input_tensors(op: TensorOp) -> tuple[Tensor, ...]:
    """Return what something is made of."""
    if isinstance(op, Copy):
        return (op.tensor,)
    return (op.first, op.second) if isinstance(op, Slerp) else tuple(term.tensor for term in op.terms)


Inputs = Sequence[tuple[Source, Tensor]]


class Position(NamedTuple):
    """Where a tensor comes to be: in which slice, under which name, and how far through the slice, from 0 to 1."""

    recipe: Recipe
    slice: Slice
    name: str
    t: float
    architecture: str

    def parameter(self, name: str) -> float | None:
        """Return a parameter of the recipe for this tensor."""
        return lookup_parameter(
            name, self.recipe, self.slice, None, hugging_face_name(self.name, self.architecture), self.t
        )

    def source_parameter(self, name: str, source: Source, tensor: Tensor) -> float | None:
        """Return a parameter for a tensor of a source: filters mean the layer it has there, as mergekit has it."""
        there = hugging_face_name(self.name if split_layer(self.name)[0] is None else tensor.name, self.architecture)
        return lookup_parameter(name, self.recipe, self.slice, source, there, self.t)

    def weight(self, source: Source, tensor: Tensor) -> float:
        """Return the weight of a source. MergeError where the recipe gives none for this tensor."""
        value = self.source_parameter("weight", source, tensor)
        if value is None:
            raise self.missing_parameter(f"weight of {source.model}")
        return value

    def missing_parameter(self, what: str) -> MergeError:
        """Return the error of a recipe that gives a parameter for other tensors and not for this one."""
        do = "add a value without a filter at the end of its list"
        return MergeError(f"the recipe gives no {what} for {self.name}", do)

    @property
    def base_model(self) -> str | None:
        """The model others are compared with."""
        return self.slice.base_model


def tensor_op(position: Position, inputs: Inputs) -> TensorOp:
    """Return what becomes of a tensor. MergeError where the recipe does not tell."""
    method = position.recipe.method
    if method == "slerp":
        return slerp(position, inputs)
    terms = {"passthrough": passthrough, "linear": linear, "task_arithmetic": task_arithmetic}[method](position, inputs)
    return simplify(terms)


def base_tensor(position: Position, inputs: Inputs) -> Tensor:
    """Return the tensor whose type and shape the result has: the base's, else the first."""
    return next((tensor for source, tensor in inputs if source.model == position.base_model), inputs[0][1])


def passthrough(position: Position, inputs: Inputs) -> list[Term]:
    """Return the one tensor there is, times `scale`."""
    [(source, tensor)] = inputs
    scale = position.source_parameter("scale", source, tensor)
    return [Term(tensor, 1.0 if scale is None else scale)]


def linear(position: Position, inputs: Inputs) -> list[Term]:
    """Return the tensors times their weights, which are divided by their sum unless `normalize` is off."""
    weights = [position.weight(source, tensor) for source, tensor in inputs]
    divisor = 1.0 if position.parameter("normalize") == 0 else sum(weights)
    if abs(divisor) < COEFFICIENT_TOLERANCE:
        raise MergeError(f"the weights for {position.name} add up to 0", "change one, or set normalize: false")
    return [Term(tensor, weight / divisor) for (_, tensor), weight in zip(inputs, weights, strict=True)]


def task_arithmetic(position: Position, inputs: Inputs) -> list[Term]:
    """Return the base plus what the others differ from it by, times their weights and `lambda`.

    The weights are divided by their sum where `normalize` is on.
    """
    at = next(index for index, (source, _) in enumerate(inputs) if source.model == position.base_model)
    base, others = inputs[at][1], [*inputs[:at], *inputs[at + 1 :]]
    weights = [position.weight(source, tensor) for source, tensor in others]
    divisor = sum(weights) if position.parameter("normalize") else 1.0
    factor = position.parameter("lambda")
    factor = (1.0 if factor is None else factor) / (divisor if abs(divisor) >= MIN_NORM else 1.0)
    terms = [Term(tensor, weight * factor) for (_, tensor), weight in zip(others, weights, strict=True)]
    return [Term(base, 1.0 - sum(term.coefficient for term in terms)), *terms]


def slerp(position: Position, inputs: Inputs) -> TensorOp:
    """Return the way from the base to the other one, or the end where that is all."""
    t = position.parameter("t")
    if t is None:
        raise position.missing_parameter("t")
    base = next(tensor for source, tensor in inputs if source.model == position.base_model)
    other = next((tensor for source, tensor in inputs if source.model != position.base_model), base)
    if base == other or t == 0:
        return Copy(base)
    return Copy(other) if t == 1 else Slerp(t, base, other)


def simplify(terms: Iterable[Term]) -> TensorOp:
    """Return a sum with each tensor in it once, or a copy where that is the same."""
    coefficients: dict[Tensor, float] = {}
    for tensor, coefficient in terms:
        coefficients[tensor] = coefficients.get(tensor, 0.0) + coefficient
    left = [Term(tensor, value) for tensor, value in coefficients.items() if abs(value) > COEFFICIENT_TOLERANCE]
    if not left:
        return Sum((Term(next(iter(coefficients)), 0.0),))
    if len(left) == 1 and abs(left[0].coefficient - 1) < COEFFICIENT_TOLERANCE:
        return Copy(left[0].tensor)
    return Sum(tuple(left))


def slerp_coefficients(t: float, first: float, second: float, product: float) -> tuple[float, float]:
    """Return what two tensors are multiplied by at the point `t` of an arc, given their norms and their dot product."""
    cosine = product / (first if first > MIN_NORM else 1.0) / (second if second > MIN_NORM else 1.0)
    if abs(cosine) > DOT_THRESHOLD:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin(angle - angle * t) / math.sin(angle), math.sin(angle * t) / math.sin(angle)
