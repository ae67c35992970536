"""Scores on the real llama.cpp: against a loop over single tokens, in any order, and for each kind of memory."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from asking import loaded
from installations import model_on
from llama_engines import greedy, in_f32, options
from templates import chosen_format

from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.loglikelihood import LogprobScores, Score, ScoreRequest

VOCABULARY = 270  # tokens that all tiny models have


def open_engine(
    path: Path, *, slots: int = 8, kv_unified: bool = True, batch_invariant: bool = False
) -> AbstractContextManager[LocalEngine]:
    """Evaluate in F32, in steps of at most 64 rows."""
    precise = in_f32(options(path, slots=slots, context_size=512))
    context = replace(precise.context, n_ubatch=64, kv_unified=kv_unified, batch_invariant=batch_invariant)
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


@pytest.mark.slow
def test_scores_are_identical_in_any_order(precise_model: Path) -> None:
    requests = draw_requests()
    order = Random(1).sample(range(len(requests)), len(requests))
    with open_engine(precise_model) as engine:
        scores = score(engine, requests)
        reply = tuple(greedy(engine, tuple(requests[0].context), 12).ids)  # fills and frees cells
        other = (*reply[:-1], (reply[-1] + 1) % VOCABULARY)
        [greedily] = score(engine, [ScoreRequest(requests[0].context, (reply, other, reply[:5]))])
        shuffled = score(engine, [requests[index] for index in order])
        again = score(engine, [replace(one, continuations=one.continuations[::-1]) for one in requests])
    assert [each.is_greedy for each in greedily] == [True, False, True]
    assert shuffled == [scores[index] for index in order]
    assert again == [one[::-1] for one in scores]


def test_model_scores_a_text_after_the_prefix_token(chatml_model: Path, mistral_model: Path) -> None:
    for path, text in ((chatml_model, "<|im_start|>"), (mistral_model, "<s>")):
        with open_engine(path) as engine:
            model = model_on(engine, chosen_format("cerebrum"))
            assert model.prompts.detokenize(model.prompts.prefix_tokens) == text
            events = list(model.engine.score([ScoreRequest(model.prompts.prefix_tokens, ((40, 41, 42),))]))
            assert [event.scores[0].tokens for event in events if isinstance(event, LogprobScores)] == [3]
