"""The speed of this machine's memory, and of its fastest replies of any models, which are recorded without their names.

The time of a token is in proportion to the bytes of weights that are read for it, and to the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from timeit import repeat
from typing import NamedTuple

from cerebrum_cli.core.events import Timings
from cerebrum_cli.core.files import cache_json, read_small_json
from cerebrum_cli.core.llama_cpp import build_fingerprint
from cerebrum_cli.engine.machine import instruction_set, processor_name, processors
from cerebrum_cli.gguf.sizes import ModelSizes

# Bytes that could be read in the time that a layer takes beside its weights; measured with models of 24 to 30 layers.
LAYER = 4_000_000
AVX512_PROMPT_LAYER = 12_000_000  # for a token of a prompt, whose weights take less time
MIN_PREFILL, MIN_STEPS = 32, 16  # tokens; shorter prompts and replies say little about speed
MAX_DRAFTED = 0.3  # draft tokens by step; more slow the steps down
MIN_BYTES = 50_000_000  # of weights read for a token; so do models that caches hold
AVX2, AVX512 = (10e9, 35e9), (14e9, 60e9)  # bytes per second of a thread, measured on AMD EPYC
MEMORY_THREADS = 2  # that read as fast as the memory is on most desktop computers
SPEED_FILE = "speed.json"
READ_BYTES, READS = 128 * 2**20, 5  # more bytes than caches hold


class Speed(NamedTuple):
    """Bytes per second: to generate, to evaluate prompts, and of memory that one thread reads; 0 is unknown.

    In a prompt, a layer takes as much time as `prompt_layer` bytes of weights.
    """

    generation: float = 0.0
    prompts: float = 0.0
    bandwidth: float = 0.0
    prompt_layer: int = LAYER

    def with_reply(self, sizes: ModelSizes, timings: Timings) -> Speed:
        """The faster of this and of a model's reply, if that is long enough: other programs only slow replies down."""
        steps = timings.decode_steps - timings.draft_n_accepted
        is_short = timings.prefill_tokens < MIN_PREFILL or steps < MIN_STEPS
        if is_short or timings.draft_n > MAX_DRAFTED * steps:
            return self
        generation = steps / timings.decode_s * work(sizes, LAYER)
        prompts = timings.prompt_tokens_per_second * work(sizes, self.prompt_layer)
        return self._replace(generation=max(self.generation, generation), prompts=max(self.prompts, prompts))


def work(sizes: ModelSizes, layer: int) -> float:
    """Bytes that could be read in the time of a token."""
    return sizes.active_bytes + layer * len(sizes.layers)


def expected(threads: int, has_avx512: bool, recorded: Speed) -> Speed:
    """The speed before any reply, limited by that of the memory if it is known."""
    generation, prompts = AVX512 if has_avx512 else AVX2
    read = threads * generation
    if recorded.bandwidth:
        read = min(read, MEMORY_THREADS * recorded.bandwidth)
    return recorded._replace(generation=read, prompts=threads * prompts)


def load_speed(records: Path) -> Speed:
    """The speed of replies on this machine; before there are any, the one to expect."""
    recorded = _read(records)
    if recorded.generation:
        return recorded
    return expected(processors().threads, instruction_set() == "avx512", recorded)


def record_replies(records: Path, sizes: ModelSizes, replies: Iterable[Timings]) -> None:
    """Record how fast a model on this machine has replied; failures are ignored."""
    recorded = speed = _read(records)
    for timings in replies:
        speed = speed.with_reply(sizes, timings)
    if speed != recorded:
        _write(records, speed)


def record_bandwidth(records: Path) -> None:
    """Measure how fast a thread reads memory, unless anything is recorded; takes 0.2 s."""
    recorded = _read(records)
    if recorded.generation or recorded.bandwidth:
        return
    data = b"\1" * READ_BYTES
    seconds = min(repeat(lambda: data.find(0), number=1, repeat=READS))
    _write(records, Speed(bandwidth=READ_BYTES / seconds))


def _read(records: Path) -> Speed:
    layer = AVX512_PROMPT_LAYER if instruction_set() == "avx512" else LAYER
    try:
        generation, prompts, bandwidth = read_small_json(records / SPEED_FILE)[_machine()]
        return Speed(generation, prompts, bandwidth, layer)
    except (OSError, ValueError, TypeError, KeyError):
        return Speed(prompt_layer=layer)


def _write(records: Path, speed: Speed) -> None:
    cache_json(records / SPEED_FILE, {_machine(): (speed.generation, speed.prompts, speed.bandwidth)})


def _machine() -> str:
    return f"{processor_name()}, {processors().threads} threads, {build_fingerprint()}"
