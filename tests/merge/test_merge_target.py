"""Types of the tensors of a merge, from tables in memory, and its file type."""

from __future__ import annotations

import pytest
from merge_tables import Shape, contents, floats, mixed, plan, stacked, table, types

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.merge.target_types import WRITABLE, Target, parse_type


def test_merge_type_applies_to_matrices_with_more_bits_for_the_head() -> None:
    for name in WRITABLE:
        made = plan(stacked(("a", 0, 4)), table("a"), target=Target(type=name))
        head = "Q6_K" if name.startswith(("Q2", "Q3", "Q4", "Q5", "IQ")) else name
        matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), name)
        norms = dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), "F32")
        expected = {**matrices, **norms, "token_embd": name, "output": head}
        assert dict(types(made).keys()) == expected


def test_merge_type_treats_tied_embeddings_as_the_head() -> None:
    source = table("a", shape=Shape(tied=True))
    assert ("token_embd", "Q6_K") in types(plan(stacked(("a", 0, 4)), source, target=Target(type="Q4_0")))
    assert ("token_embd", "Q8_0") in types(plan(stacked(("a", 0, 4)), source, target=Target(type="Q8_0")))


def test_merge_type_keeps_the_type_of_expert_routers() -> None:
    made = plan(stacked(("a", 0, 2)), table("a", shape=Shape(experts=4)), target=Target(type="Q4_K"))
    assert types(made)[("ffn_gate_inp", "F32")] == 2
    assert types(made)[("ffn_gate_exps", "Q4_K")] == 2


@pytest.mark.parametrize(
    ("requested", "by_32", "by_none"),
    [
        ("Q4_K", "Q5_0", "F16"),
        ("Q5_K", "Q5_1", "F16"),
        ("Q6_K", "Q8_0", "F16"),
        ("Q3_K", "IQ4_NL", "F16"),
        ("Q2_K", "IQ4_NL", "F16"),
        ("Q8_0", "Q8_0", "F16"),
        ("BF16", "BF16", "BF16"),
        ("F32", "F32", "F32"),
    ],
)
def test_merge_type_falls_back_for_rows_of_partial_blocks(requested: str, by_32: str, by_none: str) -> None:
    for row, name in ((288, by_32), (280, by_none)):
        source = table("a", shape=Shape(ffn=row), type_of=floats)
        found = types(plan(stacked(("a", 0, 4)), source, target=Target(type=requested)))
        assert found[("ffn_down", name)] == 4
        assert found[("ffn_up", requested)] == 4


def test_merge_dtype_applies_to_unquantized_matrices_only() -> None:
    quantized, plain = table("a"), table("a", type_of=floats)
    target = Target(dtype="BF16")
    assert types(plan(stacked(("a", 0, 4)), quantized, target=target)) == types(plan(stacked(("a", 0, 4)), quantized))
    made = plan(stacked(("a", 0, 4)), plain, target=target)
    kinds = {kind for _, kind in types(made)}
    assert kinds == {"BF16", "F32"}
    assert types(made)[("attn_norm", "F32")] == 4
    assert types(plan(stacked(("a", 0, 4)), plain, target=Target("Q8_0", "BF16")))[("output", "Q8_0")] == 1


@pytest.mark.parametrize(
    ("own", "target", "number"),
    [
        (15, Target(), 15),
        (None, Target(), None),
        (15, Target(dtype="BF16"), 15),
        (1, Target(dtype="BF16"), 32),
        (None, Target(dtype="BF16"), None),
        (15, Target(type="Q4_K"), 14),
        (None, Target(quantization="Q4_K_M"), 15),
        (2, Target(quantization="Q4_K_M"), 2),
        (1, Target(type="Q8_0"), 7),
        (None, Target(type="Q6_K"), 18),
    ],
)
def test_merge_file_type_is_that_of_most_tensors(own: int | None, target: Target, number: int | None) -> None:
    made = plan(stacked(("a", 0, 4)), table("a", {"general.file_type": own}), target=target)
    assert contents(made).get("general.file_type") == number


def test_merge_file_type_is_that_of_the_model_with_most_layers() -> None:
    last = table("b", {"general.file_type": 7})
    assert contents(plan(stacked(("a", 0, 1), ("b", 1, 4)), table("a"), last))["general.file_type"] == 7
    assert contents(plan(stacked(("a", 0, 3), ("b", 3, 4)), table("a"), last))["general.file_type"] == 15


def test_merge_file_type_and_tensor_types_are_those_of_the_base() -> None:
    recipe = mixed("b", "a", method="slerp", base_model="a", parameters={"t": 0.5})
    made = plan(recipe, table("a"), table("b", {"general.file_type": 7}, type_of=floats))
    assert contents(made)["general.file_type"] == 15
    assert types(made) == types(plan(stacked(("a", 0, 4)), table("a")))


@pytest.mark.parametrize("text", ["Q4_K", "q4_k", "Q4-K", "bf16", "IQ4_NL"])
def test_merge_type_ignores_case_and_dashes(text: str) -> None:
    assert parse_type(text) == text.upper().replace("-", "_")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Q4_K_M", "--type Q4_K_M: mixture of types, not a weight type"),
        ("q5_k_s", "--type q5_k_s: mixture of types, not a weight type"),
        ("Q3_K_L", "--type Q3_K_L: mixture of types, not a weight type"),
        ("IQ2_XXS", "--type IQ2_XXS: unknown weight type"),
        ("I32", "--type I32: unknown weight type"),
        ("Q9", "--type Q9: unknown weight type"),
        ("", "--type : unknown weight type"),
    ],
)
def test_merge_type_refuses_an_unsupported_type_with_alternatives(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_type(text)
    assert caught.value.message == problem
    assert ", ".join(WRITABLE) in caught.value.hint
