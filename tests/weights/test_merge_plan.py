"""Plan of a merge, from tables in memory: its layers, the operation of each tensor, and its files."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from merge_tables import (
    Shape,
    contents,
    floats,
    mixed,
    origins,
    plan,
    refusal,
    stacked,
    table,
    types,
    without,
)

from cerebrum_cli.core.errors import MergeError, UsageError
from cerebrum_cli.gguf.contents import TYPE_NUMBERS, Tensor
from cerebrum_cli.weights.mixtures import ModelShape, mixed_type
from cerebrum_cli.weights.table import Table
from cerebrum_cli.weights.target import TYPES, parse_type


def test_merge_plan_takes_first_models_embeddings_and_last_models_head() -> None:
    first, last = table("a"), table("b", shape=Shape(layers=6))
    made = origins(plan(stacked(("a", 0, 3), ("b", 4, 6)), first, last))
    for name, origin in (
        ("token_embd.weight", first.tensors["token_embd.weight"]),
        ("output_norm.weight", last.tensors["output_norm.weight"]),
        ("output.weight", last.tensors["output.weight"]),
        ("blk.2.attn_q.weight", first.tensors["blk.2.attn_q.weight"]),
        ("blk.3.attn_q.weight", last.tensors["blk.4.attn_q.weight"]),
    ):
        assert made[name] == origin
    assert len(made) == 3 + 9 * 5


@pytest.mark.parametrize("recipe", [stacked(("a", 0, 3), ("a", 1, 4)), mixed("a", "b"), stacked(("a", 0, 3))])
def test_merge_plan_keeps_tied_embeddings(recipe: dict[str, Any]) -> None:
    tied = Shape(tied=True)
    assert "output.weight" not in origins(plan(recipe, table("a", shape=tied), table("b", shape=tied)))


@pytest.mark.parametrize("first_is_tied", [True, False])
def test_merge_plan_uses_embeddings_of_a_tied_last_model_as_the_head(first_is_tied: bool) -> None:
    first, last = table("a", shape=Shape(tied=first_is_tied)), table("b", shape=Shape(tied=True))
    made = plan(stacked(("a", 0, 2), ("b", 2, 4)), first, last)
    assert origins(made)["output.weight"] == last.tensors["token_embd.weight"]
    assert origins(made)["token_embd.weight"] == first.tensors["token_embd.weight"]
    assert [tensor.type for tensor in made.tensors if tensor.name == "output.weight"] == [TYPE_NUMBERS["Q4_K"]]


def test_merge_plan_adds_tied_embeddings_to_another_models_head() -> None:
    first, last = table("a"), table("b", shape=Shape(tied=True))
    for recipe in (mixed("a", "b"), mixed("b", "a")):
        heads = {first.tensors["output.weight"], last.tensors["token_embd.weight"]}
        assert {term.tensor for term in origins(plan(recipe, first, last))["output.weight"].terms} == heads


def test_merge_plan_refuses_impossible_layer_counts() -> None:
    problem = "recipe.yaml: slices[1]: layer_range [2, 5] of a, which has 4 layers"
    assert refusal(stacked(("a", 0, 4), ("a", 2, 5)), table("a")) == (problem, "end it at 4 or below")
    with pytest.raises(UsageError, match=r"slices\[0\]: layer counts differ: a 4, b 6"):
        plan(mixed("a", "b"), table("a"), table("b", shape=Shape(layers=6)))


def test_merge_plan_refuses_more_layers_than_llama_cpp_loads() -> None:
    problem = "recipe.yaml: the merge would have 12,000 layers", "llama.cpp loads at most 512"
    assert refusal(stacked(*[("a", 0, 4)] * 3000), table("a")) == problem
    assert contents(plan(stacked(*[("a", 0, 4)] * 128), table("a")))["llama.block_count"] == 512


def test_merge_plan_refuses_to_move_layers_with_own_embeddings() -> None:
    source = table("a")
    name = "per_layer_token_embd.weight"
    source = replace(source, tensors={**source.tensors, name: source.tensors["token_embd.weight"]._replace(name=name)})
    plan(stacked(("a", 0, 4)), source)
    for ranges in ([("a", 0, 2), ("a", 2, 4), ("a", 3, 4)], [("a", 0, 3)]):
        with pytest.raises(MergeError, match="the 4 layers of a are of several kinds"):
            plan(stacked(*ranges), source)


def test_merge_plan_task_arithmetic_accepts_other_layers_of_the_base() -> None:
    ranges: tuple[tuple[str, int, Any], ...] = (("a", 0, {}), ("a", 2, {"weight": 0.25}), ("b", 0, {"weight": 0.5}))
    sources = [{"model": each, "layer_range": [at, at + 2], "parameters": more} for each, at, more in ranges]
    recipe = {"merge_method": "task_arithmetic", "base_model": "a", "slices": [{"sources": sources}]}
    first, other = table("a"), table("b")
    made = origins(plan(recipe, first, other))["blk.1.attn_q.weight"]
    terms = {(term.tensor.path.stem, term.tensor.name): term.coefficient for term in made.terms}
    assert terms == {
        ("a", "blk.1.attn_q.weight"): 0.25,
        ("a", "blk.3.attn_q.weight"): 0.25,
        ("b", "blk.1.attn_q.weight"): 0.5,
    }


TOKENS = (b"0", b"1", b"2", b"3", b"4", b"5")


@pytest.mark.parametrize(
    ("difference", "metadata"),
    [
        ("general.architecture: 'qwen2' and 'llama'", {"general.architecture": "qwen2"}),
        ("llama.feed_forward_length: 256 and 512", {"llama.feed_forward_length": 256}),
        ("llama.attention.head_count: 16 and 32", {"llama.attention.head_count": 16}),
        ("llama.rope.freq_base: 1000000.0 and 10000.0", {"llama.rope.freq_base": 1e6}),
        ("llama.rope.scaling.type: 'yarn' and 'none'", {"llama.rope.scaling.type": "yarn"}),
        ("llama.expert_count: 8 and 0", {"llama.expert_count": 8}),
        ("tokenizer.ggml.pre", {"tokenizer.ggml.pre": "llama-bpe"}),
        ("tokenizer.ggml.tokens", {"tokenizer.ggml.tokens": (*TOKENS, b"6")}),
        ("tokenizer.ggml.tokens", {"tokenizer.ggml.tokens": (*TOKENS[:5], b"<|im_end|>")}),
        ("tokenizer.ggml.merges", {"tokenizer.ggml.merges": None}),
    ],
)
def test_merge_reports_the_metadata_key_that_differs(difference: str, metadata: dict[str, Any]) -> None:
    said = f"b differs from a in {difference}", "merge models with the same architecture, shape and vocabulary"
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        assert refusal(recipe, table("a"), table("b", metadata)) == said


def test_merge_refuses_to_add_layers_of_different_shapes() -> None:
    name = "blk.2.attn_k.weight"
    source = table("b")
    tensors = {**source.tensors, name: source.tensors[name]._replace(shape=(256, 64))}
    problem, _ = refusal(mixed("a", "b"), table("a"), Table("b", source.metadata, tensors))
    assert problem == f"b differs in the shape of {name}: [256, 64] and [256, 128]"


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.rope.freq_base": 10000.0},
        {"llama.expert_count": 0},
        {"llama.vocab_size": 32000},
        {"llama.rope.dimension_count": 128},
        {"llama.feed_forward_length": None},
        {"tokenizer.ggml.pre": None},
        {"tokenizer.ggml.add_bos_token": True},
        {"tokenizer.ggml.token_type": (1, 1, 1, 3)},
        {"tokenizer.chat_template": None},
        {"general.file_type": 7},
    ],
)
def test_merge_accepts_models_with_harmless_differences(metadata: dict[str, Any]) -> None:
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        plan(recipe, table("a"), table("b", metadata))
        plan(recipe, table("a", metadata), table("b"))


@pytest.mark.parametrize("recipe", [mixed("a", "b"), mixed("b", "a")])
@pytest.mark.parametrize("name", ["blk.2.ffn_up.weight", "output_norm.weight", "token_embd.weight"])
def test_merge_reports_a_tensor_that_one_model_lacks(recipe: dict[str, Any], name: str) -> None:
    with pytest.raises(MergeError, match=f"b has no {name}"):
        plan(recipe, table("a"), without(table("b"), name))
    other, factors = table("b"), Tensor("rope_freqs.weight", (64,), 0, Path("b.gguf"), 999)
    other = Table("b", other.metadata, {**other.tensors, factors.name: factors})
    for each in (recipe, stacked(("a", 0, 2), ("b", 2, 4))):
        with pytest.raises(MergeError, match=r"a has no rope_freqs\.weight"):
            plan(each, table("a"), other)


def test_merge_of_a_model_without_embeddings_is_refused() -> None:
    with pytest.raises(MergeError, match=r"a has no token_embd\.weight"):
        plan(mixed("a"), without(table("a"), "token_embd.weight"))


# Types of the tensors, and the file type.


def test_merge_type_applies_to_matrices_with_more_bits_for_the_head() -> None:
    for name in ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q4_0"):
        made = plan(stacked(("a", 0, 4)), table("a"), type=name)
        head = "Q6_K" if name in ("Q5_1", "Q4_0") else name
        matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), name)
        norms = dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), "F32")
        expected = {**matrices, **norms, "token_embd": name, "output": head}
        assert dict(types(made).keys()) == expected


def test_merge_type_of_tied_embeddings_and_of_expert_routers() -> None:
    source = table("a", shape=Shape(tied=True))
    assert ("token_embd", "Q6_K") in types(plan(stacked(("a", 0, 4)), source, type="Q4_0"))
    assert ("token_embd", "Q8_0") in types(plan(stacked(("a", 0, 4)), source, type="Q8_0"))
    made = types(plan(stacked(("a", 0, 2)), table("a", shape=Shape(experts=4)), type="Q4_K_S"))
    assert (made[("ffn_gate_inp", "F32")], made[("ffn_gate_exps", "Q4_K")]) == (2, 2)


@pytest.mark.parametrize(
    ("mixture", "counts"),
    [
        ("Q2_K", {"Q2_K": 128, "Q3_K": 64, "Q4_K": 32}),
        ("Q3_K_S", {"Q3_K": 224}),
        ("Q3_K_M", {"Q3_K": 128, "Q4_K": 92, "Q5_K": 4}),
        ("Q3_K_L", {"Q3_K": 128, "Q5_K": 96}),
        ("Q4_K_S", {"Q4_K": 216, "Q5_K": 8}),
        ("Q4_K_M", {"Q4_K": 192, "Q6_K": 32}),
        ("Q5_K_M", {"Q5_K": 192, "Q6_K": 32}),
        ("Q6_K", {"Q6_K": 224}),
    ],
)
def test_mixture_has_the_types_of_llama_quantize(mixture: str, counts: dict[str, int]) -> None:
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names = [f"blk.{layer}.{part}.weight" for layer in range(32) for part in parts]
    assert Counter(mixed_type(mixture, name, ModelShape(32, 0, 4)) for name in names) == counts
    eight = {part: mixed_type(mixture, f"blk.9.{part}.weight", ModelShape(32, 8, 4)) for part in parts}
    assert (eight["attn_k"], eight["attn_v"]) == ("Q8_0", "Q8_0")
    assert (eight["attn_output"] == "Q5_K") == (mixture not in ("Q3_K_L", "Q6_K"))


FALLBACKS = {"Q4_K_S": "Q5_0", "Q5_K_S": "Q5_1", "Q6_K": "Q8_0", "Q3_K_S": "Q4_0", "Q2_K": "Q4_0", "Q8_0": "Q8_0"}


@pytest.mark.parametrize("requested", [*FALLBACKS, "BF16", "F32"])
def test_merge_type_falls_back_for_rows_of_partial_blocks(requested: str) -> None:
    is_quantized = requested in FALLBACKS
    for row, name in ((288, FALLBACKS.get(requested, requested)), (280, "F16" if is_quantized else requested)):
        source = table("a", shape=Shape(ffn=row), type_of=floats)
        found = types(plan(stacked(("a", 0, 4)), source, type=requested))
        assert (found[("ffn_down", name)], found[("ffn_up", requested.removesuffix("_S"))]) == (4, 4)


@pytest.mark.parametrize(
    ("own", "type", "number"),
    [(15, None, 15), (None, None, None), (15, "Q4_K_S", 14), (1, "Q8_0", 7), (None, "Q6_K", 18)]
    + [(invalid, None, None) for invalid in ("15", 1.5)],
)
def test_merge_file_type_follows_the_types_of_the_tensors(own: Any, type: str | None, number: int | None) -> None:
    made = plan(stacked(("a", 0, 4)), table("a", {"general.file_type": own}), type=type)
    assert contents(made).get("general.file_type") == number


def test_merge_file_type_is_that_of_the_base_or_of_the_first_layer() -> None:
    made = plan(mixed("b", "a", base_model="a"), table("a"), table("b", {"general.file_type": 7}, type_of=floats))
    assert contents(made)["general.file_type"] == 15
    assert types(made) == types(plan(stacked(("a", 0, 4)), table("a")))
    last = table("b", {"general.file_type": 7})
    assert contents(plan(stacked(("a", 0, 1), ("b", 1, 4)), table("a"), last))["general.file_type"] == 15


@pytest.mark.parametrize("text", ["Q4_K_L", "Q4_K", "IQ2_XXS", ""])
def test_merge_type_refuses_an_unsupported_type_with_alternatives(text: str) -> None:
    assert [parse_type(valid) for valid in ("q4-k-m", "bf16", "IQ4_NL")] == ["Q4_K_M", "BF16", "IQ4_NL"]
    with pytest.raises(UsageError) as caught:
        parse_type(text)
    assert caught.value.message == f"--type {text}: unknown weight type"
    assert ", ".join(TYPES) in caught.value.hint
