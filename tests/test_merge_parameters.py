"""Lookup of a recipe's parameter for a tensor: levels, filters and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.gguf.table import Tensor
from cerebrum_cli.merge.methods import Position
from cerebrum_cli.merge.recipe import ConditionalValue, Parameters, Recipe, Slice, Source
from cerebrum_cli.merge.tensor_names import hugging_face_names

ATTENTION, MLP, NORM = "blk.3.attn_q.weight", "blk.3.ffn_down.weight", "output_norm.weight"


def lookup(
    source: Parameters, part: Parameters, recipe: Parameters, tensor: str = NORM, t: float = 0.0
) -> float | None:
    """The weight of a source for a tensor, given the parameters of the source, its slice and the recipe."""
    inner = Source("a", (0, 4), source)
    outer = Slice((inner,), part, None)
    whole = Recipe("linear", (outer,), recipe, None, None, None, None, "")
    return Position(whole, outer, tensor, t, "llama").parameter("weight", inner, Tensor(tensor, (), 0, Path(), 0))


def weight(value: float | tuple[float, ...], pattern: str | None = None) -> Parameters:
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
