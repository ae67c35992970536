"""Sampling: penalties, DRY and suppressed tokens of llama.cpp, and speculative decoding, which changes no reply."""

import ctypes
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
from architectures import all_architectures, write_all_kinds, write_architecture
from asking import Guesser, Reply, ask, collect_replies, generate, running_engine
from gguf_files import rewritten
from hypothesis import given, strategies as st
from installations import source_of
from llama_engines import (
    STORY,
    backend_with,
    engine_with,
    greedy,
    in_f32,
    open_engine,
    options,
)
from scripted_backend import DEAD_END, DEAD_END_TOKENS, ScriptedBackend, expected_reply, random_model, replies, tokens
from thinkers import CountingControl

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams, TokenBias
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine import sequence
from cerebrum_cli.engine.drafter import MAX_DRAFT, Drafter
from cerebrum_cli.engine.llama.bindings import accelerators, llama
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.logits import MAX_SORTED, Candidates, nucleus
from cerebrum_cli.engine.llama.sampler import DryPrototype, create_chain
from cerebrum_cli.engine.prompt_cache import StateStore
from cerebrum_cli.engine.requests import MAX_ROLLBACK, ContextOptions, Request
from cerebrum_cli.engine.step import TokenRow
from cerebrum_cli.gguf.sizes import facts_of
from cerebrum_cli.grammars.guidance import byte_matcher

A = ord("a") - ord("!")
CHANGES: dict[str, dict[str, Any]] = {
    "repeat": {"repeat_penalty": 1.5},
    "presence": {"presence_penalty": 5.0},
    "frequency": {"frequency_penalty": 2.0},
    "dry": {"dry_multiplier": 2.0},
}


def draw(chain: Any, candidates: Any) -> int:
    llama.llama_sampler_apply(chain, ctypes.byref(candidates))
    return int(candidates.data[candidates.selected].id)


def likeliest(mistral: LlamaBackend, logits: dict[int, float], prompt: tuple[int, ...] = (), **params: Any) -> int:
    """The token that a greedy chain draws after a prompt; tokens without a logit are very unlikely."""
    given = numpy.full(mistral.size, -1000.0, numpy.float32)
    given[[*logits]] = [*logits.values()]
    dry = DryPrototype(mistral._vocab, 300)
    chain = create_chain(SamplingParams(**params), 0, prompt, dry)
    token = draw(chain, Candidates(mistral.size).fill(given))
    llama.llama_sampler_free(chain)
    dry.close()
    return token


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "seed": 1, "top_k": 0}])
def test_bias_of_a_control_applies_in_its_place(chatml_model: Path, slots: int, params: dict[str, Any]) -> None:
    sampling = SamplingParams(max_tokens=30, **params)
    bias = partial(CountingControl, lambda count: TokenBias(A, 100.0) if count % 3 == 0 else None)
    with open_engine(chatml_model, slots=slots) as engine:
        prompt = engine.vocabulary.tokenize((Text("bbbb"),))
        request = Request(prompt, sampling, Ask(ignore_eos=True), controls=(bias,))
        [reply] = collect_replies(generate(engine, [request])).values()
    ids = reply.ids
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
    with engine_with(in_f32(options(chatml_model))) as engine:
        [plain] = ask(engine, STORY, **params)
        monkeypatch.setattr(Guesser, "known", [plain.ids])
        [drafted] = ask(engine, STORY, speculative=True, **params)
    assert drafted.finish and drafted.ids == plain.ids
    assert drafted.finish.timings.draft_n > drafted.finish.timings.draft_n_accepted > len(plain.ids) // 2


LETTERS = {"grammar": "root ::= [a-z]{30}"}


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("params", [{}, LETTERS])
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0, "seed": 5}])
def test_sampler_never_draws_suppressed_tokens(
    chatml_model: Path, tmp_path: Path, params: Any, drawn: Any, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(path: Path, **more: Any) -> list[int]:
        with open_engine(path, slots=slots) as engine:
            return ask(engine, "aaaa", max_tokens=30, **params, **drawn, **more)[0].ids

    suppressed = reply(chatml_model)[:5]
    path = rewritten(chatml_model, tmp_path / "tiny.gguf", arrays={"tokenizer.ggml.suppress_tokens": suppressed})
    changed = reply(path)
    monkeypatch.setattr(sequence, "Drafter", Guesser)
    monkeypatch.setattr(Guesser, "known", [changed])
    assert changed and not {*changed, *reply(path, speculative=True)} & {*suppressed}


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

    sizes = []
    for scale in (1.0, 2.0, 4.0) * 20:
        logits = (20 - scale * numpy.log1p(generator.permutation(mistral.size))).astype(numpy.float32)
        expected = draw(whole, candidates.fill(logits))
        kept = candidates.likeliest(logits, asked)
        sizes.append(kept.size)
        assert draw(narrow, kept) == expected
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


@pytest.mark.parametrize(
    ("params", "prompt", "token"),
    [
        ({}, (10, 10, 11), 10),
        ({"presence_penalty": 1.5}, (10, 10, 11), 10),
        ({"presence_penalty": 2.5}, (10, 10, 11), 12),
        ({"frequency_penalty": 0.9}, (10, 10, 11), 10),
        ({"frequency_penalty": 1.01}, (10, 10, 11), 11),
        ({"frequency_penalty": 5.0}, (10, 10, 11, *[9] * 64), 10),  # they look back 64 tokens
    ],
)
def test_sampler_penalties_are_those_of_openai(
    mistral: LlamaBackend, params: dict[str, float], prompt: tuple[int, ...], token: int
) -> None:
    assert likeliest(mistral, {10: 5.0, 11: 4.0, 12: 2.9}, prompt, **params) == token


def test_sampler_dry_stops_a_repeat_as_far_back_as_it_looks(mistral: LlamaBackend) -> None:
    [*_, colon] = mistral.tokenize([Text("a:")])
    repeat, between = (20, 21, 22), tuple(range(100, 200))
    for repeated, rest, token in (
        (repeat, (), 11),
        (repeat, between, 11),
        (repeat, between * 3, 10),
        ((20, 21, colon), (), 10),
    ):
        prompt = (*repeated, 10, *rest, *repeated)
        assert likeliest(mistral, {10: 5.0, 11: 4.0}, prompt, dry_multiplier=0.8) == token


# Speculative decoding: drafts from earlier text.

REPEATED = "the cat sat on the mat. "
PROMPT = "copy: " + REPEATED
COPY = replies({PROMPT: REPEATED * 10})


def drafts_after(prompt: str, reply: str, limit: int = MAX_DRAFT) -> str:
    """The draft after a reply that was drafted token by token."""
    drafter, generated = Drafter(tokens(prompt)), list[int]()
    for token in tokens(reply):
        drafter.draft(generated, MAX_DRAFT)
        generated.append(token)
    return "".join(map(chr, drafter.draft(generated, limit)))


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
    beginning = "abcdefghijklmnopqr"
    lines = [f"{number}{number}{beginning}{number:04}" for number in range(10, 90, 8)]
    assert drafts_after(lines[0], lines[1][:20]) != ""
    assert drafts_after(lines[0], "".join(lines[1:9]) + lines[9][:20]) == ""


@pytest.mark.parametrize(("limit", "length"), [(100, MAX_DRAFT), (62, 31), (6, 5), (2, 0), (0, 0), (-1, 0)])
def test_drafter_drafts_numbers_of_rows_that_pay(limit: int, length: int) -> None:
    assert len(drafts_after("go:", "abc" * 90, limit)) == length


def drafted(reply: Reply) -> tuple[int, int]:
    assert reply.finish
    return reply.finish.timings.draft_n, reply.finish.timings.draft_n_accepted


def copied(speculative: bool = True, fields: Mapping[str, Any] = {}, **params: Any) -> tuple[Reply, ScriptedBackend]:
    backend = ScriptedBackend(COPY, context_size=300, batch_size=64, **fields)
    with running_engine(backend) as engine:
        [reply] = ask(engine, PROMPT, speculative=speculative, **params)
    return reply, backend


@pytest.mark.parametrize(
    ("speculative", "fields", "longest"),
    [(True, {}, 64), (True, {"can_trim": False, "max_rollback": 7}, 6), (True, {"can_trim": False}, 1), (False, {}, 1)],
)
def test_engine_drafts_what_can_be_rolled_back(speculative: bool, fields: dict[str, Any], longest: int) -> None:
    reply, backend = copied(speculative, fields)
    assert (reply.text, reply.reason) == (REPEATED * 10, "stop")
    assert max(map(len, backend.steps[1:])) == longest
    count, accepted = drafted(reply)
    assert count >= accepted and (accepted > 30) == (longest > 1)


def test_engine_ends_at_a_stop_string_inside_a_draft() -> None:
    reply, backend = copied(stop=("on the m",))
    assert (reply.text, reply.reason) == ("the cat sat ", "stop")
    assert bytes(reply.ids).decode() == "the cat sat on the m"
    assert bytes(backend.memory[0]).decode() == PROMPT + "the cat sat on the "
    assert drafted(reply)[1] > 0


def test_engine_refuses_a_sample_whose_grammar_ends_inside_a_draft() -> None:
    backend = ScriptedBackend(COPY, context_size=300, batch_size=64)
    request = Request(tokens(PROMPT), ask=Ask(grammar=Grammar("gbnf", DEAD_END)), speculative=True)
    with running_engine(backend) as engine:
        *events, refused = engine.complete([request])
        held = bytes(backend.memory[0]).decode()
    generated = "".join(event.text for event in events if isinstance(event, TokenEvent))
    assert isinstance(refused, RefusedEvent) and max(map(len, backend.steps[1:])) > 1
    assert (generated, held) == (REPEATED[:DEAD_END_TOKENS], PROMPT + REPEATED[:DEAD_END_TOKENS])


def test_engine_trims_a_rejected_draft() -> None:
    """Only the tokens of the reply can be reused by the next prompt."""
    prompt = "copy: the quick brown fox jumps over the lazy dog. "
    whole = prompt + "the quick brown fox jumps over me. done"
    backend = ScriptedBackend(replies({prompt: whole.removeprefix(prompt), whole + "?": "ok"}), 1, 300, batch_size=64)
    with running_engine(backend) as engine:
        [reply] = ask(engine, prompt, speculative=True)
        held = bytes(backend.memory[0]).decode()
        [after] = ask(engine, whole + "?")
    count, accepted = drafted(reply)
    assert count > accepted > 0
    assert (prompt + reply.text, held, after.cached) == (whole, whole, len(whole))


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
    options = {"batch_size": 64, "kv_unified": unified, "interrupts": interrupts, **fields}
    backend = ScriptedBackend(random_model, slots, context, **options)
    params = SamplingParams(seed=7, max_tokens=limit)
    with running_engine(backend) as engine:
        requests = [Request(tokens(text), params, Ask(n=n), speculative=True) for text in prompts]
        said = collect_replies(generate(engine, requests))
    for index, text in enumerate(prompts):
        for sample in range(n):
            reply = said[SequenceId(index, sample)]
            assert (reply.ids, reply.reason) == expected_reply(tokens(text), 7 + sample, limit, context)


# llama.cpp.


def test_llama_drafts_after_a_restored_sliding_window(sliding_window_model: Path, tmp_path: Path) -> None:
    """A saved state holds only the window, and a rejected draft must leave enough of it."""
    precise, store = in_f32(options(sliding_window_model)), StateStore(tmp_path, 10**8, "tiny", "plain")
    with engine_with(precise, store) as engine:
        start = engine.vocabulary.tokenize([Text((STORY + "The hen, the fox and the hare were there. ") * 2)])[:204]
        before = greedy(engine, start, 20)
        engine.save_prompts(1)
    prompt = (*start, *before.ids)
    request = Request(prompt, SamplingParams(max_tokens=100), speculative=True)
    with engine_with(precise, store) as engine:
        [reply] = collect_replies(generate(engine, [request])).values()
    count, accepted = drafted(reply)
    assert reply.cached > 200 and count > accepted > 10
    with engine_with(precise) as engine:
        assert reply.ids == greedy(engine, prompt, 100).ids


LENGTH = 80  # tokens of a reply
EXACT = ContextOptions(1024, n_threads=1, flash_attention=False, cache_type_k="f32", cache_type_v="f32")


def generate_all(path: Path, context: ContextOptions, conversation: Iterable[Request]) -> list[Reply]:
    """Replies of one engine to requests, one after the other."""
    with engine_with(replace(options(path), context=context)) as engine:
        return [reply for request in conversation for reply in collect_replies(generate(engine, [request])).values()]


def require_equal_replies(path: Path, temperature: float, kv_unified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the replies of a model with those it gives without draft tokens, and the next turn."""
    context, prompt = replace(EXACT, slots=3, kv_unified=kv_unified), tuple(range(5, 90))
    params = SamplingParams(max_tokens=LENGTH, temperature=temperature, seed=5)
    request = Request(prompt, params, Ask(ignore_eos=True))
    [plain] = generate_all(path, context, [request])
    monkeypatch.setattr(Guesser, "known", [plain.ids])
    monkeypatch.setattr(sequence, "Drafter", Guesser)
    context = replace(context, rolls_back=True)
    next_turn = Request((*prompt, *plain.ids, 9, 9), replace(params, max_tokens=10))
    [again, after] = generate_all(path, context, [replace(request, speculative=True), next_turn])
    count, accepted = drafted(again)
    assert again.ids == plain.ids and count > accepted > LENGTH // 4
    [fresh] = generate_all(path, context, [next_turn])
    assert (after.ids, after.cached > len(prompt)) == (fresh.ids, True)


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize(
    "temperature", [0.0] if accelerators() else [0.0, 0.8]
)  # GPUs round differently in steps of different sizes
@pytest.mark.parametrize("name", ["lfm2", "qwen35", "qwen3moe"])
def test_llama_drafts_that_are_rejected_change_no_reply(
    name: str, temperature: float, kv_unified: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_equal_replies(write_architecture(tmp_path / "tiny.gguf", name), temperature, kv_unified, monkeypatch)


@pytest.mark.fuzz
@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("name", sorted(name for name in all_architectures() if facts_of(name).rolls_back))
def test_fuzzed_architecture_rolls_back(
    name: str, kv_unified: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in write_all_kinds(name, tmp_path):
        require_equal_replies(path, 0.8, kv_unified, monkeypatch)


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_llama_removes_rows_of_a_step_from_a_recurrent_state_once(name: str, kv_unified: bool, tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "tiny.gguf", name)
    context = replace(EXACT, slots=3, n_ubatch=64, kv_unified=kv_unified, rolls_back=True)
    rounding = 0.01 if accelerators() else 1e-5  # a GPU's kernels depend on the number of rows: 0.0033 on an H100
    with backend_with(replace(options(path), context=context), 1024) as backend:

        def evaluate(slot: int, start: int, stop: int) -> list[float]:
            """Evaluate tokens of a text; the logits after them."""
            backend.decode([TokenRow(slot, at, 5 + at, True) for at in range(start, stop)])
            return [float(logit) for logit in backend.logits(stop - start - 1)]

        for rows, removed in ((8, 7), (4, 3), (3, 1), (12, 7)):
            backend.context.clear_all()
            evaluate(0, 0, 40)
            evaluate(0, 40, 40 + rows)
            end = 40 + rows - removed
            lengths = 39, 40, 40 + rows - 8, end, end - 1
            assert [backend.context.trim(0, length) for length in lengths] == [False, False, False, True, False]
            assert (backend.max_draft, backend.context.length(0)) == (MAX_ROLLBACK, end)
            backend.context.save_state(0, array("i"), tmp_path / "state")
            backend.context.copy(0, 1)
            evaluate(2, 0, 40)
            evaluate(2, 40, end)
            expected = pytest.approx(evaluate(2, end, end + 1), abs=rounding)
            assert all(evaluate(slot, end, end + 1) == expected for slot in (1, 0))
            assert backend.context.load_state(2, tmp_path / "state")
            assert backend.context.trim_limit(2) == end, "copies of a state belong to the last decode"
            assert evaluate(2, end, end + 1) == expected


@pytest.mark.parametrize(("name", "is_reloaded"), [("lfm2", True), ("qwen3moe", False)])
def test_chat_loads_again_where_drafts_need_copies_of_the_state(name: str, is_reloaded: bool, tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "tiny.gguf", name)
    source = source_of(path, name=name).for_chat()
    drafting = replace(source, settings=Settings(speculative=True, cache_gb=0))
    assert (source.reload_key != drafting.reload_key) == is_reloaded
    copies = [each.options().context.n_rs_seq for each in (source, drafting)]
    assert copies == [0, MAX_ROLLBACK * is_reloaded]
