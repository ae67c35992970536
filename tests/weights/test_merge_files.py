"""Merges of real files: each tensor of a stack equals its source's byte for byte, and llama.cpp loads the result."""

from collections.abc import Callable
from pathlib import Path

import pytest
from asking import ask
from gguf_files import rewritten
from llama_engines import open_engine
from merges import assert_layers_copied, metadata_bytes, part_paths, read_tensors, stack, write_merge
from tiny_models import Shape, write_quantized

from cerebrum_cli.core.errors import ModelFileError

WHOLE, TWICE = stack(("a", 0, 6)), stack(("a", 0, 4), ("a", 2, 6))


def generate(path: Path) -> list[int]:
    with open_engine(path, context_size=256) as engine:
        return ask(engine, "Once upon a time", max_tokens=6)[0].ids


@pytest.mark.slow
def test_merge_stacks_all_experts_of_a_mixtral(tmp_path: Path) -> None:
    shape = Shape(layers=8, width=256, heads=8, kv_heads=2, ffn=256)
    source = write_quantized(tmp_path / "mixtral.gguf", shape=shape, experts=4)
    out = tmp_path / "tower.gguf"
    write_merge(stack(("a", 0, 4), ("a", 2, 6), ("a", 4, 8)), {"a": [source]}, out)
    assert read_tensors([out])["blk.11.ffn_down_exps.weight"].shape == (256, 256, 4)
    assert_layers_copied([out], [source], [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7])
    assert len(generate(out)) == 6


def test_merge_reads_a_source_with_another_alignment(six_layers: Path, tmp_path: Path) -> None:
    wide, out = rewritten(six_layers, tmp_path / "wide.gguf", alignment=512), tmp_path / "out.gguf"
    write_merge(WHOLE, {"a": [wide]}, out)
    assert read_tensors([out]) == read_tensors([wide]) == read_tensors([six_layers])
    assert "general.alignment" not in metadata_bytes(out)
    assert generate(out) == generate(six_layers)


def test_merge_reads_a_split_source(six_layers: Path, tmp_path: Path) -> None:
    parts = part_paths(rewritten(six_layers, tmp_path / "six.gguf", tensors=20))
    assert [path.name for path in parts] == [f"six-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    whole, split = tmp_path / "whole.gguf", tmp_path / "split.gguf"
    for sources, out in (([six_layers], whole), (parts, split)):
        write_merge(TWICE, {"a": sources}, out)
    assert split.read_bytes() == whole.read_bytes()
    assert not [name for name in metadata_bytes(split) if name.startswith("split.")]


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
