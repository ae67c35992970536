"""The engine: replies, samples, reuse, seeds, timings; what is added, cancelled or closed meanwhile; follow-ups."""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
from asking import ask, collect_replies, generate, running_engine, when_held
from command_line import start_python
from scripted_backend import END, FIRST_SHARED_STEP, MARK, ScriptedBackend, endless, replies, tokens
from waiting import assert_returns

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError, GrammarError
from cerebrum_cli.core.events import Event, FinishEvent, LoadEvent, NoticeEvent, PromptEvent, RefusedEvent, SequenceId
from cerebrum_cli.core.sampling import SEEDS, SamplingParams
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.engine.step import StopFlag

GREETING = replies({"hello ": "world", "hello world, ": "who are you?"})


@pytest.mark.parametrize(
    ("slots", "cached"), [(1, [0, 5, 5, 5]), (2, [0, 6, 5, 6]), (4, [0, 6, 6, 6]), (8, [0, 6, 6, 6])]
)
def test_engine_evaluates_the_prompt_of_samples_once(slots: int, cached: list[int]) -> None:
    backend = ScriptedBackend(GREETING, slots=slots)
    with running_engine(backend) as engine:
        said = ask(engine, "hello ", n=4)
    assert [(reply.text, reply.cached) for reply in said] == [("world", count) for count in cached]
    assert backend.evaluated == 4 * len("hello world") - sum(cached)
    assert slots < 4 or [len(step) for step in backend.steps] == [6] + [4] * len("world")


@pytest.mark.parametrize(("kv_unified", "cached"), [(False, 0), (True, 2)])
def test_engine_copies_only_a_prefix_worth_the_copy(kv_unified: bool, cached: int) -> None:
    """Between separate caches of a thousand cells, a copy takes as long as evaluating two tokens."""
    script = {"ab: one": "first", "ab! two": "second"}
    backend = ScriptedBackend(replies(script), slots=2, context_size=2000, kv_unified=kv_unified)
    with running_engine(backend) as engine:
        said = collect_replies(generate(engine, (Request(tokens(prompt)) for prompt in script)))
    assert [(reply.text, reply.cached) for reply in said.values()] == [("first", 0), ("second", cached)]


def test_engine_prefills_in_chunks_and_reports_progress() -> None:
    prompt = "x" * 40
    with running_engine(ScriptedBackend(replies({prompt: "y", "x" * 41: "z"}))) as engine:
        for asked, told in ((prompt, [0, 16, 32]), ("x" * 41, [40])):
            events = list(generate(engine, [Request(tokens(asked))]))
            progress = [event for event in events if isinstance(event, PromptEvent)]
            assert [event.evaluated for event in progress] == told
            assert {event.total for event in progress} == {len(asked)}
            assert events[: len(progress)] == progress


def test_engine_hides_control_tokens_unless_requested() -> None:
    with running_engine(ScriptedBackend(replies({"?": (MARK, *b"a")}))) as engine:
        [silent] = ask(engine, "?")
        visible = engine.backend.special_token_ids(["<mark>"])
        [spelled] = collect_replies(generate(engine, [Request(tokens("?"), is_visible=visible.__contains__)])).values()
    assert (silent.text, spelled.text) == ("a", "<mark>a")
    assert silent.ids == spelled.ids == [MARK, ord("a")]


def test_engine_draws_seeds_in_a_range() -> None:
    with running_engine(ScriptedBackend(GREETING)) as engine:
        drawn = {ask(engine, "hello ")[0].seed for _ in range(3)}
    assert len(drawn) == 3 and all(0 <= seed < SEEDS for seed in drawn)


@pytest.mark.parametrize(
    ("asked", "limit", "cells", "reserved"),
    [
        # slots for all again after a long reply
        ([(8000, 1), (600, 1), (10, 8), (600, 2), (10, 8)], 900, 16_000, [(8900, 1), (910, 8), (1500, 5), (910, 8)]),
        # no idle slots for long replies
        ([(8000, 1), (8100, 3), (8200, 6)], 10, 1_000_000, [(8010, 1), (8110, 3), (8210, 6)]),
    ],
)
def test_engine_makes_slots_for_what_waits(
    asked: list[tuple[int, int]], limit: int, cells: int, reserved: list[tuple[int, int]]
) -> None:
    script = {"a" * length: "b" for length, _ in asked}
    backend = ScriptedBackend(replies(script), slots=8, context_size=10_000, fitting_cells=cells)
    with running_engine(backend) as engine:
        for length, n in asked:
            assert [reply.text for reply in ask(engine, "a" * length, n=n, max_tokens=limit)] == ["b"] * n
    assert backend.reserved == reserved


def test_engine_with_one_slot_grows_once_to_what_a_request_may_take() -> None:
    backend = ScriptedBackend(GREETING, slots=1, context_size=2048)
    with running_engine(backend) as engine:
        for limit in (10, 1500, 500, None):
            assert ask(engine, "hello ", max_tokens=limit)[0].text == "world"
    assert backend.reserved == [(16, 1), (1506, 1), (2048, 1)]


def test_engine_recovers_after_a_failed_allocation() -> None:
    backend = ScriptedBackend(GREETING, fits=20)
    with running_engine(backend) as engine:
        for _ in range(2):
            with pytest.raises(EngineError, match="no memory"):
                ask(engine, "hello ", max_tokens=50)
            assert ask(engine, "hello ", max_tokens=9)[0].text == "world"


def test_engine_measures_prefill_and_decode() -> None:
    with running_engine(ScriptedBackend(GREETING)) as engine:
        finishes = [ask(engine, "hello ")[0].finish for _ in range(2)]
    first, second = (finish.timings for finish in finishes if finish)
    assert (first.prefill_tokens, first.decode_steps, second.prefill_tokens, second.decode_steps) == (6, 5, 1, 5)
    assert 0 < first.prefill_s <= first.ttft_s
    assert first.decode_s > 0 and first.tokens_per_second > 0
    assert first.load_s == second.load_s >= 0


def repeat(held: tuple[int, ...], seed: int) -> int:
    """Repeat a letter three times; a prompt with "G" is refused then."""
    if held[0] == ord("G") and len(held) == 5:
        raise GrammarError("the grammar rejects every possible next token")
    return ord("a") if len(held) < 5 else END


def test_refused_sequence_ends_alone() -> None:
    requests = [Request(tokens("G#")), Request(tokens("x#"))]
    with running_engine(ScriptedBackend(repeat, slots=4)) as engine:
        with closing(engine.complete(requests)) as completions:
            events = list(completions)
        with pytest.raises(GrammarError, match="rejects"):
            list(generate(engine, requests))
    [refused] = [event for event in events if isinstance(event, RefusedEvent)]
    assert (refused.sequence, type(refused.error)) == (SequenceId(0), GrammarError)
    said = collect_replies(event for event in events if event is not refused)
    assert (said[SequenceId(1)].text, said[SequenceId(1)].reason) == ("aaa", "stop")


# Cancelling and closing.

LONG = replies({"count: ": "0123456789" * 5, "x" * 50: "y", "?": "one STOP"})
ENDLESS = endless({"count: ": "0123456789", "name: ": "abcdefghij"})
COUNT, NAME = Request(tokens("count: ")), Request(tokens("name: "))


def test_samples_added_after_cancel_are_cancelled() -> None:
    with running_engine(ScriptedBackend(ENDLESS, slots=4)) as engine, closing(engine.complete([COUNT])) as completions:
        events = [next(completions)]
        engine.cancel()
        completions.add_samples(0, 3)
        said = collect_replies([*events, *completions])
    later = [said[SequenceId(0, sample)] for sample in range(1, 4)]
    assert [(reply.reason, reply.text) for reply in later] == [("cancelled", "")] * 3


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
    process = start_python("""
from asking import generate
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import Request
from scripted_backend import *
events = generate(LocalEngine(ScriptedBackend(replies({'?': 'a' * 90})).open), [Request(tokens('?'))])
next(events)
raise RuntimeError('a bug')
""")
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error.splitlines()[-1]) == (1, "RuntimeError: a bug")


FOLLOWED = {"a: ": "first", "a: first> ": "program", "b: ": "second", "b: second> ": "other"}
FOLLOW_UP = Request(tokens("> "), SamplingParams(max_tokens=20))
A, B = (Request(tokens(prompt), follow_up=FOLLOW_UP) for prompt in ("a: ", "b: "))


@pytest.mark.parametrize("slots", [1, 2])
def test_follow_up_reuses_the_slot_of_its_sample_although_others_wait(slots: int) -> None:
    with running_engine(ScriptedBackend(replies(FOLLOWED), slots=slots)) as engine:
        said = collect_replies(generate(engine, [A, B]))
        samples = collect_replies(generate(engine, [replace(A, params=SamplingParams(seed=5), ask=Ask(n=3))]))
    texts = {(0, 0, 0): "first", (0, 0, 1): "program", (1, 0, 0): "second", (1, 0, 1): "other"}
    assert {id: reply.text for id, reply in said.items()} == texts
    assert slots > 1 or list(said) == [*texts], "in this order"
    follow_up = said[SequenceId(0, 0, 1)].finish
    assert follow_up and (follow_up.prompt_tokens, follow_up.cached_tokens) == (len("a: first> "), len("a: first"))
    assert [reply.finish.is_followed for reply in said.values() if reply.finish].count(True) == 2
    assert {id: reply.seed for id, reply in samples.items()} == {
        (0, sample, turn): 5 + sample for sample in range(3) for turn in range(2)
    }


@pytest.mark.parametrize(("limit", "room", "text"), [(3, 100, "fir"), (None, len("a: first> "), "first")])
def test_follow_up_is_asked_only_after_a_whole_reply_and_with_room_for_it(
    limit: int | None, room: int, text: str
) -> None:
    with running_engine(ScriptedBackend(replies(FOLLOWED), context_size=room)) as engine:
        [reply] = collect_replies(generate(engine, [replace(A, params=SamplingParams(max_tokens=limit))])).values()
    assert reply.finish and (reply.text, reply.finish.is_followed) == (text, False)


@pytest.mark.parametrize("aborts", [False, True])
def test_follow_up_ends_with_its_request(aborts: bool) -> None:
    has_ended = threading.Event()

    def model(held: tuple[int, ...], seed: int) -> int:
        assert len(held) != len("a: first> ") or has_ended.wait(20), "within the follow-up"
        return replies(FOLLOWED)(held, seed)

    with running_engine(ScriptedBackend(model, slots=1)) as engine:
        with closing(engine.complete([A])) as events:
            assert any(isinstance(event, FinishEvent) and event.is_followed for event in events)
            if aborts:
                events.abort(0)
            has_ended.set()
            if aborts:
                [end] = [event for event in events if isinstance(event, FinishEvent)]
                assert (end.sequence.turn, end.reason) == (1, "cancelled")
        assert ask(engine, "b: ")[0].text == "second"  # the slot is free
