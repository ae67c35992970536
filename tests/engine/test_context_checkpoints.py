"""Returning to earlier tokens, and moving to longer slots."""

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import ask, collect_replies, generate, loaded, running_engine
from llama_engines import TALE, in_f32, options
from scripted_backend import ScriptedBackend, endless, replies, tokens

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine import requests as engine_requests
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import OPENING_TOKENS, Request
from cerebrum_cli.engine.step import StopFlag, TokenRow

BUDGET = 10_000
END = OPENING_TOKENS
FIRST = "a question of more than sixteen tokens, asked first? "
SCRIPT = {FIRST: "An answer. ", f"{FIRST}An answer. Another? ": "So. ", f"{FIRST}An answer. A third? ": "Or so. "}


def recurrent(slots: int = 1, **options: Any) -> ScriptedBackend:
    return ScriptedBackend(replies(SCRIPT), slots, 200, can_trim=False, checkpoint_budget=BUDGET, **options)


@pytest.mark.parametrize("slots", [1, 3])
def test_recurrent_model_returns_to_checkpoints(slots: int) -> None:
    """The last question again, and then another one in its place, as after an undo."""
    first, second, third = SCRIPT
    with running_engine(recurrent(slots, kv_unified=slots > 1)) as engine:
        said = [ask(engine, prompt)[0] for prompt in (first, first, second, second, third)]
    assert [reply.text for reply in said] == ["An answer. ", "An answer. ", "So. ", "So. ", "Or so. "]
    answered = len(first) + len("An answer. ")
    assert [reply.cached for reply in said] == [0, len(first) - END, answered, answered, answered]


def test_recurrent_model_samples_one_after_another_from_a_checkpoint() -> None:
    with running_engine(recurrent()) as engine:
        said = ask(engine, FIRST, n=4)
    assert [reply.cached for reply in said] == [0, *[len(FIRST) - END] * 3]


def test_samples_share_the_checkpoints_of_their_prompt() -> None:
    """One of 37 tokens, of which each slot has its own, though it would not fit into the budget four times."""
    backend = recurrent(4, kv_unified=True)
    backend.checkpoint_budget = 4 * 100
    with running_engine(backend) as engine:
        ask(engine, FIRST, n=4)
        again = ask(engine, FIRST, n=4)
    assert [reply.cached for reply in again] == [len(FIRST) - END, *[len(FIRST)] * 3]


def test_checkpoints_stay_within_their_budget() -> None:
    """Each takes 4 bytes a token: the first, of 37 tokens, is dropped for the second, of 64."""
    first, second, _ = SCRIPT
    backend = recurrent()
    backend.checkpoint_budget = 4 * 100
    with running_engine(backend) as engine:
        for prompt in (first, second, first):
            [reply] = ask(engine, prompt)
    assert (reply.text, reply.cached) == ("An answer. ", 0)


def test_common_prefix_is_snapshot_for_slots_that_cannot_be_trimmed() -> None:
    """The second prompt shows what is common, the third loads it."""
    common = "Some examples that all questions have in common, in more than sixty-four tokens: "
    script = {f"{common}{name}": "Yes." for name in ("first", "second", "third", "fourth")}
    backend = ScriptedBackend(replies(script), 2, 200, can_trim=False)
    with running_engine(backend) as engine:
        said = [ask(engine, prompt)[0] for prompt in script]
    assert [reply.cached for reply in said] == [0, 0, len(common), len(common)]


def growing(slots: int, **options: Any) -> tuple[ScriptedBackend, list[Request]]:
    """Requests whose replies outgrow slots of 40 tokens: 90 tokens after 10."""
    script = {f"{name} prompt. ": name for name in "abcd"}
    backend = ScriptedBackend(endless(script), slots, 100, **options)
    return backend, [Request(tokens(prompt)) for prompt in script]


@pytest.mark.parametrize(
    ("cells", "limit", "reserved"),
    [
        (1_000_000, None, [(40, 4), (70, 4), (100, 4)]),
        (170, None, [(40, 4), (70, 2), (100, 1)]),
        (1_000_000, 80, [(90, 4)]),  # as long as requested if memory is free
    ],
)
def test_sequences_are_evaluated_again_in_longer_slots(
    monkeypatch: pytest.MonkeyPatch, cells: int, limit: int | None, reserved: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", 30)
    backend, requests = growing(4, fitting_cells=cells)
    limited = [replace(request, params=SamplingParams(max_tokens=limit)) for request in requests]
    with running_engine(backend) as engine:
        said = collect_replies(generate(engine, limited)).values()
    assert [len(reply.ids) for reply in said] == [limit or 90] * 4
    is_moved = len(reserved) > 1
    assert (backend.evaluated > 4 * (9 + (limit or 90))) == is_moved
    assert backend.reserved == reserved


def test_llama_tells_states_of_other_numbers_of_slots_apart(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "state"
    backend = open_llama(options(tiny_model, slots=4), lambda event: None, StopFlag())
    backend.reserve(256, 4)
    kind = backend.state_kind
    assert backend.decode([TokenRow(1, at, 5 + at, at == 99) for at in range(100)])
    backend.context.save_state(1, array("i", range(5, 105)), path)
    assert backend.context.load_state(2, path)
    assert backend.context.length(2) == 100
    backend.reserve(256, 2)
    assert backend.state_kind != kind
    path.unlink()
    assert not backend.context.load_state(0, path)
    assert backend.context.length(0) == 0
    backend.close()


@pytest.mark.slow
def test_llama_replies_continue_in_longer_slots(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """Texts are those of slots that were long enough at first."""
    load_options = in_f32(options(tiny_model, slots=3, context_size=2048))
    params = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
    said = []
    for expected in (30, 1024):
        monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", expected)
        monkeypatch.setattr(Request, "max_length", lambda self, size: size)
        with loaded(LocalEngine(lambda tell, stop: open_llama(load_options, tell, stop))) as engine:
            prompt = engine.vocabulary.tokenize([Text(TALE)])[:60]
            found = collect_replies(generate(engine, [Request(prompt, params, Ask(n=3, ignore_eos=True))]))
            said.append([reply.ids for reply in found.values()])
    assert said[0] == said[1]
