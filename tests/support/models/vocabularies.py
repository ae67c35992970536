"""Vocabularies of tiny models, loaded by the real llama.cpp without weights; strategies and helpers for them."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st
from tiny_models import SPECIAL_TOKENS, USER_DEFINED

from cerebrum_cli.core.conversation import PromptPart, Text
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.sizes import uniform_sizes

MARKS = tuple(SPECIAL_TOKENS)
"""Markup of the tiny ChatML vocabulary; indices are token ids."""

markup = st.sampled_from([*MARKS, "<", "think>", "|>", "<|im_", "end|>", "<|start", "/", "t", " ", "\n"])
marked_up = st.lists(markup | st.text(max_size=2), max_size=12).map("".join)


@contextmanager
def open_vocabulary(path: Path) -> Iterator[LlamaBackend]:
    options = LoadOptions(path, 2048, uniform_sizes(0, 1, 1), ContextOptions(256), vocabulary_only=True)
    backend = open_llama(options, lambda _: None, StopFlag())
    try:
        yield backend
    finally:
        backend.close()


def marks_in(ids: Iterable[int]) -> list[str]:
    """Markup tokens among ids of the tiny ChatML vocabulary, in order."""
    return [MARKS[token] for token in ids if token < len(MARKS)]


def text_of(parts: Sequence[PromptPart]) -> str:
    assert all(isinstance(part, Text) for part in parts)
    return "".join(part.value for part in parts if isinstance(part, Text))


def with_user_defined(source: Path, target: Path, tokens: Iterable[int]) -> Path:
    """Write the same model with the type of some tokens changed to USER_DEFINED."""
    data = bytearray(source.read_bytes())
    key = b"tokenizer.ggml.token_type"
    first = data.index(key) + len(key) + 4 + 4 + 8  # after the types of array and element, and the count
    for token in tokens:
        struct.pack_into("<i", data, first + 4 * token, USER_DEFINED)
    target.write_bytes(data)
    return target
