"""Metadata of a merge, from tables in memory: layers, tokenizer, labels and provenance."""

import json
from typing import Any

import pytest
from merge_tables import KV_HEADS, contents, mixed, plan, refusal, stacked, table, value

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.weights.merge_plan import plan_merge
from cerebrum_cli.weights.recipe import parse_recipe


@pytest.mark.parametrize(
    ("first", "last", "stack"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 3, 4)),
        ((1, 2, 3, 4), 9, (1, 2, 3, 9, 9)),
        (9, (1, 2, 3, 4), (9, 9, 9, 3, 4)),
        (8, 8, 8),
        ((True, False, True, False), (True, False, True, True), (True, False, True, True, True)),
        ((True, True, False, False), False, (True, True, False, False, False)),
    ],
)
def test_merge_metadata_per_layer_moves_with_the_layers(first: Any, last: Any, stack: Any) -> None:
    sections, length = "llama.rope.dimension_sections", "llama.context_length"
    same = {sections: (16, 24, 24, 0)}  # as many items as layers, but not per layer
    tables = table("a", {KV_HEADS: first, **same}), table("b", {KV_HEADS: last, length: 4096, **same})
    made = plan(stacked(("a", 0, 3), ("b", 2, 4)), *tables).metadata
    assert (made[KV_HEADS], made[sections], made[length]) == (value(stack), value(same[sections]), value(4096))


def test_merge_metadata_refuses_a_missing_per_layer_value() -> None:
    first, last = table("a", {KV_HEADS: (1, 2, 3, 4)}), table("b", {KV_HEADS: None})
    for recipe in (stacked(("a", 0, 3), ("b", 2, 4)), stacked(("b", 0, 3), ("a", 2, 4))):
        with pytest.raises(MergeError, match=f"b has no {KV_HEADS}, which another model has for each layer"):
            plan(recipe, first, last)


WINDOWS = "gemma2.attention.sliding_window_pattern"
GEMMA = {
    "general.architecture": "gemma2",
    "gemma2.block_count": 4,
    "gemma2.context_length": 8192,
    "gemma2.attention.sliding_window": 4096,
}


@pytest.mark.parametrize(
    ("metadata", "period"),
    [
        (GEMMA, 2),
        ({**GEMMA, "gemma2.attention.sliding_window": None}, 2),  # llama.cpp defaults to a window of 4096
        ({**GEMMA, WINDOWS: 3}, 3),
    ],
)
def test_merge_metadata_window_period_limits_moves(metadata: dict[str, Any], period: int) -> None:
    source = table("a", metadata)
    moved = plan(stacked(("a", 0, period), ("a", 0, 4)), source).metadata
    assert moved.get(WINDOWS) == source.metadata.get(WINDOWS)
    problem = "layer 1 of a would become layer 2, which gemma2 evaluates differently"
    assert refusal(stacked(("a", 0, 2), ("a", 1, 3)), source) == (problem, f"move layers by multiples of {period}")
    gemma3 = table("a", {"general.architecture": "gemma3", "gemma3.block_count": 4})  # without windows
    plan(stacked(("a", 0, 1), ("a", 2, 4)), gemma3)


@pytest.mark.parametrize("other", [None, 3])
def test_merge_metadata_refuses_different_window_patterns(other: int | None) -> None:
    first, second = table("a", {**GEMMA, WINDOWS: (True, False, True, False)}), table("b", {**GEMMA, WINDOWS: other})
    with pytest.raises(MergeError, match="the models' layer patterns differ"):
        plan(mixed("a", "b"), first, second)


@pytest.mark.parametrize(
    ("metadata", "key", "items"),
    [
        ({KV_HEADS: (1, 2, 3, 4)}, KV_HEADS, (1, 2)),
        ({KV_HEADS: (1, 2, 3, 4)}, KV_HEADS, (1, 2, 3, 4, 5)),
        (GEMMA, WINDOWS, (True, False)),
        (GEMMA, WINDOWS, (True, False, True, False, True)),
    ],
)
def test_merge_metadata_refuses_arrays_of_the_wrong_length(
    metadata: dict[str, Any], key: str, items: tuple[Any, ...]
) -> None:
    tables = table("a", metadata), table("b", {**metadata, key: items})
    problem = f"b has 4 layers, but {len(items)} values of {key}"
    assert refusal(stacked(("a", 0, 2), ("b", 2, 4)), *tables)[0] == problem


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


SHARED_KV = "gemma4.attention.shared_kv_layers"
GEMMA4 = {"general.architecture": "gemma4", "gemma4.block_count": 4, SHARED_KV: 2}
DENSE, NEXTN = "deepseek2.leading_dense_block_count", "deepseek2.nextn_predict_layers"
DEEPSEEK = {"general.architecture": "deepseek2", "deepseek2.block_count": 4, DENSE: 1}


@pytest.mark.parametrize(
    ("metadata", "counts"),
    [({**DEEPSEEK, NEXTN: 1}, {DENSE: 1, NEXTN: 1}), ({**DEEPSEEK, DENSE: None}, {}), (GEMMA4, {SHARED_KV: 2})],
)
def test_merge_metadata_keeps_layers_of_another_kind_in_place(metadata: dict[str, Any], counts: dict[str, int]) -> None:
    made = contents(plan(stacked(("a", 0, 4)), table("a", metadata)))
    assert {key: made[key] for key in (DENSE, NEXTN, SHARED_KV) if key in made} == counts
    if counts:
        problem = "a has 4 layers of several kinds or with embeddings of their own"
        said = problem, "keep all layers of such a model, in order"
        assert refusal(stacked(("a", 0, 3), ("a", 1, 4)), table("a", metadata)) == said


@pytest.mark.parametrize(
    "key",
    [
        *("context_length", "leading_dense_block_count", "nextn_predict_layers"),
        *("full_attention_interval", "interleave_moe_layer_step"),
        *("attention.sliding_window_pattern", "attention.shared_kv_layers"),
    ],
)
@pytest.mark.parametrize("content", ["8", 8.5, "x" * 10_000, (8, 8, 8, 8)])
def test_merge_metadata_refuses_text_instead_of_a_number(key: str, content: Any) -> None:
    if isinstance(content, tuple) and key == "attention.sliding_window_pattern":
        return  # a value for each layer
    problem = f"a: llama.{key} is not a whole number: {str(content)[:60]!r}"
    said = problem, "the file is damaged: download it again"
    assert refusal(stacked(("a", 0, 2)), table("a", {f"llama.{key}": content})) == said
