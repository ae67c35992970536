"""Batch invariance in the real llama.cpp: the log probabilities of a row, bit for bit, whatever runs beside it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from asking import generate, loaded
from tiny_models import Shape, write_quantized

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.events import Emit
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine import requests as engine_requests
from cerebrum_cli.engine.backend import Sampler
from cerebrum_cli.engine.capacity import installed_build
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions, Request
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.header import read_header

# Types whose rows are multiplied alike in any number, on x86-64; the documentation names them.
INVARIANT_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")
SHAPE = Shape(layers=1, width=512, heads=8, kv_heads=2, ffn=512)
# Only with llama.cpp's kernels for AVX2, with which those for AVX-512 share the properties that are tested here.
needs_avx2 = pytest.mark.skipif("AVX2" not in installed_build().cpu_features, reason="another processor's kernels")

Replies = list[list[tuple[int, float]]]
"""Token and log probability of each generated token, by prompt."""


@dataclass
class Recording:
    """A sampler that appends each token to the reply, with its log probability."""

    sampler: Sampler
    backend: LlamaBackend
    said: list[tuple[int, float]]

    def sample(self, row: int) -> int:
        token = self.sampler.sample(row)
        [score] = self.backend.score_tokens([(row, token)])
        self.said.append((token, score.logprob))
        return token

    def accept(self, token: int) -> None:
        self.sampler.accept(token)

    def close(self) -> None:
        self.sampler.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def model_of(models: Path, encoding: str) -> Path:
    """A tiny model with all matrices of one type."""
    path = models / f"{encoding}.gguf"
    if not path.exists():
        write_quantized(path, shape=SHAPE, encoding=encoding)
    return path


def prompts(count: int = 6, longest: int = 290) -> list[tuple[int, ...]]:
    """Prompts of many lengths, some with a common prefix, up to beyond the first 256 positions."""
    lengths = [1 + number * (longest - 1) // (count - 1) for number in range(count)]
    return [
        tuple(20 + (position * 7 + position // 40 * at % 3) % 200 for position in range(n))
        for at, n in enumerate(lengths)
    ]


def replies(
    path: Path, slots: int, requests: list[tuple[int, ...]], *, limit: int | None = 12, context_size: int = 1024
) -> Replies:
    """Greedy replies to prompts, at most `slots` at the same time."""
    header = read_header(path)
    context = ContextOptions(context_size, slots, n_threads=1, batch_invariant=True)
    options = LoadOptions(path, 2048, header.sizes, context, gpu_layers="0", repack=True)
    said: dict[tuple[int, ...], list[tuple[int, float]]] = {prompt: [] for prompt in requests}

    def open_recording(emit: Emit, stop: StopFlag) -> LlamaBackend:
        backend = open_llama(options, emit, stop)
        create = backend.sampler
        backend.sampler = lambda *args: Recording(create(*args), backend, said[args[-1]])  # type: ignore[method-assign]
        return backend

    params = SamplingParams(max_tokens=limit)
    with loaded(LocalEngine(open_recording)) as engine:
        for _ in generate(engine, [Request(each, params, Ask(ignore_eos=True)) for each in requests]):
            pass
    return list(said.values())


@pytest.mark.slow
@needs_avx2
@pytest.mark.parametrize("encoding", INVARIANT_TYPES)
def test_replies_do_not_depend_on_other_rows(models: Path, encoding: str) -> None:
    path = model_of(models, encoding)
    alone = replies(path, 1, prompts())
    assert replies(path, 9, prompts()[::-1])[::-1] == alone


@pytest.mark.slow
@needs_avx2
def test_replies_are_the_same_after_preemption(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, requests = model_of(models, "Q8_0"), prompts(6, 230)  # replies outgrow the first 256 cells
    alone = replies(path, 1, requests, limit=60)
    monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", 1)
    assert replies(path, 5, requests, limit=60) == alone


@pytest.mark.slow
@needs_avx2
def test_replies_that_fill_the_context_are_the_same(models: Path) -> None:
    path, requests = model_of(models, "Q8_0"), prompts(6, 240)
    alone = replies(path, 1, requests, limit=None, context_size=256)
    assert [len(prompt) + len(said) for prompt, said in zip(requests, alone, strict=True)] == [256] * 6
    assert replies(path, 4, requests, limit=None, context_size=256) == alone
