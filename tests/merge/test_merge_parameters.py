"""Lookup of a recipe's parameter for a tensor: levels, filters and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.merge.conversion import hugging_face_names
from cerebrum_cli.merge.parameter_lookup import evaluate, lookup_parameter, unmatched_filters
from cerebrum_cli.merge.parameters import ConditionalValue, Parameters
from cerebrum_cli.merge.recipe import Recipe, Slice, Source

ATTENTION, MLP = "model.layers.3.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight"
NORM = "model.norm.weight"


def levels(source: Parameters, part: Parameters, recipe: Parameters) -> tuple[Recipe, Slice, Source]:
    """A recipe, its slice and its source with these parameters."""
    inner = Source("a", (0, 4), source)
    outer = Slice((inner,), part, None)
    return Recipe("linear", (outer,), recipe, None, None, None, None, ""), outer, inner


def weight(value: float, pattern: str | None = None) -> Parameters:
    return {"weight": (ConditionalValue(value, pattern),)}


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("blk.12.attn_k.bias", "model.layers.12.self_attn.k_proj.bias"),
        ("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight"),
        ("blk.1.attn_output.weight", "model.layers.1.self_attn.o_proj.weight"),
        ("blk.1.attn_q_norm.weight", "model.layers.1.self_attn.q_norm.weight"),
        ("blk.1.attn_k_norm.weight", "model.layers.1.self_attn.k_norm.weight"),
        ("blk.1.attn_norm.weight", "model.layers.1.input_layernorm.weight"),
        ("blk.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
        ("blk.1.ffn_gate.weight", "model.layers.1.mlp.gate_proj.weight"),
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
    ],
)
def test_tensor_names_map_to_hugging_face(tensor: str, name: str) -> None:
    assert hugging_face_names(tensor) == (name,)


@pytest.mark.parametrize(
    "tensor", ["", "weight", "rope_freqs.weight", "blk.1.ssm_a", "blk.x.attn_q.weight", "blk.1.attn_q", "attn_q.weight"]
)
def test_tensor_names_without_a_mapping_stay(tensor: str) -> None:
    assert hugging_face_names(tensor) == (tensor,)


def test_merge_parameter_takes_the_first_matching_case() -> None:
    cases = (
        ConditionalValue(1.0, "self_attn"),
        ConditionalValue(2.0, "mlp"),
        ConditionalValue(3.0, None),
        ConditionalValue(4.0, "norm"),
    )
    recipe, part, source = levels({"weight": cases}, {}, {})
    values = [lookup_parameter("weight", recipe, part, source, (tensor,), 0.0) for tensor in (ATTENTION, MLP, NORM)]
    assert values == [1.0, 2.0, 3.0]


def test_merge_parameter_lists_unmatched_filters_once() -> None:
    mistaken = {
        "weight": (ConditionalValue(1.0, "self_atn"), ConditionalValue(2.0, "mlp"), ConditionalValue(3.0, None))
    }
    recipe, _, _ = levels(mistaken, mistaken, weight(1.0, "down_prj"))
    assert unmatched_filters(recipe, [ATTENTION, MLP, NORM]) == ("down_prj", "self_atn")


def test_merge_parameter_source_overrides_slice_overrides_recipe() -> None:
    every = levels(weight(1.0), weight(2.0), weight(3.0))
    assert lookup_parameter("weight", *every, (NORM,), 0.0) == 1.0
    recipe, part, _ = every
    assert lookup_parameter("weight", recipe, part, None, (NORM,), 0.0) == 2.0
    assert lookup_parameter("weight", *levels({}, {}, weight(3.0)), (NORM,), 0.0) == 3.0
    assert lookup_parameter("scale", *every, (NORM,), 0.0) is None


def test_merge_parameter_falls_through_when_no_filter_matches() -> None:
    recipe, part, source = levels(weight(1.0, "self_attn"), weight(2.0, "mlp"), weight(3.0))
    values = [lookup_parameter("weight", recipe, part, source, (tensor,), 0.0) for tensor in (ATTENTION, MLP, NORM)]
    assert values == [1.0, 2.0, 3.0]


def test_merge_parameter_zero_overrides_outer_levels() -> None:
    assert lookup_parameter("weight", *levels(weight(0.0), weight(1.0), {}), (NORM,), 0.0) == 0.0


@given(
    gradient=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40).map(tuple),
    t=st.floats(0.0, 1.0),
)
def test_merge_parameter_interpolates_a_gradient_linearly(gradient: tuple[float, ...], t: float) -> None:
    value = evaluate((ConditionalValue(gradient, None),), (), t)
    expected = np.interp(t, np.linspace(0.0, 1.0, len(gradient)), gradient)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-6)
