"""The parameters of a recipe as they are written: numbers, gradients, and either of them by the names of tensors."""

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


Parameters = Mapping[str, tuple[ConditionalValue, ...]]  # the first case whose filter matches counts

_NAMES = ("weight", "normalize", "t", "scale", "lambda")
# What other methods of mergekit's read, or how its work is done: recipes keep these when their method is changed.
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
    """Return the parameters of a mapping; those that mean nothing to the methods there are here are left out."""
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
        raise location.key("value").error("it is missing", "write the number it is for the tensors of this filter")
    wanted = row.get("filter", "*")
    if not isinstance(wanted, str):
        raise location.key("filter").error("a part of tensors' names is needed", "write it in quotes")
    return ConditionalValue(_value(location.key("value"), row["value"]), None if wanted == "*" else wanted)


def _value(location: Location, value: object) -> float | tuple[float, ...]:
    if isinstance(value, list):
        return tuple(_number(item_location, item) for item_location, item in read_items(location, value))
    return _number(location, value)


def _number(location: Location, value: object) -> float:
    """Return a number; a text is read as one too, since YAML 1.1 has `1e-3` for a text, and true is 1."""
    number = math.nan
    if isinstance(value, int | float | str):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise location.error("a finite number is needed", "write one such as 0.5, or several in a list for a gradient")
    return number
