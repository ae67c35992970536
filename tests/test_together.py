"""Many sequences at once in the real llama.cpp, with a model that knows what it says: each says what it would alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asking import Reply, gathered

import cerebrum_cli
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import SequenceId
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine import sequence
from cerebrum_cli.engine.backend import Row
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.llama import batch_invariance
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.plan import LoadOptions, Shape
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.state_store import StateStore
from cerebrum_cli.formats.plain import PLAIN_FORMATS

NANO = Path(cerebrum_cli.__file__).parent / "nano.gguf"
SHAPE = Shape(trained_context=512, weight_bytes=NANO.stat().st_size, layers=4, kv_bytes_per_token=1024)
SUMS = [f"What is {a} plus {b}?" for a, b in ((17, 25), (3, 4), (60, 31), (8, 8), (45, 9), (12, 70), (33, 33), (5, 90))]
LONG = " and then ".join(f"Tom buys {number} apples" for number in range(60)) + ". "


@contextmanager
def together(
    slots: int,
    *,
    context_size: int = 512,
    evenly: bool = True,
    shared: bool = False,
    states: StateStore | None = None,
) -> Iterator[Engine]:
    """Start an engine for so many sequences."""
    options = LoadOptions(
        NANO,
        SHAPE,
        context_size=context_size,
        n_threads=1,
        slots=slots,
        kv_unified=shared,
        whole_context=shared,
        batch_invariant=evenly and not shared,
    )
    engine = Engine(lambda tell, stop: open_llama(options, tell, stop), states)
    try:
        list(engine.load())
        yield engine
    finally:
        engine.close()


def prompt_of(engine: Engine, question: str) -> tuple[int, ...]:
    return engine.tokenize(PLAIN_FORMATS["cerebrum"].render(Conversation().user(question)))


def answers(engine: Engine, questions: list[str], limit: int | None = 60) -> list[list[int]]:
    """Return the likeliest replies to all questions, asked at once."""
    params = SamplingParams(max_tokens=limit)
    said = gathered(engine.generate([Request(prompt_of(engine, question), params) for question in questions]))
    return [said[SequenceId(index)].ids for index in range(len(questions))]


def chains(engine: Engine, count: int, limit: int | None = 60) -> list[Reply]:
    """Return several chains for one question."""
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=limit)
    said = gathered(engine.generate([Request(prompt_of(engine, SUMS[0]), params, n=count)]))
    return [said[SequenceId(0, sample)] for sample in range(count)]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    """Return what each sum is answered by an engine that was asked nothing else."""
    said = []
    for question in SUMS:
        with together(1) as engine:
            said += answers(engine, [question])
    return said


@pytest.mark.parametrize("slots", [1, 2, 3, 8, 20])
def test_batch_invariance_across_numbers_of_slots(alone: list[list[int]], slots: int) -> None:
    with together(slots) as engine:
        assert answers(engine, SUMS) == alone
        assert answers(engine, SUMS[::-1]) == alone[::-1]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_batch_invariance_whatever_prefix_was_copied(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_invariance, "CHUNKED_POSITIONS", 256)  # beyond, tokens are read in whole blocks
    questions = [LONG[: 900 + 7 * length] + SUMS[length] for length in range(4)]
    with together(slots, context_size=1024) as engine:
        shared = answers(engine, questions, 12)
    for question, said in zip(questions, shared, strict=True):
        with together(slots, context_size=1024) as engine:
            assert answers(engine, [question], 12) == [said]


def test_single_rows_are_padded_from_a_position_on() -> None:
    length = {0: 300, 1: 400, 2: 7, 4: 300, 5: 290, 6: 3}.__getitem__
    near = [Row(0, 255, 9, True), Row(4, 300, 8, True), Row(5, 290, 7, True)]
    assert batch_invariance.pad_single_rows(near, length) == (near, [0, 1, 2])
    far = [Row(1, 400, 9, True), Row(5, 290, 7, True)]
    company = [far[0], Row(2, 7, 9, False), far[1], Row(6, 3, 7, False)]
    assert batch_invariance.pad_single_rows(far, length) == (company, [0, 2])
    reading = [Row(0, 300, 1, False), Row(0, 301, 2, True)]
    assert batch_invariance.pad_single_rows(reading, length) == (reading, [0, 1])


@pytest.mark.parametrize("slots", [2, 4])
def test_sequences_that_outgrow_memory_continue_in_more(
    alone: list[list[int]], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence, "EXPECTED_REPLY_TOKENS", 1)
    wordy = [LONG[:540] + question for question in SUMS]  # so that a first memory of 256 tokens is nearly full
    with together(slots) as engine:
        said = answers(engine, [*wordy, *SUMS], None)
    assert said[len(wordy) :] == alone
    monkeypatch.undo()
    with together(slots) as engine:
        assert answers(engine, wordy, None) == said[: len(wordy)]


def test_samples_in_a_unified_cache_match_separate_ones() -> None:
    with together(8) as engine:
        apart = [reply.ids for reply in chains(engine, 12)]
    with together(8, shared=True) as engine:
        shared = chains(engine, 12)
        assert engine.backend.capacity == 512
    assert [reply.ids for reply in shared] == apart
    assert len({tuple(ids) for ids in apart}) > 2


def test_samples_wait_for_room_in_a_small_unified_cache() -> None:
    with together(1) as engine:
        apart = [reply.ids for reply in chains(engine, 8, 40)]
    with together(8, context_size=256, shared=True) as engine:
        assert [reply.ids for reply in chains(engine, 8, 40)] == apart
        assert [reply.ids for reply in chains(engine, 8, 40)] == apart  # what the first left behind is cleared


def test_saved_state_is_restored_into_a_unified_cache(tmp_path: Path) -> None:
    store = StateStore(tmp_path, 10**9, "nano", "cerebrum")
    question = LONG[:1000] + SUMS[0]
    with together(1, evenly=False, states=store) as engine:
        [first] = answers(engine, [question])
        engine.save_prompt_cache(1)
    with together(8, shared=True, states=store) as engine:
        prompt = prompt_of(engine, question)
        [again] = gathered(engine.generate([Request(prompt, SamplingParams(max_tokens=60))])).values()
    assert again.cached == len(prompt) - 1
    assert again.ids == first


def test_saving_with_a_prompt_saves_only_the_best_match(tmp_path: Path) -> None:
    store = StateStore(tmp_path, 10**9, "nano", "cerebrum")
    with together(4, shared=True, states=store) as engine:
        answers(engine, SUMS)
        engine.save_prompt_cache(1, prompt_of(engine, SUMS[2]))
    assert len(list(tmp_path.glob("*.state"))) == 1


def test_short_memory_reduces_slots_and_all_are_answered(
    alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.llama.backend.free_memory", lambda: 512 * 2**20 + 3 * 512 * 1024)
    with together(8) as engine:
        assert answers(engine, SUMS, None) == alone
        assert engine.backend.slots == 3
