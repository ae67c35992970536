"""Penalties, DRY and suppressed tokens on the real llama.cpp."""

import ctypes
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
from asking import Guesser, ask, generate, loaded
from gguf_files import rewritten
from llama_engines import STORY, in_f32, open_engine, options
from thinkers import CountingControl

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import TokenEvent
from cerebrum_cli.core.sampling import SamplingParams, TokenBias
from cerebrum_cli.engine import sequence
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.llama.logits import MAX_SORTED, Candidates, nucleus
from cerebrum_cli.engine.llama.sampler import DryPrototype, create_chain
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.grammars.guidance import byte_matcher

A = ord("a") - ord("!")
CHANGES: dict[str, dict[str, Any]] = {
    "repeat": {"repeat_penalty": 1.5},
    "presence": {"presence_penalty": 5.0},
    "frequency": {"frequency_penalty": 2.0},
    "dry": {"dry_multiplier": 2.0},
}


def draws(mistral: LlamaBackend, logits: dict[int, float], prompt: tuple[int, ...] = (), **params: Any) -> set[int]:
    """Tokens that a chain draws with 100 seeds; tokens without a logit are very unlikely."""
    dry = DryPrototype(mistral._vocab, 300)
    drawn = set()
    given = numpy.zeros(mistral.size, [("id", "i4"), ("logit", "f4"), ("p", "f4")])
    given["id"], given["logit"] = range(mistral.size), -1000.0
    for token, logit in logits.items():
        given["logit"][token] = logit
    for seed in range(100 if params.get("temperature") else 1):
        chain, data = create_chain(SamplingParams(**params), seed, prompt, dry), given.copy()
        pointer = data.ctypes.data_as(llama.llama_token_data_p)
        candidates = llama.llama_token_data_array(data=pointer, size=mistral.size, selected=-1, sorted=False)
        llama.llama_sampler_apply(chain, ctypes.byref(candidates))
        drawn.add(int(candidates.data[candidates.selected].id))
        llama.llama_sampler_free(chain)
    dry.close()
    return drawn


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "seed": 1, "top_k": 0}])
def test_bias_of_a_control_applies_in_its_place(chatml_model: Path, slots: int, params: dict[str, Any]) -> None:
    sampling = SamplingParams(max_tokens=30, **params)
    bias = partial(CountingControl, lambda count: TokenBias(A, 100.0) if count % 3 == 0 else None)
    with open_engine(chatml_model, slots=slots) as engine:
        prompt = engine.vocabulary.tokenize((Text("bbbb"),))
        request = Request(prompt, sampling, Ask(ignore_eos=True), controls=(bias,))
        events = [event for event in generate(engine, [request]) if isinstance(event, TokenEvent) and event.tokens]
    ids = [token for event in events for token in event.tokens]
    assert all(token == A for token in ids[3::3]) and any(token != A for token in ids)


@pytest.mark.parametrize("slots", [1, 3])  # with several, plain greedy sampling takes a shortcut
@pytest.mark.parametrize("name", CHANGES)
def test_sampler_that_changes_logits_changes_greedy_replies(chatml_model: Path, name: str, slots: int) -> None:
    with open_engine(chatml_model, slots=slots) as engine:
        [plain], [changed] = (ask(engine, "aaaa", max_tokens=60, **each) for each in ({}, CHANGES[name]))
        for single in ({"top_k": 1}, {"top_k": 0, "top_p": 1e-6}):
            [again] = ask(engine, "aaaa", max_tokens=60, temperature=1.0, seed=9, **single, **CHANGES[name])
            assert plain.ids != changed.ids == again.ids


@pytest.mark.parametrize("name", ["repeat", "presence", "frequency", "sampled"])
def test_sampler_state_is_the_same_with_drafts(chatml_model: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = {"temperature": 0.7, "seed": 5, "dry_multiplier": 0.5}
    params = {"grammar": "root ::= [a-z, ]{74}", **CHANGES.get(name, sampled)}
    monkeypatch.setattr(sequence, "Drafter", Guesser)
    exact = in_f32(options(chatml_model))
    with loaded(LocalEngine(lambda tell, stop: open_llama(exact, tell, stop))) as engine:
        [plain] = ask(engine, STORY, **params)
        monkeypatch.setattr(Guesser, "known", [plain.ids])
        [drafted] = ask(engine, STORY, speculative=True, **params)
    assert drafted.finish and drafted.ids == plain.ids
    assert drafted.finish.timings.draft_n > drafted.finish.timings.draft_n_accepted > len(plain.ids) // 2


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0, "seed": 5},
        {"grammar": "root ::= [a-z]{30}"},
        {"grammar": "root ::= [a-z]{30}", "temperature": 1.0, "seed": 5},
    ],
)
def test_sampler_never_draws_suppressed_tokens(
    chatml_model: Path, tmp_path: Path, params: dict[str, Any], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine(chatml_model, slots=slots) as engine:
        [plain] = ask(engine, "aaaa", max_tokens=30, **params)
    suppressed = plain.ids[:5]
    path = rewritten(chatml_model, tmp_path / "tiny.gguf", arrays={"tokenizer.ggml.suppress_tokens": suppressed})
    monkeypatch.setattr(sequence, "Drafter", Guesser)
    with open_engine(path, slots=slots) as engine:
        [changed] = ask(engine, "aaaa", max_tokens=30, **params)
        monkeypatch.setattr(Guesser, "known", [changed.ids])
        [drafted] = ask(engine, "aaaa", max_tokens=30, speculative=True, **params)
    assert changed.ids
    assert not {*changed.ids, *drafted.ids} & {*suppressed}


def test_grammar_that_allows_suppressed_tokens_only_is_refused(chatml_model: Path, tmp_path: Path) -> None:
    with open_engine(chatml_model) as engine:
        [token] = engine.vocabulary.tokenize([Text("a")])
    path = rewritten(chatml_model, tmp_path / "tiny.gguf", arrays={"tokenizer.ggml.suppress_tokens": [token]})
    with open_engine(path) as engine, pytest.raises(GrammarError, match="rejects every possible next token"):
        ask(engine, "a", grammar='root ::= "a"')


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 0},
        {"top_k": 0, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.2},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.1},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    ],
)
def test_sampler_draws_the_same_from_the_likeliest_tokens(mistral: LlamaBackend, params: dict[str, Any]) -> None:
    asked = SamplingParams(temperature=0.8, **params)
    candidates, generator = Candidates(mistral.size), numpy.random.default_rng(7)
    dry = DryPrototype(mistral._vocab, 64)
    whole = create_chain(asked, 3, (), dry)
    narrow = create_chain(replace(asked, top_p=1.0), 3, (), dry)

    def draw(chain: Any, array: Any) -> int:
        llama.llama_sampler_apply(chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    sizes = []
    for scale in (1.0, 2.0, 4.0) * 20:
        logits = (20 - scale * numpy.log1p(generator.permutation(mistral.size))).astype(numpy.float32)
        expected = draw(whole, candidates.fill(logits))
        likeliest = candidates.likeliest(logits, asked)
        sizes.append(likeliest.size)
        assert draw(narrow, likeliest) == expected
    keeps_all = (asked.top_p, asked.min_p) == (1.0, 0.0)
    assert (min(sizes) < mistral.size) is not keeps_all
    for chain in (whole, narrow):
        llama.llama_sampler_free(chain)
    logits[7] = numpy.nan
    assert candidates.likeliest(logits, asked).size == mistral.size


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.9999])
def test_top_p_keeps_the_likeliest_of_many_tokens(scale: float, top_p: float) -> None:
    generator = numpy.random.default_rng(7)
    logits = (scale * generator.standard_normal(60_000)).astype(numpy.float32)
    logits[:100] = -numpy.inf  # as those of suppressed tokens
    weights = numpy.exp(logits - logits.max())
    ranked = numpy.argsort(-logits)
    expected = numpy.searchsorted(weights[ranked].cumsum(dtype=numpy.float64), top_p * weights.sum(dtype=float)) + 1
    tokens, is_sorted = nucleus(logits, weights, top_p)
    assert len(tokens) == pytest.approx(expected, abs=1)
    assert logits[tokens].min() >= logits[ranked[expected]]
    assert is_sorted == (len(tokens) <= MAX_SORTED)
    assert not is_sorted or (numpy.diff(logits[tokens]) <= 0).all()


def test_samples_share_a_compiled_grammar(chatml_model: Path) -> None:
    before = byte_matcher.cache_info()
    with open_engine(chatml_model, slots=3) as engine:
        said = ask(engine, "aaaa", n=3, grammar='root ::= "{" [a-z]{20} "}"', temperature=1.0, seed=5)
        [other] = ask(engine, "aaaa", grammar='root ::= "other"')
    assert len({reply.text for reply in said}) == 3
    assert all(len(reply.text) == 22 for reply in said)
    assert other.text == "other"
    assert byte_matcher.cache_info().misses == before.misses + 2


def test_sampler_penalties_are_those_of_openai(mistral: LlamaBackend) -> None:
    logits, prompt = {10: 5.0, 11: 4.0, 12: 2.9}, (10, 10, 11)
    assert draws(mistral, logits, prompt) == {10}
    assert draws(mistral, logits, prompt, presence_penalty=1.5) == {10}
    assert draws(mistral, logits, prompt, presence_penalty=2.5) == {12}
    assert draws(mistral, logits, prompt, frequency_penalty=0.9) == {10}
    assert draws(mistral, logits, prompt, frequency_penalty=1.01) == {11}
    assert draws(mistral, logits, (10, 10, 11, *[9] * 64), frequency_penalty=5.0) == {10}  # they look back 64 tokens


def test_sampler_dry_stops_a_repeat_as_far_back_as_it_looks(mistral: LlamaBackend) -> None:
    logits, repeat, between = {10: 5.0, 11: 4.0}, (20, 21, 22, 10), tuple(range(100, 200))
    dry: dict[str, Any] = {"dry_multiplier": 0.8}
    assert draws(mistral, logits, (*repeat, *repeat[:3]), **dry) == {11}
    assert draws(mistral, logits, (*repeat, *between, *repeat[:3]), **dry) == {11}
    assert draws(mistral, logits, (*repeat, *between, *between, *between, *repeat[:3]), **dry) == {10}
    [*_, colon] = mistral.tokenize([Text("a:")])
    broken = (20, 21, colon, 10)
    assert draws(mistral, logits, (*broken, *broken[:3]), **dry) == {10}
