"""An engine with a prompt cache on disk evaluates nothing that another engine saved."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from asking import collect_replies
from hypothesis import given
from hypothesis import strategies as st
from prompt_caching import (
    FILE,
    FIRST,
    GOES_ON,
    SCRIPT,
    SECOND,
    ask_once,
    caching_engine,
    file_count,
    fill_cache,
    scripted,
)
from scripted_backend import ScriptedBackend, expected_reply, random_model, replies, tokens

from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.prompt_cache import MIN_SAVED_TOKENS
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.state_store import DAMAGED


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    ("prompt", "reply", "cached"),
    [
        (GOES_ON, "three. ", len(FIRST) + len("one. ")),
        (FIRST, "one. ", len(FIRST) - 1),
        (SECOND, "two. ", len(FILE)),
        ("x" * 100, "y", 0),
    ],
)
def test_cache_restores_the_prefix_in_a_new_engine(
    tmp_path: Path, slots: int, prompt: str, reply: str, cached: int
) -> None:
    fill_cache(tmp_path, slots=slots)
    backend = scripted(slots=slots)
    with caching_engine(backend, tmp_path) as engine:
        said, told = ask_once(engine, prompt)
    assert (said.text, said.cached, told) == (reply, cached, [])
    assert backend.evaluated == len(prompt) - cached + len(reply)


def test_cache_restores_once_for_all_samples(tmp_path: Path) -> None:
    fill_cache(tmp_path, slots=4)
    backend = scripted(slots=4)
    with caching_engine(backend, tmp_path) as engine:
        said, _ = ask_once(engine, SECOND, n=4)
        engine.save_prompt_cache(64)
    assert (said.text, backend.loads, file_count(tmp_path)) == ("two. ", 1, 1)
    assert backend.evaluated == len("second?") + 4 * len("two. ")


def test_cache_is_not_used_for_models_without_states(tmp_path: Path) -> None:
    fill_cache(tmp_path, state_kind=None)
    assert file_count(tmp_path) == 0
    fill_cache(tmp_path)
    fill_cache(tmp_path, state_kind=None)
    backend = scripted(state_kind=None)
    with caching_engine(backend, tmp_path) as engine:
        assert ask_once(engine, FIRST)[0].cached == backend.loads == 0


def test_cache_ignores_states_of_another_build(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    backend = scripted(state_kind="of another build")
    with caching_engine(backend, tmp_path) as engine:
        said, told = ask_once(engine, FIRST)
    assert (said.cached, told, file_count(tmp_path)) == (0, [], 1)


def test_cache_reports_a_damaged_state_and_evaluates_again(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with caching_engine(scripted(), tmp_path) as engine:
        said, told = ask_once(engine, FIRST)
        assert (said.text, said.cached, told, file_count(tmp_path)) == ("one. ", 0, [DAMAGED], 0)
        said, told = ask_once(engine, FIRST)
    assert (said.text, said.cached, told) == ("one. ", len(FIRST) - 1, [])


def test_cache_reports_a_rejected_state_and_evaluates_again(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    backend = scripted(refuses=True)
    with caching_engine(backend, tmp_path) as engine:
        said, told = ask_once(engine, FIRST)
    assert (said.text, said.cached, told, backend.loads) == ("one. ", 0, [DAMAGED], 1)
    assert file_count(tmp_path) == 0


def test_cache_reserves_memory_for_a_state_longer_than_needed(tmp_path: Path) -> None:
    fill_cache(tmp_path, GOES_ON)
    backend = scripted()
    with caching_engine(backend, tmp_path) as engine:
        said, _ = ask_once(engine, FIRST, limit=1)
    assert (said.cached, backend.capacity) == (len(FIRST) - 1, len(GOES_ON) + len("three. "))


def test_cache_skips_states_longer_than_context_or_memory(tmp_path: Path) -> None:
    fill_cache(tmp_path, GOES_ON)
    for context, before in ((len(FIRST) + 10, None), (300, "x" * 100)):
        backend = scripted(context_size=context)
        with caching_engine(backend, tmp_path) as engine:
            if before:
                ask_once(engine, before, limit=len(FIRST) + 5 - len(before))
            said, told = ask_once(engine, FIRST, limit=5)
        assert (said.text, said.cached, told, backend.loads) == ("one. ", 0, [], 0)


def test_cache_without_trimming_restores_only_whole_prefixes(tmp_path: Path) -> None:
    fill_cache(tmp_path, can_trim=False)
    for prompt, cached in ((FIRST, 0), (SECOND, 0), (GOES_ON, len(FIRST + "one. "))):
        backend = scripted(can_trim=False)
        with caching_engine(backend, tmp_path) as engine:
            said, _ = ask_once(engine, prompt)
        assert (said.text, said.cached, backend.loads) == (SCRIPT[prompt], cached, int(cached > 0))


def test_cache_skips_states_that_save_too_little(tmp_path: Path) -> None:
    fill_cache(tmp_path, GOES_ON)
    script = {FILE[:MIN_SAVED_TOKENS] + "?": "y", FILE[: MIN_SAVED_TOKENS - 1] + "?": "z"}
    for prompt, loads in zip(script, (1, 0), strict=True):
        backend = ScriptedBackend(replies(script), context_size=300)
        with caching_engine(backend, tmp_path) as engine:
            assert ask_once(engine, prompt)[0].text == script[prompt]
        assert backend.loads == loads


def test_cache_keeps_a_slot_that_already_has_the_prefix(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    backend = scripted()
    with caching_engine(backend, tmp_path) as engine:
        for prompt, loads in ((FIRST, 1), (GOES_ON, 1), (FIRST, 1), ("x" * 100, 1), (SECOND, 2)):
            assert ask_once(engine, prompt)[0].text == SCRIPT[prompt]
            assert backend.loads == loads


@pytest.mark.parametrize("slots", [1, 2])
def test_cache_restores_beside_running_sequences(tmp_path: Path, slots: int) -> None:
    fill_cache(tmp_path, slots=slots)
    backend = scripted(slots=slots)
    with caching_engine(backend, tmp_path) as engine:
        running = engine.generate([Request(tokens("short"))])
        events = [next(running)]
        said, _ = ask_once(engine, GOES_ON)
        [short] = collect_replies([*events, *running]).values()
    assert (said.text, said.cached, short.text) == ("three. ", len(FIRST + "one. "), "brief")
    assert backend.loads == 1


BLOCKS = st.lists(st.sampled_from([tuple(letter * 40) for letter in (b"a", b"b")]), min_size=1, max_size=4)


@given(
    engines=st.lists(st.lists(st.tuples(BLOCKS, st.integers(0, 2)), min_size=1, max_size=3), min_size=2, max_size=4),
    slots=st.integers(1, 3),
    can_trim=st.booleans(),
    limit=st.sampled_from([1500, 10**6]),
)
def test_cache_never_changes_replies(
    engines: list[list[tuple[list[tuple[int, ...]], int]]], slots: int, can_trim: bool, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for prompts in engines:
            backend = ScriptedBackend(random_model, slots=slots, can_trim=can_trim, context_size=250)
            with caching_engine(backend, Path(folder), limit) as engine:
                for blocks, seed in prompts:
                    prompt = tuple(token for block in blocks for token in block)
                    events = engine.generate([Request(prompt, SamplingParams(seed=seed, max_tokens=80), n=2)])
                    for sample in collect_replies(events).values():
                        assert sample.ids == expected_reply(prompt, sample.seed, 80, 250)[0]
                    engine.save_prompt_cache(1)
