"""The engine on the real llama.cpp and tiny models; `cli/test_architectures.py` compares what is reused and resumed."""

import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from asking import ask, collect_replies, generate, loaded
from llama_engines import STORY, greedy, open_engine, options

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import PromptEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.engine.step import StopFlag, TokenRow


def test_llama_cancels_a_long_prefill_immediately(chatml_model: Path) -> None:
    prompt = tuple(20 + index % 200 for index in range(60_000))  # half a minute of prefill
    with open_engine(chatml_model, context_size=65_536) as engine:
        events = generate(engine, [Request(prompt)])
        told = next(event for event in events if isinstance(event, PromptEvent) and event.evaluated > 2000)
        threading.Timer(0.03, engine.cancel).start()
        rest = list(events)
        [reply] = collect_replies(rest).values()
        assert all(event.evaluated < len(prompt) / 2 for event in rest if isinstance(event, PromptEvent))
        assert (reply.text, reply.reason) == ("", "cancelled")
        short = prompt[: told.evaluated]
        again = greedy(engine, short, 1)
    assert again.cached == len(short) - 1


@contextmanager
def open_backend(path: Path, *, slots: int) -> Iterator[tuple[LlamaBackend, StopFlag]]:
    """Open a backend, with memory for short sequences."""
    stop = StopFlag()
    backend = open_llama(options(path, slots=slots), lambda event: None, stop)
    backend.reserve(256)
    yield backend, stop
    backend.close()


def test_llama_resumes_after_an_interrupted_step(tiny_model: Path) -> None:
    """A partly updated state must count as neither the old nor the new one."""
    with open_backend(tiny_model, slots=2) as (backend, stop):
        story = backend.tokenize([Text(STORY * 3)])
        rows = [[TokenRow(slot, at, token, at == 39) for at, token in enumerate(story[:40])] for slot in (0, 1)]
        assert backend.decode(rows[0]) and backend.decode(rows[1][:30])
        checkpoint = backend.context.checkpoint(1)
        stop.set()
        assert not backend.decode(rows[1][30:])
        stop.clear()
        assert backend.context.length(1) == (30 if backend.trimmable_length else 0)
        assert backend.trimmable_length or backend.context.trim_limit(1) == inf
        assert backend.trimmable_length or backend.context.restore(1, checkpoint)
        assert backend.context.length(1) == 30 and backend.decode(rows[1][30:])
        same = 0
        for at, token in enumerate(story[40:60], 40):
            assert backend.decode([TokenRow(0, at, token, True), TokenRow(1, at, token, True)])
            samplers = [backend.sampler(SamplingParams(), 0, None, story) for _ in range(2)]
            same += samplers[0].sample(0) == samplers[1].sample(1)
            for sampler in samplers:
                sampler.close()
    assert same >= 16  # of 20: last bits may differ, see above


def test_llama_copies_between_slots_at_the_next_decode(tmp_path: Path, chatml_model: Path) -> None:
    """A state saved from, or loaded into, a slot of a pending copy would hold other tokens."""
    with open_backend(chatml_model, slots=3) as (backend, _):
        story = backend.tokenize([Text(STORY)])
        for slot, prompt in ((0, story), (2, story[::-1])):
            assert backend.decode([TokenRow(slot, at, token, False) for at, token in enumerate(prompt)])
            backend.context.save_state(slot, array("i"), tmp_path / str(slot))
        backend.context.copy(0, 1)
        backend.context.clear(1)  # does not drop the copy, nor does emptying everything
        assert [slot in backend.context.pending_copies for slot in range(3)] == [True, True, False]
        backend.context.clear_all()
        assert 1 in backend.context.pending_copies
        assert backend.context.load_state(2, tmp_path / "0")
        backend.context.copy(2, 0)
        backend.context.clear(2)
        assert backend.decode([TokenRow(2, at, token, False) for at, token in enumerate(story[::-1])])
        assert not any(slot in backend.context.pending_copies for slot in range(3))
        for slot in (0, 2):
            backend.context.save_state(slot, array("i"), tmp_path / "again")
            assert (tmp_path / "again").read_bytes() == (tmp_path / str(slot)).read_bytes()


def test_llama_context_fits_memory_and_the_supported_number_of_slots(chatml_model: Path) -> None:
    with pytest.raises(EngineError, match="GB is free"), open_engine(chatml_model, context_size=10**12):
        pass
    with open_engine(chatml_model, slots=300, context_size=256) as engine:
        said = ask(engine, "a", n=260, max_tokens=2)
        assert len(said) == 260 and engine.backend.slots == 256


def test_llama_states_why_a_context_cannot_be_created(chatml_model: Path) -> None:
    """Fewer slots would not help, so none are tried."""
    wrong = options(chatml_model, slots=4)
    wrong = replace(wrong, context=replace(wrong.context, cache_type_v="q8_0", flash_attention=False))
    problem = "llama.cpp cannot create a context: quantized V cache requires flash_attn to be enabled"
    with loaded(LocalEngine(lambda emit, stop: open_llama(wrong, emit, stop))) as engine:
        with pytest.raises(EngineError, match=problem) as caught:
            ask(engine, "aaaa")
        assert len(caught.value.log) == 1


@pytest.mark.slow
def test_llama_context_grows_once_to_the_maximum(chatml_model: Path) -> None:
    sizes = []
    with open_engine(chatml_model) as engine:
        for limit in (10, 400, 500):
            [reply] = ask(engine, "a", grammar='root ::= "a" root', max_tokens=limit)
            assert isinstance(engine.backend, LlamaBackend)
            sizes.append(engine.backend.capacity)
            assert reply.text == "a" * limit
    assert sizes == [256, 2048, 2048]
