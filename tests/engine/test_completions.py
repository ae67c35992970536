"""Completions: adding and aborting samples while others run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from asking import collect_replies, running_engine
from scripted_backend import END, Model, ScriptedBackend, replies, tokens
from waiting import wait_until

from cerebrum_cli.core.errors import EngineError, GrammarError, UsageError
from cerebrum_cli.core.events import Event, FinishEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
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
    with closing(engine.complete([request("x#", 2), request("y#", seed=5)])) as completions:
        completions.add([request("z#", seed=7)])
        said = collect_replies(completions)
        assert {id: reply.text for id, reply in said.items()} == {
            SequenceId(0, 0): "aaa",
            SequenceId(0, 1): "bbb",
            SequenceId(1, 0): "fff",
            SequenceId(2, 0): "hhh",
        }
        assert list(completions) == []
        completions.add([request("w#", seed=1)])  # after it was exhausted
        assert collect_replies(completions)[SequenceId(3, 0)].text == "bbb"


def test_added_samples_continue_the_seeds(engine: LocalEngine) -> None:
    with closing(engine.complete([request("x#", 2, seed=3), request("y#", seed=None)])) as completions:
        completions.add_samples(0, 2)
        completions.add_samples(1, 1)
        said = collect_replies(completions)
        assert [said[SequenceId(0, sample)].text for sample in range(4)] == ["ddd", "eee", "fff", "ggg"]
        assert [said[SequenceId(0, sample)].seed for sample in range(4)] == [3, 4, 5, 6]
        assert said[SequenceId(1, 1)].seed == said[SequenceId(1, 0)].seed + 1  # random, then consecutive
        completions.add_samples(0, 1)
        again = collect_replies(completions)
        assert [(id, reply.text) for id, reply in again.items()] == [(SequenceId(0, 4), "hhh")]


def test_added_samples_share_the_prompt() -> None:
    scripted = backend()
    prompt = "p" * 100 + "#"
    with running_engine(scripted) as engine, closing(engine.complete([request(prompt)])) as completions:
        list(completions)
        before = scripted.evaluated
        completions.add_samples(0, 3)
        said = collect_replies(completions)
        assert [reply.cached >= 100 for reply in said.values()] == [True] * 3
        assert scripted.evaluated - before < 20


def test_abort_cancels_only_the_samples_of_its_request(engine: LocalEngine, gate: threading.Event) -> None:
    with closing(engine.complete([request("X#", 2), request("Y#", 2, seed=5)])) as completions:
        events = events_until(completions, is_token_of(1))
        completions.abort(0)
        gate.set()
        said = collect_replies([*events, *completions])
        assert [said[SequenceId(0, sample)].reason for sample in range(2)] == ["cancelled"] * 2
        assert [said[SequenceId(1, sample)].text for sample in range(2)] == ["f" * LENGTH, "g" * LENGTH]
        assert said[SequenceId(0, 0)].text in "a" * LENGTH


def test_abort_costs_other_requests_no_step() -> None:
    def evaluated(ends: bool) -> int:
        gate = threading.Event()
        scripted = backend(gate=gate)
        with (
            running_engine(scripted) as engine,
            closing(engine.complete([request("X#"), request("Y#", seed=5)])) as completions,
        ):
            events_until(completions, is_token_of(1))
            if ends:
                completions.abort(0)
            gate.set()
            said = collect_replies(completions)
            assert said[SequenceId(1, 0)].text.endswith("f" * (LENGTH - 5))
            return sum(row.slot == 1 for rows in scripted.steps for row in rows)

    assert evaluated(ends=True) == evaluated(ends=False)  # nothing is evaluated again


def test_abort_cancels_waiting_samples(gate: threading.Event) -> None:
    with running_engine(backend(1, gate)) as engine:
        with closing(engine.complete([request("X#"), request("Y#", 3, seed=5)])) as completions:
            events = events_until(completions, is_token_of(0))
            completions.abort(1)
            gate.set()
            said = collect_replies([*events, *completions])
        assert said[SequenceId(0, 0)].text == "a" * LENGTH
        assert [(said[SequenceId(1, n)].reason, said[SequenceId(1, n)].text) for n in range(3)] == [
            ("cancelled", "")
        ] * 3


def test_abort_of_a_finished_or_unknown_request_does_nothing(engine: LocalEngine) -> None:
    with closing(engine.complete([request("x#"), request("y#", seed=5)])) as completions:
        events = events_until(completions, lambda event: isinstance(event, FinishEvent))
        completions.abort(events[-1].sequence.request)  # type: ignore[union-attr]
        completions.abort(7)
        said = collect_replies([*events, *completions])
        assert [said[SequenceId(number, 0)].text for number in range(2)] == ["aaa", "fff"]
        completions.abort(0)
        assert list(completions) == []


def test_aborted_request_accepts_new_samples(engine: LocalEngine, gate: threading.Event) -> None:
    with closing(engine.complete([request("X#")])) as completions:
        events_until(completions, is_token_of(0))
        completions.abort(0)
        completions.add_samples(0, 1)
        gate.set()
        said = collect_replies(completions)
        assert said[SequenceId(0, 0)].reason == "cancelled"
        assert said[SequenceId(0, 1)].text == "b" * LENGTH


def test_failed_step_empties_all_slots() -> None:
    error = EngineError("llama.cpp gave up")
    model = replies({"a" * 20: "b" * 20, "c" * 50: "done"})
    scripted = ScriptedBackend(model, slots=2, context_size=60, batch_size=64, kv_unified=True, fails={3: error})
    with running_engine(scripted) as engine:
        with pytest.raises(EngineError, match="gave up"):
            list(engine.generate([Request(tokens("a" * 20), n=2)]))
        said = collect_replies(engine.generate([Request(tokens("c" * 50))]))
    assert [reply.text for reply in said.values()] == ["done"]


def test_empty_prompts_and_closed_engines_are_errors() -> None:
    scripted = backend()
    with running_engine(scripted) as engine:
        with pytest.raises(UsageError, match="is empty"):
            engine.complete([request("x#"), request("")])
        completions = engine.complete([request("x#")])
        list(completions)
    with pytest.raises(EngineError):
        completions.add_samples(0, 1)
    with pytest.raises(EngineError):
        engine.complete([request("x#")])
    completions.abort(0)
    assert list(completions) == []


def test_samples_added_after_cancel_are_cancelled(engine: LocalEngine) -> None:
    with closing(engine.complete([request("x#")])) as completions:
        events = [next(completions)]
        engine.cancel()
        completions.add_samples(0, 3)
        completions.add([request("y#")])
        said = collect_replies([*events, *completions])
    later = [SequenceId(0, 1), SequenceId(0, 2), SequenceId(0, 3), SequenceId(1, 0)]
    assert [(said[id].reason, said[id].text) for id in later] == [("cancelled", "")] * 4


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


def test_slow_reader_pauses_admission_but_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.local.MAX_BACKLOG", 20)
    scripted = backend(slots=2)
    with running_engine(scripted) as engine, closing(engine.complete([request(f"q{n}") for n in range(50)])) as running:
        wait_until(lambda: running._outbox.qsize() > 20)
        time.sleep(0.1)
        steps = len(scripted.steps)
        time.sleep(0.1)
        assert len(scripted.steps) == steps
        assert running._outbox.qsize() < 60
        assert len(collect_replies(running)) == 50


def test_cancel_ends_what_a_slow_reader_has_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.local.MAX_BACKLOG", 20)
    with running_engine(backend(slots=2)) as engine:
        running = engine.complete([request(f"q{n}") for n in range(50)])
        wait_until(lambda: running._outbox.qsize() > 20)
        engine.cancel()
        reasons = [event.reason for event in running if isinstance(event, FinishEvent)]
        assert len(reasons) == 50
        assert reasons[-1] == "cancelled"
