"""Speculative decoding: draft tokens from earlier text, how long they are, and that they change no reply."""

from pathlib import Path
from typing import Any

import pytest
from asking import Reply, ask, collect_replies, generate, running_engine
from hypothesis import given, strategies as st
from llama_engines import STORY, assert_matches_single_run, open_engine
from scripted_backend import DEAD_END, DEAD_END_TOKENS, ScriptedBackend, expected_reply, random_model, replies, tokens

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.drafter import MAX_DRAFT, Drafter
from cerebrum_cli.engine.requests import Request

REPEATED = "the cat sat on the mat. "
COPY = replies({"copy: " + REPEATED: REPEATED * 10})


def drafts_after(prompt: str, reply: str) -> str:
    """The draft after a reply that was drafted token by token."""
    drafter, generated = Drafter(tokens(prompt)), list[int]()
    for token in tokens(reply):
        drafter.draft(generated, MAX_DRAFT)
        generated.append(token)
    return "".join(map(chr, drafter.draft(generated, MAX_DRAFT)))


LINE = "a long text in the prompt, which the reply repeats"
NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


@pytest.mark.parametrize(
    ("prompt", "reply", "draft"),
    [
        (LINE, LINE[:12], ""),
        (LINE, LINE[:30], LINE[30:]),
        ("go:", "abc" * 30, ("abc" * 21)[:MAX_DRAFT]),  # a repetition, with its own draft
        (NUMBERS, NUMBERS[:40] + "X", ""),  # where the reply differs
        (NUMBERS, NUMBERS[:40] + "X" + NUMBERS[45:70], NUMBERS[70:75]),
    ],
)
def test_drafter_continues_a_long_match(prompt: str, reply: str, draft: str) -> None:
    assert drafts_after(prompt, reply)[: len(draft) or None] == draft


def test_drafter_learns_that_matches_are_not_continued() -> None:
    """Each line begins as all others, and ends in its own way."""
    beginning = "abcdefghijklmnopqr"
    lines = [f"{number}{number}{beginning}{number:04}" for number in range(10, 90, 8)]
    assert drafts_after(lines[0], lines[1][:20]) != ""
    assert drafts_after(lines[0], "".join(lines[1:9]) + lines[9][:20]) == ""


@pytest.mark.parametrize(("limit", "length"), [(100, MAX_DRAFT), (62, 31), (6, 5), (2, 0), (0, 0), (-1, 0)])
def test_drafter_drafts_numbers_of_rows_that_pay(limit: int, length: int) -> None:
    drafter, generated = Drafter(tokens("go:")), list[int]()
    for token in tokens("abc" * 90):
        drafter.draft(generated, MAX_DRAFT)
        generated.append(token)
    assert len(drafter.draft(generated, limit)) == length


def drafted(reply: Reply) -> tuple[int, int]:
    assert reply.finish
    return reply.finish.timings.draft_n, reply.finish.timings.draft_n_accepted


@pytest.mark.parametrize(
    ("speculative", "fields", "longest"),
    [
        (True, {}, 64),
        (True, {"can_trim": False, "max_rollback": 7}, 6),
        (True, {"can_trim": False}, 1),
        (False, {}, 1),
    ],
)
def test_engine_drafts_what_can_be_rolled_back(speculative: bool, fields: dict[str, Any], longest: int) -> None:
    backend = ScriptedBackend(COPY, context_size=300, batch_size=64, **fields)
    with running_engine(backend) as engine:
        [reply] = ask(engine, "copy: " + REPEATED, speculative=speculative)
    assert (reply.text, reply.reason) == (REPEATED * 10, "stop")
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
        [reply] = ask(engine, prompt, speculative=True)
        held = bytes(backend.memory[0]).decode()
        [after] = ask(engine, prompt + reply_text + " next")
    count, accepted = drafted(reply)
    assert count > accepted > 0
    assert (reply.text, held, after.cached) == (reply_text, prompt + reply_text, len(prompt + reply_text))


def test_engine_ends_at_a_stop_string_inside_a_draft() -> None:
    backend = ScriptedBackend(COPY, context_size=300, batch_size=64)
    with running_engine(backend) as engine:
        [reply] = ask(engine, "copy: " + REPEATED, speculative=True, stop=("on the m",))
        held = bytes(backend.memory[0]).decode()
    assert (reply.text, reply.reason) == ("the cat sat ", "stop")
    assert bytes(reply.ids).decode() == "the cat sat on the m"
    assert held == "copy: " + REPEATED + "the cat sat on the "
    assert drafted(reply)[1] > 0


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
        requests = [Request(tokens(text), params, Ask(n=n), speculative=True) for text in prompts]
        said = collect_replies(generate(engine, requests))
    for index, text in enumerate(prompts):
        for sample in range(n):
            reply = said[SequenceId(index, sample)]
            assert (reply.ids, reply.reason) == expected_reply(tokens(text), 7 + sample, limit, context)


def test_engine_refuses_a_sample_whose_grammar_ends_inside_a_draft() -> None:
    backend = ScriptedBackend(COPY, context_size=300, batch_size=64)
    with running_engine(backend) as engine:
        prompt = tokens("copy: " + REPEATED)
        events = list(engine.complete([Request(prompt, ask=Ask(grammar=Grammar("gbnf", DEAD_END)), speculative=True)]))
        held = bytes(backend.memory[0]).decode()
    generated = "".join(event.text for event in events if isinstance(event, TokenEvent))
    assert isinstance(events[-1], RefusedEvent)
    assert max(map(len, backend.steps[1:])) > 1
    assert (generated, held) == (REPEATED[:DEAD_END_TOKENS], "copy: " + REPEATED + REPEATED[:DEAD_END_TOKENS])


# llama.cpp.


def test_llama_drafts_after_a_restored_sliding_window(sliding_window_model: Path, tmp_path: Path) -> None:
    """A saved state holds only the window, and a rejected draft must leave enough of it."""
    with open_engine(sliding_window_model, tmp_path) as engine:
        start = engine.vocabulary.tokenize([Text((STORY + "The hen, the fox and the hare were there. ") * 2)])[:204]
        [before] = collect_replies(generate(engine, [Request(start, SamplingParams(max_tokens=20))])).values()
        engine.save_prompts(1)
    prompt = (*start, *before.ids)
    with open_engine(sliding_window_model, tmp_path) as engine:
        [reply] = collect_replies(
            generate(engine, [Request(prompt, SamplingParams(max_tokens=100), speculative=True)])
        ).values()
    assert reply.cached > 200
    count, accepted = drafted(reply)
    assert count > accepted > 10
    assert_matches_single_run(sliding_window_model, prompt, reply.ids)
