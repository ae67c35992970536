"""The parameters of a recipe as they are written: numbers, gradients, and either of them by the names of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from cerebrum_cli.merge.location import Place, read_items, read_row


class Case(NamedTuple):
    """A value for tensors with `filter` in their names, or for all; a tuple is a gradient over a slice's layers."""

    value: float | tuple[float, ...]
    filter: str | None


Parameters = Mapping[str, tuple[Case, ...]]  # the first case whose filter matches counts

_NAMES = ("weight", "normalize", "t", "scale", "lambda")
# What other methods of mergekit's read, or how its work is done: recipes keep these when their method is changed.
_MEANINGLESS = (
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


def read_parameters(place: Place, value: object) -> Parameters:
    """Return the parameters of a mapping; those that mean nothing to the methods there are here are left out."""
    row = read_row(place, value, _NAMES, ignored=_MEANINGLESS)
    return {name: _cases(place.key(name), item) for name, item in row.items()}


def _cases(place: Place, value: object) -> tuple[Case, ...]:
    if isinstance(value, dict):
        return (_case(place, value),)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return tuple(_case(within, item) for within, item in read_items(place, value))
    return (Case(_value(place, value), None),)


def _case(place: Place, value: object) -> Case:
    row = read_row(place, value, Case._fields)
    if "value" not in row:
        raise place.key("value").error("it is missing", "give the value for the tensors of this filter")
    wanted = row.get("filter", "*")
    if not isinstance(wanted, str):
        raise place.key("filter").error("a substring of tensor names is needed", "put it in quotes")
    return Case(_value(place.key("value"), row["value"]), None if wanted == "*" else wanted)


def _value(place: Place, value: object) -> float | tuple[float, ...]:
    if isinstance(value, list):
        return tuple(_number(within, item) for within, item in read_items(place, value))
    return _number(place, value)


def _number(place: Place, value: object) -> float:
    """Return a number; a text is read as one too, since YAML 1.1 has `1e-3` for a text, and true is 1."""
    number = math.nan
    if isinstance(value, int | float | str):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise place.error("a finite number is needed", "write one such as 0.5, or several in a list for a gradient")
    return number
