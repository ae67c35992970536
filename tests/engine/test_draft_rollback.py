"""Speculative decoding on architectures whose rejected tokens are not only in a KV cache: recurrent states, experts."""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import all_architectures, write_all_kinds, write_architecture
from asking import Guesser, Reply, collect_replies, generate, loaded
from installations import source_of
from llama_engines import options

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine import sequence
from cerebrum_cli.engine.llama.bindings import accelerators
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import MAX_ROLLBACK, ContextOptions, Request
from cerebrum_cli.engine.step import StopFlag, TokenRow
from cerebrum_cli.gguf.sizes import facts_of

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
