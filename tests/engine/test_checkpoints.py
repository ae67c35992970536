"""Returning to earlier tokens, and moving to longer slots, without evaluating anything twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from architectures import write_architecture
from asking import ask, collect_replies, loaded, running_engine
from llama_engines import TALE, options
from scripted_backend import ScriptedBackend, endless, replies, tokens

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine import sequence
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.step import StopFlag, TokenRow

BUDGET = 10_000
END = sequence.OPENING_TOKENS
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
def test_sequences_move_to_longer_slots_without_evaluating_again(
    monkeypatch: pytest.MonkeyPatch, cells: int, limit: int | None, reserved: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(sequence, "EXPECTED_REPLY_TOKENS", 30)
    backend, requests = growing(4, fitting_cells=cells)
    limited = [replace(request, params=SamplingParams(max_tokens=limit)) for request in requests]
    with running_engine(backend) as engine:
        said = collect_replies(engine.generate(limited)).values()
    assert [len(reply.ids) for reply in said] == [limit or 90] * 4
    assert backend.evaluated == 4 * (9 + (limit or 90))
    assert backend.reserved == reserved


def test_states_of_preempted_sequences_leave_half_of_the_free_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "EXPECTED_REPLY_TOKENS", 30)
    taken: list[int] = []

    def disk_usage(directory: Path) -> SimpleNamespace:
        taken.append(sum(state.stat().st_size for state in directory.iterdir()))
        return SimpleNamespace(free=1000 - taken[-1])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    backend, requests = growing(4, fitting_cells=170)
    with running_engine(backend) as engine:
        said = collect_replies(engine.generate(requests)).values()
    assert [len(reply.ids) for reply in said] == [90] * 4
    assert 0 < max(taken) <= 500
    assert backend.evaluated > 4 * (9 + 90)  # some are evaluated again


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "mamba2"])
def test_llama_loads_a_state_from_a_context_with_other_slots(tmp_path: Path, name: str) -> None:
    path, model = tmp_path / "state", write_architecture(tmp_path / "model.gguf", name)
    backend = open_llama(options(model, slots=4), lambda event: None, StopFlag())
    text = [5 + 7 * at % 90 for at in range(101)]
    for before, slot, after in ((4, 0, 2), (4, 1, 2), (4, 3, 2), (4, 2, 1), (3, 1, 3), (2, 1, 4)):
        backend.reserve(256, before)
        assert backend.decode([TokenRow(slot, at, token, at == 99) for at, token in enumerate(text[:100])])
        backend.context.save_state(slot, path)
        assert backend.decode([TokenRow(slot, 100, text[100], True)])
        expected = backend.logits(0).copy()
        backend.reserve(512, after)
        assert backend.slots == after and backend.context.load_state(0, path) and backend.context.length(0) == 100
        assert backend.decode([TokenRow(0, 100, text[100], True)])
        assert abs(backend.logits(0) - expected).max() <= 0.01 * abs(expected).max()
    path.unlink()
    assert not backend.context.load_state(0, path) and not backend.context.length(0)
    backend.close()


@pytest.mark.slow
def test_llama_replies_continue_in_longer_slots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> None:
    """Texts and evaluated tokens are those of slots that were long enough at first."""
    load_options = options(tiny_model, slots=3, context_size=2048)
    params = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
    said = []
    for expected in (30, 1024):
        monkeypatch.setattr(sequence, "EXPECTED_REPLY_TOKENS", expected)
        monkeypatch.setattr(Request, "max_length", lambda self, size: size)
        with loaded(LocalEngine(lambda tell, stop: open_llama(load_options, tell, stop), None, tmp_path)) as engine:
            prompt = engine.vocabulary.tokenize([Text(TALE)])[:60]
            found = collect_replies(engine.generate([Request(prompt, params, n=3, ignore_eos=True)]))
            said.append([reply.ids for reply in found.values()])
    assert said[0] == said[1]
    assert not list(tmp_path.iterdir())
