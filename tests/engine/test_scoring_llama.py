"""Scores on the real llama.cpp: against a loop over single tokens, in any order, and for each kind of memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import pytest
from asking import loaded
from installations import model_on
from llama_engines import greedy, in_f32, options

from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.backend import StopFlag, TokenRow
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.model_options import LoadOptions, Tuning
from cerebrum_cli.engine.scoring import LogprobScores, Score, ScoreRequest
from cerebrum_cli.engine.sequence import Request, Tokens
from cerebrum_cli.model.format_choice import format_builder

TOLERANCE = 1e-4  # of a token's log-probability
VOCABULARY = 270  # tokens that all tiny models have


def precise_options(path: Path, slots: int = 1) -> LoadOptions:
    """Evaluate in F32, in steps of at most 64 rows."""
    return in_f32(options(path, slots=slots, context_size=512)).with_tuning(Tuning(n_ubatch=64))


def open_engine(
    path: Path, *, slots: int = 8, kv_unified: bool = True, batch_invariant: bool = False
) -> AbstractContextManager[LocalEngine]:
    precise = precise_options(path, slots)
    context = replace(precise.context, kv_unified=kv_unified, batch_invariant=batch_invariant)
    load_options = replace(precise, context=context)
    return loaded(LocalEngine(lambda tell, stop: open_llama(load_options, tell, stop)))


def score(engine: LocalEngine, requests: Iterable[ScoreRequest]) -> list[tuple[Score, ...]]:
    scores = {event.request: event.scores for event in engine.score(requests) if isinstance(event, LogprobScores)}
    return [scores[index] for index in range(len(scores))]


def draw_requests() -> list[ScoreRequest]:
    """Four choices for contexts with a common preamble, contexts without it, and one long text."""
    random = Random(7)

    def text(length: int) -> tuple[int, ...]:
        return tuple(random.randrange(20, VOCABULARY) for _ in range(length))

    preamble = text(50)
    contexts = [*((*preamble, *text(20)) for _ in range(6)), preamble, *(text(length) for length in (1, 9, 30, 100))]
    choices = [ScoreRequest(context, tuple(text(length) for length in (1, 3, 8, 8))) for context in contexts]
    return [*choices, choices[2], ScoreRequest(text(1), (text(150),))]


@cache
def single_token_scores(path: Path) -> list[tuple[Score, ...]]:
    """Scores of texts that are evaluated one token at a time, each text from its start."""
    backend = open_llama(precise_options(path), lambda event: None, StopFlag())
    try:
        backend.reserve(512)
        return [
            tuple(single_token_score(backend, request.context, continuation) for continuation in request.continuations)
            for request in draw_requests()
        ]
    finally:
        backend.close()


def single_token_score(backend: LlamaBackend, context: Tokens, continuation: Tokens) -> Score:
    backend.context.clear(0)
    text = (*context, *continuation)
    total, is_greedy = 0.0, True
    for position, token in enumerate(text[:-1]):
        backend.decode([TokenRow(0, position, token, True)])
        if position + 1 >= len(text) - len(continuation):
            total += backend.logprob(0, text[position + 1])
            is_greedy &= int(backend.logits(0).argmax()) == text[position + 1]
    return Score(total, is_greedy, len(continuation))


def assert_close(scores: list[tuple[Score, ...]], expected: list[tuple[Score, ...]]) -> None:
    """Check scores within the tolerance for each token."""
    for request, others in zip(scores, expected, strict=True):
        for one, other in zip(request, others, strict=True):
            assert (one.is_greedy, one.tokens) == (other.is_greedy, other.tokens)
            assert one.logprob_sum == pytest.approx(other.logprob_sum, abs=TOLERANCE * one.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slots", "kv_unified", "batch_invariant"),
    [(8, True, False), (1, False, False), (4, False, True)],
)
def test_scores_match_single_tokens(precise_model: Path, slots: int, kv_unified: bool, batch_invariant: bool) -> None:
    requests, expected = draw_requests(), single_token_scores(precise_model)
    with open_engine(precise_model, slots=slots, kv_unified=kv_unified, batch_invariant=batch_invariant) as engine:
        assert_close(score(engine, requests), expected)


def test_scores_of_greedy_replies_are_greedy(precise_model: Path) -> None:
    with open_engine(precise_model) as engine:
        prompt = tuple(draw_requests()[0].context)
        reply = tuple(greedy(engine, prompt, 12).ids)
        other = (*reply[:-1], (reply[-1] + 1) % VOCABULARY)
        [scores] = score(engine, [ScoreRequest(prompt, (reply, other, reply[:5]))])
    assert [one.is_greedy for one in scores] == [True, False, True]


@pytest.mark.slow
def test_scores_are_identical_in_any_order(precise_model: Path) -> None:
    requests = draw_requests()
    order = Random(1).sample(range(len(requests)), len(requests))
    with open_engine(precise_model) as engine:
        scores = score(engine, requests)
        greedy(engine, tuple(requests[0].context), 20)  # fills and frees cells
        shuffled = score(engine, [requests[index] for index in order])
        again = score(engine, [replace(one, continuations=one.continuations[::-1]) for one in requests])
    assert shuffled == [scores[index] for index in order]
    assert again == [one[::-1] for one in scores]


@pytest.mark.slow
def test_scores_survive_interrupts_by_other_work(precise_model: Path) -> None:
    requests = draw_requests()
    with open_engine(precise_model) as engine:
        undisturbed = score(engine, requests)
        events = engine.score(requests)
        disturbed = {}
        for event in events:  # a step follows each
            engine.complete([Request((30, 31), SamplingParams(max_tokens=4))]).close()
            if isinstance(event, LogprobScores):
                disturbed[event.request] = event.scores
    assert disturbed == dict(enumerate(undisturbed))


def test_model_scores_a_text_after_the_prefix_token(chatml_model: Path, mistral_model: Path) -> None:
    for path, text in ((chatml_model, "<|im_start|>"), (mistral_model, "<s>")):
        with open_engine(path) as engine:
            model = model_on(engine, format_builder("cerebrum", None, {}))
            prefix = model.prefix_token
            assert prefix is not None and model.detokenize([prefix]) == text
            events = list(model.engine.score([ScoreRequest((prefix,), ((40, 41, 42),))]))
            assert [event.scores[0].tokens for event in events if isinstance(event, LogprobScores)] == [3]
