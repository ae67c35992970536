"""Compatibility of the models of a merge: the differences it accepts, and the errors for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from merge_tables import KV_HEADS, Shape, mixed, plan, stacked, table, without

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import Table, Tensor

TOKENS = (b"0", b"1", b"2", b"3", b"4", b"5")


@pytest.mark.parametrize(
    ("difference", "metadata"),
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
def test_merge_reports_the_metadata_key_that_differs(difference: str, metadata: dict[str, Any]) -> None:
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        with pytest.raises(MergeError) as caught:
            plan(recipe, table("a"), table("b", metadata))
        assert caught.value.message == f"b differs from a in {difference}"
        assert caught.value.hint == "merge models with the same architecture, shape and vocabulary"


# The second has as many items as there are layers, but is not per layer.
@pytest.mark.parametrize("metadata", [{}, {"general.languages": ("en", "de", "fr", "it")}])
def test_merge_reports_the_tensor_whose_shape_differs(metadata: dict[str, Any]) -> None:
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        with pytest.raises(MergeError) as caught:
            plan(recipe, table("a", metadata), table("b", shape=Shape(kv_width=64)))
        assert caught.value.message == "b differs from a in the shape of blk.0.attn_k.weight: [256, 64] and [256, 128]"


def test_merge_refuses_to_add_layers_of_different_shapes() -> None:
    name = "blk.2.attn_k.weight"
    source = table("b", {KV_HEADS: (8, 8, 4, 8)})
    tensors = {**source.tensors, name: source.tensors[name]._replace(shape=(256, 64))}
    with pytest.raises(MergeError) as caught:
        plan(mixed("a", "b"), table("a", {KV_HEADS: (8, 8, 8, 8)}), Table("b", source.metadata, tensors))
    assert caught.value.message == f"b differs in the shape of {name}: [256, 64] and [256, 128]"


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
        {"tokenizer.ggml.eos_token_id": 3},
        {"tokenizer.ggml.token_type": (1, 1, 1, 3)},
        {"tokenizer.chat_template": None},
        {"general.file_type": 7},
    ],
)
def test_merge_accepts_models_with_harmless_differences(metadata: dict[str, Any]) -> None:
    for recipe in (stacked(("a", 0, 2), ("b", 2, 4)), mixed("a", "b")):
        assert plan(recipe, table("a"), table("b", metadata)).layers
        assert plan(recipe, table("a", metadata), table("b")).layers


@pytest.mark.parametrize("recipe", [mixed("a", "b"), mixed("b", "a")])
@pytest.mark.parametrize("name", ["blk.2.ffn_up.weight", "output_norm.weight", "token_embd.weight"])
def test_merge_reports_a_tensor_that_one_model_lacks(recipe: dict[str, Any], name: str) -> None:
    with pytest.raises(MergeError, match=f"b has no {name}"):
        plan(recipe, table("a"), without(table("b"), name))


def test_merge_reports_rope_factors_that_one_model_lacks() -> None:
    other, factors = table("b"), Tensor("rope_freqs.weight", (64,), 0, Path("b.gguf"), 999)
    other = Table("b", other.metadata, {**other.tensors, factors.name: factors})
    for recipe in (mixed("b", "a"), mixed("a", "b"), stacked(("a", 0, 2), ("b", 2, 4))):
        with pytest.raises(MergeError, match=r"a has no rope_freqs\.weight, unlike b"):
            plan(recipe, table("a"), other)
