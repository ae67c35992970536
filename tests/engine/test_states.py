"""The prompt cache on disk: states are found, verified and evicted; engines restore and save them."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from asking import Reply, collect_replies, running_engine
from command_line import start_python
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_backend import END, ScriptedBackend, expected_reply, random_model, replies, tokens
from state_files import BODY, TOKENS, find, open_store, put

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import Event, NoticeEvent, SequenceId, TokenEvent
from cerebrum_cli.core.files import PART
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.prompt_cache import MIN_SAVED_TOKENS
from cerebrum_cli.engine.scheduler import common_prefix
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.state_store import DAMAGED

# State files.


def held(directory: Path) -> list[tuple[int, ...]]:
    """Tokens of all states for the default model, as another process finds them."""
    states = open_store(directory)
    found = {state.tokens for token in range(10) if (state := find(states, [token])[0])}
    return sorted(found)


@given(
    kept=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), max_size=6),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=6),
)
@settings(max_examples=50)
def test_store_finds_the_state_with_the_longest_prefix(kept: list[tuple[int, ...]], prompt: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        states = open_store(Path(folder))
        for tokens in kept:
            put(states, tokens)
        best = max((common_prefix(tokens, prompt) for tokens in kept), default=0)
        for reader in (states, open_store(Path(folder))):
            found, told = find(reader, prompt)
            assert (common_prefix(found.tokens, prompt) if found else 0, told) == (best, [])
            assert not found or found.path.read_bytes().startswith(BODY)
            assert reader.stored_prefix(prompt, "kind", lambda length, shared: True) == best


def test_store_removes_a_damaged_state_and_finds_the_next_best(tmp_path: Path) -> None:
    put(open_store(tmp_path), (1, 2, 9))
    [other] = tmp_path.iterdir()
    put(open_store(tmp_path), (1, 2, 3))
    [path] = {*tmp_path.iterdir()} - {other}
    whole = path.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :] for at in range(len(whole))]
    for damaged in (*flipped, whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0", whole[1:]):
        path.write_bytes(damaged)
        states = open_store(tmp_path)
        found, told = find(states, (1, 2, 3, 4))
        assert found and (found.tokens, told, path.exists()) == ((1, 2, 9), [DAMAGED], False)
        assert find(states, (1, 2, 3, 4)) == (found, [])


@pytest.mark.parametrize("other", [{"model": "another"}, {"format": "plain"}, {"kind": "another"}])
def test_store_ignores_states_of_another_model_format_or_build(tmp_path: Path, other: dict[str, str]) -> None:
    kind = other.pop("kind", "kind")
    put(open_store(tmp_path, **other), TOKENS, kind=kind)  # type: ignore[arg-type]
    assert find(open_store(tmp_path), TOKENS) == (None, [])
    assert find(open_store(tmp_path, **other), TOKENS, kind=kind)[0]  # type: ignore[arg-type]


def test_store_evicts_least_recently_used_states_and_no_other_file(tmp_path: Path) -> None:
    size = 10_000
    (tmp_path / "notes.txt").write_text("mine")
    states, other = (open_store(tmp_path, limit=3 * size + 3000, model=model) for model in ("digest", "another"))
    for age, store, token in ((300, states, 1), (200, other, 7), (100, states, 2)):
        put(store, (token,), body=bytes(size))
        found, _ = find(store, (token,))
        assert found
        os.utime(found.path, (time.time() - age,) * 2)
    assert find(states, (1,))[0]  # used now
    put(states, (3,), body=bytes(size))
    assert held(tmp_path) == [(1,), (2,), (3,)] and find(other, (7,)) == (None, [])
    put(states, (4,), body=bytes(2 * size))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size + 3000
    assert len(held(tmp_path)) == 2 and (4,) in held(tmp_path) and (tmp_path / "notes.txt").exists()


def test_store_replaces_states_by_their_extension(tmp_path: Path) -> None:
    states = open_store(tmp_path)
    for saved in ((1, 2), (1, 3), (1, 2), (1, 2, 4)):
        put(states, saved)
    put(states, (1,), kind="another")
    put(open_store(tmp_path), (1, 3, 5))
    assert len(list(tmp_path.iterdir())) == 3
    assert [find(states, (1, end))[0].tokens for end in (2, 3)] == [(1, 2, 4), (1, 3, 5)]  # type: ignore[union-attr]
    assert find(states, (1,), kind="another")[0]


def test_store_files_are_private_and_unfinished_ones_are_removed(tmp_path: Path) -> None:
    directory, mask = tmp_path / "states", os.umask(0)
    try:
        put(open_store(directory), TOKENS)
    finally:
        os.umask(mask)
    [state] = directory.iterdir()
    assert (directory.stat().st_mode & 0o777, state.stat().st_mode & 0o777) == (0o700, 0o600)
    (directory / f".1-2.state.{'0' * 8}{PART}").write_bytes(bytes(1000))
    find(open_store(directory), TOKENS)
    assert list(directory.iterdir()) == [state]


@pytest.mark.slow
def test_store_is_safe_for_concurrent_processes(tmp_path: Path) -> None:
    code = (
        "import random, sys\n"
        "from state_files import *\n"
        "draw = random.Random(int(sys.argv[2]))\n"
        "states = open_store(Path(sys.argv[1]), limit=40_000)\n"
        "for _ in range(100):\n"
        "    tokens = [draw.randrange(3) for _ in range(draw.randrange(1, 5))]\n"
        "    put(states, tokens, body=bytes(tokens) * 1000)\n"
        "    found, told = find(states, [draw.randrange(3) for _ in range(5)])\n"
        "    assert told == [], told\n"
    )
    processes = [start_python(code, tmp_path, seed) for seed in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    names = [path.name for path in tmp_path.iterdir()]
    assert names and all(name.endswith(".state") for name in names)


# Engines that restore states.

FILE = "a long file, " * 10  # 130 tokens
FIRST, SECOND = FILE + "first?", FILE + "second?"
GOES_ON = FIRST + "one. and then?"
SCRIPT = {FIRST: "one. ", SECOND: "two. ", GOES_ON: "three. ", "x" * 100: "y", "short": "brief"}


def scripted(**fields: object) -> ScriptedBackend:
    """A backend with the default script, and a context for it."""
    return ScriptedBackend(replies(SCRIPT), **{"context_size": 300, **fields})  # type: ignore[arg-type]


def caching_engine(
    backend: ScriptedBackend, directory: Path, limit: int = 10**6
) -> AbstractContextManager[LocalEngine]:
    """Start an engine with a prompt cache; check that it frees everything."""
    return running_engine(backend, open_store(directory, limit=limit))


def ask_once(
    engine: LocalEngine, prompt: str, *, n: int = 1, limit: int | None = None
) -> tuple[Reply, list[NoticeEvent]]:
    """The first reply to a prompt, and the notices."""
    events: list[Event] = list(engine.generate([Request(tokens(prompt), SamplingParams(max_tokens=limit), n=n)]))
    said = collect_replies(event for event in events if not isinstance(event, NoticeEvent))
    return said[SequenceId(0)], [event for event in events if isinstance(event, NoticeEvent)]


def fill_cache(directory: Path, prompt: str = FIRST, least: int = 1, limit: int = 10**6, **fields: object) -> None:
    """Save a prompt and its reply with one engine."""
    with caching_engine(scripted(**fields), directory, limit) as engine:
        ask_once(engine, prompt)
        engine.save_prompt_cache(least)


def file_count(directory: Path) -> int:
    """Number of files in a directory, finished or not."""
    return len(list(directory.iterdir())) if directory.exists() else 0


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
    backend = scripted(state_kind=None)
    with caching_engine(backend, tmp_path) as engine:
        assert ask_once(engine, FIRST)[0].cached == backend.loads == 0


def test_cache_reports_a_damaged_state_and_evaluates_again(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    [path] = tmp_path.iterdir()
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with caching_engine(scripted(), tmp_path) as engine:
        said, told = ask_once(engine, FIRST)
        assert (said.text, said.cached, told, file_count(tmp_path)) == ("one. ", 0, [DAMAGED], 0)
        said, told = ask_once(engine, FIRST)
    assert (said.text, said.cached, told) == ("one. ", len(FIRST) - 1, [])


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
                    events = engine.generate([Request(prompt, SamplingParams(seed=seed, max_tokens=80), n=2)])
                    for sample in collect_replies(events).values():
                        assert sample.ids == expected_reply(prompt, sample.seed, 80, 250)[0]
                    engine.save_prompt_cache(1)


# Engines that save idle slots.


def test_saving_skips_what_is_saved_already_too_short_or_too_large(tmp_path: Path) -> None:
    fill_cache(tmp_path, least=len(FIRST + "one. ") + 1)
    fill_cache(tmp_path, limit=100)
    assert file_count(tmp_path) == 0
    for prompt, least, files in ((FIRST, 1, 1), (FIRST, 1, 1), (SECOND, 20, 1), (SECOND, 1, 2), (GOES_ON, 1, 2)):
        fill_cache(tmp_path, prompt, least)
        assert file_count(tmp_path) == files


def test_saving_ignores_states_too_long_for_this_context(tmp_path: Path) -> None:
    fill_cache(tmp_path, GOES_ON)
    for _ in range(2):
        fill_cache(tmp_path, context_size=len(FIRST) + 10)
        assert file_count(tmp_path) == 2


@pytest.mark.parametrize("unwritable", [True, False])
def test_saving_failure_is_an_error_and_the_engine_continues(tmp_path: Path, unwritable: bool) -> None:
    folder = tmp_path / "states"
    if unwritable:
        fill_cache(folder)
    else:
        folder.write_text("in the way")
    with caching_engine(scripted(unwritable=unwritable), folder) as engine:
        ask_once(engine, SECOND)
        with pytest.raises(EngineError) as caught:
            engine.save_prompt_cache(1)
        assert ask_once(engine, GOES_ON)[0].text == "three. "
    if unwritable:
        assert file_count(folder) == 1
    else:
        assert caught.value.message.startswith(f"{folder}: ") and caught.value.hint


def test_saving_leaves_running_sequences_alone(tmp_path: Path) -> None:
    script = replies({"a" * 70: "b" * 20, "c" * 80: "d"})
    backend = ScriptedBackend(script, slots=2, context_size=300, holds={15: 0})
    with caching_engine(backend, tmp_path) as engine:
        ask_once(engine, "c" * 80)
        events = engine.generate([Request(tokens("a" * 70))])
        next(events)
        assert backend.is_held.wait(20)
        thread = threading.Thread(target=engine.save_prompt_cache, args=(1,))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive() and not backend.stop
        engine.cancel()
        thread.join(20)
        assert file_count(tmp_path) == 1
        assert [reply.reason for reply in collect_replies(events).values()] == ["cancelled"]
    assert open_store(tmp_path).stored_prefix(tokens("c" * 80), "scripted", lambda length, shared: True) == 80


def end_at_once(held: tuple[int, ...], seed: int) -> int:
    """End every reply to `SECOND` with seed 0 at its first token; repeat `x` otherwise."""
    return END if held == tokens(SECOND) and seed == 0 else ord("x")


def test_saving_skips_copies_that_no_decode_has_made(tmp_path: Path) -> None:
    backend = ScriptedBackend(end_at_once, slots=2, context_size=300)
    with caching_engine(backend, tmp_path) as engine:
        one = SamplingParams(max_tokens=1)
        list(engine.generate([Request(tokens("x" * 100), one), Request(tokens(SECOND), one)]))
        assert [bytes(held) for held in backend.memory] == [b"x" * 100, SECOND.encode()]
        list(engine.generate([Request(tokens(SECOND), one, n=2)]))  # the second sample's copy is in the lower slot
        assert backend.pending_copies == {0, 1}
        engine.save_prompt_cache(1)
        engine.save_prefix(tokens(SECOND))
        assert file_count(tmp_path) == 0
        list(engine.generate([Request(tokens(SECOND), one)]))  # decodes
        engine.save_prompt_cache(1)
        assert file_count(tmp_path) == 1


def test_restoring_spares_slots_of_pending_copies(tmp_path: Path) -> None:
    fill_cache(tmp_path, GOES_ON, slots=2)
    backend = ScriptedBackend(end_at_once, slots=2, context_size=300)
    with caching_engine(backend, tmp_path) as engine:
        params = SamplingParams(max_tokens=20, seed=0)
        requests = [Request(tokens(SECOND), params, n=2), Request(tokens(GOES_ON), params)]
        said = collect_replies(engine.generate(requests))
    assert [reply.text for reply in said.values()] == ["", "x" * 20, "x" * 20]


def test_saving_without_a_model_or_a_store_does_nothing(tmp_path: Path) -> None:
    with running_engine(scripted()) as engine:
        ask_once(engine, FIRST)
        engine.save_prompt_cache(1)
    with caching_engine(scripted(), tmp_path) as engine:
        pass
    engine.save_prompt_cache(1)
    assert file_count(tmp_path) == 0


def test_saving_includes_a_closed_stream(tmp_path: Path) -> None:
    with caching_engine(scripted(), tmp_path) as engine:
        events = engine.generate([Request(tokens(FIRST))])
        next(event for event in events if isinstance(event, TokenEvent))
        events.close()
        engine.save_prompt_cache(1)
    with caching_engine(scripted(), tmp_path) as engine:
        assert ask_once(engine, FIRST)[0].cached == len(FIRST) - 1
