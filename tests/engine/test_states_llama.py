"""Saved states of the real llama.cpp: replies after restoring match an uninterrupted conversation."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from asking import Reply
from llama_engines import MODELS, TALE, assert_matches_single_run, greedy_reply, open_engine

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.llama.state_files import SIZE
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.scheduler import common_prefix
from cerebrum_cli.engine.sequence import OPENING_TOKENS
from cerebrum_cli.engine.state_store import FOOTER, StateStore

pytestmark = pytest.mark.slow

TRIMS = ("mistral_model", "chatml_model")


def next_prompt(engine: LocalEngine, prompt: tuple[int, ...], reply: Reply) -> tuple[int, ...]:
    """The next prompt of a conversation."""
    return (*prompt, *reply.ids, *engine.vocabulary.tokenize([Text(" And then? ")]))


def test_restored_conversation_continues_identically(tmp_path: Path, tiny_model: Path) -> None:
    slots = 3
    with open_engine(tiny_model, tmp_path / "unused", slots=slots) as engine:
        prompt = engine.vocabulary.tokenize([Text(TALE)])
        greedy_reply(engine, prompt[:1], 700)  # growing the memory would empty it
        first, _ = greedy_reply(engine, prompt)
        then = next_prompt(engine, prompt, first)
        through, _ = greedy_reply(engine, then, 200)
    with open_engine(tiny_model, tmp_path, slots=slots) as engine:
        assert greedy_reply(engine, prompt, n=slots)[0].ids == first.ids
        engine.save_prompt_cache(64)
    assert len(list(tmp_path.glob("*.state"))) == 1
    with open_engine(tiny_model, tmp_path, slots=slots) as engine:
        again, told = greedy_reply(engine, then, 200)
    assert told == []
    assert (again.ids, again.cached) == (through.ids, through.cached)
    assert again.cached >= len(prompt) + len(first.ids) - 1


@pytest.mark.parametrize("name", MODELS)
def test_restored_conversation_can_be_shortened(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    tiny_model = request.getfixturevalue(name)
    with open_engine(tiny_model, tmp_path) as engine:
        prompt = engine.vocabulary.tokenize([Text(TALE)])
        greedy_reply(engine, prompt)
        engine.save_prompt_cache(64)
    for undone in (prompt, prompt[:-20], (*prompt[:-9], *engine_tokens(tiny_model, "But no."))):
        with open_engine(tiny_model, tmp_path) as engine:
            reply, told = greedy_reply(engine, undone, 40)
        shared = common_prefix(prompt, undone[:-1])
        checkpoint = len(prompt) - OPENING_TOKENS
        assert (reply.cached, told) == (shared if name in TRIMS else checkpoint * (checkpoint <= shared), [])
        assert_matches_single_run(tiny_model, undone, reply.ids)


def engine_tokens(tiny_model: Path, text: str) -> tuple[int, ...]:
    """Tokens of a text after other text."""
    with open_engine(tiny_model, Path("/nowhere")) as engine:
        return engine.vocabulary.tokenize([Text("a"), Text(text)])[-4:]


def test_restoring_works_across_context_sizes(tmp_path: Path, tiny_model: Path) -> None:
    for first, second in ((5, 600), (600, 5)):
        folder = tmp_path / str(first)
        with open_engine(tiny_model, folder) as engine:
            prompt = engine.vocabulary.tokenize([Text(TALE)])
            reply, _ = greedy_reply(engine, prompt, first)
            then = next_prompt(engine, prompt, replace(reply, ids=reply.ids[:5]))
            engine.save_prompt_cache(64)
        with open_engine(tiny_model, folder) as engine:
            reply, told = greedy_reply(engine, then, second)
        assert told == []
        assert reply.cached >= len(prompt) or (tiny_model.name, first) in (
            ("recurrent.gguf", 600),
            ("sliding_window.gguf", 600),
        )
        assert_matches_single_run(tiny_model, then, reply.ids[:40])


def test_states_for_different_slot_counts_coexist(tmp_path: Path, chatml_model: Path) -> None:
    folder = tmp_path / os.fsdecode("Übung\n".encode() + b"\xff")  # may have any name
    for slots, cached in ((1, 0), (2, 0), (1, 1), (2, 1)):
        with open_engine(chatml_model, folder, slots=slots) as engine:
            prompt = engine.vocabulary.tokenize([Text(TALE)])
            reply, told = greedy_reply(engine, prompt)
            engine.save_prompt_cache(64)
        assert (reply.cached, told) == (cached * (len(prompt) - 1), [])
    assert len(list(folder.iterdir())) == 2


def test_state_rejected_by_llama_cpp_is_ignored(tmp_path: Path, chatml_model: Path) -> None:
    with open_engine(chatml_model, tmp_path) as engine:
        prompt = engine.vocabulary.tokenize([Text(TALE)])
        kind = engine.backend.state_kind
        assert kind

    def save(path: Path) -> None:
        path.write_bytes(b"nothing of llama.cpp's")

    StateStore(tmp_path, 10**8, chatml_model.name, "plain").write(prompt, kind, 10, save)
    with open_engine(chatml_model, tmp_path) as engine:
        reply, told = greedy_reply(engine, prompt)
    assert (reply.cached, told, len(list(tmp_path.iterdir()))) == (0, [], 1)


def test_full_disk_is_an_error_and_leaves_no_state(tmp_path: Path, chatml_model: Path) -> None:
    with open_engine(chatml_model, tmp_path) as engine:
        prompt = engine.vocabulary.tokenize([Text(TALE)])
        greedy_reply(engine, prompt)
        engine.save_prompt_cache(64)
        [state] = tmp_path.iterdir()
        content = state.read_bytes()
        state.unlink()
        body, *_ = FOOTER.unpack(content[-FOOTER.size :])
        _, unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        for room in (body // 2, body - SIZE - 1, body - 1, body, len(content) - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, unlimited))
            try:
                with pytest.raises(EngineError) as caught:
                    engine.save_prompt_cache(64)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
            is_noticed = room != body - SIZE - 1  # llama.cpp ignores errors of fclose
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
            engine.save_prompt_cache(64)
        assert len(list((tmp_path / "states").glob("*"))) == files
