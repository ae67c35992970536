"""Merges of real files: each tensor of a stack equals its source's byte for byte, and llama.cpp loads the result."""

import hashlib
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
from asking import ask
from gguf_files import rewritten
from llama_engines import open_engine
from merges import (
    LAYERS_12B,
    RECIPE_12B,
    assert_layers_copied,
    metadata_bytes,
    part_paths,
    plan_merge,
    read_tensors,
    stack,
    write_merge,
)
from tiny_models import Shape, write_quantized

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.header import read_header

BLOCK_TENSORS = {
    *("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"),
    *("ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"),
}
WHOLE = stack(("a", 0, 6))


def generate(path: Path) -> list[int]:
    with open_engine(path, context_size=256) as engine:
        return ask(engine, "Once upon a time", max_tokens=6)[0].ids


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory, seven: Path) -> Path:
    path = tmp_path_factory.mktemp("merges") / "twelve.gguf"
    digest = write_merge(RECIPE_12B, {"cerebrum-7b": [seven]}, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    return path


def test_merge_12b_copies_each_tensor_from_its_source_block(seven: Path, twelve: Path) -> None:
    source = read_tensors([seven])
    assert len({each.data for each in source.values()}) == len(source)  # the comparison below needs distinct tensors
    assert_layers_copied([twelve], [seven], LAYERS_12B)
    assert {name.removeprefix("blk.0.") for name in source if name.startswith("blk.0.")} == BLOCK_TENSORS


@pytest.mark.slow
def test_merge_12b_loads_and_its_header_and_digest_match_its_bytes(seven: Path, twelve: Path) -> None:
    header, source = read_header(twelve), read_header(seven)
    block = 2 * 256 + 2 * 256 * 256 + 2 * 64 * 256 + 3 * 512 * 256
    assert header.parameters == 56 * block + 2 * 275 * 256 + 256
    assert (header.n_layers, sum(header.tensor_types.values()), header.quantization) == (56, 507, "Q4_K_M")
    assert header.kv_bytes_per_token == source.kv_bytes_per_token * 56 // 32
    assert (header.sizes.vocabulary_size, header.chat_template) == (source.sizes.vocabulary_size, source.chat_template)
    plan, data = plan_merge(RECIPE_12B, {"cerebrum-7b": [seven]}), twelve.read_bytes()
    assert (plan.size, plan.header) == (len(data), data[: len(plan.header)])
    assert len(generate(twelve)) == 6


@pytest.mark.slow
def test_merge_stacks_all_experts_of_a_mixtral(tmp_path: Path) -> None:
    shape = Shape(layers=8, width=256, heads=8, kv_heads=2, ffn=256)
    source = write_quantized(tmp_path / "mixtral.gguf", shape=shape, experts=4)
    out = tmp_path / "tower.gguf"
    write_merge(stack(("a", 0, 4), ("a", 2, 6), ("a", 4, 8)), {"a": [source]}, out)
    made, header = read_tensors([out]), read_header(out)
    assert made["blk.11.ffn_down_exps.weight"].shape == (256, 256, 4)
    assert_layers_copied([out], [source], [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7])
    assert (header.n_layers, header.metadata["llama.expert_count"], len(made)) == (12, 4, 12 * 10 + 3)
    assert header.parameters == sum(prod(each.shape) for each in made.values())
    assert len(generate(out)) == 6


def test_merge_reads_a_source_with_another_alignment(six_layers: Path, tmp_path: Path) -> None:
    wide, out = rewritten(six_layers, tmp_path / "wide.gguf", alignment=512), tmp_path / "out.gguf"
    write_merge(WHOLE, {"a": [wide]}, out)
    assert read_tensors([out]) == read_tensors([wide]) == read_tensors([six_layers])
    assert "general.alignment" not in metadata_bytes(out)
    assert generate(out) == generate(six_layers)


def test_merge_reads_a_split_source(seven: Path, twelve: Path, tmp_path: Path) -> None:
    first = rewritten(seven, tmp_path / "seven.gguf", tensors=97)
    assert [path.name for path in part_paths(first)] == [f"seven-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    write_merge(RECIPE_12B, {"cerebrum-7b": part_paths(first)}, tmp_path / "twelve.gguf")
    assert (tmp_path / "twelve.gguf").read_bytes() == twelve.read_bytes()
    assert not [name for name in metadata_bytes(twelve) if name.startswith("split.")]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-4000],
    "other format": lambda data: b"GGML" + data[4:],
    "header only": lambda data: data[:100],
}


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("damage", ["missing", "repeated", *DAMAGES])
def test_merge_names_a_missing_or_damaged_part(six_layers: Path, tmp_path: Path, number: int, damage: str) -> None:
    paths = part_paths(rewritten(six_layers, tmp_path / "parts.gguf", tensors=20))
    if damage == "missing":
        paths[number].unlink()
    elif damage == "repeated":
        paths[number] = paths[1]
    else:
        paths[number].write_bytes(DAMAGES[damage](paths[number].read_bytes()))
    with pytest.raises(ModelFileError) as caught:
        write_merge(WHOLE, {"a": paths}, tmp_path / "out.gguf")
    assert caught.value.message.startswith(f"{paths[number]}: ")
    assert ("is also in another part" in caught.value.message) == (damage == "repeated")
    assert caught.value.message.count("\n") == caught.value.hint.count("\n") == 0
    assert not list(tmp_path.glob("out*"))
