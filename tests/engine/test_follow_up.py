"""Follow-ups: a second prompt continues each sample that ends by itself, in its slot."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace

import pytest
from asking import ask, generate, running_engine
from scripted_backend import ScriptedBackend, replies, tokens

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.events import Event, FinishEvent, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import Request

SCRIPT = {"a: ": "first", "a: first> ": "program", "b: ": "second", "b: second> ": "other"}
ASKED = Request(tokens("> "), SamplingParams(max_tokens=20))


def texts(events: Iterable[Event]) -> dict[tuple[int, ...], str]:
    """Texts by request, sample and turn, in the order in which they began."""
    said: dict[tuple[int, ...], str] = {}
    for event in events:
        if isinstance(event, TokenEvent):
            said[event.sequence] = said.get(event.sequence, "") + event.text
    return said


def requests(*prompts: str, n: int = 1, max_tokens: int | None = None) -> list[Request]:
    params = SamplingParams(max_tokens=max_tokens)
    return [Request(tokens(prompt), params, Ask(n=n), follow_up=ASKED) for prompt in prompts]


def generated(engine: LocalEngine, asked: list[Request]) -> tuple[list[Event], dict[tuple[int, ...], FinishEvent]]:
    events = list(generate(engine, asked))
    return events, {event.sequence: event for event in events if isinstance(event, FinishEvent)}


@pytest.mark.parametrize("slots", [1, 2])
def test_follow_up_reuses_the_slot_of_its_sample_although_others_wait(slots: int) -> None:
    backend = ScriptedBackend(replies(SCRIPT), slots=slots)
    with running_engine(backend) as engine:
        events, finished = generated(engine, requests("a: ", "b: "))
    said = texts(events)
    assert said == {(0, 0, 0): "first", (0, 0, 1): "program", (1, 0, 0): "second", (1, 0, 1): "other"}
    assert slots > 1 or list(said) == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    follow_up = finished[0, 0, 1]
    assert (follow_up.prompt_tokens, follow_up.cached_tokens) == (len("a: first> "), len("a: first"))
    assert [event.is_followed for event in finished.values()].count(True) == 2


def test_follow_up_of_each_sample_has_its_seed() -> None:
    with running_engine(ScriptedBackend(replies(SCRIPT), slots=3)) as engine:
        [request] = requests("a: ", n=3)
        _, finished = generated(engine, [replace(request, params=SamplingParams(seed=5))])
    assert {id: event.seed for id, event in finished.items()} == {
        (0, sample, turn): 5 + sample for sample in range(3) for turn in range(2)
    }


def test_follow_up_is_asked_only_after_a_whole_reply_and_with_room_for_it() -> None:
    with running_engine(ScriptedBackend(replies(SCRIPT))) as engine:
        events, _ = generated(engine, requests("a: ", max_tokens=3))
        assert texts(events) == {(0, 0, 0): "fir"}
    with running_engine(ScriptedBackend(replies(SCRIPT), context_size=len("a: first> "))) as engine:
        events, finished = generated(engine, requests("a: "))
        assert texts(events) == {(0, 0, 0): "first"} and not finished[0, 0, 0].is_followed


@pytest.mark.parametrize("aborts", [False, True])
def test_follow_up_ends_with_its_request(aborts: bool) -> None:
    backend = ScriptedBackend(replies(SCRIPT), slots=1)
    with running_engine(backend) as engine:
        with closing(engine.complete(requests("a: "))) as events:
            for event in events:
                if isinstance(event, FinishEvent) and event.is_followed:
                    break
            if aborts:
                events.abort(0)
                [end] = [event for event in events if isinstance(event, FinishEvent)]
                assert (end.sequence.turn, end.reason) in ((1, "cancelled"), (1, "stop"))
        assert ask(engine, "b: ")[0].text == "second"  # the slot is free
