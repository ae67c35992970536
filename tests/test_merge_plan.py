"""The plan of a merge from tables in memory: what becomes of each tensor, what is said of it, what cannot be merged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cerebrum_cli
from cerebrum_cli.ground.errors import MergeError, UsageError
from cerebrum_cli.ground.ggml_types import TENSOR_TYPES
from cerebrum_cli.merge.metadata import Origin, Provenance, rounded
from cerebrum_cli.merge.methods import Arc, Copy, Sum, Term
from cerebrum_cli.merge.plan import Layer, Output, Plan, parts, planned
from cerebrum_cli.merge.recipe import parse_recipe
from cerebrum_cli.merge.table import Table, Tensor, Value
from cerebrum_cli.merge.target import NUMBERS, WANTED, Target, wanted_type

OWN_TYPES = Target()
RECIPE = Path(cerebrum_cli.__file__).with_name("recipes") / "cerebrum-12b.yaml"


class Shape(NamedTuple):
    """The sizes of a Llama; one of experts has them in one tensor a layer."""

    layers: int = 4
    width: int = 256
    kv_width: int = 128
    ffn: int = 512
    vocabulary: int = 6
    tied: bool = False
    experts: int = 0


TINY = Shape()
MISTRAL_7B = Shape(32, 4096, 1024, 14336, 32000)
MIXTRAL = MISTRAL_7B._replace(experts=8)


def dimensions(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors' names and shapes, row length first."""
    width, kv_width, ffn, experts = shape.width, shape.kv_width, shape.ffn, shape.experts
    yield "token_embd.weight", (width, shape.vocabulary)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (width,)
        yield f"{block}.attn_q.weight", (width, width)
        yield f"{block}.attn_k.weight", (width, kv_width)
        yield f"{block}.attn_v.weight", (width, kv_width)
        yield f"{block}.attn_output.weight", (width, width)
        yield f"{block}.ffn_norm.weight", (width,)
        if experts:
            yield f"{block}.ffn_gate_inp.weight", (width, experts)
        kind, more = ("_exps", (experts,)) if experts else ("", ())
        yield f"{block}.ffn_gate{kind}.weight", (width, ffn, *more)
        yield f"{block}.ffn_up{kind}.weight", (width, ffn, *more)
        yield f"{block}.ffn_down{kind}.weight", (ffn, width, *more)
    yield "output_norm.weight", (width,)
    if not shape.tied:
        yield "output.weight", (width, shape.vocabulary)


def k_quants(name: str) -> str:
    """Return the type of a tensor in a file of Q4_K_M, by a pattern of the same kind."""
    if "_norm" in name or "ffn_gate_inp" in name:
        return "F32"
    return "Q6_K" if name == "output.weight" or name.startswith(("blk.0.ffn_down", "blk.1.attn_v")) else "Q4_K"


def floats(name: str) -> str:
    return "F32" if "_norm" in name or "ffn_gate_inp" in name else "F16"


def value(content: Any) -> Value:
    """Return a value in the type that GGUF usually has for it."""
    if isinstance(content, tuple):
        return Value("ARRAY", content, value(content[0]).type)
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", bytes: "STRING"}
    return Value(kinds[type(content)], content)


def table(
    name: str = "a",
    said: Mapping[str, Any] | None = None,
    shape: Shape = TINY,
    type_of: Callable[[str], str] = k_quants,
) -> Table:
    """Return a Llama; `said` is metadata that is added, or taken away where it is None."""
    metadata = {
        "general.architecture": "llama",
        "general.name": f"Model {name}",
        "general.file_type": 15,
        "llama.block_count": shape.layers,
        "llama.context_length": 32768,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tuple(b"%d" % number for number in range(shape.vocabulary)),
        "tokenizer.ggml.merges": (b"a b", b"b c"),
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": f"template of {name}",
        **(said or {}),
    }
    tensors = {}
    for offset, (each, sizes) in enumerate(dimensions(shape)):
        tensors[each] = Tensor(each, sizes, NUMBERS[type_of(each)], Path(f"{name}.gguf"), offset)
    return Table(name, {key: value(content) for key, content in metadata.items() if content is not None}, tensors)


def without(whole: Table, tensor: str) -> Table:
    """Return a model without one of its tensors."""
    return Table(whole.name, whole.metadata, {name: each for name, each in whole.tensors.items() if name != tensor})


def plan(recipe: Mapping[str, Any], *tables: Table, target: Target = OWN_TYPES) -> Plan:
    origins = {each.name: Origin(each.name) for each in tables}
    parsed = parse_recipe(json.dumps(recipe), "recipe.yaml")
    return planned(parsed, {each.name: each for each in tables}, target, Provenance("Merged", origins))


def stacked(*ranges: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    """Return a recipe that puts layers on top of each other."""
    slices = [{"sources": [{"model": model, "layer_range": [start, end]}]} for model, start, end in ranges]
    return {"merge_method": "passthrough", "slices": slices, **more}


def mixed(*models: str, method: str = "linear", **more: Any) -> dict[str, Any]:
    """Return a recipe that adds whole models up."""
    sources = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": method, "models": sources, **more}


def works(made: Plan) -> dict[str, Any]:
    return {tensor.name: tensor.work for tensor in made.tensors}


def contents(made: Plan) -> dict[str, Any]:
    return {key: each.content for key, each in made.metadata.items()}


@pytest.fixture(scope="module")
def tower() -> Plan:
    """Return Cerebrum-1.0-12.25B of a model of its 7B's shape."""
    source = table("cerebrum-7b", shape=MISTRAL_7B)
    kept = {"cerebrum.recipe": RECIPE.read_text(encoding="utf-8")}
    provenance = Provenance("Cerebrum-12B", {"cerebrum-7b": Origin("cerebrum-7b", "AetherResearch/Cerebrum")}, kept)
    recipe = parse_recipe(RECIPE.read_text(encoding="utf-8"), RECIPE.name)
    return planned(recipe, {"cerebrum-7b": source}, Target(), provenance)


def test_the_packaged_recipe_stacks_the_seven_slices(tower: Plan) -> None:
    assert tower.parameters == 12_476_420_096
    assert len(tower.tensors) == 507
    assert tower.layers == tuple(Layer(each, (("cerebrum-7b", 4 * (each // 8) + each % 8),)) for each in range(56))


def test_each_of_its_tensors_is_a_copy_of_the_right_one(tower: Plan) -> None:
    source = table("cerebrum-7b", shape=MISTRAL_7B)
    assert sorted(works(tower)) == sorted(name for name, _ in dimensions(MISTRAL_7B._replace(layers=56)))
    for tensor in tower.tensors:
        name = tensor.name
        if name.startswith("blk."):
            layer, suffix = int(name.split(".")[1]), name.split(".", 2)[2]
            name = f"blk.{4 * (layer // 8) + layer % 8}.{suffix}"
        origin = source.tensors[name]
        assert (tensor.work, tensor.shape, tensor.type) == (Copy(origin), origin.shape, origin.type)
        assert tensor.size == origin.size


def test_its_metadata_says_what_has_changed_and_keeps_the_rest(tower: Plan) -> None:
    source = table("cerebrum-7b", shape=MISTRAL_7B).metadata
    assert tower.metadata == {
        **source,
        "general.name": value("Cerebrum-12B"),
        "general.size_label": value("12B"),
        "general.base_model.count": value(1),
        "general.base_model.0.name": value("Model cerebrum-7b"),
        "general.base_model.0.repo_url": value("https://huggingface.co/AetherResearch/Cerebrum"),
        "cerebrum.recipe": value(RECIPE.read_text(encoding="utf-8")),
        "llama.block_count": value(56),
    }


def test_of_two_models_the_embeddings_are_the_first_ones_and_norm_and_head_the_last_ones() -> None:
    first, last = table("a"), table("b", shape=Shape(layers=6))
    made = works(plan(stacked(("a", 0, 3), ("b", 4, 6)), first, last))
    assert made["token_embd.weight"] == Copy(first.tensors["token_embd.weight"])
    assert made["output_norm.weight"] == Copy(last.tensors["output_norm.weight"])
    assert made["output.weight"] == Copy(last.tensors["output.weight"])
    assert made["blk.2.attn_q.weight"] == Copy(first.tensors["blk.2.attn_q.weight"])
    assert made["blk.3.attn_q.weight"] == Copy(last.tensors["blk.4.attn_q.weight"])
    assert len(made) == 3 + 9 * 5


@pytest.mark.parametrize("recipe", [stacked(("a", 0, 3), ("a", 1, 4)), mixed("a", "b"), stacked(("a", 0, 3))])
def test_tied_embeddings_stay_tied(recipe: dict[str, Any]) -> None:
    tied = Shape(tied=True)
    assert "output.weight" not in works(plan(recipe, table("a", shape=tied), table("b", shape=tied)))


@pytest.mark.parametrize("first_is_tied", [True, False])
def test_a_tied_model_behind_another_one_gives_its_embeddings_as_the_head(first_is_tied: bool) -> None:
    first, last = table("a", shape=Shape(tied=first_is_tied)), table("b", shape=Shape(tied=True))
    made = plan(stacked(("a", 0, 2), ("b", 2, 4)), first, last)
    assert works(made)["output.weight"] == Copy(last.tensors["token_embd.weight"])
    assert works(made)["token_embd.weight"] == Copy(first.tensors["token_embd.weight"])
    assert [tensor.type for tensor in made.tensors if tensor.name == "output.weight"] == [NUMBERS["Q4_K"]]


def test_a_tied_model_is_added_to_the_head_of_another_one_by_its_embeddings() -> None:
    first, last = table("a"), table("b", shape=Shape(tied=True))
    for recipe in (mixed("a", "b"), mixed("b", "a")):
        heads = {first.tensors["output.weight"], last.tensors["token_embd.weight"]}
        assert {term.tensor for term in works(plan(recipe, first, last))["output.weight"].terms} == heads


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
    key = "llama.attention.head_count_kv"
    made = plan(stacked(("a", 0, 3), ("b", 2, 4)), table("a", {key: first}), table("b", {key: last}))
    assert made.metadata[key] == value(stack)


def test_an_array_of_no_layers_stays_as_it_is_however_long() -> None:
    key = "llama.rope.dimension_sections"
    made = plan(stacked(("a", 0, 4), ("a", 0, 4)), table("a", {key: (16, 24, 24, 0)}))
    assert made.metadata[key] == value((16, 24, 24, 0))


def test_layers_of_one_model_may_be_of_different_shapes() -> None:
    key, shape = "llama.attention.head_count_kv", Shape()
    source = table("a", {key: (4, 8, 8, 8)}, shape)
    name = "blk.0.attn_k.weight"
    tensors = {**source.tensors, name: source.tensors[name]._replace(shape=(256, 64))}
    other = table("b", {key: (8, 8, 8, 8)})
    made = plan(stacked(("a", 0, 1), ("b", 0, 1)), Table("a", source.metadata, tensors), other)
    assert [tensor.shape for tensor in made.tensors if "attn_k" in tensor.name] == [(256, 64), (256, 128)]


def test_a_scale_is_a_sum_of_one_where_it_applies_and_else_a_copy() -> None:
    cases = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.5}, {"value": 1.0}]
    recipe = stacked(("a", 0, 2), ("a", 1, 3))
    recipe["slices"][1]["sources"][0]["parameters"] = {"scale": cases}
    source = table("a")
    for name, work in works(plan(recipe, source)).items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        origin = source.tensors[name if layer < 2 else name.replace(f"blk.{layer}", f"blk.{layer - 1}")]
        factor = {"attn_output": 0.0, "ffn_down": 0.5}.get(name.split(".")[-2]) if layer >= 2 else None
        assert work == (Copy(origin) if factor is None else Sum((Term(origin, factor),)))


def test_the_terms_of_the_methods_are_known_before_any_weight_is_read() -> None:
    first, other = table("a"), table("b")
    parameters = {"weight": 0.5}
    shifted = mixed("b", method="task_arithmetic", base_model="a", parameters=parameters)
    turned = mixed("b", "a", method="slerp", base_model="a", parameters={"t": 0.25})
    name = "blk.3.ffn_up.weight"
    one, two = first.tensors[name], other.tensors[name]
    assert works(plan(mixed("a", "b"), first, other))[name] == Sum((Term(one, 0.5), Term(two, 0.5)))
    assert works(plan(shifted, first, other))[name] == Sum((Term(one, 0.5), Term(two, 0.5)))
    assert works(plan(turned, first, other))[name] == Arc(0.25, one, two)


TOKENS = (b"0", b"1", b"2", b"3", b"4", b"5")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("general.architecture: 'qwen2' and 'llama'", {"general.architecture": "qwen2"}),
        ("llama.embedding_length: 512 and 256", {"llama.embedding_length": 512}),
        ("llama.feed_forward_length: 256 and 512", {"llama.feed_forward_length": 256}),
        ("llama.attention.head_count: 16 and 32", {"llama.attention.head_count": 16}),
        ("llama.rope.freq_base: 1000000.0 and 10000.0", {"llama.rope.freq_base": 1e6}),
        ("llama.rope.scaling.type: 'yarn' and 'none'", {"llama.rope.scaling.type": "yarn"}),
        ("llama.expert_count: 8 and 0", {"llama.expert_count": 8}),
        ("tokenizer.ggml.model: 'llama' and 'gpt2'", {"tokenizer.ggml.model": "llama"}),
        ("tokenizer.ggml.pre: 'llama-bpe' and 'smollm'", {"tokenizer.ggml.pre": "llama-bpe"}),
        ("the length of tokenizer.ggml.tokens: 7 and 6", {"tokenizer.ggml.tokens": (*TOKENS, b"6")}),
        ("tokenizer.ggml.tokens[5]: '<|im_end|>' and '5'", {"tokenizer.ggml.tokens": (*TOKENS[:5], b"<|im_end|>")}),
        ("tokenizer.ggml.merges[1]: 'b d' and 'b c'", {"tokenizer.ggml.merges": (b"a b", b"b d")}),
        ("tokenizer.ggml.merges: nothing and [b'a b', b'b c']", {"tokenizer.ggml.merges": None}),
    ],
)
def test_models_that_differ_in_what_matters_are_refused_with_the_key(named: str, said: dict[str, Any]) -> None:
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        with pytest.raises(MergeError) as caught:
            plan(recipe, table("a"), table("b", said))
        assert caught.value.what == f"b differs from a in {named}"
        assert caught.value.do == "merge models of one architecture, shape and vocabulary"


def test_models_of_other_shapes_are_refused_with_the_tensor() -> None:
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        with pytest.raises(MergeError, match=r"the shape of blk\.0\.attn_[kv]\.weight: \[256, 64\] and \[256, 128\]"):
            plan(recipe, table("a"), table("b", shape=Shape(kv_width=64)))


@pytest.mark.parametrize(
    "said",
    [
        {"llama.rope.freq_base": 10000.0},
        {"llama.expert_count": 0},
        {"llama.vocab_size": 32000},
        {"llama.rope.dimension_count": 128},
        {"llama.feed_forward_length": None},
        {"tokenizer.ggml.pre": None},
        {"tokenizer.ggml.add_bos_token": True},
        {"tokenizer.ggml.eos_token_id": 3},
        {"tokenizer.ggml.token_type": (1, 1, 1, 3)},
        {"tokenizer.chat_template": None},
        {"general.file_type": 7},
    ],
)
def test_what_may_differ_does_not_keep_models_from_being_merged(said: dict[str, Any]) -> None:
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        assert plan(recipe, table("a"), table("b", said)).layers
        assert plan(recipe, table("a", said), table("b")).layers


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
    made = plan(mixed("a", "b", **more), first, table("b"))
    held = {key: each for key, each in made.metadata.items() if key.startswith("tokenizer.")}
    source = {"a": first, "b": table("b")}[spoken]
    assert held == {key: each for key, each in source.metadata.items() if key.startswith("tokenizer.")}


def test_a_layer_range_beyond_the_model_is_refused_with_the_number_of_its_slice() -> None:
    with pytest.raises(MergeError) as caught:
        plan(stacked(("a", 0, 4), ("a", 2, 5)), table("a"))
    assert caught.value.what == "slices[1]: layer_range [2, 5] of a, which has 4 layers"
    assert caught.value.do == "end it at 4 at most"


def test_models_of_different_numbers_of_layers_are_no_slice() -> None:
    with pytest.raises(MergeError) as caught:
        plan(mixed("a", "b"), table("a"), table("b", shape=Shape(layers=6)))
    assert caught.value.what == "slices[0]: numbers of layers differ: a 4, b 6"


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (mixed("a", "b"), "blk.2.ffn_up.weight"),
        (mixed("b", "a"), "blk.2.ffn_up.weight"),
        (mixed("a", "b"), "output_norm.weight"),
        (mixed("a", "b"), "token_embd.weight"),
    ],
)
def test_a_tensor_that_one_model_lacks_is_told(recipe: dict[str, Any], name: str) -> None:
    with pytest.raises(MergeError, match=f"b has no {name}"):
        plan(recipe, table("a"), without(table("b"), name))


def test_a_file_that_states_no_layers_is_no_model() -> None:
    for said in ({"llama.block_count": None}, {"llama.block_count": 0}):
        with pytest.raises(MergeError, match="a: its file states no number of layers"):
            plan(stacked(("a", 0, 1)), table("a", said))


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
    made = contents(planned(recipe, {"a": table("a", {"general.name": None})}, Target(), Provenance("Merged", origins)))
    assert made["general.base_model.0.name"] == "somebody/model:Q4_K_M"
    assert made["general.base_model.0.repo_url"] == "https://huggingface.co/somebody/model"


def test_the_size_of_experts_is_told_as_in_their_models_names() -> None:
    source = table("a", {"llama.expert_count": 8}, MIXTRAL)
    made = plan(stacked(("a", 0, 32)), source)
    assert made.parameters == 46_702_792_704
    assert contents(made)["general.size_label"] == "8x7.2B"
    assert all(isinstance(work, Copy) for work in works(made).values())


@pytest.mark.parametrize(
    ("count", "label"),
    [(7_241_732_096, "7.2B"), (12_476_420_096, "12B"), (134_515_008, "135M"), (1_100_000, "1.1M"), (5_000, "5K")],
)
def test_a_size_is_told_in_two_digits_or_more(count: int, label: str) -> None:
    assert rounded(count) == label


def types(made: Plan) -> Counter[tuple[str, str]]:
    """Return how many tensors of each kind are of each type."""
    suffixes = [(tensor.name.split(".")[-2], tensor.kind.name) for tensor in made.tensors]
    return Counter(suffixes)


def test_a_type_is_that_of_all_matrices_and_a_better_one_that_of_the_head() -> None:
    for name in WANTED:
        made = plan(stacked(("a", 0, 4)), table("a"), target=Target(type=name))
        head = "Q6_K" if name.startswith(("Q2", "Q3", "Q4", "Q5", "IQ")) else name
        matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), name)
        norms = dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), "F32")
        expected = {**matrices, **norms, "token_embd": name, "output": head}
        assert dict(types(made).keys()) == expected


def test_tied_embeddings_are_a_head_too() -> None:
    source = table("a", shape=Shape(tied=True))
    assert ("token_embd", "Q6_K") in types(plan(stacked(("a", 0, 4)), source, target=Target(type="Q4_0")))
    assert ("token_embd", "Q8_0") in types(plan(stacked(("a", 0, 4)), source, target=Target(type="Q8_0")))


def test_what_says_which_expert_is_asked_keeps_its_type() -> None:
    made = plan(stacked(("a", 0, 2)), table("a", shape=Shape(experts=4)), target=Target(type="Q4_K"))
    assert types(made)[("ffn_gate_inp", "F32")] == 2
    assert types(made)[("ffn_gate_exps", "Q4_K")] == 2


@pytest.mark.parametrize(
    ("wanted", "by_32", "by_none"),
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
def test_rows_that_are_no_whole_blocks_are_of_a_type_with_smaller_ones(wanted: str, by_32: str, by_none: str) -> None:
    for row, name in ((288, by_32), (280, by_none)):
        source = table("a", shape=Shape(ffn=row), type_of=floats)
        found = types(plan(stacked(("a", 0, 4)), source, target=Target(type=wanted)))
        assert found[("ffn_down", name)] == 4
        assert found[("ffn_up", wanted)] == 4


def test_a_dtype_is_that_of_unquantised_matrices_only() -> None:
    quantised, plain = table("a"), table("a", type_of=floats)
    target = Target(dtype="BF16")
    assert types(plan(stacked(("a", 0, 4)), quantised, target=target)) == types(plan(stacked(("a", 0, 4)), quantised))
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
        (15, Target(type="Q4_K"), 15),
        (1, Target(type="Q8_0"), 7),
        (None, Target(type="Q6_K"), 18),
    ],
)
def test_the_file_type_is_that_of_most_tensors(own: int | None, target: Target, number: int | None) -> None:
    made = plan(stacked(("a", 0, 4)), table("a", {"general.file_type": own}), target=target)
    assert contents(made).get("general.file_type") == number


def test_the_file_type_is_that_of_the_model_most_layers_are_of() -> None:
    last = table("b", {"general.file_type": 7})
    assert contents(plan(stacked(("a", 0, 1), ("b", 1, 4)), table("a"), last))["general.file_type"] == 7
    assert contents(plan(stacked(("a", 0, 3), ("b", 3, 4)), table("a"), last))["general.file_type"] == 15


@pytest.mark.parametrize("text", ["Q4_K", "q4_k", "Q4-K", "bf16", "IQ4_NL"])
def test_a_type_can_be_written_in_small_letters(text: str) -> None:
    assert wanted_type(text) == text.upper().replace("-", "_")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Q4_K_M", "--type Q4_K_M is a mixture of types"),
        ("q5_k_s", "--type q5_k_s is a mixture of types"),
        ("Q3_K_L", "--type Q3_K_L is a mixture of types"),
        ("IQ2_XXS", "--type IQ2_XXS is no type weights can be written in"),
        ("I32", "--type I32 is no type weights can be written in"),
        ("Q9", "--type Q9 is no type weights can be written in"),
        ("", "--type  is no type weights can be written in"),
    ],
)
def test_a_type_that_cannot_be_written_is_refused_with_those_that_can(text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        wanted_type(text)
    assert caught.value.what == what
    assert ", ".join(WANTED) in caught.value.do


@given(
    sizes=st.lists(st.tuples(st.sampled_from(sorted(TENSOR_TYPES)), st.integers(1, 40)), min_size=1, max_size=30),
    header=st.integers(1, 5000),
    limit=st.none() | st.integers(1, 60_000),
)
def test_parts_are_all_tensors_in_order_none_larger_than_the_limit(
    sizes: list[tuple[int, int]], header: int, limit: int | None
) -> None:
    tensors = []
    for number, (kind, blocks) in enumerate(sizes):
        shape = (TENSOR_TYPES[kind].block_size * blocks,)
        tensors.append(Output(f"blk.{number}", shape, kind, Copy(Tensor("", shape, kind, Path(), 0))))
    found = parts(tensors, header, limit)
    assert [tensor for part in found for tensor in part] == tensors
    assert all(found)
    assert limit or len(found) == 1
    for number, part in enumerate(found):
        size = sum(tensor.size for tensor in part) + (0 if number else header)
        assert len(part) == 1 or not limit or size <= limit
