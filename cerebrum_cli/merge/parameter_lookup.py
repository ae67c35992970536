"""The value of a recipe's parameter for one tensor of one layer. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from cerebrum_cli.merge.parameters import ConditionalValue, Parameters
from cerebrum_cli.merge.recipe import Recipe, Slice, Source


def lookup_parameter(
    name: str, recipe: Recipe, part: Slice, source: Source | None, tensor: str, t: float
) -> float | None:
    """Return a parameter for a tensor, named as at Hugging Face, at `t` of its slice: 0 the first layer, 1 the last.

    What a source says goes before what its slice says, and that before the recipe; a level none of whose filters match
    says nothing. None where no level says anything.
    """
    levels = ({} if source is None else source.parameters, part.parameters, recipe.parameters)
    values = (evaluate(level.get(name, ()), tensor, t) for level in levels)
    return next((value for value in values if value is not None), None)


def unmatched_filters(recipe: Recipe, tensors: Collection[str]) -> tuple[str, ...]:
    """Return the filters of a recipe that are part of the name, at Hugging Face, of none of these tensors."""
    wanted = dict.fromkeys(case.filter for level in levels(recipe) for cases in level.values() for case in cases)
    return tuple(each for each in wanted if each is not None and not any(each in tensor for tensor in tensors))


def levels(recipe: Recipe) -> Iterator[Parameters]:
    """Yield all parameters that a recipe gives."""
    yield recipe.parameters
    for part in recipe.slices:
        yield part.parameters
        yield from (source.parameters for source in part.sources)


def evaluate(values: tuple[ConditionalValue, ...], tensor: str, t: float) -> float | None:
    """Return the value at `t` of the first case whose filter is part of a tensor's name, None where there is none."""
    for value, filter in values:
        if filter is None or filter in tensor:
            return _interpolate(value, t) if isinstance(value, tuple) else value
    return None


def _interpolate(gradient: tuple[float, ...], t: float) -> float:
    """Return where a gradient, its values evenly spread from 0 to 1, stands at `t`."""
    position = t * (len(gradient) - 1)
    before = int(position)
    after = min(before + 1, len(gradient) - 1)
    share = position - before
    return (1.0 - share) * gradient[before] + share * gradient[after]
