"""The tiny models are real: llama.cpp tokenizes with them as with the models they stand for, and decodes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_models import (
    SPECIAL_TOKENS,
    write_chatml,
    write_mistral,
    write_recurrent,
    write_sliding_window,
)

from cerebrum_cli.engine.llama.bindings import llama

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "formats" / "cerebrum.json").read_text("utf-8"))
WRITERS = (write_mistral, write_chatml, write_recurrent, write_sliding_window)

Written = Callable[[Callable[[Path], Path]], Path]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Write each model once."""
    directory = tmp_path_factory.mktemp("models")

    def written(writer: Callable[[Path], Path]) -> Path:
        path = directory / f"{writer.__name__}.gguf"
        return path if path.exists() else writer(path)

    return written


@contextmanager
def loaded(path: Path, *, vocabulary_only: bool = False) -> Iterator[Any]:
    params = llama.llama_model_default_params()
    params.vocab_only = vocabulary_only
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model
    try:
        yield model
    finally:
        llama.llama_model_free(model)


@contextmanager
def opened(model: Any, **settings: int) -> Iterator[Any]:
    """Open a context on one thread, which is enough and leaves no OpenMP team behind."""
    params = llama.llama_context_default_params()
    for name, value in {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, **settings}.items():
        setattr(params, name, value)
    context = llama.llama_init_from_model(model, params)
    assert context
    try:
        yield context
    finally:
        llama.llama_free(context)


def tokenize(model: Any, text: str, *, special: bool) -> list[int]:
    data = text.encode()
    tokens = (llama.llama_token * (len(data) + 2))()
    vocabulary = llama.llama_model_get_vocab(model)
    count = llama.llama_tokenize(vocabulary, data, len(data), tokens, len(tokens), True, special)
    assert count >= 0
    return list(tokens[:count])


def decode(context: Any, tokens: list[int]) -> None:
    array = (llama.llama_token * len(tokens))(*tokens)  # the batch holds only its address
    assert llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))) == 0


@pytest.mark.parametrize("writer", WRITERS)
def test_tiny_model_file_depends_only_on_its_seed(
    writer: Callable[..., Path], model_path: Written, tmp_path: Path
) -> None:
    first = model_path(writer).read_bytes()
    assert writer(tmp_path / "again.gguf", seed=0).read_bytes() == first
    assert writer(tmp_path / "other.gguf", seed=1).read_bytes() != first


def test_mistral_vocabulary_tokenizes_every_golden_prompt(model_path: Written) -> None:
    with loaded(model_path(write_mistral), vocabulary_only=True) as model:
        for case in GOLDEN:
            text = case["prompt"].removeprefix("<s>")
            assert tokenize(model, text, special=False) == case["mistral_v1_token_ids"], case["name"]


def test_chatml_special_tokens_are_single_tokens(model_path: Written) -> None:
    with loaded(model_path(write_chatml), vocabulary_only=True) as model:
        assert tokenize(model, "".join(SPECIAL_TOKENS), special=True) == list(range(len(SPECIAL_TOKENS)))
        assert len(tokenize(model, " the and", special=False)) == 2
        assert len(tokenize(model, "é\n", special=False)) == 3
        vocabulary = llama.llama_model_get_vocab(model)
        ends = {token for token in range(275) if llama.llama_vocab_is_eog(vocabulary, token)}
        assert ends == {list(SPECIAL_TOKENS).index(text) for text in ("<|endoftext|>", "<|im_end|>", "<|end|>")}


def test_user_defined_tokens_match_in_plain_text(model_path: Written) -> None:
    with loaded(model_path(write_chatml), vocabulary_only=True) as model:
        assert len(tokenize(model, "<think>", special=False)) == 1
        assert len(tokenize(model, "<|im_end|>", special=False)) == len("<|im_end|>")


def test_recurrent_model_cannot_remove_its_last_tokens(model_path: Written) -> None:
    with loaded(model_path(write_recurrent)) as model, opened(model) as context:
        assert llama.llama_model_is_recurrent(model)
        decode(context, tokenize(model, "the answer", special=False))
        memory = llama.llama_get_memory(context)
        assert not llama.llama_memory_seq_rm(memory, 0, 4, -1)
        assert llama.llama_memory_seq_rm(memory, 0, -1, -1)


def test_sliding_window_drops_the_oldest_tokens(model_path: Written) -> None:
    with loaded(model_path(write_sliding_window)) as model:
        assert llama.llama_model_n_swa(model) == 32
        with opened(model, n_ctx=1024, n_ubatch=32, swa_full=False) as context:
            decode(context, tokenize(model, "x" * 600, special=False))
            memory = llama.llama_get_memory(context)
            assert llama.llama_memory_seq_pos_max(memory, 0) == 599
            assert llama.llama_memory_seq_pos_min(memory, 0) > 0
