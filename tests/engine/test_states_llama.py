"""Saved states of the real llama.cpp: replies after restoring match an uninterrupted conversation."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from disks import full_disk
from llama_engines import TALE, greedy_reply, open_engine

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.token_ids import pack_tokens
from cerebrum_cli.engine.prompt_cache import CHECKSUM, HEAD, StateStore

pytestmark = pytest.mark.slow


def test_states_for_different_slot_counts_coexist(tmp_path: Path, chatml_model: Path) -> None:
    folder = tmp_path / os.fsdecode("Übung\n".encode() + b"\xff")  # may have any name
    for slots, cached in ((1, 0), (2, 0), (1, 1), (2, 1)):
        with open_engine(chatml_model, folder, slots=slots) as engine:
            prompt = engine.vocabulary.tokenize([Text(TALE)])
            reply, told = greedy_reply(engine, prompt)
            engine.save_prompts(64)
        assert (reply.cached, told) == (cached * (len(prompt) - 1), [])
    assert len(list(folder.iterdir())) == 2


def test_state_rejected_by_llama_cpp_is_removed(tmp_path: Path, chatml_model: Path) -> None:
    with open_engine(chatml_model, tmp_path) as engine:
        prompt = engine.vocabulary.tokenize([Text(TALE)])
        kind = engine.backend.state_kind
        assert kind

    def save(path: Path) -> None:
        path.write_bytes(HEAD.pack(b"none", 2, len(prompt)) + pack_tokens(prompt) + b"nothing of llama.cpp's")

    StateStore(tmp_path, 10**8, chatml_model.name, "plain").write(prompt, kind, save)
    with open_engine(chatml_model, tmp_path) as engine:
        reply, told = greedy_reply(engine, prompt)
    assert (reply.cached, told, len(list(tmp_path.iterdir()))) == (0, [], 0)


def test_full_disk_is_an_error_and_leaves_no_state(tmp_path: Path, chatml_model: Path) -> None:
    with open_engine(chatml_model, tmp_path) as engine:
        prompt = engine.vocabulary.tokenize([Text(TALE)])
        greedy_reply(engine, prompt)
        engine.save_prompts(64)
        [state] = tmp_path.iterdir()
        size = state.stat().st_size
        state.unlink()
        greedy_reply(engine, prompt)
        body = size - CHECKSUM.size
        for room in (body // 2, body - 1, body, size - 1):
            with full_disk(room), pytest.raises(EngineError) as caught:
                engine.save_prompts(64)
            is_noticed = room != body - 1  # llama.cpp ignores errors of fclose
            problem = "File too large" if is_noticed else "incomplete write"
            assert (caught.value.message, list(tmp_path.iterdir())) == (f"{tmp_path}: {problem}", [])
            assert greedy_reply(engine, prompt)[0].cached == len(prompt) - 1


def test_long_rope_models_save_no_states(tmp_path: Path) -> None:
    """With LongRoPE, tokens have other keys in a context longer than the original one."""
    for scaling, files in ((None, 0), ("yarn", 1)):
        keys = {**tiny_models.LLAMA.keys, "rope.scaling.original_context_length": "original"}
        metadata = {**tiny_models.bpe_metadata(), **({"llama.rope.scaling.type": scaling} if scaling else {})}
        sizes = {**tiny_models._transformer_sizes(tiny_models.Shape(), 2048), "original": 256}
        path = tmp_path / f"{scaling}.gguf"
        tiny_models._write(path, replace(tiny_models.LLAMA, keys=keys), sizes, metadata, 0)
        with open_engine(path, tmp_path / "states") as engine:
            greedy_reply(engine, engine.vocabulary.tokenize([Text(TALE)]))
            engine.save_prompts(64)
        assert len(list((tmp_path / "states").glob("*"))) == files
