"""Real files through a merge: every byte of a stack is that of its source, and llama.cpp loads what comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from asking import ask
from tiny_models import Shape, write_quantized

from cerebrum_cli.catalogue.rows import RECIPES
from cerebrum_cli.catalogue.variants import parts_of
from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.plan import LoadOptions
from cerebrum_cli.engine.plan import Shape as Loaded
from cerebrum_cli.gguf.adapter import read_table
from cerebrum_cli.gguf.cursor import Cursor
from cerebrum_cli.gguf.header import read_header
from cerebrum_cli.gguf.types import TENSOR_TYPES
from cerebrum_cli.merge.execute import OutputFile, execute, plan_files, require_supported_types
from cerebrum_cli.merge.metadata import Origin, Provenance
from cerebrum_cli.merge.output_files import WrittenFile
from cerebrum_cli.merge.plan import plan_merge
from cerebrum_cli.merge.recipe import parse_recipe
from cerebrum_cli.merge.target_types import Target

Models = Mapping[str, Sequence[Path]]
Told = Callable[[int, int], None]

TWELVE_B = (RECIPES / "cerebrum-12b.yaml").read_text(encoding="utf-8")
OF_A_LAYER = {
    *("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"),
    *("ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"),
}
LAYERS = [start + number for start in range(0, 28, 4) for number in range(8)]  # of the 7B, as the 12B has them
SMALL = Shape(layers=6, width=64)


class Stored(NamedTuple):
    """A tensor in a file."""

    type: str
    shape: tuple[int, ...]
    data: bytes


def stored(paths: Sequence[Path]) -> dict[str, Stored]:
    """Return all tensors of a model; the `gguf` package would take seconds for a large vocabulary."""
    found = {}
    for path in paths:
        data = path.read_bytes()
        cursor = Cursor(path, data, position=8)
        tensors, values = cursor.uint64(), cursor.uint64()
        said = {cursor.string("key"): cursor.value() for _ in range(values)}
        rows = [
            (cursor.string("name"), cursor.dimensions(cursor.uint32()), TENSOR_TYPES[cursor.uint32()], cursor.uint64())
            for _ in range(tensors)
        ]
        alignment = said.get("general.alignment", 32)
        assert isinstance(alignment, int)
        begin = -(-cursor.position // alignment) * alignment
        for name, shape, kind, offset in rows:
            place = begin + offset
            found[name] = Stored(kind.name, shape, data[place : place + kind.bytes_of(prod(shape))])
    return found


def metadata(path: Path) -> dict[str, bytes]:
    """Return the bytes of every value in a file's metadata, its types included."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields.items()
    return {name: b"".join(part.tobytes() for part in field.parts) for name, field in fields}


def stack(*slices: tuple[str, int, int]) -> str:
    """Return the recipe of layers on layers: of which model, from which on, up to which."""
    rows = [f"- sources: [{{model: {model}, layer_range: [{start}, {end}]}}]" for model, start, end in slices]
    return "\n".join(["merge_method: passthrough", "slices:", *rows])


def prepared(
    recipe: str, models: Models, out: Path, limit: int | None = None, type: str | None = None
) -> tuple[OutputFile, ...]:
    """Return the files of a merge that can be written."""
    parsed = parse_recipe(recipe, "recipe.yaml")
    tables = {name: read_table(name, paths) for name, paths in models.items()}
    provenance = Provenance("merged", {name: Origin(name) for name in models})
    plan = plan_merge(parsed, tables, Target(type), provenance)
    require_supported_types(plan, LlamaCodec)
    return plan_files(plan, out, limit)


def quietly(done: int, total: int) -> None:
    """Tell nobody how far it is."""


def merged(recipe: str, models: Models, out: Path, told: Told = quietly, **more: Any) -> tuple[WrittenFile, ...]:
    """Write a merge."""
    return execute(prepared(recipe, models, out, **more), LlamaCodec, 2, told)


def said(path: Path, tokens: int = 6) -> list[int]:
    """Return the likeliest tokens a model goes on with, by the real llama.cpp."""
    header = read_header(path)
    shape = Loaded(2048, path.stat().st_size, header.n_layers, header.kv_bytes_per_token)
    options = LoadOptions(path, shape, context_size=256, n_threads=1)
    engine = Engine(lambda tell, stop: open_llama(options, tell, stop))
    try:
        list(engine.load())
        return ask(engine, "Once upon a time", max_tokens=tokens)[0].ids
    finally:
        engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where models lie that several tests read."""
    return tmp_path_factory.mktemp("merges")


@pytest.fixture(scope="module")
def seven(folder: Path) -> Path:
    """Return a model of Mistral-7B's layers and types."""
    return write_quantized(folder / "seven.gguf")


@pytest.fixture(scope="module")
def twelve(folder: Path, seven: Path) -> WrittenFile:
    """Return the merge of it by the packaged recipe."""
    [written] = merged(TWELVE_B, {"cerebrum-7b": [seven]}, folder / "twelve.gguf")
    return written


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """Return a model of six layers in half precision."""
    return write_quantized(folder / "small.gguf", shape=SMALL, encoding="F16")


def assert_copied(made: Mapping[str, Stored], source: Mapping[str, Stored], layers: Sequence[int]) -> None:
    """See that each tensor is that of its source's layer, byte for byte, and that there is no other."""
    outer = [name for name in source if not name.startswith("blk.")]
    suffixes = [name.removeprefix("blk.0.") for name in source if name.startswith("blk.0.")]
    origins = {f"blk.{new}.{suffix}": f"blk.{old}.{suffix}" for new, old in enumerate(layers) for suffix in suffixes}
    origins |= {name: name for name in outer}
    assert made.keys() == origins.keys()
    assert [name for name in made if made[name] != source[origins[name]]] == []


def test_every_tensor_of_the_12b_is_that_of_its_source_block(seven: Path, twelve: WrittenFile) -> None:
    made, source = stored([twelve.path]), stored([seven])
    assert len({each.data for each in source.values()}) == len(source)  # or one would pass for another
    assert (len(made), len(LAYERS)) == (507, 56)
    assert {name.removeprefix("blk.55.") for name in made if name.startswith("blk.55.")} == OF_A_LAYER
    assert_copied(made, source, LAYERS)


def test_the_12b_says_what_it_is_and_its_digest_is_that_of_its_bytes(seven: Path, twelve: WrittenFile) -> None:
    header, source = read_header(twelve.path), read_header(seven)
    block = 2 * 256 + 2 * 256 * 256 + 2 * 64 * 256 + 3 * 512 * 256
    assert header.parameters == 56 * block + 2 * 275 * 256 + 256
    assert (header.n_layers, header.tensor_count, header.quantization) == (56, 507, "Q4_K_M")
    assert header.kv_bytes_per_token == source.kv_bytes_per_token * 56 // 32
    assert (header.vocabulary_size, header.chat_template) == (source.vocabulary_size, source.chat_template)
    data = twelve.path.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (twelve.size, twelve.sha256)
    [file] = prepared(TWELVE_B, {"cerebrum-7b": [seven]}, twelve.path)
    assert (file.size, file.header) == (len(data), data[: len(file.header)])


def test_the_12b_loads_and_decodes(twelve: WrittenFile) -> None:
    assert len(said(twelve.path)) == 6


def test_a_model_stacked_once_is_the_same_model(seven: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.gguf"
    merged(stack(("a", 0, 20), ("a", 20, 32)), {"a": [seven]}, out)
    assert stored([out]) == stored([seven])
    before, after = metadata(seven), metadata(out)
    changed = {"general.name", "GGUF.kv_count"}
    assert {name: after.get(name) for name in before.keys() - changed} == {
        name: before[name] for name in before.keys() - changed
    }
    added = ("general.base_model.", "general.size_label")
    assert all(name.startswith(added) for name in after.keys() - before.keys())
    assert said(out) == said(seven)


def test_a_mixtral_is_stacked_with_all_its_experts(tmp_path: Path) -> None:
    shape = Shape(layers=8, width=256, heads=8, kv_heads=2, ffn=256)
    source = write_quantized(tmp_path / "mixtral.gguf", shape=shape, experts=4)
    out = tmp_path / "tower.gguf"
    merged(stack(("a", 0, 4), ("a", 2, 6), ("a", 4, 8)), {"a": [source]}, out)
    made, header = stored([out]), read_header(out)
    assert made["blk.11.ffn_down_exps.weight"].shape == (256, 256, 4)
    assert_copied(made, stored([source]), [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7])
    assert (header.n_layers, header.expert_count, header.tensor_count) == (12, 4, 12 * 10 + 3)
    assert header.parameters == sum(prod(each.shape) for each in made.values())
    assert len(said(out)) == 6


@pytest.mark.parametrize("encoding", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_tensors_of_any_type_are_copied(encoding: str, tmp_path: Path) -> None:
    source = write_quantized(tmp_path / "source.gguf", shape=SMALL, encoding=encoding)
    out = tmp_path / "out.gguf"
    merged(stack(("a", 0, 4), ("a", 1, 6)), {"a": [source]}, out)
    made = stored([out])
    assert made["blk.8.ffn_down.weight"].type == encoding
    assert_copied(made, stored([source]), [0, 1, 2, 3, 1, 2, 3, 4, 5])
    assert (read_header(out).quantization, len(said(out))) == (encoding, 6)


def test_embeddings_are_the_first_models_and_the_head_is_the_last_ones(small: Path, tmp_path: Path) -> None:
    other = write_quantized(tmp_path / "other.gguf", shape=SMALL, encoding="F16", seed=1)
    out = tmp_path / "out.gguf"
    merged(stack(("a", 0, 3), ("b", 1, 6)), {"a": [small], "b": [other]}, out)
    made, first, last = stored([out]), stored([small]), stored([other])
    assert made["token_embd.weight"] == first["token_embd.weight"]
    assert (made["output_norm.weight"], made["output.weight"]) == (last["output_norm.weight"], last["output.weight"])
    for index, (source, layer) in enumerate(
        [(first, 0), (first, 1), (first, 2), *((last, each) for each in range(1, 6))]
    ):
        assert made[f"blk.{index}.attn_q.weight"] == source[f"blk.{layer}.attn_q.weight"]
    assert len(said(out)) == 6


def test_a_source_of_another_alignment_is_read_where_its_tensors_are(small: Path, tmp_path: Path) -> None:
    wide, out = rewritten(small, tmp_path / "wide.gguf", alignment=512), tmp_path / "out.gguf"
    merged(stack(("a", 0, 6)), {"a": [wide]}, out)
    assert stored([out]) == stored([wide]) == stored([small])
    assert "general.alignment" not in metadata(out)
    assert said(out) == said(small)


def rewritten(source: Path, target: Path, tensors: int = 0, alignment: int = 0) -> Path:
    """Write a model again with the `gguf` package: in files of so many tensors each, or aligned otherwise.

    Returns the first of its files, named as gguf-split names them.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama", split_max_tensors=tensors)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            item_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], item_type)
    if alignment:
        writer.add_custom_alignment(alignment)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(target.parent.glob(f"{target.stem}*.gguf"))


def parts(first: Path) -> list[Path]:
    """Return all files of a split model."""
    return [first.with_name(name) for name in parts_of(first.name)]


def test_a_source_in_parts_is_the_same_as_in_one(seven: Path, twelve: WrittenFile, tmp_path: Path) -> None:
    first = rewritten(seven, tmp_path / "seven.gguf", tensors=97)
    assert [path.name for path in parts(first)] == [f"seven-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    [written] = merged(TWELVE_B, {"cerebrum-7b": parts(first)}, tmp_path / "twelve.gguf")
    assert written._replace(path=twelve.path) == twelve
    assert not [name for name in metadata(written.path) if name.startswith("split.")]


def test_a_merge_is_split_into_files_that_llama_cpp_joins(seven: Path, twelve: WrittenFile, tmp_path: Path) -> None:
    limit = 4_000_000
    written = merged(TWELVE_B, {"cerebrum-7b": [seven]}, tmp_path / "split.gguf", limit=limit)
    paths = [each.path for each in written]
    assert paths == parts(tmp_path / "split-00001-of-00005.gguf") == sorted(tmp_path.iterdir())
    for each in written:
        assert read_header(each.path).split_count == 5
        assert (each.size, each.sha256) == (
            each.path.stat().st_size,
            hashlib.sha256(each.path.read_bytes()).hexdigest(),
        )
        assert each.size <= limit
    assert list(stored(paths).items()) == list(stored([twelve.path]).items())
    assert said(paths[0]) == said(twelve.path)
    [again] = merged(stack(("a", 0, 56)), {"a": paths}, tmp_path / "joined.gguf")
    assert stored([again.path]) == stored([twelve.path])


def test_a_tensor_that_is_larger_than_a_file_may_be_has_one_of_its_own(small: Path, tmp_path: Path) -> None:
    written = merged(stack(("a", 0, 6)), {"a": [small]}, tmp_path / "split.gguf", limit=10_000)
    assert len(written) == len({each.path for each in written})
    assert {len(stored([each.path])) for each in written if each.size > 10_000} == {1}
    assert stored([each.path for each in written]) == stored([small])
    assert said(written[0].path) == said(small)


def test_a_plan_leaves_nothing_in_the_temporary_folder(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))  # whoever is killed there tidies nothing up
    assert prepared(stack(("a", 0, 6)), {"a": [small]}, tmp_path / "out.gguf")


def test_no_file_is_larger_than_it_may_be(seven: Path, tmp_path: Path) -> None:
    for limit in (121_189, *range(100_000, 300_000, 39_937)):  # at the first one, 32 bytes decide
        found = prepared(stack(("a", 0, 8)), {"a": [seven]}, tmp_path / "out.gguf", limit=limit)
        assert [file.size for file in found if file.size > limit and len(file.tensors) > 1] == []


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("damage", ["gone", "short", "no model", "header"])
def test_a_part_that_is_gone_or_damaged_is_named(small: Path, tmp_path: Path, number: int, damage: str) -> None:
    paths = parts(rewritten(small, tmp_path / "parts.gguf", tensors=20))
    data = paths[number].read_bytes()
    if damage == "gone":
        paths[number].unlink()
    else:
        paths[number].write_bytes({"short": data[:-4000], "no model": b"GGML" + data[4:], "header": data[:100]}[damage])
    with pytest.raises(ModelFileError) as caught:
        merged(stack(("a", 0, 6)), {"a": paths}, tmp_path / "out.gguf")
    assert caught.value.path == paths[number]
    assert caught.value.message.count("\n") == caught.value.hint.count("\n") == 0
    assert not list(tmp_path.glob("out*"))


def test_one_part_in_place_of_another_is_told(small: Path, tmp_path: Path) -> None:
    paths = parts(rewritten(small, tmp_path / "parts.gguf", tensors=20))
    with pytest.raises(ModelFileError, match="is also in another part") as caught:
        merged(stack(("a", 0, 6)), {"a": [paths[0], paths[1], paths[1]]}, tmp_path / "out.gguf")
    assert caught.value.path == paths[1]


def test_what_is_told_of_the_way_grows_to_the_end(seven: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    written = merged(
        TWELVE_B, {"cerebrum-7b": [seven]}, tmp_path / "o.gguf", lambda *each: told.append(each), limit=5_000_000
    )
    total = sum(each.size for each in written)
    assert {all_of_it for _, all_of_it in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert total - 32 < told[-1][0] <= total
