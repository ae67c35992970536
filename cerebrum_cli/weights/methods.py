"""The operation of each merge method on one tensor: a weighted sum, or a spherical interpolation. Pure.

The formulas are mergekit's (merge_methods/{passthrough,linear,slerp,generalized_task_arithmetic}.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.contents import Tensor
from cerebrum_cli.weights.recipe import Recipe, Slice, SliceSource
from cerebrum_cli.weights.tensor_names import CONSTANTS, hugging_face_names, stored_offset

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
    if isinstance(op, Slerp):
        return op.first, op.second
    return tuple(term.tensor for term in op.terms)


Inputs = Sequence[tuple[SliceSource, Tensor]]


class TensorPosition(NamedTuple):
    """A tensor of the merge, its slice, and the tensor of each source of it.

    `t` is its relative depth in the slice, 0 to 1, or 0 outside of layers.
    """

    recipe: Recipe
    slice: Slice
    name: str
    t: float
    architecture: str
    inputs: Inputs

    @property
    def base(self) -> Tensor:
        return self.inputs[self.slice.base][1]

    @property
    def others(self) -> Inputs:
        return [*self.inputs[: self.slice.base], *self.inputs[self.slice.base + 1 :]]

    def parameter(self, name: str, source: SliceSource | None = None, tensor: Tensor | None = None) -> float | None:
        """A parameter for this tensor: the source's, or the slice's, or the recipe's; None if no filter matches.

        For a tensor of a source, filters match the layer number there, as in mergekit.
        """
        stored = self.name
        if tensor and stored.startswith("blk."):
            stored = tensor.name
        names = hugging_face_names(stored, self.architecture)
        levels = [self.slice.parameters, self.recipe.parameters]
        if source:
            levels.insert(0, source.parameters)
        for level in levels:
            for value, filter in level.get(name, ()):
                if filter is None or any(filter in tensor_name for tensor_name in names):
                    return interpolate(value, self.t)
        return None

    def required(self, name: str, source: SliceSource | None = None, tensor: Tensor | None = None) -> float:
        value = self.parameter(name, source, tensor)
        if value is not None:
            return value
        owner = f" of {source.model}" if source else ""
        problem = f"the recipe has no {name}{owner} for {self.name}"
        raise MergeError(problem, "add a value without a filter at the end of the list")

    @property
    def offset(self) -> float:
        return stored_offset(self.name, self.architecture)


def interpolate(value: float | tuple[float, ...], t: float) -> float:
    """A value, or the one of a gradient at `t` from 0 to 1."""
    if not isinstance(value, tuple):
        return value
    position = t * (len(value) - 1)
    before = int(position)
    after = min(before + 1, len(value) - 1)
    share = position - before
    return (1.0 - share) * value[before] + share * value[after]


def tensor_op(position: TensorPosition) -> TensorOp:
    if position.name in CONSTANTS:
        return copy_of(position.base)
    match position.recipe.method:
        case "slerp":
            return slerp(position)
        case "passthrough":
            terms = passthrough(position)
        case "linear":
            terms = linear(position)
        case "task_arithmetic":
            terms = task_arithmetic(position)
    return simplify(terms, position.offset)


def passthrough(position: TensorPosition) -> list[Term]:
    [(source, tensor)] = position.inputs
    scale = position.parameter("scale", source, tensor)
    return [Term(tensor, 1.0 if scale is None else scale)]


def linear(position: TensorPosition) -> list[Term]:
    """Weighted sum; the weights are divided by their sum unless `normalize` is false."""
    terms = weighted(position, position.inputs)
    if position.parameter("normalize") == 0:
        return terms
    divisor = sum(term.coefficient for term in terms)
    if abs(divisor) < COEFFICIENT_TOLERANCE:
        raise MergeError(f"the weights for {position.name} add up to 0", "change one, or set normalize: false")
    return [Term(tensor, weight / divisor) for tensor, weight in terms]


def weighted(position: TensorPosition, inputs: Inputs) -> list[Term]:
    return [Term(tensor, position.required("weight", source, tensor)) for source, tensor in inputs]


def task_arithmetic(position: TensorPosition) -> list[Term]:
    """The base plus the others' weighted differences, times `lambda`; weights are divided by their sum on request."""
    differences = weighted(position, position.others)
    factor = position.parameter("lambda")
    if factor is None:
        factor = 1.0
    if position.parameter("normalize"):
        divisor = sum(term.coefficient for term in differences)
        if abs(divisor) >= MIN_NORM:
            factor /= divisor
    terms = [Term(tensor, weight * factor) for tensor, weight in differences]
    return [Term(position.base, 1.0 - sum(term.coefficient for term in terms)), *terms]


def slerp(position: TensorPosition) -> TensorOp:
    t = position.required("t")
    base = position.base
    [(_, other)] = position.others
    if base == other or t == 0:
        return copy_of(base)
    if t == 1:
        return copy_of(other)
    return Slerp(t, base, other, position.offset)


def simplify(terms: Sequence[Term], offset: float) -> TensorOp:
    """Combine terms of the same tensor; a copy if a single tensor with coefficient 1 remains.

    The tensors are stored with `offset` added to their weights, and so is the result.
    """
    coefficients = defaultdict[Tensor, float](float)
    for tensor, coefficient in terms:
        coefficients[tensor] += coefficient
    nonzero = [Term(tensor, value) for tensor, value in coefficients.items() if abs(value) > COEFFICIENT_TOLERANCE]
    if not nonzero:
        nonzero = [Term(terms[0].tensor, 0.0)]
    if len(nonzero) == 1 and abs(nonzero[0].coefficient - 1) < COEFFICIENT_TOLERANCE:
        return copy_of(nonzero[0].tensor)
    return offset_sum(nonzero, offset)


def offset_sum(terms: Sequence[Term], offset: float) -> Sum:
    """Weighted sum of tensors that are stored with `offset` added to their weights, and so is the result."""
    missing = 1.0 - sum(term.coefficient for term in terms)
    if abs(missing) <= COEFFICIENT_TOLERANCE:
        missing = 0.0
    return Sum(tuple(terms), offset * missing)


def slerp_coefficients(t: float, first: float, second: float, product: float) -> tuple[float, float]:
    """Coefficients of two tensors for slerp at `t`, from their norms and dot product."""
    cosine = product
    for norm in (first, second):
        if norm > MIN_NORM:
            cosine /= norm
    if abs(cosine) > DOT_THRESHOLD:
        return 1 - t, t
    angle = math.acos(cosine)
    whole = math.sin(angle)
    return math.sin(angle - angle * t) / whole, math.sin(angle * t) / whole
