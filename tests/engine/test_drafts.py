"""Speculative decoding: drafts from earlier text change no reply, whatever a model's memory is."""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from architectures import all_architectures, write_all_kinds, write_architecture
from asking import Guesser, Reply, ask, collect_replies, generate, loaded, running_engine
from hypothesis import given, strategies as st
from installations import source_of
from llama_engines import STORY, assert_matches_single_run, open_engine, options
from scripted_backend import DEAD_END, DEAD_END_TOKENS, ScriptedBackend, expected_reply, random_model, replies, tokens

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine import sequence
from cerebrum_cli.engine.drafter import MAX_DRAFT, Drafter
from cerebrum_cli.engine.llama.bindings import accelerators
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import MAX_ROLLBACK, ContextOptions, Request
from cerebrum_cli.engine.step import StopFlag, TokenRow
from cerebrum_cli.gguf.sizes import facts_of

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
    [(True, {}, 64), (True, {"can_trim": False, "max_rollback": 7}, 6), (True, {"can_trim": False}, 1), (False, {}, 1)],
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


LENGTH = 80  # tokens of a reply
Compare = Callable[[Path, float, bool], None]  # of a model, a temperature, and whether its KV cache is unified
EXACT = ContextOptions(1024, n_threads=1, flash_attention=False, cache_type_k="f32", cache_type_v="f32")


def generate_all(path: Path, context: ContextOptions, conversations: Iterable[Request]) -> list[Reply]:
    """Replies of one engine to requests, one after the other."""
    load_options = replace(options(path), context=context)
    with loaded(LocalEngine(lambda tell, stop: open_llama(load_options, tell, stop))) as engine:
        replies = (collect_replies(generate(engine, [request])) for request in conversations)
        return [reply for [reply] in (samples.values() for samples in replies)]


@pytest.fixture
def require_equal_replies(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """A function that compares the replies of a model with those it gives without draft tokens, and the next turn."""

    def compare(path: Path, temperature: float, kv_unified: bool) -> None:
        context, prompt = replace(EXACT, slots=3, kv_unified=kv_unified), tuple(range(5, 90))
        params = SamplingParams(max_tokens=LENGTH, temperature=temperature, seed=5)
        request = Request(prompt, params, Ask(ignore_eos=True))
        [plain] = generate_all(path, context, [request])
        monkeypatch.setattr(Guesser, "known", [plain.ids])
        monkeypatch.setattr(sequence, "Drafter", Guesser)
        context = replace(context, rolls_back=True)
        next_turn = Request((*prompt, *plain.ids, 9, 9), replace(params, max_tokens=10))
        [drafted, after] = generate_all(path, context, [replace(request, speculative=True), next_turn])
        assert drafted.ids == plain.ids
        assert drafted.finish
        assert drafted.finish.timings.draft_n > drafted.finish.timings.draft_n_accepted > LENGTH // 4
        [fresh] = generate_all(path, context, [next_turn])
        assert (after.ids, after.cached > len(prompt)) == (fresh.ids, True)

    return compare


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize(
    "temperature", [0.0] if accelerators() else [0.0, 0.8]
)  # GPUs round differently in steps of different sizes
@pytest.mark.parametrize("name", ["lfm2", "qwen35", "qwen3moe"])
def test_llama_drafts_that_are_rejected_change_no_reply(
    name: str, temperature: float, kv_unified: bool, tmp_path: Path, require_equal_replies: Compare
) -> None:
    require_equal_replies(write_architecture(tmp_path / "tiny.gguf", name), temperature, kv_unified)


@pytest.mark.fuzz
@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("name", sorted(name for name in all_architectures() if facts_of(name).rolls_back))
def test_fuzzed_architecture_rolls_back(
    name: str, kv_unified: bool, tmp_path: Path, require_equal_replies: Compare
) -> None:
    for path in write_all_kinds(name, tmp_path):
        require_equal_replies(path, 0.8, kv_unified)


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_llama_removes_rows_of_a_step_from_a_recurrent_state_once(name: str, kv_unified: bool, tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "tiny.gguf", name)
    context = replace(EXACT, slots=3, n_ubatch=64, kv_unified=kv_unified, rolls_back=True)
    backend = open_llama(replace(options(path), context=context), lambda _: None, StopFlag())
    backend.reserve(1024)
    rounding = 0.01 if accelerators() else 1e-5  # a GPU's kernels depend on the number of rows: 0.0033 on an H100

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
        expected = evaluate(2, end, end + 1)
        for slot in (1, 0):
            assert evaluate(slot, end, end + 1) == pytest.approx(expected, abs=rounding)
        assert backend.context.load_state(2, tmp_path / "state")
        assert backend.context.trim_limit(2) == end, (
            "copies of a state belong to the last decode, not to a restored one"
        )
        assert evaluate(2, end, end + 1) == pytest.approx(expected, abs=rounding)
    backend.close()


@pytest.mark.parametrize(("name", "is_reloaded"), [("lfm2", True), ("qwen3moe", False)])
def test_chat_loads_again_where_drafts_need_copies_of_the_state(name: str, is_reloaded: bool, tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "tiny.gguf", name)
    source = source_of(path, name=name).for_chat()
    drafting = replace(source, settings=Settings(speculative=True, cache_gb=0))
    assert (source.reload_key != drafting.reload_key) == is_reloaded
    copies = [each.options().context.n_rs_seq for each in (source, drafting)]
    assert copies == [0, MAX_ROLLBACK * is_reloaded]
