"""Parse the parameters of a recipe: numbers and gradients, for all tensors or by name filter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from cerebrum_cli.merge.location import Location, read_items, read_mapping


class ConditionalValue(NamedTuple):
    """A value for tensors with `filter` in their names, or for all; a tuple is a gradient over a slice's layers."""

    value: float | tuple[float, ...]
    filter: str | None


Parameters = Mapping[str, tuple[ConditionalValue, ...]]  # the first entry whose filter matches is used

_NAMES = ("weight", "normalize", "t", "scale", "lambda")
# Parameters of other mergekit methods, or of its execution, which published recipes contain without using them.
_IGNORED = (
    "int8_mask",
    "rescale",
    "density",
    "gamma",
    "epsilon",
    "embed_slerp",
    "normalize_weights",
    "eps",
    "max_iter",
    "tol",
    "nuslerp_flatten",
    "nuslerp_row_wise",
    "select_topk",
    "filter_wise",
)


def read_parameters(location: Location, value: object) -> Parameters:
    """Parse a mapping of parameters, ignoring those that no method here uses."""
    row = read_mapping(location, value, _NAMES, ignored=_IGNORED)
    return {name: _conditional_values(location.key(name), item) for name, item in row.items()}


def _conditional_values(location: Location, value: object) -> tuple[ConditionalValue, ...]:
    if isinstance(value, dict):
        return (_conditional_value(location, value),)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return tuple(_conditional_value(item_location, item) for item_location, item in read_items(location, value))
    return (ConditionalValue(_value(location, value), None),)


def _conditional_value(location: Location, value: object) -> ConditionalValue:
    row = read_mapping(location, value, ConditionalValue._fields)
    if "value" not in row:
        raise location.key("value").error("missing", "write the number for tensors that match this filter")
    filter = row.get("filter", "*")
    if not isinstance(filter, str):
        raise location.key("filter").error("not text", "write a part of a tensor name, in quotes")
    return ConditionalValue(_value(location.key("value"), row["value"]), None if filter == "*" else filter)


def _value(location: Location, value: object) -> float | tuple[float, ...]:
    if isinstance(value, list):
        return tuple(_number(item_location, item) for item_location, item in read_items(location, value))
    return _number(location, value)


def _number(location: Location, value: object) -> float:
    number = math.nan
    if isinstance(value, int | float | str):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise location.error("not a finite number", "write one such as 0.5, or a list of numbers for a gradient")
    return number
