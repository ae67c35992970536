"""Header reader on mutated GGUF files: it returns a header or raises ModelFileError."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import gguf
import pytest
from gguf_files import write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.header import read_header


def seed_bytes() -> bytes:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count_kv([1, 1])
        writer.add_token_list(["a", "b"])
        writer.add_chat_template("{{ messages }}")

    with tempfile.TemporaryDirectory() as directory:
        return write_model(Path(directory, "seed.gguf"), fill).read_bytes()


SEED = seed_bytes()
HEADER = len(SEED) - 2048  # the rest is the tensor's zeros
PATCHES = st.one_of(
    st.binary(min_size=1, max_size=9),
    st.sampled_from([struct.pack("<Q", n) for n in (0, 1, 255, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1)]),
    st.sampled_from([struct.pack("<I", n) for n in (*range(13), 1 << 16, (1 << 32) - 1)]),
)


@settings(max_examples=1000, deadline=2000)
@given(
    patches=st.lists(st.tuples(st.integers(4, HEADER), PATCHES), max_size=4),
    length=st.none() | st.integers(0, len(SEED)),
)
def test_header_mutations_raise_only_model_file_errors(
    tmp_path_factory: pytest.TempPathFactory, patches: list[tuple[int, bytes]], length: int | None
) -> None:
    content = bytearray(SEED)
    for position, patch in patches:
        content[position : position + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content[:length])
    try:
        header = read_header(path)
    except ModelFileError as error:
        assert error.message.isprintable()
    else:
        assert header.kv_bytes_per_token >= 0
