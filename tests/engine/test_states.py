"""The prompt cache on disk: states are found, verified, evicted and restored, also those of the real llama.cpp."""

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from asking import Reply, ask, collect_replies, generate, running_engine
from disks import full_disk
from hypothesis import given, settings, strategies as st
from llama_engines import TALE, greedy_reply, open_engine
from scripted_backend import END, ScriptedBackend, expected_reply, random_model, replies, tokens

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.files import PART
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.token_ids import pack_tokens
from cerebrum_cli.engine import prompt_cache
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.prompt_cache import CHECKSUM, HEAD, MIN_SAVED_TOKENS, StateStore
from cerebrum_cli.engine.requests import Request

# State files.

BODY = bytes(range(64))
TOKENS = (1, 2, 3, 70_000)


def open_store(directory: Path, *, limit: int = 10**9, model: str = "digest", format: str = "chatml") -> StateStore:
    return StateStore(directory, limit, model, format)


def put(
    states: StateStore, tokens: Sequence[int], *, body: bytes = BODY, kind: str = "kind", magic: bytes = b"ggsq"
) -> None:
    def save(path: Path) -> None:
        path.write_bytes(HEAD.pack(magic, 2, len(tokens)) + pack_tokens(tokens) + body)

    states.write(tokens, kind, save)


def held(states: StateStore, kind: str = "kind") -> list[tuple[int, ...]]:
    """Tokens of all intact states."""
    return sorted(tuple(state.tokens) for state in states.states(kind) if states.use(state))


def test_store_removes_damaged_states(tmp_path: Path) -> None:
    states = open_store(tmp_path)
    put(states, (1, 2, 9))
    [other] = tmp_path.iterdir()
    put(states, (1, 2, 3))
    [path] = {*tmp_path.iterdir()} - {other}
    whole = path.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :] for at in range(len(whole))]
    endless = HEAD.pack(b"ggsq", 2, 2**32 - 1) + whole[HEAD.size :]
    for damaged in (*flipped, whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0", whole[1:], endless):
        path.write_bytes(damaged)
        assert held(states) == [(1, 2, 9)]
    put(states, (1, 2, 3))
    assert held(states) == [(1, 2, 3), (1, 2, 9)]


@pytest.mark.parametrize(
    ("owner", "kind", "version"),
    [({"model": "another"}, "kind", 0), ({"format": "plain"}, "kind", 0), ({}, "another", 0), ({}, "kind", 1)],
)
def test_store_ignores_states_of_another_model_format_build_or_version(
    owner: dict[str, str], kind: str, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_store(tmp_path, **owner)  # type: ignore[arg-type]
    put(other, TOKENS, kind=kind)
    assert held(other, kind) == [TOKENS]
    monkeypatch.setattr(prompt_cache, "VERSION", prompt_cache.VERSION + version)
    assert held(open_store(tmp_path)) == []


def test_store_evicts_least_recently_used_states_and_no_other_file(tmp_path: Path) -> None:
    size = 10_000
    (tmp_path / "notes.txt").write_text("mine")
    states, other = (open_store(tmp_path, limit=3 * size + 3000, model=model) for model in ("digest", "another"))
    for age, store, token in ((300, states, 1), (200, other, 7), (100, states, 2)):
        put(store, (token,), body=bytes(size))
        [found] = [state for state in store.states("kind") if state.tokens[0] == token]
        os.utime(found.path, (time.time() - age,) * 2)
    [oldest] = [state for state in states.states("kind") if state.tokens[0] == 1]
    assert states.use(oldest)
    put(states, (3,), body=bytes(size))
    assert (held(states), held(other)) == ([(1,), (2,), (3,)], [])
    put(states, (4,), body=bytes(2 * size))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size + 3000
    assert len(held(states)) == 2 and (4,) in held(states) and (tmp_path / "notes.txt").exists()


def test_store_replaces_states_by_their_extension(tmp_path: Path) -> None:
    states = open_store(tmp_path)
    for saved in ((1, 2), (1, 3), (1, 2), (1, 2, 4)):
        put(states, saved)
    put(states, (1,), kind="another")
    put(open_store(tmp_path), (1, 3, 5))
    assert (held(states), held(states, "another")) == ([(1, 2, 4), (1, 3, 5)], [(1,)])


def test_store_files_are_private_and_unfinished_ones_are_removed(tmp_path: Path) -> None:
    directory, mask = tmp_path / "states", os.umask(0)
    try:
        put(open_store(directory), TOKENS)
    finally:
        os.umask(mask)
    [state] = directory.iterdir()
    assert (directory.stat().st_mode & 0o777, state.stat().st_mode & 0o777) == (0o700, 0o600)
    (directory / f".1-2.state.0.{2**22 + 1}{PART}").write_bytes(bytes(1000))
    put(open_store(directory), TOKENS)
    assert list(directory.iterdir()) == [state]


# Engines that restore states.

FILE = "a long file, " * 10  # 130 tokens
FIRST, SECOND = FILE + "first?", FILE + "second?"
GOES_ON = FIRST + "one. and then?"
SCRIPT = {FIRST: "one. ", SECOND: "two. ", GOES_ON: "three. ", "x" * 100: "y", "short": "brief"}


def scripted(**fields: object) -> ScriptedBackend:
    return ScriptedBackend(replies(SCRIPT), **{"context_size": 300, **fields})  # type: ignore[arg-type]


def caching_engine(
    backend: ScriptedBackend, directory: Path, limit: int = 10**6
) -> AbstractContextManager[LocalEngine]:
    """Start an engine with a prompt cache; check that it frees everything."""
    return running_engine(backend, open_store(directory, limit=limit))


def ask_once(engine: LocalEngine, prompt: str) -> Reply:
    [reply] = ask(engine, prompt)
    return reply


def fill_cache(directory: Path, prompt: str = FIRST, least: int = 1, limit: int = 10**6, **fields: object) -> None:
    """Save a prompt and its reply with one engine."""
    with caching_engine(scripted(**fields), directory, limit) as engine:
        ask_once(engine, prompt)
        engine.save_prompts(least)


def file_count(directory: Path) -> int:
    return len(list(directory.iterdir())) if directory.exists() else 0


@pytest.mark.parametrize(
    ("fields", "saved", "prompt", "cached"),
    [
        ({}, FIRST, GOES_ON, len(FIRST + "one. ")),
        ({"slots": 3}, FIRST, GOES_ON, len(FIRST + "one. ")),
        ({}, FIRST, FIRST, len(FIRST) - 1),
        ({"slots": 3}, FIRST, SECOND, len(FILE)),
        ({}, FIRST, "x" * 100, 0),
        ({"can_trim": False}, FIRST, FIRST, 0),
        ({"can_trim": False}, FIRST, SECOND, 0),
        ({"can_trim": False}, FIRST, GOES_ON, len(FIRST + "one. ")),
        ({"state_kind": None}, FIRST, FIRST, 0),
        ({"context_size": len(FIRST) + 10}, GOES_ON, FIRST, 0),
    ],
)
def test_cache_restores_what_a_new_engine_can_use(
    tmp_path: Path, fields: dict[str, Any], saved: str, prompt: str, cached: int
) -> None:
    fill_cache(tmp_path, saved, **{**fields, "context_size": 300})
    backend = scripted(**fields)
    with caching_engine(backend, tmp_path) as engine:
        said = ask_once(engine, prompt)
    assert (said.text, said.cached, backend.loads) == (SCRIPT[prompt], cached, int(cached > 0))
    assert backend.evaluated == len(prompt) - cached + len(SCRIPT[prompt])


def test_cache_restores_the_shortest_state_with_the_longest_prefix(tmp_path: Path) -> None:
    """Of conversations that share a system prompt, the long ones are not worth loading."""
    system = "a system prompt of some tokens. "
    script = {system + letter * 40 * len(system): letter for letter in "abc"} | {system: "d", f"{system}?": "e"}
    for prompt in script:
        with caching_engine(ScriptedBackend(replies(script), context_size=2000), tmp_path) as engine:
            cached = ask_once(engine, prompt).cached
            engine.save_prompts(1)
    assert cached == len(system)


def test_cache_skips_states_that_save_too_little(tmp_path: Path) -> None:
    fill_cache(tmp_path, GOES_ON)
    script = {FILE[:MIN_SAVED_TOKENS] + "?": "y", FILE[: MIN_SAVED_TOKENS - 1] + "?": "z"}
    for prompt, loads in zip(script, (1, 0), strict=True):
        backend = ScriptedBackend(replies(script), context_size=300)
        with caching_engine(backend, tmp_path) as engine:
            assert ask_once(engine, prompt).text == script[prompt]
        assert backend.loads == loads


def test_cache_keeps_a_slot_that_already_has_the_prefix(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    backend = scripted()
    with caching_engine(backend, tmp_path) as engine:
        for prompt, loads in ((FIRST, 1), (GOES_ON, 1), (FIRST, 1), ("x" * 100, 1), (SECOND, 2)):
            assert ask_once(engine, prompt).text == SCRIPT[prompt]
            assert backend.loads == loads


BLOCKS = st.lists(st.sampled_from([tuple(letter * 40) for letter in (b"a", b"b")]), min_size=1, max_size=4)


@pytest.mark.slow
@given(
    engines=st.lists(st.lists(st.tuples(BLOCKS, st.integers(0, 2)), min_size=1, max_size=3), min_size=2, max_size=4),
    slots=st.integers(1, 3),
    can_trim=st.booleans(),
    limit=st.sampled_from([1500, 10**6]),
)
@settings(max_examples=30)
def test_cache_never_changes_replies(
    engines: list[list[tuple[list[tuple[int, ...]], int]]], slots: int, can_trim: bool, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for prompts in engines:
            backend = ScriptedBackend(random_model, slots=slots, can_trim=can_trim, context_size=250)
            with caching_engine(backend, Path(folder), limit) as engine:
                for blocks, seed in prompts:
                    prompt = tuple(token for block in blocks for token in block)
                    request = Request(prompt, SamplingParams(seed=seed, max_tokens=80), Ask(n=2))
                    for sample in collect_replies(generate(engine, [request])).values():
                        assert sample.ids == expected_reply(prompt, sample.seed, 80, 250)[0]
                    engine.save_prompts(1)


def test_saving_skips_what_is_saved_already_too_short_or_too_large(tmp_path: Path) -> None:
    whole = len(FIRST + "one. ")
    fill_cache(tmp_path, least=whole + 1)
    fill_cache(tmp_path, limit=100)
    assert file_count(tmp_path) == 0
    for prompt, least, files in ((FIRST, whole, 1), (FIRST, 1, 1), (SECOND, 20, 1), (SECOND, 1, 2), (GOES_ON, 1, 2)):
        fill_cache(tmp_path, prompt, least)
        assert file_count(tmp_path) == files


def test_saving_failure_is_an_error_and_the_engine_continues(tmp_path: Path) -> None:
    fill_cache(tmp_path / "states")
    (tmp_path / "file").write_text("in the way")
    for folder, unwritable, problem in (("states", True, "no space left"), ("file", False, f"{tmp_path / 'file'}: ")):
        with caching_engine(scripted(unwritable=unwritable), tmp_path / folder) as engine:
            ask_once(engine, SECOND)
            with pytest.raises(EngineError, match=problem):
                engine.save_prompts(1)
            assert ask_once(engine, GOES_ON).text == "three. "
    assert file_count(tmp_path / "states") == 1


def end_at_once(held: tuple[int, ...], seed: int) -> int:
    """End every reply to `SECOND` with seed 0 at its first token; repeat `x` otherwise."""
    return END if held == tokens(SECOND) and seed == 0 else ord("x")


def test_saving_skips_copies_that_no_decode_has_made(tmp_path: Path) -> None:
    backend = ScriptedBackend(end_at_once, slots=2, context_size=300)
    with caching_engine(backend, tmp_path) as engine:
        one = SamplingParams(max_tokens=1)
        list(generate(engine, [Request(tokens("x" * 100), one), Request(tokens(SECOND), one)]))
        assert [bytes(held) for held in backend.memory] == [b"x" * 100, SECOND.encode()]
        # the second sample's copy is in the lower slot
        list(generate(engine, [Request(tokens(SECOND), one, Ask(n=2))]))
        assert backend.pending_copies == {0, 1}
        engine.save_prompts(1)
        engine.save_prefix(tokens(SECOND))
        assert file_count(tmp_path) == 0
        list(generate(engine, [Request(tokens(SECOND), one)]))  # decodes
        engine.save_prompts(1)
        assert file_count(tmp_path) == 1


def test_restoring_spares_slots_of_pending_copies(tmp_path: Path) -> None:
    fill_cache(tmp_path, GOES_ON, slots=2)
    backend = ScriptedBackend(end_at_once, slots=2, context_size=300)
    with caching_engine(backend, tmp_path) as engine:
        params = SamplingParams(max_tokens=20, seed=0)
        requests = [Request(tokens(SECOND), params, Ask(n=2)), Request(tokens(GOES_ON), params)]
        said = collect_replies(generate(engine, requests))
    assert [reply.text for reply in said.values()] == ["", "x" * 20, "x" * 20]


@pytest.mark.slow
def test_states_for_different_slot_counts_coexist(tmp_path: Path, chatml_model: Path) -> None:
    folder = tmp_path / os.fsdecode("Übung\n".encode() + b"\xff")  # may have any name
    for slots, cached in ((1, 0), (2, 0), (1, 1), (2, 1)):
        with open_engine(chatml_model, folder, slots=slots) as engine:
            prompt = engine.vocabulary.tokenize([Text(TALE)])
            reply, told = greedy_reply(engine, prompt)
            engine.save_prompts(64)
        assert (reply.cached, told) == (cached * (len(prompt) - 1), [])
    assert file_count(folder) == 2


@pytest.mark.slow
def test_state_rejected_by_llama_cpp_is_removed(tmp_path: Path, chatml_model: Path) -> None:
    with open_engine(chatml_model, tmp_path) as engine:
        prompt, kind = engine.vocabulary.tokenize([Text(TALE)]), engine.backend.state_kind
        assert kind
        put(open_store(tmp_path, model=chatml_model.name, format="plain"), prompt, kind=kind, magic=b"none")
        reply, told = greedy_reply(engine, prompt)
    assert (reply.cached, told, file_count(tmp_path)) == (0, [], 0)


@pytest.mark.slow
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
            assert (caught.value.message, file_count(tmp_path)) == (f"{tmp_path}: {problem}", 0)
            assert greedy_reply(engine, prompt)[0].cached == len(prompt) - 1


@pytest.mark.slow
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
