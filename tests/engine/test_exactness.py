"""What changes tokens and log probabilities of the real llama.cpp, bit for bit, and what does not.

Not rows beside them, preemption or moving to longer slots, but the types of the KV cache.
"""

from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from asking import collect_replies, generate, loaded
from command_line import CommandLine
from gguf_files import write_model
from installations import installation
from llama_engines import TALE, backend_with, engine_with, in_f32, options
from tiny_models import Shape, write_chatml, write_quantized

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import Emit
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine import requests as engine_requests
from cerebrum_cli.engine.backend import Sampler
from cerebrum_cli.engine.capacity import installed_build
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions, Request
from cerebrum_cli.engine.step import StopFlag, TokenRow
from cerebrum_cli.gguf.header import read_header
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.lm_eval.lm_eval_command import open_model
from cerebrum_cli.replies.source import ModelSource

# Types whose rows are multiplied alike in any number, on x86-64; the documentation names them.
INVARIANT_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")
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


def write_model_of(folder: Path, encoding: str = "Q8_0") -> Path:
    """A tiny model with all matrices of one type."""
    return write_quantized(folder / "tiny.gguf", shape=Shape(1, 512, 8, 2, 512), encoding=encoding)


def prompts(longest: int = 290) -> list[tuple[int, ...]]:
    """Six prompts of many lengths, some with a common prefix, up to beyond the first 256 positions."""
    lengths = [1 + number * (longest - 1) // 5 for number in range(6)]
    return [
        tuple(20 + (position * 7 + position // 40 * at % 3) % 200 for position in range(n))
        for at, n in enumerate(lengths)
    ]


def replies_to(
    path: Path, slots: int, asked: list[tuple[int, ...]], *, limit: int | None = 12, context_size: int = 1024
) -> Replies:
    """Greedy replies to prompts, at most `slots` at the same time."""
    context = ContextOptions(context_size, slots, n_threads=1, batch_invariant=True)
    options = LoadOptions(path, 2048, read_header(path).sizes, context, gpu_layers="0", repack=True)
    said: dict[tuple[int, ...], list[tuple[int, float]]] = {prompt: [] for prompt in asked}

    def open_recording(emit: Emit, stop: StopFlag) -> LlamaBackend:
        backend = open_llama(options, emit, stop)
        create = backend.sampler
        backend.sampler = lambda *args: Recording(create(*args), backend, said[args[-1]])  # type: ignore[method-assign]
        return backend

    params = SamplingParams(max_tokens=limit)
    with loaded(LocalEngine(open_recording)) as engine:
        list(generate(engine, [Request(prompt, params, Ask(ignore_eos=True)) for prompt in asked]))
    return list(said.values())


@pytest.mark.slow
@needs_avx2
@pytest.mark.parametrize("encoding", INVARIANT_TYPES)
def test_replies_do_not_depend_on_other_rows(tmp_path: Path, encoding: str) -> None:
    path = write_model_of(tmp_path, encoding)
    alone = replies_to(path, 1, prompts())
    assert replies_to(path, 9, prompts()[::-1])[::-1] == alone


@pytest.mark.slow
@needs_avx2
def test_replies_are_the_same_after_preemption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = write_model_of(tmp_path), prompts(230)  # replies outgrow the first 256 cells
    alone = replies_to(path, 1, asked, limit=60)
    monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", 1)
    assert replies_to(path, 5, asked, limit=60) == alone


@pytest.mark.slow
@needs_avx2
def test_replies_that_fill_the_context_are_the_same(tmp_path: Path) -> None:
    path, asked = write_model_of(tmp_path), prompts(240)
    alone = replies_to(path, 1, asked, limit=None, context_size=256)
    assert [len(prompt) + len(said) for prompt, said in zip(asked, alone, strict=True)] == [256] * 6
    assert replies_to(path, 4, asked, limit=None, context_size=256) == alone


def test_llama_tells_states_of_other_numbers_of_slots_apart(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "state"
    with backend_with(options(tiny_model, slots=4)) as backend:
        backend.reserve(256, 4)
        kind = backend.state_kind
        assert backend.decode([TokenRow(1, at, 5 + at, at == 99) for at in range(100)])
        backend.context.save_state(1, array("i", range(5, 105)), path)
        assert backend.context.load_state(2, path)
        assert backend.context.length(2) == 100
        backend.reserve(256, 2)
        assert backend.state_kind != kind
        path.unlink()
        assert not backend.context.load_state(0, path)
        assert backend.context.length(0) == 0


@pytest.mark.slow
def test_llama_replies_continue_in_longer_slots(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """Texts are those of slots that were long enough at first."""
    load_options = in_f32(options(tiny_model, slots=3, context_size=2048))
    params = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
    said = []
    for expected in (30, 1024):
        monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", expected)
        monkeypatch.setattr(Request, "max_length", lambda self, size: size)
        with engine_with(load_options) as engine:
            prompt = engine.vocabulary.tokenize([Text(TALE)])[:60]
            found = collect_replies(generate(engine, [Request(prompt, params, Ask(n=3, ignore_eos=True))]))
            said.append([reply.ids for reply in found.values()])
    assert said[0] == said[1]


# Types of the KV cache.


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of 32 elements, which a quantized cache can hold."""
    return write_chatml(tmp_path_factory.mktemp("models") / "wide.gguf", shape=Shape(width=128))


def options_with(path: Path, **settings: Any) -> LoadOptions:
    return ModelSource(installation(), InstalledModel("tiny", (path,)), Settings(**settings)).options()


@pytest.mark.parametrize(
    ("model", "settings", "problem"),
    [
        ("narrow", {"cache_type": "q4_0"}, "cache_type=q4_0 needs a head size that is a multiple of 32.* is 16"),
        ("narrow", {"cache_type": "f16:q4_0"}, "cache_type=f16:q4_0 needs a head size that is a multiple of 32.* is"),
        ("deepseek2", {"cache_type": "f16:q8_0", "ctx": 256}, "deepseek2 needs the same type for keys and values"),
    ],
)
def test_cache_types_that_a_model_cannot_have_are_refused(
    tmp_path: Path, chatml_model: Path, wide: Path, model: str, settings: dict[str, Any], problem: str
) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_key_length(128)
        writer.add_value_length(128)
        writer.add_key_length_mla(192)

    path = chatml_model if model == "narrow" else write_model(tmp_path / "model.gguf", fill, model)
    with pytest.raises(UsageError, match=problem):
        options_with(path, **settings)
    allowed = options_with(wide, cache_type="q8_0:f16", flash_attn="off")
    assert (allowed.context.flash_attention, allowed.context.cache_type_v) == (False, "f16")


def test_cache_types_change_the_memory_and_little_else(wide: Path) -> None:
    def logits(**types: str) -> Any:
        plain = options(wide)
        context = replace(plain.context, **types)  # type: ignore[arg-type]
        with backend_with(replace(plain, context=context), 64) as backend:
            backend.decode([TokenRow(0, index, 20 + index, index == 9) for index in range(10)])
            backend.decode([TokenRow(0, 10, 40, True)])
            return np.array(backend.logits(0)), backend.context.state_size(0), backend.state_kind

    plain, plain_size, plain_kind = logits()
    for keys, values in (("f16", "f16"), ("f16", "q8_0"), ("q8_0", "f16"), ("q4_0", "q4_0")):
        other, size, kind = logits(cache_type_k=keys, cache_type_v=values)
        is_default = (keys, values) == ("f16", "f16")
        assert (np.abs(plain - other).max() == 0, size == plain_size, kind == plain_kind) == (is_default,) * 3
        assert np.corrcoef(plain, other)[0, 1] > 0.8


@pytest.mark.slow
def test_prompt_cache_and_batch_of_another_cache_type_are_never_used(new_user: CommandLine, wide: Path) -> None:
    def cached(*arguments: str) -> int:
        done = new_user.run("ask", "-m", wide, "--json", "--max-tokens", "2", TALE, *arguments)
        assert done.code == 0, done.err
        return int(done.object["cached_tokens"])

    quantized = ("--set", "cache_type=f16:q8_0")
    assert (cached(), cached(*quantized)) == (0, 0)
    assert min(cached(), cached(*quantized)) > 256
    (new_user.home / "in.txt").write_text("one\ntwo\n")
    command = ("batch", "in.txt", "-o", "out.jsonl", "-m", wide, "--max-tokens", "2", "-q")
    assert new_user.run(*command, *quantized).code == 0
    done = new_user.run(*command)
    assert (done.code, "out.jsonl was made with other settings: cache_type" in done.err) == (1, True)


def test_exact_scores_keep_their_own_cache(wide: Path) -> None:
    opened: list[LoadOptions] = []
    settings = Settings(cache_type="q4_0", flash_attn="on", threads=1)

    def open_file(options: LoadOptions, emit: Any, stop: Any) -> Any:
        opened.append(options)
        return open_llama(options, emit, stop)

    source = ModelSource(installation(open_file), InstalledModel("tiny", (wide,)), settings, raw=True)
    for model in (open_model(source, "scoring"), open_model(source, "generation")):
        list(model.engine.load())
        model.engine.close()
    types = [(each.context.cache_type_k, each.context.cache_type_v, each.context.flash_attention) for each in opened]
    assert types == [("f32", "f32", False), ("q4_0", "q4_0", True)]
