"""Whether weights are repacked: by their type, the processor, and how long the reply is expected to be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.engine.llama import load
from cerebrum_cli.engine.llama.load import plan_repacking
from cerebrum_cli.engine.machine import Speed
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.gguf.sizes import LayerSizes, ModelSizes

SIZES = ModelSizes((LayerSizes(36_000_000),) * 24, output_bytes=40_000_000)
MEMORY = 3 * SIZES.weight_bytes
BATCH = ContextOptions(slots=16)


def options(quantization: str | None = "Q4_K_M", **others: Any) -> LoadOptions:
    return replace(LoadOptions(Path("m"), 4096, SIZES, quantization=quantization), **others)


def on(monkeypatch: pytest.MonkeyPatch, instructions: str, generation: float = 20e9) -> None:
    """On a processor that generates so many bytes of weights per second."""
    monkeypatch.setattr(load, "instruction_set", lambda: instructions)
    monkeypatch.setattr(load, "load_speed", lambda records: Speed(generation=generation))


def repacks(options: LoadOptions, free: int = MEMORY) -> bool:
    return plan_repacking(options, free, Path())


@pytest.mark.parametrize("instructions", ["x86", "avx512"])
def test_k_quants_on_x86_are_repacked_where_that_pays(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, instructions)
    assert repacks(options(whole_context=True)), "a chat"
    assert repacks(options(context=BATCH)) is (instructions == "x86")
    assert repacks(options()), "a reply without a limit"
    assert not repacks(options(reply_tokens=16))
    assert repacks(options(reply_tokens=128))
    assert not repacks(options(), free=SIZES.weight_bytes), "memory for the weights alone"


def test_faster_processors_repack_for_longer_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    short = options(reply_tokens=60)
    on(monkeypatch, "avx512", generation=10e9)
    assert repacks(short)
    on(monkeypatch, "avx512", generation=40e9)
    assert not repacks(short)


def test_long_prompts_are_evaluated_as_in_the_file_with_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    long = options(prompt_tokens=3000, reply_tokens=250)
    on(monkeypatch, "x86")
    assert repacks(long)
    on(monkeypatch, "avx512")
    assert not repacks(long)
    assert repacks(options(prompt_tokens=3000, reply_tokens=1250)), "with reasoning"


def test_other_weights_and_processors_repack(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "avx512")
    assert repacks(options("Q4_0", reply_tokens=1)) and repacks(options(None, reply_tokens=1))
    on(monkeypatch, "arm64")
    assert repacks(options(reply_tokens=1))
