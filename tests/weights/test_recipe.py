"""Recipes: alternative spellings, and errors of one line with file, location and hint."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.gguf.contents import Tensor
from cerebrum_cli.weights.methods import TensorPosition
from cerebrum_cli.weights.recipe import ConditionalValue, Parameters, Recipe, Slice, SliceSource, parse_recipe


def read(text: str) -> Recipe:
    return parse_recipe(dedent(text), "r.yml")


def read_json(value: object) -> Recipe:
    return parse_recipe(json.dumps(value), "r.yml")


# Alternative spellings.

WHOLE = {"merge_method": "passthrough", "models": [{"model": "m"}]}
LINEAR = {"merge_method": "linear", "models": [{"model": "m"}, {"model": "n"}], "parameters": {"weight": 1}}


@pytest.mark.parametrize(
    ("written", "cases"),
    [
        (2, (ConditionalValue(2.0, None),)),
        (True, (ConditionalValue(1.0, None),)),
        ("1e-3", (ConditionalValue(0.001, None),)),
        ([0, "1e-1", True], (ConditionalValue((0.0, 0.1, 1.0), None),)),
        ({"value": 1, "filter": "mlp"}, (ConditionalValue(1.0, "mlp"),)),
        (
            [{"value": [1], "filter": "mlp"}, {"value": 0, "filter": "*"}],
            (ConditionalValue((1.0,), "mlp"), ConditionalValue(0.0, None)),
        ),
        ([{"value": 1, "filter": None}], (ConditionalValue(1.0, None),)),
    ],
)
def test_recipe_parameter_is_a_number_a_gradient_or_cases(written: object, cases: tuple[ConditionalValue, ...]) -> None:
    assert read_json({**LINEAR, "parameters": {"weight": written, "density": "none"}}).parameters == {"weight": cases}


@pytest.mark.parametrize(
    ("written", "dtype"),
    [("float32", "F32"), ("fp16", "F16"), ("torch.bfloat16", "BF16"), ("BF16", "BF16"), (None, None)],
)
def test_recipe_dtype_has_aliases(written: str | None, dtype: str | None) -> None:
    assert read_json({**WHOLE, "dtype": written}).dtype == dtype


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ({"path": "acme/model"}, "acme/model"),
        ({"model": {"path": "acme/model", "revision": None}, "lora": None}, "acme/model"),
    ],
)
def test_recipe_model_may_be_a_mapping(written: object, name: str) -> None:
    assert (
        read_json({**WHOLE, "base_model": written, "models": [{"model": written}]}).slices[0].sources[0].model == name
    )


@pytest.mark.parametrize(
    ("keys", "source", "models"),
    [
        ({}, None, ("m",)),
        ({"tokenizer_source": "base"}, None, ("m",)),
        ({"tokenizer_source": "acme/t"}, "acme/t", ("m", "acme/t")),
        ({"tokenizer_source": "model:acme/t"}, "acme/t", ("m", "acme/t")),
        ({"tokenizer": {"source": "m"}, "chat_template": "auto"}, "m", ("m",)),
        ({"tokenizer": {"tokens": None}}, None, ("m",)),
    ],
)
def test_recipe_reads_the_tokenizer_source(keys: dict[str, Any], source: str | None, models: tuple[str, ...]) -> None:
    recipe = read_json({**WHOLE, **keys})
    assert (recipe.tokenizer, recipe.models) == (source, models)


def test_recipe_accepts_keys_that_mergekit_ignores() -> None:
    recipe = read("""\
        const_tag: &x 0.7
        weights_a: &a {weight: *x}
        favourite: [{model: &m m}]
        random_seed: 0
        7: seven
        "bell\\a": 1
        model_name: Published
        merge_method: linear
        models:
        - {model: *m, parameters: *a}
        """)
    ignored = ("const_tag", "weights_a", "favourite", "random_seed", "(int)", "bell\\x07", "model_name")
    assert recipe.ignored_keys == ignored
    assert recipe.slices[0].sources[0].parameters == {"weight": (ConditionalValue(0.7, None),)}


def weight(value: float, pattern: str | None = None) -> Parameters:
    return {"weight": (ConditionalValue(value, pattern),)}


@pytest.mark.parametrize(
    ("levels", "value"),
    [
        ((weight(1.0), weight(2.0), weight(3.0)), 1.0),
        (({}, weight(2.0), weight(3.0)), 2.0),
        (({}, {}, weight(3.0)), 3.0),
        ((weight(0.0), weight(1.0), {}), 0.0),
        ((weight(1.0, "mlp"), weight(2.0, "self_attn"), weight(3.0)), 3.0),
        ((weight(1.0, "mlp"), weight(2.0, "model.norm"), weight(3.0)), 2.0),
        (({}, {}, {}), None),
    ],
)
def test_merge_parameter_is_the_innermost_that_matches(levels: tuple[Parameters, ...], value: float | None) -> None:
    inner = SliceSource("a", (0, 4), levels[0])
    outer = Slice((inner,), levels[1], None)
    recipe = Recipe("linear", (outer,), levels[2], None, None, None, None, "")
    tensor = Tensor("output_norm.weight", (), 0, Path(), 0)
    assert TensorPosition(recipe, outer, tensor.name, 0.0, "llama", ()).parameter("weight", inner, tensor) == value


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
        ({}, "r.yml: merge_method: missing", "passthrough, linear, slerp, task_arithmetic"),
        (whole("tie"), "r.yml: merge_method: tie is not supported", "passthrough, linear, slerp, task_arith"),
        (whole("task-arithmetic"), "task-arithmetic is not supported", "did you mean task_arithmetic?"),
        ({"merge_method": ["ties"], "models": ["a+b"]}, "r.yml: merge_method: (list) is not supported", "slerp"),
        (whole(base_modle="x"), "r.yml: unknown key base_modle", "did you mean base_model? "),
        (whole(slice=[]), "r.yml: unknown key slice", "did you mean slices? supported: merge_method, slices"),
        (whole(tokenizer={"tokens": {}}), "r.yml: tokenizer: unknown key tokens", "supported: source"),
        (whole(tokenizer={}, tokenizer_source="base"), "both tokenizer and tokenizer_source are given", "remove one"),
        (whole(chat_template="chatml"), "r.yml: chat_template: only `auto` is supported", "remove it"),
        (whole(slices=[{}]), "not one of slices and models", "give slices"),
        ({"merge_method": "linear"}, "not one of slices and models", "give slices"),
        (whole(models=[]), "r.yml: models: not a list with items", "`- `"),
        (whole(models=["a"]), "r.yml: models[0]: not a mapping", "with these keys: model, parameters"),
        (whole(models=[source()]), "r.yml: models[0]: unknown key layer_range", "model, parameters"),
        (whole(models=[{}]), "r.yml: models[0].model: not a model name", "quoted"),
        (whole(models=[{"model": 7}]), "r.yml: models[0].model: not a model name", "quoted"),
        (whole(models=[{"model": "a+b"}]), "models[0].model: a+b: LoRA adapters are not supported", "without a `+`"),
        (whole(base_model={"model": {"path": "a"}, "lora": "b"}), "base_model: unknown key lora", "supported: model"),
        (whole(base_model={"model": {}}), "r.yml: base_model.model.path: not a model name", "quoted"),
        (whole(tokenizer_source=["a"]), "r.yml: tokenizer_source: not a model name", "quoted"),
        (whole(dtype="int8"), "r.yml: dtype: int8 is not a supported dtype", "float32, float16 or bfloat16"),
        (whole(name=["a"]), "r.yml: name: not a name", "quoted"),
        ({"merge_method": "linear", "slices": ["a"]}, "slices[0]: not a mapping", "keys: sources, parameters"),
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
        ({"weight": []}, "parameters.weight: not a list with items"),
        ({"weight": [0, [1]]}, "parameters.weight[1]: not a finite number"),
        ({"weight": [{"value": 1}, 2]}, "parameters.weight[1]: not a mapping"),
        ({"weight": {"filter": "mlp"}}, "parameters.weight.value: missing"),
        ({"weight": [{"value": []}]}, "parameters.weight[0].value: not a list with items"),
        ({"weight": {"value": 1, "filter": 3}}, "parameters.weight.filter: not text"),
        ({"weight": {"value": 1, "pattern": "mlp"}}, "parameters.weight: unknown key pattern"),
    ],
)
def test_recipe_reports_the_location_of_a_wrong_parameter(parameters: object, location: str) -> None:
    at_source = {"merge_method": "linear", "slices": [{"sources": [source(parameters=parameters)]}]}
    at_slice = {"merge_method": "linear", "slices": [{"sources": [source()], "parameters": parameters}]}
    at_model = whole("linear", [{"model": "a", "parameters": parameters}])
    at_recipe = whole("linear", parameters=parameters)
    recipes = {"slices[0].sources[0].": at_source, "slices[0].": at_slice, "models[0].": at_model, "": at_recipe}
    for before, recipe in recipes.items():
        assert error(json.dumps(recipe)).message.startswith(f"r.yml: {before}{location}")


# Requirements of a method.

T, WEIGHT = {"t": 0.5}, {"weight": 1}


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (sliced("passthrough", source(), source("b")), "slices[0]: passthrough takes one source per slice"),
        (whole(models=[{"model": "a"}, {"model": "b"}]), "models: passthrough takes one source per slice, not"),
        (whole(base_model="b"), "models: passthrough takes one source per slice, not"),
        (sliced("linear", source(parameters=WEIGHT), source("b")), "slices[0].sources[1]: b has no weight"),
        (whole("linear", base_model="b", models=[{"model": "a", "parameters": WEIGHT}]), "base_model: b has no weight"),
        (sliced("task_arithmetic", source(), parameters=WEIGHT), "slices[0]: task_arithmetic needs a base_model"),
        (whole("task_arithmetic", base_model="b"), "models[0]: a has no weight"),
        (sliced("slerp", source(), source("b"), parameters=T), "slices[0]: slerp needs a base_model"),
        (sliced("slerp", source(), source("b"), base_model="c", parameters=T), "slices[0]: the base_model c is not"),
        (sliced("slerp", source(), source("b"), base_model="a"), "slices[0]: slerp needs t"),
        (sliced("slerp", source(), base_model="a", parameters=T), "slices[0]: slerp takes two sources"),
        (sliced("slerp", source(), source(), base_model="a", parameters=T), "of different models, not 2 of 1"),
    ],
)
def test_recipe_reports_what_a_method_needs(recipe: Mapping[str, object], problem: str) -> None:
    assert problem in error(json.dumps(recipe)).message


# Random recipes.

CASES = [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.5}]
VALID: tuple[Any, ...] = (
    sliced("passthrough", source(), parameters={"scale": CASES}, dtype="float16", name="n"),
    sliced("slerp", source(), source("b"), base_model="a", parameters={"t": CASES}, tokenizer={"source": "b"}),
    sliced("linear", source(parameters={"weight": CASES}), source("b", parameters=WEIGHT), tokenizer_source="base"),
    whole("task_arithmetic", [{"model": "a", "parameters": WEIGHT}], base_model={"path": "b"}),
)
WORDS = ["model", "path", "value", "filter", "weight", "t", "a", "b", "union", "slerp", "linear", "1e-3", "int8", "a+b"]
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
