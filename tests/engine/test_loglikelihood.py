"""Scores of given texts: on a scripted backend, and on the real llama.cpp for each kind of memory."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from asking import collect_replies, generate, running_engine, when_held
from hypothesis import given, settings, strategies as st
from installations import model_on
from llama_engines import engine_with, greedy, in_f32, options
from scripted_backend import ALPHABET, ScriptedBackend, random_model, replies, token_score, tokens
from templates import chosen_format

from cerebrum_cli.core.errors import CerebrumError, EngineError, PromptTooLong, UsageError
from cerebrum_cli.core.events import RefusedEvent, StageEvent
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.loglikelihood import LogprobScores, Score, ScoreRequest, ScoringEvent
from cerebrum_cli.engine.requests import Request

Scores = dict[int, tuple[Score, ...]]


def request(context: str, *continuations: str) -> ScoreRequest:
    return ScoreRequest(tokens(context), tuple(map(tokens, continuations)))


def shared_backend(slots: int = 4, context_size: int = 100, **given: Any) -> ScriptedBackend:
    return ScriptedBackend(random_model, slots, context_size, kv_unified=True, **given)


def collect_scores(events: Iterable[ScoringEvent]) -> Scores:
    """Scores by request; each may be there only once."""
    found = [event for event in events if not isinstance(event, StageEvent)]
    scores = {event.request: event.scores for event in found if isinstance(event, LogprobScores)}
    assert len(scores) == len(found)
    return scores


def score(backend: ScriptedBackend, *requests: ScoreRequest) -> Scores:
    with running_engine(backend) as engine:
        return collect_scores(engine.score(requests))


def expected_scores(asked: ScoreRequest) -> tuple[Score, ...]:
    """Scores from one token after another."""
    scores = []
    for continuation in asked.continuations:
        held, logprobs, are_greedy = tuple(asked.context), [], []
        for token in continuation:
            logprob, is_argmax = token_score(held, token)
            logprobs.append(logprob)
            are_greedy.append(is_argmax)
            held = (*held, token)
        scores.append(Score(sum(logprobs), all(are_greedy), len(continuation)))
    return tuple(scores)


def expected(requests: Iterable[ScoreRequest]) -> Scores:
    return dict(enumerate(map(expected_scores, requests)))


def trie_nodes(requests: Iterable[ScoreRequest]) -> set[tuple[int, ...]]:
    """Prefixes to evaluate: of contexts and continuations without the last token."""
    texts = {(*asked.context, *scored[:-1]) for asked in requests for scored in asked.continuations if scored}
    return {text[:length] for text in texts for length in range(1, len(text) + 1)}


EDGES = [  # of requests that the drawn ones seldom have
    request("a context", " one", " two", ""),
    request("a context"),
    request("c" * 500, ""),
    request("", ""),
    request("a context", " one", " one", " on", " one more"),
    *[request("a context", " one", " two")] * 3,
]


def test_scores_are_sums_over_tokens() -> None:
    for backend in (shared_backend(), ScriptedBackend(random_model), ScriptedBackend(random_model, can_trim=False)):
        assert score(backend, *EDGES) == expected(EDGES)
    assert score(shared_backend()) == {}


def test_scores_share_steps_between_requests() -> None:
    backend = shared_backend(slots=8)
    score(backend, *(request(f"{number} is a number", " a", " b") for number in range(8)))
    assert [len(step) for step in backend.steps] == [16] * 7


@dataclass(frozen=True)
class Work:
    """Requests, and a backend that is just large enough, or larger."""

    requests: list[ScoreRequest]
    slots: int
    spare: int
    batch_size: int
    max_outputs: int

    def backend(self, **given: Any) -> ScriptedBackend:
        length = max(map(len, trie_nodes(self.requests)), default=1) + self.spare
        sizes = {"batch_size": max(self.slots, self.batch_size), "max_outputs": self.max_outputs}
        return shared_backend(self.slots, length, **sizes, **given)


LETTERS = st.lists(st.sampled_from(ALPHABET), max_size=6).map(tuple)
REQUESTS = st.builds(
    lambda start, end, continuations: ScoreRequest((*b"abcabcaa"[:start], *end), tuple(continuations)),
    st.integers(1, 8),
    LETTERS,
    st.lists(LETTERS, max_size=5),
)
WORK = st.builds(
    Work,
    st.lists(REQUESTS, max_size=12),
    slots=st.integers(1, 6),
    spare=st.integers(0, 30),
    batch_size=st.integers(1, 12),
    max_outputs=st.integers(1, 6),
)


@settings(max_examples=30)
@given(WORK, st.randoms())
def test_scores_evaluate_each_node_of_the_trie_once_in_any_order(work: Work, random: Random) -> None:
    shuffled = [
        ScoreRequest(one.context, tuple(random.sample(one.continuations, len(one.continuations))))
        for one in random.sample(work.requests, len(work.requests))
    ]
    backend, again = work.backend(), work.backend()
    assert score(backend, *work.requests) == expected(work.requests)
    assert backend.evaluated == len(trie_nodes(work.requests))
    assert all(sum(row.output for row in step) <= work.max_outputs for step in backend.steps)
    score(again, *shuffled)
    assert again.steps == backend.steps


@given(WORK, st.booleans(), st.dictionaries(st.integers(0, 12), st.integers(0, 6)))
def test_scores_are_right_after_interrupted_steps(work: Work, can_trim: bool, interrupts: dict[int, int]) -> None:
    fitting = work if can_trim or not interrupts else replace(work, slots=1)
    backend = fitting.backend(can_trim=can_trim, interrupts=interrupts)
    assert score(backend, *work.requests) == expected(work.requests)


def test_scores_copy_a_context_in_time_where_steps_are_full() -> None:
    asked = request("a long context of a text, ", "one of many choices", "two of many choices", "seven of the choices")
    backend = shared_backend(can_trim=False, batch_size=8)
    assert (score(backend, asked), backend.evaluated) == (expected([asked]), len(trie_nodes([asked])))


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        (request("", "text"), UsageError, "the context of a text to score is empty"),
        (request("c" * 18, "", "t" * 4), PromptTooLong, "the text to score has 22 tokens, but the context has 20"),
    ],
)
def test_scores_refuse_a_request_and_score_the_others(
    asked: ScoreRequest, kind: type[CerebrumError], message: str
) -> None:
    others = [request("c" * 17, "t" * 4), request("c", "d")]
    with running_engine(shared_backend(context_size=20)) as engine:
        first, *events = engine.score([others[0], asked, others[1]])
    assert isinstance(first, RefusedEvent) and isinstance(first.error, kind)
    assert (first.sequence.request, first.error.message) == (1, message)
    assert collect_scores(events) == {0: expected_scores(others[0]), 2: expected_scores(others[1])}


MANY = [request(f"{number} is a number, ", "one", "two") for number in range(9)]


@pytest.mark.parametrize("end", ["an error", "close", "cancel"])
def test_scores_stop_with_an_error_or_when_closed_or_cancelled(end: str) -> None:
    fails = end == "an error"
    backend = shared_backend(fails={3: EngineError("a broken step")}) if fails else shared_backend(holds={3: 5})
    with running_engine(backend) as engine:
        if fails:
            with pytest.raises(EngineError, match="a broken step"):
                list(engine.score(MANY))
        elif end == "close":
            with closing(engine.score(MANY)) as events:
                next(events)
                backend.is_held.wait()
        else:
            canceller = when_held(backend, engine.cancel)
            assert 0 < len(collect_scores(engine.score(MANY))) < len(MANY)
            canceller.join()
        assert (len(backend.steps), any(backend.memory)) == (4, False)
        assert collect_scores(engine.score(MANY)) == expected(MANY)


GREETING = replies({"hello ": "world!"})
HELLO = [Request(tokens("hello "))]


def test_scores_wait_for_running_sequences() -> None:
    backend = ScriptedBackend(GREETING, slots=4, kv_unified=True)
    with running_engine(backend) as engine, closing(generate(engine, HELLO)) as running:
        events = [next(running)]
        scores = collect_scores(engine.score(MANY))
        [reply] = collect_replies([*events, *running]).values()
    assert (reply.text, scores) == ("world!", expected(MANY))
    sizes = [len(step) for step in backend.steps]
    assert sizes[:7] == [6, *[1] * 6] and min(sizes[7:]) > 1


def test_scores_reserve_one_separate_cache_and_replies_then_all() -> None:
    backend = ScriptedBackend(GREETING, slots=4)
    with running_engine(backend) as engine:
        scores = collect_scores(engine.score(MANY))
        one_slot = [slots for _, slots in backend.reserved]
        [reply] = collect_replies(generate(engine, HELLO)).values()
    assert (reply.text, scores) == ("world!", expected(MANY))
    assert (one_slot, [slots for _, slots in backend.reserved[1:]]) == ([1], [4])


VOCABULARY = 270  # tokens that all tiny models have


def open_precise(path: Path) -> AbstractContextManager[LocalEngine]:
    """Evaluate in F32, in steps of at most 64 rows."""
    precise = in_f32(options(path, slots=8, context_size=512))
    return engine_with(replace(precise, context=replace(precise.context, n_ubatch=64, kv_unified=True)))


def score_all(engine: LocalEngine, requests: Iterable[ScoreRequest]) -> list[tuple[Score, ...]]:
    return [scores for _, scores in sorted(collect_scores(engine.score(requests)).items())]


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
    with open_precise(precise_model) as engine:
        scores = score_all(engine, requests)
        reply = tuple(greedy(engine, tuple(requests[0].context), 12).ids)  # fills and frees cells
        other = (*reply[:-1], (reply[-1] + 1) % VOCABULARY)
        [greedily] = score_all(engine, [ScoreRequest(requests[0].context, (reply, other, reply[:5]))])
        shuffled = score_all(engine, [requests[index] for index in order])
        again = score_all(engine, [replace(one, continuations=one.continuations[::-1]) for one in requests])
    assert [each.is_greedy for each in greedily] == [True, False, True]
    assert shuffled == [scores[index] for index in order]
    assert again == [one[::-1] for one in scores]


def test_model_scores_a_text_after_the_prefix_token(chatml_model: Path, mistral_model: Path) -> None:
    for path, text in ((chatml_model, "<|im_start|>"), (mistral_model, "<s>")):
        with open_precise(path) as engine:
            prompts = model_on(engine, chosen_format("cerebrum")).prompts
            assert prompts.detokenize(prompts.prefix_tokens) == text
            [[score]] = score_all(engine, [ScoreRequest(prompts.prefix_tokens, ((40, 41, 42),))])
            assert score.tokens == 3
