"""Recipes, and plans of merges from tables in memory: layers, the operation of each tensor, and metadata."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import rows
from hypothesis import given, strategies as st
from merge_tables import Shape, contents, floats, mixed, origins, plan, refusal, stacked, table, types, without

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.gguf.contents import TYPE_NUMBERS, Tensor
from cerebrum_cli.weights.merge_plan import plan_merge
from cerebrum_cli.weights.recipe import Recipe, parse_recipe
from cerebrum_cli.weights.target import TYPES, parse_type


def read(value: object) -> Recipe:
    return parse_recipe(json.dumps(value), "r.yml")


@pytest.mark.parametrize(("recipe", "coefficients"), rows("recipe_coefficients"))
def test_recipe_has_coefficients_of_models(recipe: Mapping[str, object], coefficients: list[list[object]]) -> None:
    [part] = read(recipe).slices
    assert [[source.model, source.coefficient] for source in part.sources] == coefficients


def test_recipe_of_a_stack_may_have_another_base() -> None:
    recipe = read(stacked(("a", 0, 2), base_model="c"))
    assert (recipe.base_model, recipe.tokenizer_model, recipe.models) == ("c", "c", ("a", "c"))


def is_one_line(text: str) -> bool:
    return text.strip() != "" and text.isprintable()


@pytest.mark.slow
@pytest.mark.parametrize(("text", "problem"), rows("invalid_recipes"))
def test_recipe_reports_invalid_yaml(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(text, "a\nr.yml")
    assert caught.value.message.startswith(r"a\nr.yml: ") and problem in caught.value.message
    assert is_one_line(caught.value.message) and is_one_line(caught.value.hint)


@pytest.mark.parametrize(("recipe", "problem", "hint"), rows("refused_recipes"))
def test_recipe_reports_a_wrong_or_missing_value(recipe: Mapping[str, object], problem: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(recipe)
    assert caught.value.message == f"r.yml: {problem}"
    assert hint in caught.value.hint and is_one_line(caught.value.hint)


VALID = [recipe for recipe, _ in rows("recipe_coefficients")]
WORDS = ["model", "weight", "a", "b", "union", "slerp", "linear", "1e-3", "int8", "a+b"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(WORDS)
KEYS = st.sampled_from(WORDS) | st.text()
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


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
    try:
        assert isinstance(read(recipe), Recipe)
    except UsageError as caught:
        assert is_one_line(caught.message) and is_one_line(caught.hint)


# Plans.


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
    six = table("b", shape=Shape(layers=6))
    assert "slices[0]: layer counts differ: a 4, b 6" in refusal(mixed("a", "b"), table("a"), six)[0]


def test_merge_plan_refuses_more_layers_than_llama_cpp_loads() -> None:
    problem = "recipe.yaml: the merge would have 513 layers", "llama.cpp loads at most 512"
    assert refusal(stacked(*[("a", 0, 4)] * 128, ("a", 0, 1)), table("a")) == problem
    assert contents(plan(stacked(*[("a", 0, 4)] * 128), table("a")))["llama.block_count"] == 512


def test_merge_plan_refuses_to_move_layers_with_own_embeddings() -> None:
    source = table("a")
    name = "per_layer_token_embd.weight"
    source = replace(source, tensors={**source.tensors, name: source.tensors["token_embd.weight"]._replace(name=name)})
    plan(stacked(("a", 0, 4)), source)
    for ranges in ([("a", 0, 2), ("a", 2, 4), ("a", 3, 4)], [("a", 0, 3)]):
        assert refusal(stacked(*ranges), source)[0].startswith("the 4 layers of a are of several kinds")


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


@pytest.mark.parametrize(("difference", "metadata"), rows("differing_metadata"))
def test_merge_reports_the_metadata_key_that_differs(difference: str, metadata: dict[str, Any]) -> None:
    said = f"b differs from a in {difference}", "merge models with the same architecture, shape and vocabulary"
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        assert refusal(recipe, table("a"), table("b", metadata)) == said


def test_merge_refuses_to_add_layers_of_different_shapes() -> None:
    name = "blk.2.attn_k.weight"
    source = table("b")
    other = replace(source, tensors={**source.tensors, name: source.tensors[name]._replace(shape=(256, 64))})
    problem, _ = refusal(mixed("a", "b"), table("a"), other)
    assert problem == f"b differs in the shape of {name}: [256, 64] and [256, 128]"


@pytest.mark.parametrize("metadata", rows("harmless_metadata"))
def test_merge_accepts_models_with_harmless_differences(metadata: dict[str, Any]) -> None:
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        plan(recipe, table("a"), table("b", metadata))
        plan(recipe, table("a", metadata), table("b"))


@pytest.mark.parametrize("recipe", [mixed("a", "b"), mixed("b", "a")])
@pytest.mark.parametrize("name", ["blk.2.ffn_up.weight", "output_norm.weight", "token_embd.weight"])
def test_merge_reports_a_tensor_that_one_model_lacks(recipe: dict[str, Any], name: str) -> None:
    assert refusal(recipe, table("a"), without(table("b"), name))[0].startswith(f"b has no {name}")


def test_merge_reports_a_tensor_that_only_one_model_has() -> None:
    other, factors = table("b"), Tensor("rope_freqs.weight", (64,), 0, Path("b.gguf"), 999)
    other = replace(other, tensors={**other.tensors, factors.name: factors})
    for recipe in (mixed("a", "b"), mixed("b", "a"), stacked(("a", 0, 2), ("b", 2, 4))):
        assert refusal(recipe, table("a"), other)[0].startswith("a has no rope_freqs.weight")
    assert refusal(mixed("a"), without(table("a"), "token_embd.weight"))[0] == "a has no token_embd.weight"


# Types of the tensors, and the file type.


def test_merge_type_of_tied_embeddings_and_of_expert_routers() -> None:
    source = table("a", shape=Shape(tied=True))
    assert ("token_embd", "Q6_K") in types(plan(stacked(("a", 0, 4)), source, type="Q4_0"))
    assert ("token_embd", "Q8_0") in types(plan(stacked(("a", 0, 4)), source, type="Q8_0"))
    made = types(plan(stacked(("a", 0, 2)), table("a", shape=Shape(experts=4)), type="Q4_K_S"))
    assert (made[("ffn_gate_inp", "F32")], made[("ffn_gate_exps", "Q4_K")]) == (2, 2)


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


def test_merge_metadata_counts_the_layers_and_has_the_smallest_context() -> None:
    length = "llama.context_length"
    made = contents(plan(stacked(("a", 0, 3), ("b", 2, 4)), table("a"), table("b", {length: 4096})))
    assert (made["llama.block_count"], made[length]) == (5, 4096)


@pytest.mark.parametrize(("keys", "base", "tokenizer", "models"), rows("tokenizer_sources"))
def test_merge_takes_tokenizer_of_one_model(keys: dict[str, Any], base: str, tokenizer: str, models: list[str]) -> None:
    value = mixed("a", "b", **keys)
    recipe = read(value)
    assert (recipe.base_model, recipe.tokenizer_model, [*recipe.models]) == (base, tokenizer, models)
    tables = {name: table(name, {"tokenizer.ggml.eos_token_id": number}) for number, name in enumerate(models)}
    made, expected = (
        {key: each for key, each in metadata.items() if key.startswith("tokenizer.")}
        for metadata in (plan(value, *tables.values()).metadata, tables[tokenizer].metadata)
    )
    assert made == expected != {}


def test_merge_metadata_drops_what_describes_the_sources() -> None:
    source = rows("source_metadata")
    metadata = {**source, "general.license": "mit", "general.tags": ("text-generation",)}
    made = contents(plan(stacked(("a", 0, 2), ("b", 2, 4)), table("a", metadata), table("b", metadata)))
    assert source.keys() & made.keys() == {"general.base_model.count"}
    assert made["general.base_model.count"] == 2
    assert (made["general.license"], made["general.tags"]) == ("mit", (b"text-generation",))
    first = table("a", {"general.license": "mit", "general.license.name": "MIT", "general.license.link": "there"})
    for other in ("apache-2.0", None):
        mixed_licenses = plan(mixed("a", "b"), first, table("b", {"general.license": other})).metadata
        assert not [key for key in mixed_licenses if key.startswith("general.license")]


def test_merge_metadata_lists_a_source_with_two_names_once() -> None:
    recipe = parse_recipe(json.dumps(stacked(("a", 0, 2), ("again", 2, 4), ("b", 2, 4))), "recipe.yaml")
    tables = {"a": table("a"), "b": table("other", {"general.name": None}), "again": table("a")}
    merged, _ = plan_merge(recipe, tables, None, "Merged", {})
    made = contents(merged)
    assert {key: each for key, each in made.items() if key.startswith("general.base_model.")} == {
        "general.base_model.count": 2,
        "general.base_model.0.name": "Model a",
        "general.base_model.1.name": "other",  # it has no title
    }


@pytest.mark.parametrize("metadata", rows("layers_of_several_kinds"))
def test_merge_keeps_layers_of_several_kinds_in_place(metadata: dict[str, Any]) -> None:
    tables = table("a", metadata), table("b", metadata)
    for recipe in (stacked(("a", 0, 4)), stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        made = plan(recipe, *tables).metadata
        assert {key: made[key] for key in metadata} == {key: tables[0].metadata[key] for key in metadata}
    problem = "the 4 layers of a are of several kinds, by their numbers"
    for recipe in (stacked(("a", 0, 3)), stacked(("a", 0, 2), ("a", 1, 3)), stacked(("b", 0, 4), ("a", 3, 4))):
        assert refusal(recipe, *tables) == (problem, "keep all layers of such a model, in order")


@pytest.mark.parametrize(
    "metadata", [{"llama.interleave_moe_layer_step": 1}, {"llama.rope.dimension_sections": (16, 24, 24, 0)}]
)
def test_merge_moves_layers_of_one_kind(metadata: dict[str, Any]) -> None:
    made = contents(plan(stacked(("a", 0, 2), ("a", 1, 4)), table("a", metadata)))
    assert made == {**made, **metadata, "llama.block_count": 5}


def test_merge_metadata_refuses_text_instead_of_a_number() -> None:
    for content in ("8", 8.5, "x" * 10_000):
        problem = f"a: llama.context_length is not a whole number: {str(content)[:60]!r}"
        said = problem, "the file is damaged: download it again"
        assert refusal(stacked(("a", 0, 2)), table("a", {"llama.context_length": content})) == said
