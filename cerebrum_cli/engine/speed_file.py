"""The recorded speed of this machine: of its memory, and of the fastest replies. It names no model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from timeit import repeat

from cerebrum_cli.core.events import Timings
from cerebrum_cli.core.files import cache_json, read_small_json
from cerebrum_cli.engine.machine import build_fingerprint, instruction_set, processor_name, thread_count
from cerebrum_cli.engine.speed import AVX512_PROMPT_LAYER, LAYER, Speed, expected
from cerebrum_cli.gguf.sizes import ModelSizes

READ_BYTES, READS = 256 * 2**20, 5  # more bytes than caches hold


def load_speed(path: Path) -> Speed:
    """The speed of replies on this machine; before there are any, the one to expect."""
    recorded = _read(path)
    if recorded.generation:
        return recorded
    return expected(thread_count(), instruction_set() == "avx512", recorded)


def record_replies(path: Path, sizes: ModelSizes, replies: Iterable[Timings]) -> None:
    """Record how fast a model on this machine has replied; failures are ignored."""
    recorded = speed = _read(path)
    for timings in replies:
        speed = speed.with_reply(sizes, timings)
    if speed != recorded:
        _write(path, speed)


def record_bandwidth(path: Path) -> None:
    """Measure how fast a thread reads memory, unless anything is recorded; takes 0.2 s."""
    recorded = _read(path)
    if recorded.generation or recorded.bandwidth:
        return
    data = b"\1" * READ_BYTES
    seconds = min(repeat(lambda: data.find(0), number=1, repeat=READS))
    _write(path, Speed(bandwidth=READ_BYTES / seconds))


def _read(path: Path) -> Speed:
    layer = AVX512_PROMPT_LAYER if instruction_set() == "avx512" else LAYER
    try:
        generation, prompts, bandwidth = read_small_json(path)[_machine()]
        return Speed(generation, prompts, bandwidth, layer)
    except (OSError, ValueError, TypeError, KeyError):
        return Speed(prompt_layer=layer)


def _write(path: Path, speed: Speed) -> None:
    cache_json(path, {_machine(): (speed.generation, speed.prompts, speed.bandwidth)})


def _machine() -> str:
    return f"{processor_name()}, {thread_count()} threads, {build_fingerprint()}"
