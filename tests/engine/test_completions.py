"""Completions: samples that are added, aborted or cancelled while others run, and engines that fail or are closed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice

import pytest
from asking import ask, collect_replies, running_engine
from command_line import start_python
from scripted_backend import BAD_GRAMMAR, END, FIRST_SHARED_STEP, Model, ScriptedBackend, endless, replies, tokens
from waiting import assert_returns, wait_until

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError, GrammarError, UsageError
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    RefusedEvent,
    SequenceId,
    TokenEvent,
)
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.local import LocalCompletions, LocalEngine
from cerebrum_cli.engine.sequence import Request

LENGTH = 60  # tokens of a long reply


def counting(gate: threading.Event) -> Model:
    """A model that repeats the seed's letter, `LENGTH` times after an upper-case prompt, three times after others.

    Long replies wait for the gate halfway.
    """

    def model(held: tuple[int, ...], seed: int) -> int:
        letter = ord("a") + seed % 26
        said = next((n for n, token in enumerate(reversed(held)) if token != letter), len(held))
        assert said != LENGTH // 2 or gate.wait(10)
        return letter if said < (LENGTH if chr(held[0]).isupper() else 3) else END

    return model


def request(prompt: str, n: int = 1, seed: int | None = 0, grammar: str | None = None) -> Request:
    return Request(tokens(prompt), SamplingParams(seed=seed), grammar, n)


def backend(slots: int = 4, gate: threading.Event | None = None) -> ScriptedBackend:
    if gate is None:
        gate = threading.Event()
        gate.set()
    return ScriptedBackend(counting(gate), slots=slots, context_size=200, batch_size=64)


@pytest.fixture
def gate() -> threading.Event:
    """The event that long replies wait for halfway."""
    return threading.Event()


@pytest.fixture
def engine(gate: threading.Event) -> Iterator[LocalEngine]:
    """An engine with four slots."""
    with running_engine(backend(gate=gate)) as engine:
        yield engine


def events_until(completions: LocalCompletions, came: Callable[[Event], bool]) -> list[Event]:
    """Events up to the first that matches."""
    events = []
    for event in completions:
        events.append(event)
        if came(event):
            return events
    raise AssertionError("no such event")


def is_token_of(number: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, TokenEvent) and event.sequence.request == number


def test_completions_number_requests_and_end_when_none_is_running(engine: LocalEngine) -> None:
    with closing(engine.complete([request("x#", 2), request("y#", seed=5), request("z#", seed=7)])) as completions:
        said = collect_replies(completions)
        assert {id: reply.text for id, reply in said.items()} == {
            SequenceId(0, 0): "aaa",
            SequenceId(0, 1): "bbb",
            SequenceId(1, 0): "fff",
            SequenceId(2, 0): "hhh",
        }
        assert list(completions) == []


def test_added_samples_continue_the_seeds(engine: LocalEngine) -> None:
    with closing(engine.complete([request("y#", seed=None)])) as completions:
        completions.add_samples(0, 1)
        said = collect_replies(completions)
        assert said[SequenceId(0, 1)].seed == said[SequenceId(0, 0)].seed + 1  # random, then consecutive
        completions.add_samples(0, 1)  # after it was exhausted
        [(id, again)] = collect_replies(completions).items()
        assert (id, again.seed) == (SequenceId(0, 2), said[SequenceId(0, 1)].seed + 1)


def test_abort_cancels_only_the_samples_of_its_request(engine: LocalEngine, gate: threading.Event) -> None:
    with closing(engine.complete([request("X#", 2), request("Y#", 2, seed=5)])) as completions:
        events = events_until(completions, is_token_of(1))
        completions.abort(0)
        gate.set()
        said = collect_replies([*events, *completions])
        assert [said[SequenceId(0, sample)].reason for sample in range(2)] == ["cancelled"] * 2
        assert [said[SequenceId(1, sample)].text for sample in range(2)] == ["f" * LENGTH, "g" * LENGTH]
        assert said[SequenceId(0, 0)].text in "a" * LENGTH


def test_abort_of_a_finished_or_unknown_request_does_nothing(engine: LocalEngine) -> None:
    with closing(engine.complete([request("x#"), request("y#", seed=5)])) as completions:
        events = events_until(completions, lambda event: isinstance(event, FinishEvent))
        completions.abort(events[-1].sequence.request)  # type: ignore[union-attr]
        completions.abort(7)
        said = collect_replies([*events, *completions])
        assert [said[SequenceId(number, 0)].text for number in range(2)] == ["aaa", "fff"]
        completions.abort(0)
        assert list(completions) == []


def test_samples_added_after_cancel_are_cancelled(engine: LocalEngine) -> None:
    with closing(engine.complete([request("x#")])) as completions:
        events = [next(completions)]
        engine.cancel()
        completions.add_samples(0, 3)
        said = collect_replies([*events, *completions])
    later = [SequenceId(0, sample) for sample in range(1, 4)]
    assert [(said[id].reason, said[id].text) for id in later] == [("cancelled", "")] * 3


def test_cancel_between_two_streams_of_a_scope_counts(engine: LocalEngine, gate: threading.Event) -> None:
    gate.set()
    scope = engine.cancel_scope()
    with closing(engine.complete([request("x#")], scope)) as completions:
        assert collect_replies(completions)[SequenceId(0)].reason == "stop"
    engine.cancel()
    with closing(engine.complete([request("x#")], scope)) as completions:
        assert collect_replies(completions)[SequenceId(0)].reason == "cancelled"
    with closing(engine.complete([request("x#")])) as completions:
        assert collect_replies(completions)[SequenceId(0)].reason == "stop"


def test_refused_sequence_ends_alone() -> None:
    scripted = backend()
    counted = scripted.model

    def model(held: tuple[int, ...], seed: int) -> int:
        if held[0] == ord("G") and len(held) > 4:
            raise GrammarError("nothing goes on")
        return counted(held, seed)

    scripted.model = model
    with running_engine(scripted) as engine:
        with closing(engine.complete([request("G#"), request("x#")])) as completions:
            events = list(completions)
        [refused] = [event for event in events if isinstance(event, RefusedEvent)]
        assert (refused.sequence, refused.error.message) == (SequenceId(0), "nothing goes on")
        said = collect_replies(event for event in events if event is not refused)
        assert (said[SequenceId(1)].text, said[SequenceId(1)].reason) == ("aaa", "stop")
        with pytest.raises(GrammarError, match="nothing goes on"):
            list(engine.generate([request("G#"), request("x#")]))


@pytest.mark.slow
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_slow_reader_pauses_admission_but_loses_nothing(monkeypatch: pytest.MonkeyPatch, is_cancelled: bool) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.local.MAX_BACKLOG", 20)
    scripted = backend(slots=2)
    with running_engine(scripted) as engine, closing(engine.complete([request(f"q{n}") for n in range(50)])) as running:
        wait_until(lambda: running._outbox.qsize() > 20)
        time.sleep(0.1)
        steps = len(scripted.steps)
        time.sleep(0.1)
        assert len(scripted.steps) == steps
        assert running._outbox.qsize() < 60
        if is_cancelled:
            engine.cancel()
        reasons = [event.reason for event in running if isinstance(event, FinishEvent)]
    assert (len(reasons), reasons[-1]) == (50, "cancelled" if is_cancelled else "stop")


# Cancelling and closing.

LONG = replies({"count: ": "0123456789" * 5, "x" * 50: "y", "?": "one STOP"})
ENDLESS = endless({"count: ": "0123456789", "name: ": "abcdefghij"})
COUNT, NAME = Request(tokens("count: ")), Request(tokens("name: "))


def when_held(scripted: ScriptedBackend, act: Callable[[], object]) -> threading.Thread:
    """Act on another thread as soon as a step is held."""
    thread = threading.Thread(target=lambda: scripted.is_held.wait(20) and act())
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("prompt", "holds", "text"), [("count: ", {4: 0}, "0123"), ("?", {6: 0}, "one ST"), ("x" * 50, {2: 3}, "")]
)
def test_cancel_from_another_thread_keeps_the_partial_reply(prompt: str, holds: dict[int, int], text: str) -> None:
    scripted = ScriptedBackend(LONG, holds=holds)
    with running_engine(scripted) as engine:
        thread = when_held(scripted, engine.cancel)
        [reply] = ask(engine, prompt, stop=("STOP",))  # text that resembles it is held back until then
        thread.join()
        [again] = ask(engine, prompt, stop=("STOP",))
    assert (reply.text, reply.reason, again.reason) == (text, "cancelled", "stop")


def test_cancel_ends_waiting_requests() -> None:
    scripted = ScriptedBackend(LONG, slots=2, holds={6: 1})
    with running_engine(scripted) as engine:
        thread = when_held(scripted, engine.cancel)
        said = collect_replies(engine.generate([COUNT] * 5))
        thread.join()
    assert [said[SequenceId(index)].reason for index in range(5)] == ["cancelled"] * 5
    assert scripted.samplers == []


@pytest.mark.slow
def test_cancel_works_in_a_signal_handler() -> None:
    is_handled = threading.Event()

    def model(held: tuple[int, ...], seed: int) -> int:
        if held.count(ord("0")) and not is_handled.is_set():
            time.sleep(0.1)  # until the caller waits for a token
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # which does not end the caller's wait
            assert is_handled.wait(10)
        return LONG(held, seed)

    def cancel(*_: object) -> None:
        here.cancel()
        is_handled.set()

    previous = signal.signal(signal.SIGUSR1, cancel)
    try:
        with running_engine(ScriptedBackend(model)) as here:
            [reply] = ask(here, "count: ")
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert (reply.text, reply.reason) in [("0", "cancelled"), ("01", "cancelled")]


@pytest.mark.parametrize("can_trim", [True, False])
@pytest.mark.parametrize("kept", [0, 1])
def test_closed_stream_leaves_its_neighbor_unaffected(kept: int, can_trim: bool) -> None:
    scripted = ScriptedBackend(
        ENDLESS, slots=2, context_size=100_000, can_trim=can_trim, holds={FIRST_SHARED_STEP: kept}
    )
    with running_engine(scripted) as engine:
        closed, kept_on = engine.generate([COUNT]), engine.generate([NAME])
        next(closed), next(kept_on)
        assert scripted.is_held.wait(20)
        assert_returns(closed.close)
        told = scripted.evaluated + 50  # more than was generated so far
        said = "".join(event.text for event in islice(kept_on, told) if isinstance(event, TokenEvent))
        assert_returns(kept_on.close)
        assert scripted.samplers == []
        assert [reply.text for reply in ask(engine, "name: ", max_tokens=5)] == ["abcde"]
    assert said == ("abcdefghij" * told)[: len(said)] != ""


def test_step_error_reaches_every_stream_and_the_engine_recovers() -> None:
    error = EngineError("out of luck")
    scripted = ScriptedBackend(ENDLESS, slots=3, context_size=100_000, fails={FIRST_SHARED_STEP: error})
    with running_engine(scripted) as engine:
        one, two = engine.generate([COUNT]), engine.generate([NAME, COUNT])
        next(one), next(two)
        for events in (one, two):
            with pytest.raises(EngineError, match="out of luck"):
                list(events)
        [reply] = ask(engine, "count: ", max_tokens=5)
    assert (reply.text, reply.cached) == ("01234", 0)


def test_invalid_grammar_ends_only_its_own_stream() -> None:
    scripted = ScriptedBackend(ENDLESS, slots=4, context_size=100_000)
    bad = Request(NAME.prompt_tokens, grammar=BAD_GRAMMAR)
    with running_engine(scripted) as engine:
        good = engine.generate([COUNT])
        next(good)
        with pytest.raises(GrammarError):
            list(engine.generate([NAME, bad, NAME]))
        assert len(scripted.samplers) == 1
        told = scripted.evaluated + 50  # more than was generated so far
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


@pytest.mark.slow
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
    scripted = ScriptedBackend(LONG, holds={4: 0})
    engine = LocalEngine(scripted.open)
    events = engine.generate([COUNT])
    next(events)
    assert scripted.is_held.wait(20)
    assert_returns(engine.close)
    assert scripted.closed
    [reply] = collect_replies(events).values()
    assert (reply.text, reply.reason) == ("0123", "cancelled")


def test_closed_engine_raises_and_its_streams_can_be_closed() -> None:
    engine = LocalEngine(ScriptedBackend(LONG).open)
    with pytest.raises(UsageError, match="is empty"):
        engine.complete([COUNT, Request(())])
    completions = engine.complete([COUNT])
    next(completions)
    assert_returns(engine.close)
    for call in (lambda: completions.add_samples(0, 1), lambda: engine.complete([COUNT])):
        with pytest.raises(EngineError, match="closed"):
            call()
    with pytest.raises(EngineError, match="not loaded"):
        engine.vocabulary.tokenize([Text("a")])
    assert_returns(completions.close)
    engine.cancel()
    assert_returns(engine.close)


@pytest.mark.slow
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
