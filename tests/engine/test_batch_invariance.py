"""Batch invariance in the real llama.cpp: the log probabilities of a row, bit for bit, whatever runs beside it."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from asking import generate, loaded
from command_line import CommandLine
from quantized import quantize
from tiny_models import Shape, write_quantized, write_sliding_window

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.events import TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine import requests as engine_requests
from cerebrum_cli.engine.llama.batch_invariance import pad_step, stable_slots
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local import installed_build
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import ContextOptions, GgufFile, LoadOptions, Request
from cerebrum_cli.engine.step import TokenRow
from cerebrum_cli.gguf.contents import FILE_TYPES
from cerebrum_cli.gguf.header import read_header

# Types whose rows are multiplied alike in any number, on x86-64; the documentation names them.
INVARIANT_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")
VARIANT_TYPES = ("F32", "F16", "BF16", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "IQ4_NL", "IQ4_XS", "IQ3_S")  # _M has Q6_K
VARIANTS = [*product(VARIANT_TYPES, [True]), ("Q4_K_M", False), ("Q2_K", False), ("IQ4_NL", False)]
SHAPE = Shape(layers=1, width=512, heads=8, kv_heads=2, ffn=512)
# Only with llama.cpp's kernels for AVX2, with which those for AVX-512 share the properties that are tested here.
needs_avx2 = pytest.mark.skipif("AVX2" not in installed_build().cpu_features, reason="another processor's kernels")

Replies = list[list[tuple[int | None, float | None]]]
"""Token and log probability of each generated token, by prompt."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def model_of(models: Path, encoding: str) -> Path:
    """A tiny model in an encoding: all matrices of one type, or a mixture that llama.cpp writes."""
    path = models / f"{encoding}.gguf"
    if not path.exists() and encoding in INVARIANT_TYPES:
        write_quantized(path, shape=SHAPE, encoding=encoding)
    elif not path.exists():
        source = models / "source.gguf"
        if not source.exists():
            write_quantized(source, shape=SHAPE, encoding="BF16")
        quantize(source, path, next(number for number, name in FILE_TYPES.items() if name == encoding))
    return path


def prompts(count: int = 6, longest: int = 290) -> list[tuple[int, ...]]:
    """Prompts of many lengths, some with a common prefix, up to beyond the first 256 positions."""
    lengths = [1 + number * (longest - 1) // (count - 1) for number in range(count)]
    return [
        tuple(20 + (position * 7 + position // 40 * at % 3) % 200 for position in range(n))
        for at, n in enumerate(lengths)
    ]


def replies(
    path: Path,
    slots: int,
    requests: list[tuple[int, ...]],
    *,
    repack: bool = True,
    limit: int | None = 12,
    context_size: int = 1024,
    **context: Any,
) -> Replies:
    """Greedy replies to prompts, at most `slots` at the same time."""
    header = read_header(path)
    defaults = {"n_threads": 1, "batch_invariant": True, "pad_steps": True}
    options = LoadOptions(
        GgufFile(path, 2048, header.sizes),
        ContextOptions(context_size, slots, **(defaults | context)),
        gpu_layers="0",
        repack=repack,
    )
    said: Replies = [[] for _ in requests]
    params = SamplingParams(max_tokens=limit)
    with loaded(LocalEngine(lambda tell, stop: open_llama(options, tell, stop))) as engine:
        for event in generate(
            engine, [Request(each, params, Ask(logprobs=True, ignore_eos=True)) for each in requests]
        ):
            if isinstance(event, TokenEvent):
                said[event.sequence.request] += zip(event.tokens, event.logprobs, strict=True)
    return said


@pytest.mark.slow
@needs_avx2
@pytest.mark.parametrize("encoding", INVARIANT_TYPES)
def test_types_that_are_batch_invariant_by_default(models: Path, encoding: str) -> None:
    path = model_of(models, encoding)
    alone = replies(path, 1, prompts(), pad_steps=False)
    assert replies(path, 9, prompts(), pad_steps=False) == alone


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "repack"), VARIANTS)
def test_padded_steps_are_batch_invariant(models: Path, encoding: str, repack: bool) -> None:
    path = model_of(models, encoding)
    alone = replies(path, 1, prompts(), repack=repack)
    assert replies(path, 9, prompts()[::-1], repack=repack)[::-1] == alone


@pytest.mark.slow
def test_padded_steps_are_invariant_after_preemption(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, requests = model_of(models, "Q4_K_M"), prompts(6, 230)  # replies outgrow the first 256 cells
    alone = replies(path, 1, requests, limit=60, n_threads=2, flash_attention=False)
    monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", 1)
    assert replies(path, 5, requests, limit=60, n_threads=2, flash_attention=False) == alone


@pytest.mark.slow
def test_padded_steps_are_invariant_with_sliding_windows(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, requests = models / "window.gguf", prompts(3, 230)
    write_sliding_window(path)
    alone = replies(path, 1, requests, limit=150)
    monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", 1)
    assert replies(path, 3, requests, limit=150) == alone


@pytest.mark.slow
def test_padded_steps_fill_the_context(models: Path) -> None:
    path, requests = model_of(models, "Q4_K_M"), prompts(6, 240)
    alone = replies(path, 1, requests, limit=None, context_size=256)
    assert [len(prompt) + len(said) for prompt, said in zip(requests, alone, strict=True)] == [248] * 6
    assert replies(path, 4, requests, limit=None, context_size=256) == alone


@pytest.mark.slow
def test_padded_steps_leave_sliding_windows_intact(models: Path) -> None:
    path = write_sliding_window(models / "window.gguf", window=64)  # its cache has 576 cells
    requests = prompts(4, 800)
    alone = replies(path, 1, requests, limit=20, context_size=2048)
    assert replies(path, 5, requests[::-1], limit=20, context_size=2048)[::-1] == alone


def test_padded_steps_and_numbers_of_slots_are_small() -> None:
    for slots, running in ((1, 1), (2, 1), (4, 3), (8, 5), (64, 1), (64, 33), (64, 64)):
        rows = [TokenRow(slot, 300 + slot, 9, True) for slot in range(running)]
        size = len(pad_step(rows, slots, lambda slot: 100 + slot)[0])
        assert size % 4 == 0 and 8 <= size < max(9, running + 4)
    assert [stable_slots(slots) for slots in (1, 2, 3, 4, 5, 63, 64, 256)] == [1, 2, 2, 4, 4, 60, 64, 256]


@pytest.mark.slow
def test_batch_records_that_it_is_invariant(models: Path, new_user: CommandLine) -> None:
    path, source = model_of(models, "Q4_K_M"), new_user.home / "in.txt"
    source.write_text("".join(f"{'Why? ' * number}\n" for number in range(1, 9)))
    texts: list[list[str]] = []
    for parallel in ("1", "8"):
        out = new_user.home / f"out{len(texts)}.jsonl"
        command = ("batch", source, "-o", out, "-m", path, "--max-tokens", "20", "--ignore-eos", "--parallel", parallel)
        done = new_user.run(*command, "-ngl", "0", "--set", "batch_invariant=on")
        assert done.code == 0, done.err
        texts.append([json.loads(line)["text"] for line in out.read_text().splitlines()])
        assert "all types" in Path(f"{out}.meta.json").read_text()
        changed = new_user.run(*command)
        assert (changed.code, "another batch invariance" in changed.err) == (1, True), changed.err
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_invariance_notices_for_experts_and_recurrent_models(
    models: Path, new_user: CommandLine, recurrent_model: Path
) -> None:
    source = new_user.home / "in.txt"
    source.write_text("Why?\n")
    mixtral = write_quantized(models / "mixtral.gguf", shape=SHAPE, experts=4)
    command = ("batch", source, "-o", "-", "-n", "2", "-ngl", "0", "--set", "batch_invariant=on", "-m")
    for path in (mixtral, recurrent_model):
        assert "batch_invariant has no effect on a GPU, a recurrent model, or" in new_user.run(*command, path).err
