"""Engines on the real llama.cpp and tiny models."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from asking import Reply, collect_replies, generate, loaded

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.prompt_cache import StateStore
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions, Request
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.header import read_header

MODELS = ("mistral_model", "chatml_model", "recurrent_model", "sliding_window_model")
STORY = "Once upon a time, in a land far away, there lived a fox who could count to a hundred and no further. "
TALE = STORY * 5  # longer than the sliding window


def options(path: Path, *, slots: int = 1, context_size: int = 2048) -> LoadOptions:
    """Load on one thread: tiny models need no more."""
    context = ContextOptions(context_size, slots, n_threads=1)
    return LoadOptions(path, 2048, read_header(path).sizes, context)


def in_f32(options: LoadOptions) -> LoadOptions:
    """Evaluate attention in F32: flash attention would round to F16."""
    context = replace(options.context, flash_attention=False, cache_type_k="f32", cache_type_v="f32")
    return replace(options, context=context)


def open_engine(
    path: Path, states: Path | None = None, *, slots: int = 1, context_size: int = 2048
) -> AbstractContextManager[LocalEngine]:
    """Start an engine on a real model, with a prompt cache in the directory `states`."""
    store = StateStore(states, 10**8, path.name, "plain") if states else None
    return engine_with(options(path, slots=slots, context_size=context_size), store)


def engine_with(options: LoadOptions, store: StateStore | None = None) -> AbstractContextManager[LocalEngine]:
    return loaded(LocalEngine(lambda tell, stop: open_llama(options, tell, stop), (lambda: store) if store else None))


@contextmanager
def backend_with(options: LoadOptions, length: int = 0, stop: StopFlag | None = None) -> Iterator[LlamaBackend]:
    """Open a backend without an engine, with memory for sequences of a length."""
    backend = open_llama(options, lambda event: None, StopFlag() if stop is None else stop)
    try:
        if length:
            backend.reserve(length)
        yield backend
    finally:
        backend.close()


def greedy(engine: LocalEngine, prompt: tuple[int, ...], limit: int) -> Reply:
    [reply] = collect_replies(generate(engine, [Request(prompt, SamplingParams(max_tokens=limit))])).values()
    return reply


def greedy_reply(
    engine: LocalEngine, prompt: tuple[int, ...], limit: int | None = 30, n: int = 1
) -> tuple[Reply, list[object]]:
    events = list(generate(engine, [Request(prompt, SamplingParams(max_tokens=limit), Ask(n=n))]))
    notices: list[object] = [event for event in events if isinstance(event, NoticeEvent)]
    return list(collect_replies(event for event in events if event not in notices).values())[-1], notices
