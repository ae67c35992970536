"""Metadata and headers of GGUF files: read as the `gguf` package writes them, and written byte for byte like it."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, GGUFWriter
from gguf_files import LLAMA, entry, handmade, string, tensor

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.parser import Value
from cerebrum_cli.gguf.table import encode_header, read_table

SCALARS: Mapping[str, tuple[Any, ...]] = {
    "UINT8": (0, 255),
    "INT8": (-128, 127),
    "UINT16": (0, 65535),
    "INT16": (-32768, 32767),
    "UINT32": (0, 2**32 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "FLOAT32": (1.5, -(2.0**-149), float("inf")),
    "BOOL": (True, False),
    "UINT64": (0, 2**64 - 1),
    "INT64": (-(2**63), 2**63 - 1),
    "FLOAT64": (0.1, -5e-324),
}
STRINGS = (b"", b"plain", "naïve ▁".encode(), b"\xff\xfe\x00", b"\xf0\x9f")  # the last two are not UTF-8
KINDS = {kind.name: int(kind) for kind in GGUFValueType}


def write(path: Path, values: Mapping[str, Value]) -> Path:
    writer = GGUFWriter(path, "llama")
    for key, value in values.items():
        sub_type = GGUFValueType[value.item_type] if value.is_array else None
        writer.add_key_value(key, value.content, GGUFValueType[value.type], sub_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def values_of_every_type() -> dict[str, Value]:
    found = {f"{kind}.{at}": Value(kind, each) for kind, every in SCALARS.items() for at, each in enumerate(every)}
    found |= {f"{kind}.array": Value("ARRAY", every * 3, kind) for kind, every in SCALARS.items()}
    found |= {f"STRING.{at}": Value("STRING", each) for at, each in enumerate(STRINGS)}
    return found | {"STRING.array": Value("ARRAY", STRINGS, "STRING"), "after": Value("UINT32", 7)}


def test_table_reads_the_values_the_gguf_package_writes(tmp_path: Path) -> None:
    values = values_of_every_type()
    path = write(tmp_path / "values.gguf", values)
    found = dict(read_table("values", [path]).metadata)
    assert found.pop("general.architecture") == Value("STRING", "llama")
    for key, value in values.items():
        is_text = value.type == "STRING"
        expected = value._replace(content=value.content.decode("utf-8", "surrogateescape")) if is_text else value
        assert repr(found[key]) == repr(expected)  # True differs from 1, and 1 from 1.0
    assert found.keys() == values.keys()


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


@pytest.mark.parametrize("model", ["mistral_model", "recurrent_model", "sliding_window_model", "four_layers"])
def test_encoded_header_equals_the_header_of_its_file(model: str, request: pytest.FixtureRequest) -> None:
    assert_header_encoded(request.getfixturevalue(model))


def test_encoded_header_has_every_type_and_long_vocabularies(tmp_path: Path) -> None:
    tokens = tuple(b"token \xff %d" % number for number in range(20_000))
    more = {
        "tokenizer.ggml.tokens": Value("ARRAY", tokens, "STRING"),
        "tokenizer.ggml.scores": Value("ARRAY", tuple(number / 3 for number in range(20_000)), "FLOAT32"),
        "tokenizer.ggml.token_type": Value("ARRAY", (1, -1) * 10_000, "INT32"),
    }
    assert_header_encoded(write(tmp_path / "long.gguf", {**values_of_every_type(), **more}))


def assert_header_encoded(path: Path) -> None:
    """Check that the header encoded from a file's table is the beginning of the file."""
    table = read_table("model", [path])
    made = encode_header(table.metadata, (tensor[:3] for tensor in table.tensors.values()))
    data = path.read_bytes()
    assert len(made) > 100
    assert made == data[: len(made)] + bytes(max(0, len(made) - len(data)))  # files without tensors are not padded
    begin = min((tensor.offset for tensor in table.tensors.values()), default=len(made))
    assert begin == len(made)


def array(kind: int, length: int, content: bytes = b"") -> bytes:
    return entry(b"some.array", KINDS["ARRAY"], struct.pack("<IQ", kind, length) + content)


STRING = KINDS["STRING"]


@pytest.mark.parametrize(
    "damaged",
    [
        array(KINDS["UINT8"], 2**64 - 1, bytes(8)),
        array(KINDS["BOOL"], 10_000),
        array(STRING, 1 << 40, struct.pack("<Q", 1) + b"a"),
        array(STRING, 1, struct.pack("<Q", 1 << 40) + b"a"),
        array(STRING, 2, struct.pack("<Q", 2**64 - 1) + b"a"),
        array(99, 1, bytes(8)),
        array(KINDS["ARRAY"], 1, struct.pack("<IQI", KINDS["UINT32"], 1, 7)),
        array(KINDS["ARRAY"], 0),
        entry(b"some.value", 99, bytes(8)),
        entry(b"some.text", STRING, struct.pack("<Q", 1 << 50)),
    ],
)
def test_table_reports_damage_in_one_line(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(handmade(LLAMA, damaged))
    begin = time.process_time()
    with pytest.raises(ModelFileError) as caught:
        read_table("damaged", [path])
    assert time.process_time() - begin < 1
    assert str(path) in str(caught.value)
    assert "damaged" in str(caught.value)
    assert "\n" not in caught.value.message + caught.value.hint


def test_table_reports_a_truncated_file_in_one_line(tmp_path: Path) -> None:
    path, strings = tmp_path / "model.gguf", array(STRING, 2, string(b"a") * 2)
    data = handmade(LLAMA, strings, tensors=(tensor(b"w", (4,), 0, 0),), data=bytes(16))
    path.write_bytes(data)
    assert read_table("whole", [path]).metadata["some.array"].content == (b"a", b"a")
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(ModelFileError) as caught:
            read_table("short", [path])
        assert "\n" not in caught.value.message + caught.value.hint
