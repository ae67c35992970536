"""GGUF files: what they state, errors for damaged ones, and metadata read and written byte for byte."""

import math
import os
import re
import struct
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gguf
import pytest
from command_line import CommandLine, assert_error
from gguf import GGUFValueType, GGUFWriter
from gguf_files import LLAMA, add_values, entry, handmade, string, tensor, write_file, write_model
from hypothesis import given, settings, strategies as st
from tiny_models import write_vocabulary
from vocabularies import open_vocabulary

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.contents import FILE_TYPES, TENSOR_TYPES, Array, Value
from cerebrum_cli.gguf.header import Header, read_header, require_generative
from cerebrum_cli.library.installed import recommended_sampling
from cerebrum_cli.weights.table import encode_header, read_table


def problem_of(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    what = caught.value.message
    assert what.startswith(f"{path}: ") and what.isprintable() and caught.value.hint
    return what.removeprefix(f"{path}: ")


def header_with(tmp_path: Path, values: Mapping[str, Any]) -> Header:
    return read_header(write_model(tmp_path / "tiny.gguf", lambda writer: add_values(writer, values)))


def test_header_has_the_values_in_the_file(tmp_path: Path) -> None:
    values = {
        "general.file_type": 15,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 32768,
        "llama.attention.sliding_window": 4096,
        "llama.expert_count": 8,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": ["<s>", "</s>", "ä" * 300],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "\ufeff{{ messages }}",
    }
    header = header_with(tmp_path, values)
    assert (header.architecture, header.quantization, header.sizes.embedding_length) == ("llama", "Q4_K_M", 64)
    assert (header.n_layers, header.sizes.n_heads, header.n_kv_heads) == (2, 8, 2)
    assert [(layer.key_length, layer.value_length) for layer in header.sizes.layers] == [(16, 16), (16, 16)]
    assert (header.context_length, header.metadata["llama.expert_count"]) == (32768, 8)
    assert (header.sizes.vocabulary_size, sum(header.tensor_types.values()), header.parameters) == (3, 1, 512)
    assert (header.chat_template, header.kv_bytes_per_token) == ("{{ messages }}", 2 * 2 * 2 * (8 + 8))
    arrays = {"tokenizer.ggml.tokens": Array("string", 3), "tokenizer.ggml.scores": Array("f32", 3, (0.0, -1.0, -2.0))}
    assert header.metadata.items() >= {**arrays, "llama.rope.freq_base": 10000.0}.items()
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize(
    ("values", "n_kv_heads", "kv_bytes_per_token"),
    [
        ({}, 8, 2 * 2 * 2 * 64),  # as many as heads
        ({"head_count_kv": [1, 3], "key_length": 16, "value_length": 32}, 3, 2 * 4 * (16 + 32)),
        ({"head_count_kv": 2, "key_length": 512}, 2, 2 * 2 * 2 * (512 + 8)),
    ],
)
def test_header_sums_the_kv_cache_of_layers(
    tmp_path: Path, values: dict[str, Any], n_kv_heads: int, kv_bytes_per_token: int
) -> None:
    header = header_with(tmp_path, {f"llama.attention.{key}": value for key, value in values.items()})
    assert (header.n_kv_heads, header.kv_bytes_per_token) == (n_kv_heads, kv_bytes_per_token)


def test_header_without_values_and_of_the_old_mixtral_layout(tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(handmade(LLAMA))
    bare = read_header(path)
    assert (bare.quantization, bare.chat_template, bare.context_length) == (None, None, None)
    assert (bare.n_layers, bare.sizes.vocabulary_size, bare.kv_bytes_per_token) == (0, 0, 0)
    for name, is_old in ((b"blk.0.ffn_down.7.weight", True), (b"blk.0.ffn_down_exps.weight", False)):
        path.write_bytes(handmade(LLAMA, tensors=(tensor(name, (8,), 0, 0),), data=bytes(32)))
        assert read_header(path).per_expert_tensors == is_old


def test_types_equal_those_of_the_gguf_package() -> None:
    for kind, (block_size, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # never stored in a file; the package gives its two scales 32 bits each
            assert TENSOR_TYPES[kind.value] == (kind.name, block_size, block_bytes)
    for file_type in gguf.LlamaFileType:
        if file_type.name != "GUESSED":
            assert FILE_TYPES[file_type.value] == file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_")


def test_header_reports_a_path_that_is_not_a_file(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "nowhere.gguf") == "file not found"
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, Path("/dev/null"), tmp_path / "pipe.gguf"):
        assert problem_of(path) == "is not a file"
    assert problem_of(tmp_path / "file", b"") == "cannot be read: cannot mmap an empty file"
    assert problem_of(tmp_path / "file" / "inner.gguf") == "file not found"
    with pytest.raises(ModelFileError):
        read_header(Path("zero\0byte.gguf"))


def array(kind: int, length: int, content: bytes = b"") -> bytes:
    return entry(b"a", 9, struct.pack("<IQ", kind, length) + content)


def counts(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


def one_tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return handmade(LLAMA, tensors=(tensor(name, shape, kind, offset),), data=bytes(64))


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return handmade(LLAMA, entry(name, kind, value))


ZEROS = r"\x00" * 24


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html>\n" + bytes(100), rf"not a GGUF file: it begins with b'<!DOCTYPE html>\n{ZEROS}'"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "GGUF version 50,331,648, not 2 or 3"),
        (handmade(version=1), "GGUF version 1, not 2 or 3"),
        (handmade(version=4), "GGUF version 4, not 2 or 3"),
        (b"GGUF\x03\x00", "truncated or damaged: its header does not end before byte 6"),
        (counts(1 << 60, 2), "damaged: 1,152,921,504,606,846,976 tensors"),
        (counts(0, 1 << 40), "damaged: 0 tensors and 1,099,511,627,776 metadata"),
        (handmade(string(b"a")), "truncated or damaged"),
        (key(b"a", 8, struct.pack("<Q", 1 << 62)), "damaged: a metadata string of 4,611,686,018,427,387,904"),
        (key(b"a", 77, b""), "damaged: metadata value of unknown type 77"),
        (handmade(array(9, 1)), "damaged: metadata value of unknown type 9"),
        (handmade(array(8, 1 << 63)), "truncated or damaged"),
        (handmade(array(0, 2**64 - 1, bytes(8))), "truncated or damaged"),
        (handmade(array(7, 10_000)), "truncated or damaged"),
        (handmade(array(8, 1, struct.pack("<Q", 1 << 40) + b"a")), "damaged"),
        (handmade(array(8, 2, struct.pack("<Q", 2**64 - 1) + b"a")), "damaged"),
        (handmade(array(99, 1, bytes(8))), "damaged: metadata value of unknown type 99"),
        (handmade(), "not a language model: no general.architecture"),
        (key(b"llama.block_count", 8, string(b"\x1b[2J")), r"its 'llama.block_count' is '\x1b[2J'"),
        (key(b"llama.block_count", 4, b"\xff" * 4), "damaged: 4,294,967,295 layers"),
        (key(b"general.alignment", 4, struct.pack("<I", 3)), "alignment 3 is not a power of two"),
        (one_tensor(b"x", (1,) * 5), "damaged: the tensor 'x' has 5 dimensions"),
        (one_tensor(b"x", (1 << 40, 1 << 40)), "truncated: its tensors end at byte"),
        (one_tensor(b"x", (33,), 2), "rows of 33 weights in blocks of 32 (Q4_0)"),
        (one_tensor(b"x", (8,), 0, 2**63), "truncated: its tensors end at byte"),
    ],
)
def test_header_explains_damage(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in problem_of(tmp_path / "model.gguf", content)


def test_header_truncation_reports_both_sizes_and_unknown_types_have_none(tmp_path: Path) -> None:
    path = write_model(tmp_path / "short.gguf")
    size = path.stat().st_size
    assert read_header(path).tensor_types == {"F32": 1}
    os.truncate(path, size - 33)
    assert problem_of(path) == f"truncated: its tensors end at byte {size:,}, but the file has {size - 33:,} bytes"
    tensors = (tensor(b"x", (1 << 30,), 99, 0), tensor(b"y", (8,), 0, 64))
    path.write_bytes(handmade(LLAMA, tensors=tensors, data=bytes(96)))
    assert read_header(path).parameters == (1 << 30) + 8


VALID = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "penalty_repeat": 1.05}
OTHER = {"xtc_probability": 0.5, "mirostat": 2}
INVALID = {"temp": math.nan, "top_k": -1, "top_p": 1.5, "min_p": "0.1", "penalty_repeat": [1.0, 2.0]}
SAMPLING = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "repeat_penalty": 1.05}


@pytest.mark.parametrize(("values", "sampling"), [({**VALID, **OTHER}, SAMPLING), ({}, {}), (INVALID, {})])
def test_model_recommends_the_valid_sampling_of_its_file(
    tmp_path: Path, values: dict[str, Any], sampling: dict[str, float]
) -> None:
    header = header_with(tmp_path, {f"general.sampling.{key}": value for key, value in values.items()})
    assert recommended_sampling(header) == sampling


PATCHES = st.one_of(
    st.binary(min_size=1, max_size=9),
    st.sampled_from([struct.pack("<Q", n) for n in (0, 1, 255, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1)]),
)


@settings(deadline=2000)
@given(st.lists(st.tuples(st.integers(4, 700), PATCHES), max_size=4), st.none() | st.integers(0, 2000))
def test_header_mutations_raise_only_model_file_errors(
    chatml_model: Path, tmp_path_factory: pytest.TempPathFactory, patches: list[tuple[int, bytes]], length: int | None
) -> None:
    content = bytearray(chatml_model.read_bytes()[:length])
    for position, patch in patches:
        content[position : position + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    try:
        assert read_header(path).kv_bytes_per_token >= 0
    except ModelFileError as error:
        assert error.message.isprintable()


# Models that generate no text are refused before they are loaded: by their header, and by what llama.cpp knows.

NOT_CAUSAL = "an encoder, encoder-decoder or diffusion model, which is not supported"
HINT = " hint: use a decoder-only model; cerebrum list --available shows some"
EMBEDS = "an embedding model or reranker, which generates no text"


@pytest.mark.parametrize(
    ("architecture", "keys", "kind"),
    [
        ("llama", {}, None),
        ("llama", {"attention__causal": True, "pooling_type": 0}, None),
        ("llama", {"pooling_type": 2**32 - 1}, None),
        ("qwen2", {"attention__causal": False}, NOT_CAUSAL),
        ("qwen3", {"pooling_type": 3}, EMBEDS),
        ("qwen3", {"pooling_type": 4}, EMBEDS),
        ("qwen3", {"decision__type": 1}, "a decision model, which generates no text"),
    ],
)
def test_generative_kind_is_read_from_the_header(
    tmp_path: Path, architecture: str, keys: dict[str, int | bool], kind: str | None
) -> None:
    path = write_vocabulary(tmp_path / "model.gguf", architecture, **keys)
    header = read_header(path)
    assert header.unsupported == kind
    refused = re.escape(f"{path}: {kind} (architecture {architecture})")
    with pytest.raises(ModelFileError, match=f"^{refused}$") if kind else nullcontext():
        require_generative(path, header)


@pytest.mark.parametrize(("architecture", "kind"), [("t5", "a model with an encoder"), ("llada", "a diffusion model")])
def test_generative_kind_is_known_to_llama_after_loading(tmp_path: Path, architecture: str, kind: str) -> None:
    path = write_vocabulary(tmp_path / "model.gguf", architecture)
    with pytest.raises(ModelFileError, match=kind), open_vocabulary(path):
        pass


@pytest.mark.slow
def test_commands_refuse_an_encoder_only_model(new_user: CommandLine) -> None:
    path = write_vocabulary(new_user.home / "bert.gguf", "bert", attention__causal=False)
    (new_user.home / "rows.txt").write_text("hi\n")
    asks = [(*command, "-m", path, "hi") for command in (("ask",), ("ask", "--dry-run"), ("chat",))]
    for arguments in (*asks, ("pull", path), ("batch", "-m", path, "rows.txt", "-o", "out.jsonl")):
        assert_error(new_user.run(*arguments), 2, f"error: {path}: {NOT_CAUSAL} (architecture bert)", HINT)
    assert not list(new_user.home.glob("out.jsonl*"))
    assert new_user.run("show", path, "--json").object["unsupported"] == NOT_CAUSAL
    assert new_user.run("list", "--json").object == []


# Metadata of every type, and headers that are written.

SCALARS: Mapping[str, tuple[Any, ...]] = {
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    "FLOAT32": (1.5, -(2.0**-149), float("inf")),
    "FLOAT64": (0.1, -5e-324),
    "BOOL": (True, False),
}
STRINGS = (b"", b"plain", "naïve ▁".encode(), b"\xff\xfe\x00", b"\xf0\x9f")  # the last two are not UTF-8
KINDS = {kind.name: int(kind) for kind in GGUFValueType}


def write(path: Path, values: Mapping[str, Value]) -> Path:
    writer = GGUFWriter(path, "llama")
    for key, value in values.items():
        sub_type = GGUFValueType[value.item_type] if value.item_type else None
        writer.add_key_value(key, value.content, GGUFValueType[value.type], sub_type)
    write_file(writer)
    return path


def values_of_every_type() -> dict[str, Value]:
    values = {
        f"{kind}.{index}": Value(kind, item)
        for kind, items in {**SCALARS, "STRING": STRINGS}.items()
        for index, item in enumerate(items)
    }
    values |= {f"{kind}.array": Value("ARRAY", items * 3, kind) for kind, items in SCALARS.items()}
    return values | {"STRING.array": Value("ARRAY", STRINGS, "STRING"), "after": Value("UINT32", 7)}


def test_table_reads_an_empty_array_with_its_type(tmp_path: Path) -> None:
    items = [(kind, KINDS[kind]) for kind in (*SCALARS, "STRING")]
    empty = (entry(kind.encode(), KINDS["ARRAY"], struct.pack("<IQ", number, 0)) for kind, number in items)
    path = tmp_path / "empty.gguf"
    path.write_bytes(handmade(LLAMA, *empty, entry(b"last", KINDS["UINT32"], struct.pack("<I", 9))))
    found = read_table("empty", [path]).metadata
    assert [found[kind] for kind, _ in items] == [Value("ARRAY", (), kind) for kind, _ in items]
    assert found["last"] == Value("UINT32", 9)
    begin = encode_header(found, ())  # the package cannot write empty arrays
    assert (b"last" in begin, b"FLOAT32" in begin, struct.unpack_from("<QQ", begin, 8)) == (True, False, (0, 2))


def test_encoded_header_equals_the_header_of_its_file(recurrent_model: Path, four_layers: Path, tmp_path: Path) -> None:
    tokens = tuple(b"token \xff %d" % number for number in range(20_000))
    more = {
        "tokenizer.ggml.tokens": Value("ARRAY", tokens, "STRING"),
        "tokenizer.ggml.scores": Value("ARRAY", tuple(number / 3 for number in range(20_000)), "FLOAT32"),
        "tokenizer.ggml.token_type": Value("ARRAY", (1, -1) * 10_000, "INT32"),
    }
    long = write(tmp_path / "long.gguf", {**values_of_every_type(), **more})
    for path in (recurrent_model, four_layers, long):
        table, data = read_table("model", [path]), path.read_bytes()
        made = encode_header(table.metadata, (tensor[:3] for tensor in table.tensors.values()))
        assert made == data[: len(made)] + bytes(max(0, len(made) - len(data)))  # without tensors: not padded
        assert min((tensor.offset for tensor in table.tensors.values()), default=len(made)) == len(made) > 100
