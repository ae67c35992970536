"""What becomes of one tensor by each merge method: bytes copied, a sum of tensors, or a point on an arc. Pure.

The formulas are mergekit's (merge_methods/{passthrough,linear,slerp,generalized_task_arithmetic}.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import Tensor, placed
from cerebrum_cli.merge.parameter_lookup import parameter
from cerebrum_cli.merge.recipe import Recipe, Slice, Source
from cerebrum_cli.merge.tensor_names import hugging_face_name

ALIKE = 1e-9  # a coefficient this near to 1 or 0 differs from it by the rounding of a sum only
PARALLEL = 0.9995  # cosine from which mergekit goes straight from one end to the other
SHORT = 1e-8  # norm up to which mergekit divides by none


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


def tensors_of(work: TensorOp) -> tuple[Tensor, ...]:
    """Return what something is made of."""
    if isinstance(work, Copy):
        return (work.tensor,)
    return (work.first, work.second) if isinstance(work, Slerp) else tuple(term.tensor for term in work.terms)


Given = Sequence[tuple[Source, Tensor]]


class Position(NamedTuple):
    """Where a tensor comes to be: in which slice, under which name, and how far through the slice, from 0 to 1."""

    recipe: Recipe
    slice: Slice
    name: str
    t: float
    architecture: str

    def parameter(self, name: str) -> float | None:
        """Return a parameter of the recipe for this tensor."""
        return parameter(name, self.recipe, self.slice, None, hugging_face_name(self.name, self.architecture), self.t)

    def of_source(self, name: str, source: Source, tensor: Tensor) -> float | None:
        """Return a parameter for a tensor of a source: filters mean the layer it has there, as mergekit has it."""
        there = hugging_face_name(self.name if placed(self.name)[0] is None else tensor.name, self.architecture)
        return parameter(name, self.recipe, self.slice, source, there, self.t)

    def weight(self, source: Source, tensor: Tensor) -> float:
        """Return the weight of a source. MergeError where the recipe gives none for this tensor."""
        value = self.of_source("weight", source, tensor)
        if value is None:
            raise self.lacks(f"weight of {source.model}")
        return value

    def lacks(self, what: str) -> MergeError:
        """Return the error of a recipe that gives a parameter for other tensors and not for this one."""
        do = "add a value without a filter at the end of its list"
        return MergeError(f"the recipe gives no {what} for {self.name}", do)

    @property
    def base(self) -> str | None:
        """The model others are compared with."""
        return self.slice.base_model


def tensor_op(position: Position, given: Given) -> TensorOp:
    """Return what becomes of a tensor. MergeError where the recipe does not tell."""
    method = position.recipe.method
    if method == "slerp":
        return slerp(position, given)
    terms = {"passthrough": passed_through, "linear": weighted, "task_arithmetic": shifted}[method](position, given)
    return simplified(terms)


def base_tensor(position: Position, given: Given) -> Tensor:
    """Return the tensor whose type and shape the result has: the base's, else the first."""
    return next((tensor for source, tensor in given if source.model == position.base), given[0][1])


def passed_through(position: Position, given: Given) -> list[Term]:
    """Return the one tensor there is, times `scale`."""
    [(source, tensor)] = given
    scale = position.of_source("scale", source, tensor)
    return [Term(tensor, 1.0 if scale is None else scale)]


def weighted(position: Position, given: Given) -> list[Term]:
    """Return the tensors times their weights, which are divided by their sum unless `normalize` is off."""
    weights = [position.weight(source, tensor) for source, tensor in given]
    divisor = 1.0 if position.parameter("normalize") == 0 else sum(weights)
    if abs(divisor) < ALIKE:
        raise MergeError(f"the weights for {position.name} add up to 0", "change one, or set normalize: false")
    return [Term(tensor, weight / divisor) for (_, tensor), weight in zip(given, weights, strict=True)]


def shifted(position: Position, given: Given) -> list[Term]:
    """Return the base plus what the others differ from it by, times their weights and `lambda`.

    The weights are divided by their sum where `normalize` is on.
    """
    at = next(index for index, (source, _) in enumerate(given) if source.model == position.base)
    base, others = given[at][1], [*given[:at], *given[at + 1 :]]
    weights = [position.weight(source, tensor) for source, tensor in others]
    divisor = sum(weights) if position.parameter("normalize") else 1.0
    factor = position.parameter("lambda")
    factor = (1.0 if factor is None else factor) / (divisor if abs(divisor) >= SHORT else 1.0)
    terms = [Term(tensor, weight * factor) for (_, tensor), weight in zip(others, weights, strict=True)]
    return [Term(base, 1.0 - sum(term.coefficient for term in terms)), *terms]


def slerp(position: Position, given: Given) -> TensorOp:
    """Return the way from the base to the other one, or the end where that is all."""
    t = position.parameter("t")
    if t is None:
        raise position.lacks("t")
    base = next(tensor for source, tensor in given if source.model == position.base)
    other = next((tensor for source, tensor in given if source.model != position.base), base)
    if base == other or t == 0:
        return Copy(base)
    return Copy(other) if t == 1 else Slerp(t, base, other)


def simplified(terms: Iterable[Term]) -> TensorOp:
    """Return a sum with each tensor in it once, or a copy where that is the same."""
    coefficients: dict[Tensor, float] = {}
    for tensor, coefficient in terms:
        coefficients[tensor] = coefficients.get(tensor, 0.0) + coefficient
    left = [Term(tensor, value) for tensor, value in coefficients.items() if abs(value) > ALIKE]
    if not left:
        return Sum((Term(next(iter(coefficients)), 0.0),))
    if len(left) == 1 and abs(left[0].coefficient - 1) < ALIKE:
        return Copy(left[0].tensor)
    return Sum(tuple(left))


def slerp_coefficients(t: float, first: float, second: float, product: float) -> tuple[float, float]:
    """Return what two tensors are multiplied by at the point `t` of an arc, given their norms and their dot product."""
    cosine = product / (first if first > SHORT else 1.0) / (second if second > SHORT else 1.0)
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin(angle - angle * t) / math.sin(angle), math.sin(angle * t) / math.sin(angle)
