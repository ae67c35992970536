"""Recipe parser on published mergekit recipes and alternative spellings, and the lookup of a tensor's parameters."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.gguf.parser import Tensor
from cerebrum_cli.merge.methods import TensorPosition
from cerebrum_cli.merge.recipe import ConditionalValue, Parameters, Recipe, Slice, SliceSource, parse_recipe
from cerebrum_cli.merge.tensor_names import hugging_face_names


def read(text: str) -> Recipe:
    return parse_recipe(dedent(text), "r.yml")


def read_json(value: object) -> Recipe:
    return parse_recipe(json.dumps(value), "r.yml")


# Published recipes.


def test_recipe_reads_a_slerp_with_filtered_gradients() -> None:
    text = dedent("""\
        slices:
          - sources:
              - model: OpenPipe/mistral-ft-optimized-1218
                layer_range: [0, 32]
              - model: mlabonne/NeuralHermes-2.5-Mistral-7B
                layer_range: [0, 32]
        merge_method: slerp
        base_model: OpenPipe/mistral-ft-optimized-1218
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5
        dtype: bfloat16
        """)
    base = "OpenPipe/mistral-ft-optimized-1218"
    sources = (SliceSource(base, (0, 32), {}), SliceSource("mlabonne/NeuralHermes-2.5-Mistral-7B", (0, 32), {}))
    attention, mlp = (0.0, 0.5, 0.3, 0.7, 1.0), (1.0, 0.5, 0.7, 0.3, 0.0)
    t = (ConditionalValue(attention, "self_attn"), ConditionalValue(mlp, "mlp"), ConditionalValue(0.5, None))
    assert read(text) == Recipe("slerp", (Slice(sources, {}, base),), {"t": t}, base, "BF16", None, None, text)


def test_recipe_adds_an_unlisted_base_model_as_a_source() -> None:
    text = dedent("""\
        models:
          - model: "D:/Work/finetuned_models/pt"
            parameters:
              weight: 1.0
          - model: "Nos-PT/Llama-Carvalho-PT-GL"
            parameters:
              weight: 0.85
        base_model: "unsloth/Meta-Llama-3.1-8B-Instruct"
        merge_method: task_arithmetic
        dtype: float32
        out_dtype: bfloat16
        name: both
        parameters:
          lambda: 1
        """)
    base = "unsloth/Meta-Llama-3.1-8B-Instruct"
    sources = (
        SliceSource("D:/Work/finetuned_models/pt", None, {"weight": (ConditionalValue(1.0, None),)}),
        SliceSource("Nos-PT/Llama-Carvalho-PT-GL", None, {"weight": (ConditionalValue(0.85, None),)}),
        SliceSource(base, None, {}),
    )
    parameters = {"lambda": (ConditionalValue(1.0, None),)}
    slices = (Slice(sources, {}, base),)
    assert read(text) == Recipe("task_arithmetic", slices, parameters, base, "BF16", None, "both", text)


# Alternative spellings.

WHOLE = {"merge_method": "passthrough", "models": [{"model": "m"}]}
LINEAR = {"merge_method": "linear", "models": [{"model": "m"}, {"model": "n"}], "parameters": {"weight": 1}}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("acme/model", "acme/model"),
        ({"path": "acme/model"}, "acme/model"),
        ({"path": "acme/model", "revision": "v1"}, "acme/model@v1"),
        ({"model": {"path": "acme/model", "revision": None}, "lora": None}, "acme/model"),
        ("/home/me/c++/model.gguf", "/home/me/c++/model.gguf"),
    ],
)
def test_recipe_model_is_text_or_a_mapping(written: object, name: str) -> None:
    recipe = read_json({**WHOLE, "models": [{"model": written}], "base_model": written})
    assert recipe.slices == (Slice((SliceSource(name, None, {}),), {}, name),)


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
    ("keys", "source", "models"),
    [
        ({}, None, ("m",)),
        ({"tokenizer_source": "base"}, "base", ("m",)),
        ({"tokenizer_source": "acme/t"}, "acme/t", ("m", "acme/t")),
        ({"tokenizer_source": "model:acme/t"}, "acme/t", ("m", "acme/t")),
        ({"tokenizer": {"source": "m"}, "chat_template": "auto"}, "m", ("m",)),
        ({"tokenizer": {"tokens": None}}, "union", ("m",)),
    ],
)
def test_recipe_reads_the_tokenizer_source(keys: dict[str, Any], source: str | None, models: tuple[str, ...]) -> None:
    recipe = read_json({**WHOLE, **keys})
    assert (recipe.tokenizer_source, recipe.models) == (source, models)


def test_recipe_lists_models_once_with_sources_first() -> None:
    slices = [
        {"sources": [{"model": "b", "layer_range": [0, 2]}, {"model": "a", "layer_range": [2, 4]}]},
        {"sources": [{"model": "b", "layer_range": [4, 5]}], "base_model": "d"},
    ]
    recipe = read_json({**LINEAR, "models": None, "slices": slices, "base_model": "c", "tokenizer_source": "e"})
    assert [part.base_model for part in recipe.slices] == ["c", "d"]
    assert recipe.models == ("b", "a", "c", "d", "e")


def test_recipe_reads_weights_of_a_source_and_a_slice() -> None:
    first = {"model": "a", "layer_range": [0, 1], "parameters": {"weight": 1}}
    one = {"sources": [first, {"model": "b", "layer_range": [1, 2]}], "parameters": {"weight": 2}}
    [part] = read_json({"merge_method": "linear", "slices": [one]}).slices
    sources = (SliceSource("a", (0, 1), {"weight": (ConditionalValue(1.0, None),)}), SliceSource("b", (1, 2), {}))
    assert part == Slice(sources, {"weight": (ConditionalValue(2.0, None),)}, None)


def test_recipe_resolves_yaml_anchors_and_merge_keys() -> None:
    recipe = read("""\
        merge_method: passthrough
        slices:
          - sources: [&first {model: m, layer_range: [0, 8]}]
          - sources: [{<<: *first, layer_range: [4, 12]}]
          - sources: [*first]
        """)
    assert [part.sources[0].layer_range for part in recipe.slices] == [(0, 8), (4, 12), (0, 8)]


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


ATTENTION, MLP, NORM = "blk.3.attn_q.weight", "blk.3.ffn_down.weight", "output_norm.weight"


def lookup(
    source: Parameters, part: Parameters, recipe: Parameters, tensor: str = NORM, t: float = 0.0
) -> float | None:
    """The weight of a source for a tensor, given the parameters of the source, its slice and the recipe."""
    inner = SliceSource("a", (0, 4), source)
    outer = Slice((inner,), part, None)
    whole = Recipe("linear", (outer,), recipe, None, None, None, None, "")
    return TensorPosition(whole, outer, tensor, t, "llama").parameter("weight", inner, Tensor(tensor, (), 0, Path(), 0))


def weight(value: float | tuple[float, ...], pattern: str | None = None) -> Parameters:
    return {"weight": (ConditionalValue(value, pattern),)}


@pytest.mark.parametrize(
    "tensor", ["", "weight", "rope_freqs.weight", "blk.1.ssm_a", "blk.x.attn_q.weight", "blk.1.attn_q", "attn_q.weight"]
)
def test_tensor_names_without_a_mapping_stay(tensor: str) -> None:
    assert hugging_face_names(tensor) == (tensor,)


def test_merge_parameter_takes_the_first_matching_case() -> None:
    values = ((1.0, "self_attn"), (2.0, "mlp"), (3.0, None), (4.0, "norm"))
    cases = {"weight": tuple(ConditionalValue(*each) for each in values)}
    assert [lookup(cases, {}, {}, tensor) for tensor in (ATTENTION, MLP, NORM)] == [1.0, 2.0, 3.0]


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
    assert lookup(levels[0], levels[1], levels[2]) == value


@given(gradient=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40).map(tuple), t=st.floats(0.0, 1.0))
def test_merge_parameter_interpolates_a_gradient_linearly(gradient: tuple[float, ...], t: float) -> None:
    expected = np.interp(t, np.linspace(0.0, 1.0, len(gradient)), gradient)
    assert lookup(weight(gradient), {}, {}, t=t) == pytest.approx(expected, rel=1e-9, abs=1e-6)
