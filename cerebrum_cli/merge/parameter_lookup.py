"""Look up a recipe's parameter for one tensor of one layer. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from cerebrum_cli.merge.parameters import ConditionalValue, Parameters
from cerebrum_cli.merge.recipe import Recipe, Slice, Source


def lookup_parameter(
    name: str, recipe: Recipe, part: Slice, source: Source | None, tensor: Collection[str], t: float
) -> float | None:
    """Look up a parameter for a tensor by its Hugging Face names; `t` is 0 in the slice's first layer, 1 in its last.

    The source's parameters come first, then the slice's, then the recipe's; a level without a matching filter is
    skipped. None if no level has a value.
    """
    levels = ({} if source is None else source.parameters, part.parameters, recipe.parameters)
    values = (evaluate(level.get(name, ()), tensor, t) for level in levels)
    return next((value for value in values if value is not None), None)


def unmatched_filters(recipe: Recipe, tensors: Collection[str]) -> tuple[str, ...]:
    """Filters of a recipe that match none of these Hugging Face tensor names."""
    filters = dict.fromkeys(each.filter for level in levels(recipe) for values in level.values() for each in values)
    return tuple(each for each in filters if each is not None and not any(each in tensor for tensor in tensors))


def levels(recipe: Recipe) -> Iterator[Parameters]:
    """Yield the parameters of each level of a recipe."""
    yield recipe.parameters
    for part in recipe.slices:
        yield part.parameters
        yield from (source.parameters for source in part.sources)


def evaluate(values: tuple[ConditionalValue, ...], tensor: Collection[str], t: float) -> float | None:
    """Value at `t` of the first entry whose filter is part of a name of the tensor, None if there is none."""
    for value, filter in values:
        if filter is None or any(filter in name for name in tensor):
            return _interpolate(value, t) if isinstance(value, tuple) else value
    return None


def _interpolate(gradient: tuple[float, ...], t: float) -> float:
    """Interpolate a gradient, whose values are evenly spaced from 0 to 1, at `t`."""
    position = t * (len(gradient) - 1)
    before = int(position)
    after = min(before + 1, len(gradient) - 1)
    share = position - before
    return (1.0 - share) * gradient[before] + share * gradient[after]
