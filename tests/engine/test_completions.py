"""Completions: samples that are added, aborted or cancelled while others run, and engines that fail or are closed."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from asking import ask, collect_replies, generate, running_engine, when_held
from command_line import start_python
from scripted_backend import END, FIRST_SHARED_STEP, ScriptedBackend, endless, replies, tokens
from waiting import assert_returns

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError, GrammarError
from cerebrum_cli.core.events import Event, LoadEvent, NoticeEvent, PromptEvent, RefusedEvent, SequenceId
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.engine.step import StopFlag


def request(prompt: str) -> Request:
    return Request(tokens(prompt), SamplingParams(seed=0))


def repeat(held: tuple[int, ...], seed: int) -> int:
    """Repeat a letter three times; a prompt with "G" is refused then."""
    if held[0] == ord("G") and len(held) == 5:
        raise GrammarError("the grammar rejects every possible next token")
    return ord("a") if len(held) < 5 else END


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    with running_engine(ScriptedBackend(repeat, slots=4)) as engine:
        yield engine


def test_samples_added_after_cancel_are_cancelled(engine: LocalEngine) -> None:
    with closing(engine.complete([request("x#")])) as completions:
        events = [next(completions)]
        engine.cancel()
        completions.add_samples(0, 3)
        said = collect_replies([*events, *completions])
    later = [SequenceId(0, sample) for sample in range(1, 4)]
    assert [(said[id].reason, said[id].text) for id in later] == [("cancelled", "")] * 3


def test_refused_sequence_ends_alone(engine: LocalEngine) -> None:
    with closing(engine.complete([request("G#"), request("x#")])) as completions:
        events = list(completions)
    [refused] = [event for event in events if isinstance(event, RefusedEvent)]
    assert (refused.sequence, type(refused.error)) == (SequenceId(0), GrammarError)
    said = collect_replies(event for event in events if event is not refused)
    assert (said[SequenceId(1)].text, said[SequenceId(1)].reason) == ("aaa", "stop")
    with pytest.raises(GrammarError, match="rejects"):
        list(generate(engine, [request("G#"), request("x#")]))


# Cancelling and closing.

LONG = replies({"count: ": "0123456789" * 5, "x" * 50: "y", "?": "one STOP"})
ENDLESS = endless({"count: ": "0123456789", "name: ": "abcdefghij"})
COUNT, NAME = Request(tokens("count: ")), Request(tokens("name: "))


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


def test_step_error_reaches_every_stream_and_the_engine_recovers() -> None:
    error = EngineError("out of luck")
    scripted = ScriptedBackend(ENDLESS, slots=3, context_size=100_000, fails={FIRST_SHARED_STEP: error})
    with running_engine(scripted) as engine:
        one, two = generate(engine, [COUNT]), generate(engine, [NAME, COUNT])
        next(one), next(two)
        for events in (one, two):
            with pytest.raises(EngineError, match="out of luck"):
                list(events)
        [reply] = ask(engine, "count: ", max_tokens=5)
    assert (reply.text, reply.cached) == ("01234", 0)


def test_load_events_are_kept_for_late_callers_and_delivered_once() -> None:
    told: tuple[Event, ...] = (NoticeEvent("no GPU", "get one"), LoadEvent(0.5), LoadEvent(1.0))
    engine = LocalEngine(ScriptedBackend(LONG, load_events=told).open)
    assert next(generate(engine, [COUNT])) == PromptEvent(SequenceId(0), 0, 7)
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
            next(generate(engine, [COUNT]))
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


def test_closed_engine_ends_its_streams_and_raises() -> None:
    scripted = ScriptedBackend(LONG, holds={4: 0})
    engine = LocalEngine(scripted.open)
    completions = engine.complete([COUNT])
    events = [next(completions)]
    assert scripted.is_held.wait(20)
    assert_returns(engine.close)
    assert scripted.closed
    for call in (lambda: completions.add_samples(0, 1), lambda: engine.complete([COUNT])):
        with pytest.raises(EngineError, match="closed"):
            call()
    with pytest.raises(EngineError, match="not loaded"):
        engine.vocabulary.tokenize([Text("a")])
    [reply] = collect_replies([*events, *completions]).values()
    assert (reply.text, reply.reason) == ("0123", "cancelled")
    engine.cancel()
    for close in (completions.close, engine.close):
        assert_returns(close)


@pytest.mark.slow
def test_process_failing_with_an_open_stream_exits() -> None:
    script = (
        "from asking import generate\n"
        "from cerebrum_cli.engine.local_engine import LocalEngine\n"
        "from scripted_backend import *\n"
        "from cerebrum_cli.engine.requests import Request\n"
        "engine = LocalEngine(ScriptedBackend(replies({'?': 'a' * 90})).open)\n"
        "events = generate(engine, [Request(tokens('?'))])\n"
        "next(events)\n"
        "raise RuntimeError('a bug')\n"
    )
    process = start_python(script)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error.splitlines()[-1]) == (1, "RuntimeError: a bug")
