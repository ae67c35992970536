"""Cancelling replies, loading and the engine itself leaves nothing running, held or waiting."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from itertools import islice

import pytest
from asking import ask, collect_replies, running_engine
from command_line import start_python
from scripted_backend import BAD_GRAMMAR, FIRST_SHARED_STEP, ScriptedBackend, endless, replies, tokens
from waiting import assert_returns

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError, GrammarError
from cerebrum_cli.core.events import Event, LoadEvent, NoticeEvent, PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request

pytestmark = pytest.mark.slow

LONG = replies({"count: ": "0123456789" * 5, "name: ": "abcdefghij" * 5, "x" * 50: "y"})
ENDLESS = endless({"count: ": "0123456789", "name: ": "abcdefghij"})
COUNT, NAME, PROMPT = (Request(tokens(prompt)) for prompt in ("count: ", "name: ", "x" * 50))


def when_held(backend: ScriptedBackend, act: Callable[[], object]) -> threading.Thread:
    """Act on another thread as soon as a step is held."""
    thread = threading.Thread(target=lambda: backend.is_held.wait(20) and act())
    thread.start()
    return thread


def test_closed_stream_frees_its_slot_for_a_new_reply() -> None:
    backend = ScriptedBackend(LONG)
    with running_engine(backend) as engine:
        events = engine.generate([COUNT])
        for _ in range(5):
            next(events)
        assert_returns(events.close)
        assert backend.samplers == []
        assert [reply.text for reply in ask(engine, "name: ")] == ["abcdefghij" * 5]
        assert [reply.text for reply in ask(engine, "count: ")] == ["0123456789" * 5]


@pytest.mark.parametrize("kept", [0, 7, 15])
def test_closed_stream_keeps_its_partial_prefill(kept: int) -> None:
    backend = ScriptedBackend(LONG, holds={1: kept})
    with running_engine(backend) as engine:
        events = engine.generate([PROMPT])
        next(events)
        assert backend.is_held.wait(20)
        assert_returns(events.close)
        [reply] = ask(engine, "x" * 50)
    assert (reply.text, reply.cached) == ("y", 16 + kept)


def test_cancel_from_another_thread_keeps_the_partial_reply() -> None:
    backend = ScriptedBackend(LONG, holds={4: 0})
    with running_engine(backend) as engine:
        thread = when_held(backend, engine.cancel)
        [reply] = ask(engine, "count: ")
        thread.join()
        [again] = ask(engine, "count: ", max_tokens=5)
    assert (reply.text, reply.reason, again.text) == ("0123", "cancelled", "01234")


def test_cancel_flushes_held_back_text() -> None:
    backend = ScriptedBackend(replies({"?": "one STOP"}), holds={6: 0})
    with running_engine(backend) as engine:
        thread = when_held(backend, engine.cancel)
        [reply] = ask(engine, "?", stop=("STOP",))
        thread.join()
    assert (reply.text, reply.pieces[-1], reply.reason) == ("one ST", "ST", "cancelled")


def test_cancel_during_prefill_ends_with_an_empty_reply() -> None:
    backend = ScriptedBackend(LONG, holds={2: 3})
    with running_engine(backend) as engine:
        thread = when_held(backend, engine.cancel)
        [reply] = ask(engine, "x" * 50)
        thread.join()
        [again] = ask(engine, "x" * 50)
    assert (reply.text, reply.reason, again.text, again.cached) == ("", "cancelled", "y", 35)


def test_cancel_ends_waiting_requests() -> None:
    backend = ScriptedBackend(LONG, slots=2, holds={6: 1})
    with running_engine(backend) as engine:
        thread = when_held(backend, engine.cancel)
        said = collect_replies(engine.generate([COUNT] * 5))
        thread.join()
    assert [said[SequenceId(index)].reason for index in range(5)] == ["cancelled"] * 5
    assert backend.samplers == []


def test_cancel_works_in_a_signal_handler() -> None:
    backend = ScriptedBackend(LONG, holds={4: 0})
    obeyed = threading.Event()

    def signals() -> None:
        while not obeyed.wait(0.02):  # Python runs no handler while its main thread is about to wait
            os.kill(os.getpid(), signal.SIGUSR1)

    def handler(*_: object) -> None:
        engine.cancel()
        obeyed.set()

    with running_engine(backend) as engine:
        old = signal.signal(signal.SIGUSR1, handler)
        thread = when_held(backend, signals)
        [reply] = ask(engine, "count: ")
        thread.join()
        signal.signal(signal.SIGUSR1, old)
    assert (reply.text, reply.reason) == ("0123", "cancelled")


def test_cancel_without_requests_changes_nothing() -> None:
    with running_engine(ScriptedBackend(LONG)) as engine:
        engine.cancel()
        assert [reply.reason for reply in ask(engine, "count: ")] == ["stop"]


@pytest.mark.parametrize("can_trim", [True, False])
@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize(("prompts", "text"), [((COUNT, NAME), "abcdefghij"), ((NAME, COUNT), "0123456789")])
@pytest.mark.parametrize("first", [True, False])
def test_closed_stream_leaves_its_neighbor_unaffected(
    prompts: tuple[Request, Request], text: str, first: bool, kept: int, can_trim: bool
) -> None:
    backend = ScriptedBackend(
        ENDLESS, slots=2, context_size=100_000, can_trim=can_trim, holds={FIRST_SHARED_STEP: kept}
    )
    with running_engine(backend) as engine:
        streams = [engine.generate([prompt]) for prompt in (prompts if first else reversed(prompts))]
        closed, kept_on = streams if first else reversed(streams)
        for stream in streams:
            next(stream)
        assert backend.is_held.wait(20)
        assert_returns(closed.close)
        told = backend.evaluated + 50  # more than was generated so far
        said = "".join(event.text for event in islice(kept_on, told) if isinstance(event, TokenEvent))
        assert_returns(kept_on.close)
    assert said == (text * told)[: len(said)] != ""


def test_step_error_reaches_every_stream_and_the_engine_recovers() -> None:
    error = EngineError("out of luck")
    backend = ScriptedBackend(ENDLESS, slots=3, context_size=100_000, fails={FIRST_SHARED_STEP: error})
    with running_engine(backend) as engine:
        one, two = engine.generate([COUNT]), engine.generate([NAME, COUNT])
        next(one), next(two)
        for events in (one, two):
            with pytest.raises(EngineError, match="out of luck"):
                list(events)
        [reply] = ask(engine, "count: ", max_tokens=5)
    assert (reply.text, reply.cached) == ("01234", 0)


def test_invalid_grammar_ends_only_its_own_stream() -> None:
    backend = ScriptedBackend(ENDLESS, slots=4, context_size=100_000)
    bad = Request(NAME.prompt_tokens, grammar=BAD_GRAMMAR)
    with running_engine(backend) as engine:
        good = engine.generate([COUNT])
        next(good)
        with pytest.raises(GrammarError):
            list(engine.generate([NAME, bad, NAME]))
        assert len(backend.samplers) == 1
        told = backend.evaluated + 50  # more than was generated so far
        said = "".join(event.text for event in islice(good, told) if isinstance(event, TokenEvent))
        assert_returns(good.close)
    assert said == ("0123456789" * told)[: len(said)] != ""


def test_load_events_are_kept_for_late_callers_and_delivered_once() -> None:
    told: tuple[Event, ...] = (NoticeEvent("no GPU", "get one"), LoadEvent(0.5), LoadEvent(1.0))
    engine = LocalEngine(ScriptedBackend(LONG, load_events=told).open)
    assert next(engine.generate([COUNT])) == PromptEvent(SequenceId(0), 0, 7)
    assert list(engine.load()) == [*told]
    assert list(engine.load()) == []
    assert_returns(lambda: list(engine.load()))
    engine.close()


def failing(tell: Callable[[Event], None], stop: StopFlag) -> ScriptedBackend:
    tell(LoadEvent(0.1))
    raise EngineError("the file is damaged")


def test_load_error_is_raised_by_every_call() -> None:
    engine = LocalEngine(failing)
    events = engine.load()
    assert next(events) == LoadEvent(0.1)
    for _ in range(3):
        with pytest.raises(EngineError, match="damaged"):
            next(engine.load())
        with pytest.raises(EngineError, match="damaged"):
            next(engine.generate([COUNT]))
    with pytest.raises(EngineError, match="not loaded"):
        _ = engine.backend
    engine.cancel()
    assert_returns(engine.close)


@pytest.mark.parametrize("end", [LocalEngine.cancel, LocalEngine.close])
def test_loading_can_be_interrupted(end: Callable[[LocalEngine], None]) -> None:
    def slow(tell: Callable[[Event], None], stop: StopFlag) -> ScriptedBackend:
        tell(LoadEvent(0.0))
        while not stop:
            tell(LoadEvent(0.5))
        raise EngineError("loading interrupted")

    engine = LocalEngine(slow)
    events = engine.load()
    assert next(events) == LoadEvent(0.0)
    assert_returns(lambda: end(engine))
    with pytest.raises(EngineError, match="interrupted"):
        list(events)
    assert_returns(engine.close)


def test_close_ends_streams_and_joins_the_thread() -> None:
    backend = ScriptedBackend(LONG, holds={4: 0})
    engine = LocalEngine(backend.open)
    events = engine.generate([COUNT])
    next(events)
    assert backend.is_held.wait(20)
    assert_returns(engine.close)
    assert backend.closed
    [reply] = collect_replies(events).values()
    assert (reply.text, reply.reason) == ("0123", "cancelled")


def test_closed_engine_raises_and_its_streams_can_be_closed() -> None:
    backend = ScriptedBackend(LONG)
    engine = LocalEngine(backend.open)
    events = engine.generate([COUNT])
    next(events)
    assert_returns(engine.close)
    assert_returns(events.close)
    with pytest.raises(EngineError, match="closed"):
        next(engine.generate([COUNT]))
    with pytest.raises(EngineError, match="not loaded"):
        engine.vocabulary.tokenize([Text("a")])
    engine.cancel()
    assert_returns(engine.close)


def test_process_failing_with_an_open_stream_exits() -> None:
    script = (
        "from cerebrum_cli.engine.local import LocalEngine\n"
        "from scripted_backend import *\n"
        "from cerebrum_cli.engine.sequence import Request\n"
        "engine = LocalEngine(ScriptedBackend(replies({'?': 'a' * 90})).open)\n"
        "events = engine.generate([Request(tokens('?'))])\n"
        "next(events)\n"
        "raise RuntimeError('a bug')\n"
    )
    process = start_python(script)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error.splitlines()[-1]) == (1, "RuntimeError: a bug")
