"""The real llama.cpp on tiny models: interrupted steps, copies, loading, exact replies, and types of the cache."""

import os
import sys
import threading
from array import array
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from asking import ask, collect_replies, generate, loaded
from command_line import CommandLine, assert_error
from gguf_files import write_model
from installations import installation
from llama_engines import STORY, TALE, backend_with, engine_with, greedy, in_f32, open_engine, options
from tiny_models import Shape, write_chatml, write_quantized

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EngineError, ModelFileError, UsageError
from cerebrum_cli.core.events import Emit, Event, LoadEvent, PromptEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine import requests as engine_requests
from cerebrum_cli.engine.backend import Sampler
from cerebrum_cli.engine.capacity import installed_build
from cerebrum_cli.engine.llama.bindings import Log
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama, option_notices
from cerebrum_cli.engine.llama.repacking import Repacking
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.memory import GPU_UBATCH, HEADROOM, Device, FreeMemory, LoadPlan
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions, Request
from cerebrum_cli.engine.step import StopFlag, TokenRow
from cerebrum_cli.gguf.header import read_header
from cerebrum_cli.gguf.sizes import uniform_sizes
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.lm_eval.lm_eval_command import open_model
from cerebrum_cli.replies.source import ModelSource


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


def test_llama_resumes_after_an_interrupted_step(tiny_model: Path) -> None:
    """A partly updated state must count as neither the old nor the new one."""
    stop = StopFlag()
    with backend_with(options(tiny_model, slots=2), 256, stop) as backend:
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
    with backend_with(options(chatml_model, slots=3), 256) as backend:
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
    with engine_with(wrong) as engine:
        with pytest.raises(EngineError, match=problem) as caught:
            ask(engine, "aaaa")
        assert len(caught.value.log) == 1


GIB = 2**30
DEBUG, INFO, WARNING, ERROR, CONTINUED = range(1, 6)


def test_load_reports_progress(chatml_model: Path) -> None:
    told: list[Event] = []
    open_llama(options(chatml_model), told.append, StopFlag()).close()
    fractions = [event.fraction for event in told if isinstance(event, LoadEvent)]
    assert fractions == sorted(fractions) and (fractions[0], fractions[-1]) == (0.0, 1.0)


def has_free(monkeypatch: pytest.MonkeyPatch, *measured: FreeMemory) -> None:
    """Measure so much free memory while a model is loaded, the last for the rest of the time."""
    left = list(measured)

    def free_memory() -> FreeMemory:
        return left.pop(0) if len(left) > 1 else left[0]

    for module in ("load", "llama_backend"):
        monkeypatch.setattr(f"cerebrum_cli.engine.llama.{module}.free_memory", free_memory)


def test_load_offloads_a_recurrent_model_with_the_one_state_it_gets(
    recurrent_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = read_header(recurrent_model).sizes
    all_layers = (len(sizes.layers) + 1,)
    needs = LoadPlan(sizes, ContextOptions(2048, 1, 1, GPU_UBATCH), all_layers).needs
    gpu = Device("CUDA0", "a GPU", needs.devices[0] + HEADROOM, GIB)
    has_free(monkeypatch, FreeMemory(8 * GIB, (gpu,)))
    context = ContextOptions(n_threads=1, slots=16, kv_unified=True)  # as a chat does
    with backend_with(LoadOptions(recurrent_model, 2048, sizes, context)) as backend:
        assert backend._plan.offloaded == all_layers


def test_load_plans_batches_beside_mapped_weights(seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = read_header(seven).sizes
    batch = ContextOptions(1024, 64, 1, 128)
    cache = LoadPlan(sizes, replace(batch, slots=10)).context_needs.host
    for allocated in (0, sizes.weight_bytes // 3, sizes.weight_bytes):  # while the file is loaded
        before = HEADROOM + sizes.weight_bytes + cache
        has_free(monkeypatch, FreeMemory(before), FreeMemory(before - allocated))
        with backend_with(LoadOptions(seven, 2048, sizes, batch)) as backend:
            assert backend.slots_for(1024) == 10


def test_load_repacks_weights_where_memory_allows(seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, repacks in ((8 * GIB, True), (HEADROOM, False)):
        has_free(monkeypatch, FreeMemory(free))
        with backend_with(replace(options(seven), repack=True)) as backend:
            assert backend.repacks == repacks


@pytest.mark.parametrize(("free", "repacks"), [(8 * GIB, True), (0, False)], ids=["free memory", "no memory"])
def test_reply_continues_with_weights_repacked_meanwhile(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, free: int, repacks: bool
) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.llama.load.instruction_set", lambda: "x86")
    asked = replace(options(tiny_model), quantization="Q4_K_M", reply_tokens=100)
    said = []
    for repack in (False, None):
        with engine_with(replace(asked, repack=repack)) as engine:
            monkeypatch.setattr("cerebrum_cli.engine.llama.llama_backend.free_memory", lambda: FreeMemory(free))
            story = engine.vocabulary.tokenize([Text(STORY * 3)])
            replies = [greedy(engine, prompt, 20) for prompt in (story, story * 2)]
            said.append([(reply.ids, reply.cached) for reply in replies])
            assert engine.repacks is (repacks and repack is None)
    assert said[0] == said[1]


def test_interrupted_wait_for_repacked_weights_loses_nothing(
    chatml_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.llama.load.instruction_set", lambda: "x86")
    loads = threading.Event()
    load = Repacking._load

    def wait_and_load(self: Repacking, path: bytes, params: Any) -> None:
        loads.wait(10)
        load(self, path, params)

    monkeypatch.setattr(Repacking, "_load", wait_and_load)
    stop = StopFlag()
    asked = replace(options(chatml_model), quantization="Q4_K_M")
    with backend_with(asked) as backend:
        assert backend.repacks, "all rows of a batch are evaluated with the same weights"
    with backend_with(replace(asked, reply_tokens=100), 256, stop) as backend:
        assert not backend.repacks
        rows = [TokenRow(0, at, 20 + at, at == 9) for at in range(10)]
        assert backend.decode(rows)
        stop.set()
        assert not backend.decode([TokenRow(0, 10, 7, True)]) and backend.context.length(0) == 10
        stop.clear()
        loads.set()
        assert backend.decode([TokenRow(0, 10, 7, True)]) and backend.repacks and backend.context.length(0) == 11


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are Unicode")
def test_load_accepts_undecodable_file_names(chatml_model: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff\xfe.gguf")
    path.write_bytes(chatml_model.read_bytes())
    with backend_with(options(path)):
        pass


def unread(path: Path, length: int = 0, **others: Any) -> LoadOptions:
    """Options for a file whose header is not read."""
    return LoadOptions(path, 2048, uniform_sizes(1_000_000, 2, 128), ContextOptions(length, n_threads=1), **others)


DAMAGES: tuple[tuple[Callable[[bytes], bytes], str], ...] = (
    (lambda model: b"hello" * 100, "invalid magic characters: 'hell', expected 'GGUF'"),
    (lambda model: model[:3000], "failed to read key-value pairs"),
    (lambda model: model[:-1000], "tensor 'blk.1.ffn_down.weight' data is not within the file bounds"),
    (lambda model: model.replace(b"llama", b"lamma", 1), "unknown model architecture: 'lamma'"),
)


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_K_M"], ids=["loaded once", "repacked meanwhile"])
@pytest.mark.parametrize(("change", "reason"), DAMAGES)
def test_load_of_a_damaged_file_gives_the_reason(
    chatml_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytes], bytes],
    reason: str,
    quantization: str,
) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.llama.load.instruction_set", lambda: "x86")
    path = tmp_path / "damaged.gguf"
    path.write_bytes(change(chatml_model.read_bytes()))
    damaged = unread(path, quantization=quantization, reply_tokens=100)
    with pytest.raises(ModelFileError) as caught, backend_with(damaged):
        pass
    assert caught.value.message.startswith(f"{path}: llama.cpp cannot load it: ")
    assert reason in caught.value.message


def test_load_stops_when_interrupted(chatml_model: Path) -> None:
    stop = StopFlag()
    stop.set()
    with pytest.raises(EngineError, match="interrupted"), backend_with(options(chatml_model), stop=stop):
        pass


def test_log_forwards_lines_and_keeps_problems() -> None:
    kept, heard = Log(), list[str]()
    kept.forward = heard.append
    kept.write(DEBUG, b"inside ")
    kept.write(CONTINUED, b"and out\n")
    kept.write(INFO, b"shown\n")
    kept.write(WARNING, b"beware\nof ")
    kept.write(CONTINUED, b"the fox\n")
    kept.write(ERROR, "Füchse\n".encode())
    kept.write(INFO, b"not yet")
    assert list(kept.problems) == ["beware", "of the fox", "Füchse"]
    assert heard == ["shown", *kept.problems]


@pytest.mark.parametrize(
    ("length", "gpu_layers", "devices", "problem"),
    [
        (2049, "auto", (), "--ctx 2049 exceeds the model's trained context of 2048 tokens"),
        (2048, "auto", (), ""),
        (0, "all", (), "--gpu-layers all: llama.cpp finds no GPU; using the CPU"),
        (0, "all", (Device("CUDA0", "a GPU", GIB, GIB),), ""),
    ],
)
def test_load_notes_options_without_effect(
    length: int, gpu_layers: str, devices: tuple[Device, ...], problem: str
) -> None:
    asked = unread(Path("model.gguf"), length, gpu_layers=gpu_layers)
    assert "".join(notice.message for notice in option_notices(asked, devices)) == problem


# Log probabilities are the same, bit for bit, whatever runs beside a row.

# Types whose rows are multiplied alike in any number, on x86-64; the documentation names them.
INVARIANT_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")
# Only with llama.cpp's kernels for AVX2, with which those for AVX-512 share the properties that are tested here.
needs_avx2 = pytest.mark.skipif("AVX2" not in installed_build().cpu_features, reason="another processor's kernels")

Replies = list[list[tuple[int, float]]]
"""Token and log probability of each generated token, by prompt."""


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

        def create_recording(*arguments: Any) -> Sampler:
            sampler = create(*arguments)
            sample = sampler.sample

            def record(row: int) -> int:
                token = sample(row)
                [score] = backend.score_tokens([(row, token)])
                said[arguments[-1]].append((token, score.logprob))
                return token

            sampler.sample = record  # type: ignore[method-assign]
            return sampler

        backend.sampler = create_recording  # type: ignore[assignment, method-assign]
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


@pytest.mark.slow
def test_llama_replies_continue_in_longer_slots(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
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


def test_cache_types_of_keys_and_values_are_those_that_a_model_can_have(
    tmp_path: Path, chatml_model: Path, wide: Path
) -> None:
    def options_with(path: Path, **settings: Any) -> LoadOptions:
        return ModelSource(installation(), InstalledModel("tiny", (path,)), Settings(**settings)).options()

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_key_length(128)
        writer.add_value_length(128)
        writer.add_key_length_mla(192)

    latent = write_model(tmp_path / "model.gguf", fill, "deepseek2")
    with pytest.raises(UsageError, match="deepseek2 needs the same type for keys and values"):
        options_with(latent, cache_type="f16:q8_0", ctx=256)
    with pytest.raises(UsageError, match=r"cache_type=q4_0:f16 needs a head size that is a multiple of 32.* is 16"):
        options_with(chatml_model, cache_type="q4_0:f16")
    allowed = options_with(wide, cache_type="q8_0:f16", flash_attn="off").context
    assert (allowed.flash_attention, allowed.cache_type_k, allowed.cache_type_v) == (False, "q8_0", "f16")


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
def test_batch_of_another_cache_type_is_never_continued(new_user: CommandLine, wide: Path) -> None:
    (new_user.home / "in.txt").write_text("one\ntwo\n")
    command = ("batch", "in.txt", "-o", "out.jsonl", "-m", wide, "--max-tokens", "2", "-q")
    assert new_user.run(*command, "--set", "cache_type=f16:q8_0").code == 0
    assert_error(new_user.run(*command), 1, "out.jsonl was made with other settings: cache_type")


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
