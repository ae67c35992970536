"""Recipes: what they say, and errors of one line with file, location and hint."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cases import rows
from hypothesis import given, strategies as st

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.weights.recipe import Recipe, parse_recipe


def read(value: object) -> Recipe:
    return parse_recipe(json.dumps(value), "r.yml")


WHOLE = {"merge_method": "passthrough", "models": [{"model": "m"}]}


@pytest.mark.parametrize(("recipe", "coefficients"), rows("recipe_coefficients"))
def test_recipe_has_a_coefficient_for_each_model(
    recipe: Mapping[str, object], coefficients: list[list[object]]
) -> None:
    [part] = read(recipe).slices
    assert [[source.model, source.coefficient] for source in part.sources] == coefficients


@pytest.mark.parametrize(
    ("keys", "base", "tokenizer", "models"),
    [
        ({}, "m", "m", ("m",)),
        ({"base_model": "n"}, "n", "n", ("m", "n")),
        ({"tokenizer_source": "base"}, "m", "m", ("m",)),
        ({"tokenizer_source": "acme/t"}, "m", "acme/t", ("m", "acme/t")),
    ],
)
def test_recipe_names_the_models_of_metadata_and_vocabulary(
    keys: dict[str, Any], base: str, tokenizer: str, models: tuple[str, ...]
) -> None:
    recipe = read({**WHOLE, **keys})
    assert (recipe.base_model, recipe.tokenizer_model, recipe.models) == (base, tokenizer, models)


# Errors.


def error(text: str, where: str = "r.yml") -> UsageError:
    """Error of a recipe; checks that its message and hint have one line each."""
    with pytest.raises(UsageError) as caught:
        parse_recipe(text, where)
    assert is_one_line(caught.value.message) and is_one_line(caught.value.hint)
    return caught.value


def is_one_line(text: str) -> bool:
    return text.strip() != "" and text.isprintable()


@pytest.mark.slow
@pytest.mark.parametrize(("text", "problem"), rows("invalid_recipes"))
def test_recipe_reports_invalid_yaml(text: str, problem: str) -> None:
    assert problem in error(text).message


def test_recipe_error_escapes_control_characters() -> None:
    assert error('"k\\n\\e[2J": 1', where="a\nb.yml").message.startswith(r"a\nb.yml: unknown key k\n\x1b[2J; the keys")


@pytest.mark.parametrize(("recipe", "problem", "hint"), rows("refused_recipes"))
def test_recipe_reports_a_wrong_value(recipe: Mapping[str, object], problem: str, hint: str) -> None:
    caught = error(json.dumps(recipe))
    assert problem in caught.message
    assert hint in caught.hint


@pytest.mark.parametrize(("recipe", "problem"), rows("incomplete_recipes"))
def test_recipe_reports_what_a_method_needs(recipe: Mapping[str, object], problem: str) -> None:
    assert error(json.dumps(recipe)).message == f"r.yml: {problem}"


# Random recipes.

VALID = [recipe for recipe, _ in rows("recipe_coefficients")]
WORDS = ["model", "weight", "a", "b", "union", "slerp", "linear", "1e-3", "int8", "a+b"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(WORDS)
KEYS = st.sampled_from(WORDS) | st.text()
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


def assert_parses_or_raises(text: str, where: str = "r.yml") -> None:
    try:
        assert isinstance(parse_recipe(text, where), Recipe)
    except UsageError as caught:
        assert is_one_line(caught.message) and is_one_line(caught.hint)


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


@given(st.sampled_from(VALID), st.data())
def test_recipe_mutations_parse_or_raise_a_one_line_error(valid: Any, data: st.DataObject) -> None:
    recipe = json.loads(json.dumps(valid))
    for _ in range(data.draw(st.integers(0, 3))):
        inside = data.draw(st.sampled_from([found for found in containers(recipe) if found]))
        places = sorted(inside) if isinstance(inside, dict) else range(len(inside))
        inside[data.draw(st.sampled_from(places))] = data.draw(ANYTHING)
    assert_parses_or_raises(json.dumps(recipe))
