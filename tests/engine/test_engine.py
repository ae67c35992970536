"""The engine: replies, samples, reuse of evaluated tokens, seeds, memory and timings."""

import pytest
from asking import ask, collect_replies, generate, running_engine
from scripted_backend import MARK, ScriptedBackend, replies, tokens

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import PromptEvent
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.engine.requests import Request

GREETING = replies({"hello ": "world", "hello world, ": "who are you?"})


@pytest.mark.parametrize(
    ("slots", "cached"), [(1, [0, 5, 5, 5]), (2, [0, 6, 5, 6]), (4, [0, 6, 6, 6]), (8, [0, 6, 6, 6])]
)
def test_engine_evaluates_the_prompt_of_samples_once(slots: int, cached: list[int]) -> None:
    backend = ScriptedBackend(GREETING, slots=slots)
    with running_engine(backend) as engine:
        said = ask(engine, "hello ", n=4)
    assert [reply.text for reply in said] == ["world"] * 4
    assert [reply.cached for reply in said] == cached
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


def test_engine_draws_seeds_in_a_range_and_wraps_them() -> None:
    with running_engine(ScriptedBackend(GREETING, slots=2)) as engine:
        drawn = [ask(engine, "hello ")[0].seed for _ in range(3)]
        wrapped = [reply.seed for reply in ask(engine, "hello ", n=2, seed=SEEDS - 1)]
    assert wrapped == [SEEDS - 1, 0]
    assert len({*drawn}) == 3 and all(0 <= seed < SEEDS for seed in drawn)


@pytest.mark.parametrize(
    ("asked", "limit", "cells", "reserved"),
    [
        # slots for all again after a long reply
        (
            [(8000, 1), (600, 1), (10, 8), (600, 2), (10, 8)],
            900,
            16_000,
            [(8900, 1), (910, 8), (1500, 5), (910, 8)],
        ),
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


def test_engine_recovers_after_a_failed_allocation() -> None:
    backend = ScriptedBackend(GREETING, fits=20)
    with running_engine(backend) as engine:
        for _ in range(2):
            with pytest.raises(EngineError, match="no memory"):
                ask(engine, "hello ", max_tokens=50)
            assert ask(engine, "hello ", max_tokens=9)[0].text == "world"


def test_engine_measures_prefill_and_decode() -> None:
    with running_engine(ScriptedBackend(GREETING)) as engine:
        first, second = ask(engine, "hello ")[0].finish, ask(engine, "hello ")[0].finish
    assert first and second
    assert (first.timings.prefill_tokens, first.timings.decode_steps) == (6, 5)
    assert (second.timings.prefill_tokens, second.timings.decode_steps) == (1, 5)
    assert 0 < first.timings.prefill_s <= first.timings.ttft_s
    assert first.timings.decode_s > 0 and first.timings.tokens_per_second > 0
    assert first.timings.load_s == second.timings.load_s >= 0
