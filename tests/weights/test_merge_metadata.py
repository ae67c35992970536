"""Metadata of a merge, from tables in memory: layers, tokenizer, labels and provenance."""

import json
from typing import Any

import pytest
from merge_tables import contents, mixed, plan, refusal, stacked, table

from cerebrum_cli.weights.merge_plan import plan_merge
from cerebrum_cli.weights.recipe import parse_recipe


def test_merge_metadata_counts_the_layers_and_has_the_smallest_context() -> None:
    length = "llama.context_length"
    made = contents(plan(stacked(("a", 0, 3), ("b", 2, 4)), table("a"), table("b", {length: 4096})))
    assert (made["llama.block_count"], made[length]) == (5, 4096)


@pytest.mark.parametrize(
    ("more", "tokenizer"),
    [
        ({}, "a"),
        ({"tokenizer_source": "b"}, "b"),
        ({"tokenizer_source": "union"}, "a"),
        ({"base_model": "b"}, "b"),
        ({"base_model": "b", "tokenizer_source": "base"}, "b"),
        ({"base_model": "b", "tokenizer_source": "a"}, "a"),
    ],
)
def test_merge_metadata_takes_tokenizer_and_template_from_one_model(more: dict[str, str], tokenizer: str) -> None:
    first = table("a", {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.add_bos_token": True})
    assert parse_recipe(json.dumps(mixed("a", "b", **more)), "recipe.yaml").tokenizer_model == tokenizer
    made = plan(mixed("a", "b", **more), first, table("b"))
    made_tokenizer = {key: each for key, each in made.metadata.items() if key.startswith("tokenizer.")}
    source = {"a": first, "b": table("b")}[tokenizer]
    assert made_tokenizer == {key: each for key, each in source.metadata.items() if key.startswith("tokenizer.")}


DESCRIPTION = "repo_url uuid description author organization version finetune basename quantized_by size_label"
SOURCE_KEYS = (
    *(f"general.{key}" for key in f"{DESCRIPTION} source.url base_model.2.name".split()),
    *("split.no", "split.count", "split.tensors.count", "cerebrum.recipe", "quantize.imatrix.file"),
)
SOURCE_NUMBERS = {"general.parameter_count": 7, "general.alignment": 64, "general.base_model.count": 3}


def test_merge_metadata_drops_what_describes_the_sources() -> None:
    source = {**dict.fromkeys(SOURCE_KEYS, "7B"), **SOURCE_NUMBERS}
    metadata = {**source, "general.license": "mit", "general.tags": ("text-generation",)}
    made = contents(plan(stacked(("a", 0, 2), ("b", 2, 4)), table("a", metadata), table("b", metadata)))
    assert source.keys() & made.keys() == {"general.base_model.count"}
    assert made["general.base_model.count"] == 2
    assert (made["general.license"], made["general.tags"]) == ("mit", ("text-generation",))
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


def of(architecture: str, key: str = "", value: Any = None) -> dict[str, Any]:
    """Metadata of a model of four layers, with one more hyperparameter."""
    more = {f"{architecture}.{key}": value} if key else {}
    return {"general.architecture": architecture, f"{architecture}.block_count": 4, **more}


@pytest.mark.parametrize(
    "metadata",
    [
        of("gemma2"),
        of("smollm3"),
        of("deepseek2", "leading_dense_block_count", 1),
        of("deepseek2", "nextn_predict_layers", 1),
        of("gemma4", "attention.shared_kv_layers", 2),
        of("qwen2moe", "attention.sliding_window_pattern", 3),
        of("ernie4_5-moe", "interleave_moe_layer_step", 2),
        of("llama", "attention.head_count_kv", (8, 8, 4, 8)),
        of("llama", "attention.sliding_window_pattern", (True, False, True, False)),
    ],
)
def test_merge_keeps_layers_of_several_kinds_in_place(metadata: dict[str, Any]) -> None:
    tables = table("a", metadata), table("b", metadata)
    for recipe in (stacked(("a", 0, 4)), stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        made = contents(plan(recipe, *tables))
        assert {key: made[key] for key in metadata} == metadata
    problem = "the 4 layers of a are of several kinds, by their numbers"
    for recipe in (stacked(("a", 0, 3)), stacked(("a", 0, 2), ("a", 1, 3)), stacked(("b", 0, 4), ("a", 3, 4))):
        assert refusal(recipe, *tables) == (problem, "keep all layers of such a model, in order")


@pytest.mark.parametrize(
    "metadata", [of("llama", "interleave_moe_layer_step", 1), of("llama", "rope.dimension_sections", (16, 24, 24, 0))]
)
def test_merge_moves_layers_of_one_kind(metadata: dict[str, Any]) -> None:
    made = contents(plan(stacked(("a", 0, 2), ("a", 1, 4)), table("a", metadata)))
    assert made == {**made, **metadata, "llama.block_count": 5}


def test_merge_metadata_refuses_text_instead_of_a_number() -> None:
    for content in ("8", 8.5, "x" * 10_000):
        problem = f"a: llama.context_length is not a whole number: {str(content)[:60]!r}"
        said = problem, "the file is damaged: download it again"
        assert refusal(stacked(("a", 0, 2)), table("a", {"llama.context_length": content})) == said
