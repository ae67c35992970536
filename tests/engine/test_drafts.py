"""Speculative decoding: draft tokens from earlier text, how long they are, and that they change no reply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asking import FREE_ROWS, Reply, ask, collect_replies, running_engine
from command_line import CommandLine
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_engines import STORY, assert_matches_single_run, open_engine
from scripted_backend import DEAD_END, DEAD_END_TOKENS, ScriptedBackend, expected_reply, random_model, replies, tokens

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.drafter import Drafter, DraftState
from cerebrum_cli.engine.sequence import Request, create_sequences
from cerebrum_cli.engine.step_costs import DEFAULT_COSTS, MAX_DRAFT, StepCosts, draft_lengths
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.replies.source import draft_costs

DEAR_ROWS = StepCosts((1, 2, 4), (1.0, 1.65, 3.3))
REPEATED = "the cat sat on the mat. "
COPY = replies({"copy: " + REPEATED: REPEATED * 4})


def start_sample(drafter: Drafter, prompt: str) -> DraftState:
    [sample] = create_sequences(0, Request(tokens(prompt)), lambda event: None, [0], 0)
    return drafter.start(sample)


def grow(drafter: Drafter, state: DraftState, text: str) -> str:
    """Add a text to a reply token by token; return the draft that follows it."""
    for token in tokens(text):
        drafter.draft(state, MAX_DRAFT)
        state.sample.generated.append(token)
    return "".join(chr(each.token) for each in drafter.draft(state, MAX_DRAFT))


# Drafts.


def test_drafter_continues_what_the_reply_repeats() -> None:
    drafter = Drafter()
    state = start_sample(drafter, "one two three four.")
    assert grow(drafter, state, "tw") == ""
    assert grow(drafter, state, "o").startswith(" three four.")
    assert grow(drafter, state, " th").startswith("ree four.")
    assert grow(drafter, state, "e") == ""
    assert grow(drafter, state, "abcabc") == ("abc" * 21)[:MAX_DRAFT]


def test_drafter_follows_a_sibling_from_its_first_token() -> None:
    drafter = Drafter()
    grow(drafter, start_sample(drafter, "question"), "the answer is 4")
    state = start_sample(drafter, "question")
    assert grow(drafter, state, "") == "the answer is 4"
    assert grow(drafter, state, "t") == "he answer is 4"
    assert grow(drafter, state, "hus the a") == "nswer is 4"


def test_drafter_pauses_after_misses_until_a_long_match() -> None:
    text = "a long text that is repeated"
    drafter = Drafter()
    state = start_sample(drafter, text)
    state.misses = 3
    assert grow(drafter, state, text[:15]) == ""
    assert grow(drafter, state, text[15:17]).startswith(text[17:])


@pytest.mark.parametrize(
    ("probabilities", "costs", "max_rows", "is_equal", "lengths"),
    [
        ([[0.99] * 63], DEFAULT_COSTS, 64, False, [63]),
        ([[0.1] * 63], DEFAULT_COSTS, 64, False, [0]),
        ([[0.9, 0.8, 0.6, 0.05, 0.05]], DEFAULT_COSTS, 64, False, [2]),
        ([[0.99] * 31], StepCosts((1, 2, 4, 8), (1.0, 2.0, 4.0, 8.0)), 64, False, [0]),
        ([[0.9, 0.8], [0.3, 0.2]], StepCosts((1, 2, 4), (1.0, 1.1, 1.2)), 64, False, [2, 0]),
        ([[0.99] * 63], FREE_ROWS, 31, False, [15]),
        ([[0.99] * 63, []], FREE_ROWS, 15, False, [6, 0]),
        ([[0.99] * 9, [0.99] * 3], FREE_ROWS, 64, True, [3, 3]),
        ([[0.99] * 9] * 16, FREE_ROWS, 64, False, [0] * 16),  # they fill a tile
        ([[0.8], [0.8]], StepCosts((1, 4), (1.0, 3.3)), 64, True, [0, 0]),  # two rows were not measured
    ],
)
def test_draft_lengths_are_row_counts_that_pay(
    probabilities: list[list[float]], costs: StepCosts, max_rows: int, is_equal: bool, lengths: list[int]
) -> None:
    assert draft_lengths(probabilities, costs, max_rows, is_equal=is_equal) == lengths


# The engine.


def drafted(reply: Reply) -> tuple[int, int]:
    assert reply.finish
    return reply.finish.timings.draft_n, reply.finish.timings.draft_n_accepted


@pytest.mark.parametrize(
    ("costs", "fields", "longest"),
    [
        (FREE_ROWS, {}, 32),
        (FREE_ROWS, {"can_trim": False, "max_rollback": 3}, 4),
        (FREE_ROWS, {"can_trim": False}, 1),
        (None, {}, 1),
    ],
)
def test_engine_drafts_what_costs_and_rollback_allow(
    costs: StepCosts | None, fields: dict[str, Any], longest: int
) -> None:
    backend = ScriptedBackend(COPY, context_size=300, batch_size=64, **fields)
    with running_engine(backend) as engine:
        [reply] = ask(engine, "copy: " + REPEATED, step_costs=costs)
    assert (reply.text, reply.reason) == (REPEATED * 4, "stop")
    assert max(map(len, backend.steps[1:])) == longest
    count, accepted = drafted(reply)
    assert count >= accepted and (accepted > 30) == (longest > 1)


def test_engine_trims_a_rejected_draft() -> None:
    """Only the tokens of the reply can be reused by the next prompt."""
    prompt = "copy: the quick brown fox jumps over the lazy dog. "
    reply_text = "the quick brown fox jumps over me. done"
    script = {prompt: reply_text, prompt + reply_text + " next": "ok"}
    backend = ScriptedBackend(replies(script), context_size=300, batch_size=64)
    with running_engine(backend) as engine:
        [reply] = ask(engine, prompt, step_costs=FREE_ROWS)
        held = bytes(backend.memory[0]).decode()
        [after] = ask(engine, prompt + reply_text + " next")
    count, accepted = drafted(reply)
    assert count > accepted > 0
    assert (reply.text, held, after.cached) == (reply_text, prompt + reply_text, len(prompt + reply_text))


def test_engine_ends_at_a_stop_string_inside_a_draft() -> None:
    backend = ScriptedBackend(COPY, context_size=300, batch_size=64)
    with running_engine(backend) as engine:
        [reply] = ask(engine, "copy: " + REPEATED, step_costs=FREE_ROWS, stop=("on the m",))
        held = bytes(backend.memory[0]).decode()
    assert (reply.text, reply.reason) == ("the cat sat ", "stop")
    assert bytes(reply.ids).decode() == "the cat sat on the m"
    assert held == "copy: " + REPEATED + "the cat sat on the "
    assert drafted(reply)[1] > 0


@settings(max_examples=50)
@given(
    st.lists(st.text("abc", min_size=1, max_size=12), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
    st.integers(1, 60),
    st.sampled_from(({}, {"can_trim": False, "max_rollback": 1}, {"can_trim": False, "max_rollback": 7})),
    st.dictionaries(st.integers(2, 20), st.integers(0, 7)),
)
def test_engine_drafts_and_interrupted_steps_change_no_reply(
    prompts: list[str],
    n: int,
    slots: int,
    unified: bool,
    limit: int,
    fields: dict[str, Any],
    interrupts: dict[int, int],
) -> None:
    """A cancellation of another request interrupts a step; the sequences resume with what was evaluated."""
    context = 300 if unified else 80
    backend = ScriptedBackend(
        random_model, slots, context, batch_size=64, kv_unified=unified, interrupts=interrupts, **fields
    )
    params = SamplingParams(seed=7, max_tokens=limit)
    with running_engine(backend) as engine:
        requests = [Request(tokens(text), params, n=n, step_costs=FREE_ROWS) for text in prompts]
        said = collect_replies(engine.generate(requests))
    for index, text in enumerate(prompts):
        for sample in range(n):
            reply = said[SequenceId(index, sample)]
            assert (reply.ids, reply.reason) == expected_reply(tokens(text), 7 + sample, limit, context)


def test_engine_refuses_a_sample_whose_grammar_ends_inside_a_draft() -> None:
    backend = ScriptedBackend(COPY, context_size=300, batch_size=64)
    with running_engine(backend) as engine:
        prompt = tokens("copy: " + REPEATED)
        events = list(engine.complete([Request(prompt, grammar=DEAD_END, step_costs=FREE_ROWS)]))
        held = bytes(backend.memory[0]).decode()
    generated = "".join(event.text for event in events if isinstance(event, TokenEvent))
    assert isinstance(events[-1], RefusedEvent)
    assert max(map(len, backend.steps[1:])) > 1
    assert (generated, held) == (REPEATED[:DEAD_END_TOKENS], "copy: " + REPEATED + REPEATED[:DEAD_END_TOKENS])


# The command line.


@pytest.mark.parametrize(
    ("measured", "setting", "costs"),
    [
        (None, None, None),
        (None, True, DEFAULT_COSTS),
        (FREE_ROWS, None, FREE_ROWS),
        (FREE_ROWS, True, FREE_ROWS),
        (FREE_ROWS, False, None),
        (DEAR_ROWS, None, None),
        (DEAR_ROWS, True, DEAR_ROWS),
    ],
)
def test_drafts_need_a_profile_or_the_option(
    measured: StepCosts | None, setting: bool | None, costs: StepCosts | None, chatml_model: Path, recurrent_model: Path
) -> None:
    assert draft_costs(measured, InstalledModel("tiny", (chatml_model,)), setting) == costs
    assert draft_costs(measured, InstalledModel("tiny", (recurrent_model,)), setting) is None


def test_commands_report_once_that_a_model_gets_no_drafts(tmp_path: Path, recurrent_model: Path) -> None:
    run = CommandLine(tmp_path).run
    arguments = ("ask", "-m", recurrent_model, "--raw", "-n", "3", "--no-log", STORY)
    asked, plain = run(*arguments, "--set", "speculative=on"), run(*arguments)
    chat = run("chat", "-m", recurrent_model, stdin="/set speculative on\n/set speculative off\n")
    problem = "llama.cpp cannot roll back recurrent states of the mamba architecture"
    note = f"note: speculative decoding is off for this model: {problem}\n"
    assert [(done.code, done.err.count(note)) for done in (asked, plain, chat)] == [(0, 1), (0, 0), (0, 1)]


# llama.cpp.


def test_llama_drafts_after_a_restored_sliding_window(sliding_window_model: Path, tmp_path: Path) -> None:
    """A saved state holds only the window, and a rejected draft must leave enough of it."""
    with open_engine(sliding_window_model, tmp_path) as engine:
        start = engine.vocabulary.tokenize([Text((STORY + "The hen, the fox and the hare were there. ") * 2)])[:204]
        [before] = collect_replies(engine.generate([Request(start, SamplingParams(max_tokens=20))])).values()
        engine.save_prompt_cache(1)
    prompt = (*start, *before.ids)
    with open_engine(sliding_window_model, tmp_path) as engine:
        [reply] = collect_replies(
            engine.generate([Request(prompt, SamplingParams(max_tokens=100), step_costs=FREE_ROWS)])
        ).values()
    assert reply.cached > 200
    count, accepted = drafted(reply)
    assert count > accepted > 10
    assert_matches_single_run(sliding_window_model, prompt, reply.ids)
