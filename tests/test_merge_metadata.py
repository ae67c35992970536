"""The metadata of a merge from tables in memory: what it says of its layers and words, and where it comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from merge_tables import (
    KV_HEADS,
    MISTRAL_7B,
    MIXTRAL,
    RECIPE,
    contents,
    mixed,
    plan,
    stacked,
    table,
    tower,
    value,
    works,
)

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.merge.metadata import Origin, Provenance, format_count
from cerebrum_cli.merge.methods import Copy
from cerebrum_cli.merge.plan import plan_merge
from cerebrum_cli.merge.recipe import parse_recipe
from cerebrum_cli.merge.target_types import Target


def test_the_metadata_of_the_packaged_recipe_says_what_has_changed_and_keeps_the_rest() -> None:
    made = tower()
    source = table("cerebrum-7b", shape=MISTRAL_7B).metadata
    assert made.metadata == {
        **source,
        "general.name": value("Cerebrum-12B"),
        "general.size_label": value("12B"),
        "general.base_model.count": value(1),
        "general.base_model.0.name": value("Model cerebrum-7b"),
        "general.base_model.0.repo_url": value("https://huggingface.co/AetherResearch/Cerebrum"),
        "cerebrum.recipe": value(RECIPE.read_text(encoding="utf-8")),
        "llama.block_count": value(56),
    }


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
def test_what_is_said_of_each_layer_goes_with_it(first: Any, last: Any, stack: Any) -> None:
    made = plan(stacked(("a", 0, 3), ("b", 2, 4)), table("a", {KV_HEADS: first}), table("b", {KV_HEADS: last}))
    assert made.metadata[KV_HEADS] == value(stack)


def test_a_model_that_does_not_say_what_another_one_says_of_each_layer_is_refused() -> None:
    first, last = table("a", {KV_HEADS: (1, 2, 3, 4)}), table("b", {KV_HEADS: None})
    for recipe in (stacked(("a", 0, 3), ("b", 2, 4)), stacked(("b", 0, 3), ("a", 2, 4))):
        with pytest.raises(MergeError, match=f"b has no {KV_HEADS}, which another model states for each layer"):
            plan(recipe, first, last)


WINDOWS = "gemma2.attention.sliding_window_pattern"
GEMMA = {
    "general.architecture": "gemma2",
    "gemma2.block_count": 4,
    "gemma2.context_length": 8192,
    "gemma2.attention.sliding_window": 4096,
}


def test_windows_stated_per_layer_move_with_their_layers() -> None:
    first = table("a", {**GEMMA, WINDOWS: (True, False, True, False)})
    second = table("b", {**GEMMA, WINDOWS: (True, True, False, False)})
    for recipe, pattern in (
        (stacked(("a", 0, 2), ("b", 1, 3)), (True, False, True, False)),
        (stacked(("b", 0, 2), ("a", 1, 4)), (True, True, False, True, False)),
    ):
        assert plan(recipe, first, second).metadata[WINDOWS] == value(pattern)


@pytest.mark.parametrize(
    ("metadata", "period"),
    [
        (GEMMA, 2),
        ({**GEMMA, "gemma2.attention.sliding_window": None}, 2),  # llama.cpp defaults to a window of 4096
        ({**GEMMA, WINDOWS: 3}, 3),
    ],
)
def test_windows_not_stated_per_layer_allow_moves_by_their_period_only(metadata: dict[str, Any], period: int) -> None:
    source = table("a", metadata)
    moved = plan(stacked(("a", 0, period), ("a", 0, 4)), source).metadata
    assert moved.get(WINDOWS) == source.metadata.get(WINDOWS)
    with pytest.raises(MergeError) as caught:
        plan(stacked(("a", 0, 2), ("a", 1, 3)), source)
    assert caught.value.message == "layer 1 of a would become layer 2, which gemma2 evaluates differently"
    assert caught.value.hint == f"move layers by multiples of {period}"


def test_an_architecture_with_optional_windows_moves_freely_without_one() -> None:
    source = {"general.architecture": "gemma3", "gemma3.block_count": 4}
    assert plan(stacked(("a", 0, 1), ("a", 2, 4)), table("a", source)).layers


@pytest.mark.parametrize("other", [None, 3])
def test_models_that_state_their_windows_differently_are_refused(other: int | None) -> None:
    first, second = table("a", {**GEMMA, WINDOWS: (True, False, True, False)}), table("b", {**GEMMA, WINDOWS: other})
    with pytest.raises(MergeError, match="the models' layer patterns differ"):
        plan(mixed("a", "b"), first, second)


@pytest.mark.parametrize(
    ("said", "key", "items"),
    [
        ({KV_HEADS: (1, 2, 3, 4)}, KV_HEADS, (1, 2)),
        ({KV_HEADS: (1, 2, 3, 4)}, KV_HEADS, (1, 2, 3, 4, 5)),
        (GEMMA, WINDOWS, (True, False)),
        (GEMMA, WINDOWS, (True, False, True, False, True)),
    ],
)
def test_an_array_that_is_shorter_or_longer_than_there_are_layers_is_told_with_its_key(
    said: dict[str, Any], key: str, items: tuple[Any, ...]
) -> None:
    with pytest.raises(MergeError) as caught:
        plan(stacked(("a", 0, 2), ("b", 2, 4)), table("a", said), table("b", {**said, key: items}))
    assert caught.value.message == f"b has {len(items)} items in {key} and 4 layers"


def test_an_array_of_no_layers_stays_as_it_is_however_long() -> None:
    key = "llama.rope.dimension_sections"
    made = plan(stacked(("a", 0, 4), ("a", 0, 4)), table("a", {key: (16, 24, 24, 0)}))
    assert made.metadata[key] == value((16, 24, 24, 0))


def test_the_context_is_the_shorter_one() -> None:
    key = "llama.context_length"
    for first, last in ((4096, 32768), (32768, 4096)):
        made = plan(stacked(("a", 0, 2), ("b", 2, 4)), table("a", {key: first}), table("b", {key: last}))
        assert made.metadata[key] == value(4096)


@pytest.mark.parametrize(
    ("more", "spoken"),
    [
        ({}, "a"),
        ({"tokenizer_source": "b"}, "b"),
        ({"tokenizer_source": "union"}, "a"),
        ({"base_model": "b"}, "b"),
        ({"base_model": "b", "tokenizer_source": "base"}, "b"),
        ({"base_model": "b", "tokenizer_source": "a"}, "a"),
    ],
)
def test_tokenizer_and_template_are_those_of_one_model(more: dict[str, str], spoken: str) -> None:
    first = table("a", {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.add_bos_token": True})
    assert parse_recipe(json.dumps(mixed("a", "b", **more)), "recipe.yaml").tokenizer_model == spoken
    made = plan(mixed("a", "b", **more), first, table("b"))
    held = {key: each for key, each in made.metadata.items() if key.startswith("tokenizer.")}
    source = {"a": first, "b": table("b")}[spoken]
    assert held == {key: each for key, each in source.metadata.items() if key.startswith("tokenizer.")}


OF_SOURCES = {
    "general.repo_url": "https://example.org",
    "general.uuid": "0",
    "general.description": "a model",
    "general.author": "somebody",
    "general.organization": "somewhere",
    "general.version": "1.0",
    "general.finetune": "instruct",
    "general.basename": "Model",
    "general.quantized_by": "somebody",
    "general.size_label": "7B",
    "general.parameter_count": 7,
    "general.alignment": 64,
    "general.source.url": "https://example.org",
    "general.base_model.count": 3,
    "general.base_model.2.name": "another",
    "split.no": 0,
    "split.count": 3,
    "split.tensors.count": 291,
    "cerebrum.recipe": "an older one",
    "quantize.imatrix.file": "some.dat",
}


def test_what_is_about_a_source_is_not_said_of_the_merge() -> None:
    said = {**OF_SOURCES, "general.license": "mit", "general.tags": ("text-generation",)}
    made = contents(plan(stacked(("a", 0, 2), ("b", 2, 4)), table("a", said), table("b", said)))
    assert OF_SOURCES.keys() & made.keys() == {"general.size_label", "general.base_model.count"}
    assert made["general.size_label"] != "7B"
    assert {key: each for key, each in made.items() if key.startswith("general.base_model.")} == {
        "general.base_model.count": 2,
        "general.base_model.0.name": "Model a",
        "general.base_model.1.name": "Model b",
    }
    assert (made["general.license"], made["general.tags"]) == ("mit", ("text-generation",))


@pytest.mark.parametrize("other", ["apache-2.0", None])
def test_licences_that_differ_are_dropped(other: str | None) -> None:
    first = {"general.license": "mit", "general.license.name": "MIT", "general.license.link": "https://example.org"}
    made = plan(mixed("a", "b"), table("a", first), table("b", {"general.license": other}))
    assert not [key for key in made.metadata if key.startswith("general.license")]


def test_a_model_without_a_name_is_told_by_what_the_user_calls_it() -> None:
    origins = {"a": Origin("somebody/model:Q4_K_M", "somebody/model")}
    recipe = parse_recipe(json.dumps(stacked(("a", 0, 2))), "recipe.yaml")
    made = contents(
        plan_merge(recipe, {"a": table("a", {"general.name": None})}, Target(), Provenance("Merged", origins))
    )
    assert made["general.base_model.0.name"] == "somebody/model:Q4_K_M"
    assert made["general.base_model.0.repo_url"] == "https://huggingface.co/somebody/model"


def test_the_size_of_experts_is_told_as_in_their_models_names() -> None:
    source = table("a", {"llama.expert_count": 8}, MIXTRAL)
    made = plan(stacked(("a", 0, 32)), source)
    assert made.n_parameters == 46_702_792_704
    assert contents(made)["general.size_label"] == "8x7.2B"
    assert all(isinstance(work, Copy) for work in works(made).values())


@pytest.mark.parametrize(
    ("count", "label"),
    [(7_241_732_096, "7.2B"), (12_476_420_096, "12B"), (134_515_008, "135M"), (1_100_000, "1.1M"), (5_000, "5K")],
)
def test_a_size_is_told_in_two_digits_or_more(count: int, label: str) -> None:
    assert format_count(count) == label


def test_a_model_of_two_names_is_told_once() -> None:
    origins = {"a": Origin("mine:Q4_K_M", "me/mine"), "b": Origin("other"), "again": Origin("mine:Q4_K_M", "me/mine")}
    recipe = parse_recipe(json.dumps(stacked(("a", 0, 2), ("again", 2, 4), ("b", 2, 4))), "recipe.yaml")
    tables = {"a": table("a"), "b": table("b"), "again": table("a")}
    made = contents(plan_merge(recipe, tables, Target(), Provenance("Merged", origins)))
    assert {key: each for key, each in made.items() if key.startswith("general.base_model.")} == {
        "general.base_model.count": 2,
        "general.base_model.0.name": "Model a",
        "general.base_model.0.repo_url": "https://huggingface.co/me/mine",
        "general.base_model.1.name": "Model b",
    }
