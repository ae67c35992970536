"""How to load a model: options, and notices about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.engine.machine import instruction_set
from cerebrum_cli.engine.memory import SINGLE, ContextOptions, Devices
from cerebrum_cli.gguf.sizes import ModelSizes

MAX_SLOTS = 256


class AdapterFile(NamedTuple):
    """A LoRA adapter to apply, and the factor of its effect."""

    path: Path
    scale: float


@frozen
class GgufFile:
    """A GGUF file to load: facts of its header, and the adapters to apply.

    With `is_verified`, its digest is known to be right, or we wrote the file. One that `thinks` marks its reasoning.
    """

    path: Path
    trained_context: int
    sizes: ModelSizes
    adapters: tuple[AdapterFile, ...] = ()
    is_verified: bool = False
    thinks: bool = False


@frozen
class LoadOptions:
    """How to load a model; "auto" is chosen for this machine.

    - `whole_context`: allocate the KV cache for the longest sequence while loading, as a chat needs it; otherwise it is
      allocated for the first request, so that a single answer starts sooner
    - `repack`: convert weights to CPU-optimized layouts: faster for a single sequence, slower for batches, a longer
      load and twice the memory
    - `cpu_moe`: number of the first layers whose experts stay in host memory, with "auto" as few as let all layers fit
      on the GPU; "off" is none
    """

    file: GgufFile
    context: ContextOptions = SINGLE
    gpu_layers: str = "auto"
    repack: bool = True
    vocabulary_only: bool = False
    whole_context: bool = False
    cpu_moe: str = "auto"


def plan_repacking(quantization: str | None, *, is_chat: bool = False, is_batch: bool = False) -> bool:
    """Whether to repack weights, which is llama.cpp's default, with this processor's `instruction_set`.

    On x86, K-quants only for a chat, whose replies make up for the longer load, and for a batch without AVX-512.
    Measured on two cores without repacking, compared to repacked weights:

    - A model of Mistral-7B's shape in Q4_K_M, with AVX-512: prefill 1.5 times as fast, a single sequence 0.7 times, 32
      sequences 1.15 times, a tenth of the load time, 4.6 GB instead of 7.9 GB of memory. Q4_0 was slower in everything.
    - Qwen2.5-Coder 1.5B in Q4_K_M, with AVX-512: prefill 1.5 times as fast, 1, 16 and 32 sequences 0.84, 0.90 and 1.05
      times; without AVX-512: prefill as fast, 1, 16 and 32 sequences 0.76, 0.76 and 0.90 times.
    """
    if is_chat or "_K" not in (quantization or ""):
        return True
    instructions = instruction_set()
    return instructions not in ("x86", "avx512") or (is_batch and instructions == "x86")


def option_notices(options: LoadOptions, devices: Devices) -> Iterator[NoticeEvent]:
    """Yield notices about options that have no or an adverse effect."""
    trained = options.file.trained_context
    length = options.context.length
    if options.gpu_layers not in ("auto", "0") and not devices:
        problem = f"--gpu-layers {options.gpu_layers}: llama.cpp finds no GPU; using the CPU"
        yield NoticeEvent(problem, "run cerebrum doctor, or omit --gpu-layers")
    if length > trained:
        yield NoticeEvent(
            f"--ctx {length} exceeds the model's trained context of {trained} tokens",
            "answers degrade beyond that; omit --ctx",
        )
