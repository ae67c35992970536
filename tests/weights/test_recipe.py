"""Recipes: what they say, and errors of one line with file, location and hint."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.weights.recipe import Recipe, parse_recipe


def read(value: object) -> Recipe:
    return parse_recipe(json.dumps(value), "r.yml")


WHOLE = {"merge_method": "passthrough", "models": [{"model": "m"}]}


def weighted(method: str, *rows: tuple[str, object], **keys: object) -> Mapping[str, object]:
    """Recipe of whole models with these weights."""
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in rows]
    return {"merge_method": method, "models": models, **keys}


@pytest.mark.parametrize(
    ("recipe", "coefficients"),
    [
        (weighted("linear", ("m", 1), ("n", "3e0")), [("m", 0.25), ("n", 0.75)]),
        (weighted("linear", ("m", 1), ("n", 3), base_model="n"), [("n", 0.75), ("m", 0.25)]),
        (weighted("task_arithmetic", ("n", 0.25), ("o", 0.5), base_model="m"), [("m", 0.25), ("n", 0.25), ("o", 0.5)]),
        (weighted("task_arithmetic", ("n", 0.25), ("m", 9), base_model="m"), [("m", 0.75), ("n", 0.25)]),
        (
            weighted("linear", ("m", 1), ("n", 1), parameters={"normalize": True, "int8_mask": True}, dtype="bfloat16"),
            [("m", 0.5), ("n", 0.5)],
        ),
        ({**WHOLE, "base_model": "n", "dtype": "float16", "out_dtype": None}, [("m", 1.0)]),
    ],
)
def test_recipe_has_a_coefficient_for_each_model(
    recipe: Mapping[str, object], coefficients: list[tuple[str, float]]
) -> None:
    [part] = read(recipe).slices
    assert [(source.model, source.coefficient) for source in part.sources] == coefficients


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


def source(model: str = "a", end: object = 4, **keys: object) -> Mapping[str, object]:
    return {"model": model, "layer_range": [0, end], **keys}


def sliced(method: str, *sources: object, **keys: object) -> Mapping[str, object]:
    return {"merge_method": method, "slices": [{"sources": sources}], **keys}


def whole(method: str = "passthrough", models: object = ({"model": "a"},), **keys: object) -> Mapping[str, object]:
    return {"merge_method": method, "models": models, **keys}


# Invalid YAML, or too much of it.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.yml: empty file"),
        ("# nothing\n---\n", "r.yml: not a mapping"),
        ("- a", "r.yml: not a mapping"),
        ("a: [1\nb: 2", "r.yml: not valid YAML at line 2, column 2: expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "at line 2, column 1: but found another document"),
        ("a: 1\nb: '\x00'", "not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("a: 1\nname: 2024-99-99", "not valid YAML: month must be in 1..12"),
        ("name: !!bool x", "not valid YAML: 'x'"),
        ("- " * 1500, "not valid YAML: maximum recursion depth exceeded"),
    ],
)
def test_recipe_reports_invalid_yaml(text: str, problem: str) -> None:
    assert problem in error(text).message


def test_recipe_error_escapes_control_characters() -> None:
    caught = error('merge_method: "k\\n\\e[2J"', where="a\nb.yml")
    assert caught.message == r"a\nb.yml: merge_method: k\n\x1b[2J is not supported"


# Wrong values.


@pytest.mark.parametrize(
    ("recipe", "problem", "hint"),
    [
        ({}, "r.yml: merge_method: missing", "passthrough, linear, task_arithmetic"),
        (whole("slerp"), "r.yml: merge_method: slerp is not supported", "passthrough, linear, task_arith"),
        (whole("task-arithmetic"), "task-arithmetic is not supported", "did you mean task_arithmetic?"),
        ({"merge_method": ["ties"], "models": ["a+b"]}, "r.yml: merge_method: (list) is not supported", "linear"),
        (whole(base_modle="x"), "r.yml: unknown key base_modle", "did you mean base_model? "),
        (whole(slice=[]), "r.yml: unknown key slice", "did you mean slices? supported: merge_method, slices"),
        (whole(chat_template="chatml"), "r.yml: unknown key chat_template", "supported: merge_method, slices"),
        (
            whole("linear", parameters={"normalize": False}),
            "parameters.normalize: not supported",
            "divided by their sum",
        ),
        (whole("task_arithmetic", parameters={"normalize": True}), "parameters.normalize: not supported", "divide the"),
        (whole(parameters={"scale": 0.5}), "r.yml: parameters: unknown key scale", "supported: normalize, int8_mask"),
        (whole(slices=[{}]), "not one of slices and models", "give slices"),
        ({"merge_method": "linear"}, "not one of slices and models", "give slices"),
        (whole(models=[]), "r.yml: models: not a list with items", "`- `"),
        (whole(models=["a"]), "r.yml: models[0]: not a mapping", "with these keys: model"),
        (whole(models=[source()]), "r.yml: models[0]: unknown key layer_range", "supported: model"),
        (whole(models=[{}]), "r.yml: models[0].model: not a model name", "quoted"),
        (whole(models=[{"model": 7}]), "r.yml: models[0].model: not a model name", "quoted"),
        (whole(models=[{"model": "a+b"}]), "models[0].model: a+b: LoRA adapters are not supported", "without a `+`"),
        (whole(base_model={"model": {"path": "a"}}), "r.yml: base_model: not a model name", "quoted"),
        (whole(tokenizer_source=["a"]), "r.yml: tokenizer_source: not a model name", "quoted"),
        (whole(name=["a"]), "r.yml: name: not a name", "quoted"),
        ({"merge_method": "linear", "slices": ["a"]}, "slices[0]: not a mapping", "keys: sources"),
        ({"merge_method": "linear", "slices": [{}]}, "slices[0].sources: not a list with items", "`- `"),
    ],
)
def test_recipe_reports_the_location_of_a_wrong_value(recipe: Mapping[str, object], problem: str, hint: str) -> None:
    caught = error(json.dumps(recipe))
    assert problem in caught.message
    assert hint in caught.hint


@pytest.mark.parametrize(
    "layers", [None, 4, [], [0], [0, 1, 2], [4, 4], [5, 4], [-1, 4], [False, True], [0.0, 4.0], ["0", "4"]]
)
def test_recipe_layer_range_is_two_ascending_integers(layers: object) -> None:
    caught = error(json.dumps(sliced("passthrough", {"model": "a", "layer_range": layers})))
    assert caught.message.startswith("r.yml: slices[0].sources[0].layer_range: ")
    assert caught.hint.startswith("write [START, END]")


@pytest.mark.parametrize(
    ("parameters", "location"),
    [
        ([], "parameters: not a mapping"),
        ({"wieght": 1}, "parameters: unknown key wieght"),
        ({"weight": "high"}, "parameters.weight: not a finite number"),
        ({"weight": float("inf")}, "parameters.weight: not a finite number"),
        ({"weight": 10**400}, "parameters.weight: not a finite number"),
        ({"weight": [0, 1]}, "parameters.weight: not a finite number"),
        ({"weight": {"filter": "mlp"}}, "parameters.weight: not a finite number"),
    ],
)
def test_recipe_reports_the_location_of_a_wrong_parameter(parameters: object, location: str) -> None:
    at_source = sliced("linear", source(parameters=parameters))
    at_model = whole("linear", [{"model": "a", "parameters": parameters}])
    for before, recipe in (("slices[0].sources[0].", at_source), ("models[0].", at_model)):
        assert error(json.dumps(recipe)).message.startswith(f"r.yml: {before}{location}")


# Requirements of a method.

WEIGHT = {"weight": 1}


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (sliced("passthrough", source(), source("b")), "slices[0]: passthrough takes one source per slice"),
        (whole(models=[{"model": "a"}, {"model": "b"}]), "models: passthrough takes one source per slice, not"),
        (sliced("passthrough", source(parameters=WEIGHT)), "slices[0].sources[0]: unknown key parameters"),
        (sliced("linear", source(parameters=WEIGHT), source("b")), "slices[0].sources[1]: b has no weight"),
        (
            whole("linear", base_model="b", models=[{"model": "a", "parameters": WEIGHT}]),
            "models: the base_model b is not among the sources",
        ),
        (weighted("linear", ("a", 0.5), ("b", -0.5)), "models: the weights add up to 0"),
        (sliced("task_arithmetic", source()), "slices[0]: task_arithmetic needs a base_model"),
        (sliced("task_arithmetic", source(), base_model="c"), "slices[0]: the base_model c is not among the sources"),
        (whole("task_arithmetic", base_model="b"), "models[0]: a has no weight"),
    ],
)
def test_recipe_reports_what_a_method_needs(recipe: Mapping[str, object], problem: str) -> None:
    assert problem in error(json.dumps(recipe)).message


# Random recipes.

VALID: tuple[Any, ...] = (
    sliced("passthrough", source(), dtype="float16", name="n"),
    sliced("linear", source(parameters=WEIGHT), source("b", parameters=WEIGHT), tokenizer_source="base"),
    whole("task_arithmetic", [{"model": "a", "parameters": WEIGHT}], base_model="b"),
)
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
