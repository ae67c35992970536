"""Saving idle slots to the prompt cache: once, on request, without affecting running sequences."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from asking import collect_replies
from prompt_caching import (
    FIRST,
    GOES_ON,
    SECOND,
    ask_once,
    caching_engine,
    file_count,
    fill_cache,
    scripted,
)
from scripted_backend import END, ScriptedBackend, replies, tokens
from state_files import open_store
from waiting import assert_returns

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import Event, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.backend import Backend, StopFlag
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request


def test_saving_skips_what_is_saved_already(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    for prompt, least, files in ((FIRST, 1, 1), (SECOND, 20, 1), (SECOND, 1, 2), (GOES_ON, 1, 2)):
        fill_cache(tmp_path, prompt, least)
        assert file_count(tmp_path) == files


def test_saving_ignores_states_too_long_for_this_context(tmp_path: Path) -> None:
    fill_cache(tmp_path, GOES_ON)
    for _ in range(2):
        fill_cache(tmp_path, context_size=len(FIRST) + 10)
        assert file_count(tmp_path) == 2


@pytest.mark.parametrize("least", [len(FIRST + "one. ") + 1, 10_000])
def test_saving_skips_fewer_than_min_tokens(tmp_path: Path, least: int) -> None:
    fill_cache(tmp_path, least=least)
    assert file_count(tmp_path) == 0


@pytest.mark.parametrize("unwritable", [True, False])
def test_saving_failure_is_an_error_and_the_engine_continues(tmp_path: Path, unwritable: bool) -> None:
    folder = tmp_path / "states"
    if not unwritable:
        folder.write_text("in the way")
    with caching_engine(scripted(unwritable=unwritable), folder) as engine:
        ask_once(engine, FIRST)
        with pytest.raises(EngineError):
            engine.save_prompt_cache(1)
        assert ask_once(engine, GOES_ON)[0].text == "three. "
    assert not unwritable or file_count(folder) == 0


def test_saving_skips_a_state_larger_than_the_limit(tmp_path: Path) -> None:
    with caching_engine(scripted(), tmp_path, limit=100) as engine:
        ask_once(engine, FIRST)
        engine.save_prompt_cache(1)
    assert file_count(tmp_path) == 0


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


def test_saving_skips_slots_of_a_failed_step(tmp_path: Path) -> None:
    backend = scripted(fails={3: EngineError("llama.cpp could not evaluate")})
    with caching_engine(backend, tmp_path) as engine:
        with pytest.raises(EngineError):
            ask_once(engine, FIRST)
        engine.save_prompt_cache(1)
    assert file_count(tmp_path) == 0


def test_saving_skips_a_slot_with_unexpected_contents(tmp_path: Path) -> None:
    backend = scripted()
    with caching_engine(backend, tmp_path) as engine:
        ask_once(engine, FIRST)
        backend.memory[0].pop()
        engine.save_prompt_cache(1)
    assert file_count(tmp_path) == 0


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
        assert backend.pending == {0, 1}
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


def test_saving_without_a_loaded_model_does_nothing(tmp_path: Path) -> None:
    go = threading.Event()

    def slow(tell: Callable[[Event], None], stop: StopFlag) -> Backend:
        go.wait(20)
        raise EngineError("no model")

    loads = LocalEngine(slow, open_store(tmp_path))
    assert_returns(lambda: loads.save_prompt_cache(1))
    go.set()
    with pytest.raises(EngineError, match="no model"):
        list(loads.load())
    assert_returns(lambda: loads.save_prompt_cache(1))
    loads.close()
    assert_returns(lambda: loads.save_prompt_cache(1))
    assert file_count(tmp_path) == 0


def test_saving_without_a_store_does_nothing() -> None:
    engine = LocalEngine(scripted().open)
    list(engine.load())
    ask_once(engine, FIRST)
    engine.save_prompt_cache(1)
    engine.close()


def test_saving_includes_a_closed_stream(tmp_path: Path) -> None:
    with caching_engine(scripted(), tmp_path) as engine:
        events = engine.generate([Request(tokens(FIRST))])
        next(event for event in events if isinstance(event, TokenEvent))
        events.close()
        engine.save_prompt_cache(1)
    with caching_engine(scripted(), tmp_path) as engine:
        assert ask_once(engine, FIRST)[0].cached == len(FIRST) - 1
