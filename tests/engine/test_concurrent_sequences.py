"""Concurrent sequences in the real llama.cpp with the trained nano model: each reply matches its single run."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import Reply, collect_replies, generate, loaded
from cases import rows

import cerebrum_cli
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import SequenceId
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama import batch_invariance
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.memory import CPU_UBATCH, HEADROOM, FreeMemory, LoadPlan
from cerebrum_cli.engine.prompt_cache import StateStore
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions, Request
from cerebrum_cli.engine.step import TokenRow
from cerebrum_cli.formats.prompt_format import PLAIN_FORMATS
from cerebrum_cli.gguf.header import read_header

pytestmark = pytest.mark.slow

NANO = Path(cerebrum_cli.__file__).parent / "data" / "nano.gguf"
SUMS = [f"What is {a} plus {b}?" for a, b in ((17, 25), (3, 4), (60, 31), (8, 8), (45, 9), (12, 70), (33, 33), (5, 90))]
LONG = " and then ".join(f"Tom buys {number} apples" for number in range(60)) + ". "


def open_engine(
    slots: int,
    context_size: int = 512,
    *,
    batch_invariant: bool = True,
    kv_unified: bool = False,
    states: StateStore | None = None,
) -> AbstractContextManager[LocalEngine]:
    invariant = batch_invariant and not kv_unified
    context = ContextOptions(context_size, slots, n_threads=1, kv_unified=kv_unified, batch_invariant=invariant)
    options = LoadOptions(NANO, 512, read_header(NANO).sizes, context, whole_context=kv_unified)
    return loaded(LocalEngine(lambda tell, stop: open_llama(options, tell, stop), (lambda: states) if states else None))


def prompt_of(engine: LocalEngine, question: str) -> tuple[int, ...]:
    return engine.vocabulary.tokenize(PLAIN_FORMATS["cerebrum"].render(Conversation().user(question)))


def answers(engine: LocalEngine, questions: list[str], limit: int | None = 60) -> list[list[int]]:
    """Greedy replies to all questions, generated concurrently."""
    params = SamplingParams(max_tokens=limit)
    said = collect_replies(generate(engine, [Request(prompt_of(engine, question), params) for question in questions]))
    return [said[SequenceId(index)].ids for index in range(len(questions))]


def samples_of(engine: LocalEngine, count: int, limit: int | None = 60) -> list[Reply]:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=limit)
    said = collect_replies(generate(engine, [Request(prompt_of(engine, SUMS[0]), params, Ask(n=count))]))
    return [said[SequenceId(0, sample)] for sample in range(count)]


@pytest.mark.parametrize("slots", [2, 5])
def test_batch_invariance_whatever_prefix_was_copied(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_invariance, "CHUNKED_POSITIONS", 256)  # beyond, whole batches are used
    questions = [LONG[: 900 + 7 * length] + SUMS[length] for length in range(4)]
    with open_engine(slots, context_size=1024) as engine:
        shared = answers(engine, questions, 12)
    for question, said in zip(questions, shared, strict=True):
        with open_engine(slots, context_size=1024) as engine:
            assert answers(engine, [question], 12) == [said]


@pytest.mark.parametrize(("case", "slots", "single", "padded", "outputs"), rows("padded_rows"))
def test_single_rows_are_padded_from_a_position_on(
    case: str, slots: int, single: list[Any], padded: list[Any], outputs: list[int]
) -> None:
    step = [TokenRow(*row) for row in single]
    lengths = (300, 400, 7, 512, 300, 290, 3)
    found = batch_invariance.pad_single_rows(step, slots, 512, lengths.__getitem__)
    assert found == ([TokenRow(*row) for row in padded], outputs), case


def test_samples_in_a_unified_cache_match_separate_ones() -> None:
    with open_engine(8) as engine:
        apart = [reply.ids for reply in samples_of(engine, 12)]
    with open_engine(8, kv_unified=True) as engine:
        shared = samples_of(engine, 12)
        assert engine.backend.capacity == 512
    assert [reply.ids for reply in shared] == apart
    assert len({tuple(ids) for ids in apart}) > 2


def test_failed_decode_leaves_a_unified_cache_usable() -> None:
    with open_engine(1) as engine:
        [alone] = answers(engine, [LONG[:1000] + SUMS[0]], 20)
    with open_engine(4, context_size=512, kv_unified=True) as engine:
        for _ in range(2):
            answers(engine, [f"{number}. {LONG[:300]}" for number in range(3)], 20)
            with pytest.raises(EngineError, match="failed to decode"):
                list(generate(engine, [Request((10**6,))]))
            assert answers(engine, [LONG[:1000] + SUMS[0]], 20) == [alone]


def test_saving_with_a_prompt_saves_only_the_best_match(tmp_path: Path) -> None:
    store = StateStore(tmp_path, 10**9, "nano", "cerebrum")
    with open_engine(4, kv_unified=True, states=store) as engine:
        answers(engine, SUMS)
        engine.save_prompts(1, prompt_of(engine, SUMS[2]))
    assert len(list(tmp_path.glob("*.state"))) == 1


def test_short_memory_reduces_slots_and_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = read_header(NANO).sizes
    context = ContextOptions(512, 1, 1, CPU_UBATCH)
    free = FreeMemory(HEADROOM + LoadPlan(sizes, replace(context, slots=3)).needs.total)
    for module in ("llama_backend", "load"):  # the weights are mapped, and take no other memory
        monkeypatch.setattr(f"cerebrum_cli.engine.llama.{module}.free_memory", lambda: free)
    with open_engine(1) as engine:
        alone = [ids for question in SUMS for ids in answers(engine, [question])]
    with open_engine(8) as engine:
        assert answers(engine, SUMS, None) == alone
        assert engine.backend.slots == 3
        assert answers(engine, SUMS, 20) == [ids[:20] for ids in alone]  # these are shorter
        assert engine.backend.slots == 5


def test_batch_invariance_allows_llamas_maximum_of_slots() -> None:
    with open_engine(256, context_size=64) as engine:
        answers(engine, SUMS[:1], 4)
        assert engine.backend.slots == 256
