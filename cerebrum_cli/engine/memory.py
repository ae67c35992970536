"""Memory that a model and its context need, on the host and on each GPU, and what of it fits. Pure; sizes in bytes.

A layer's weights, its part of the KV cache and its recurrent states are on the device it was offloaded to, or else on
the host; so are compute buffers. A GPU that shares the host's memory draws from both limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.gguf.sizes import LayerSizes, ModelSizes

DEFAULT_CONTEXT = 8192
HEADROOM = 512 * 2**20  # left free on the host and on each GPU, for other programs and the driver
CPU_UBATCH = 128  # tokens; small, since an interrupt waits for the current step on a slow CPU
GPU_UBATCH = 512
EXPECTED_LENGTH = 1024  # tokens of a sequence in a batch, to plan offloading before any is known
PADDING = 256  # tokens; llama.cpp rounds contexts up to it
MIN_OUTPUTS = 64  # rows with logits that a step may have in any context: the most of a step with drafted tokens
OUTPUT_BYTES = 32 * 2**20  # of logits in one step, for texts to score: 256 rows of a vocabulary of 32,000 tokens
CHECKPOINTS, MIN_CHECKPOINTS, CHECKPOINT_BYTES = 8, 2, 512 * 2**20  # number, and bytes of all of them together

# Rough costs of a group of sequences, as multiples of the time in which one more sequence is decoded beside others.
GROUP_COST = 16  # a new context, common prefixes evaluated again, and idle slots while its last sequences are decoded
STEP_COST = 8  # the weights are read once for all rows of a step, in the time of 5 to 10 rows on CPUs
MASKED_CELLS = 8192  # attention skips the unused cells of all slots up to the longest sequence, which takes time

BLOCK_SIZE = 32  # elements of a key or value that a quantized cache stores with a common scale
CACHE_ELEMENT_SIZE: Mapping[str, float] = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / BLOCK_SIZE, "q4_0": 18 / BLOCK_SIZE}


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU; memory in bytes, as reported by its driver. `is_unified`: it is the host's memory."""

    name: str
    description: str
    free: int
    total: int
    is_unified: bool = False


class FreeMemory(NamedTuple):
    """Memory that can be allocated: on the host, and on each GPU."""

    host: int
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """Options of a context; until it is made, 0 is chosen for this machine.

    - `length`: maximum length of a sequence, which llama.cpp pads to 256
    - `slots`: maximum number of concurrent sequences, if memory allows
    - `n_threads`, `n_threads_batch`: for decoding one sequence, and for prefill and batches; the latter defaults to the
      former
    - `n_ubatch`: maximum number of rows in one decode, and so of prompt tokens in one step
    - `kv_unified`: all sequences share one KV cache of that length, in which copies take no space
    - `batch_invariant`: on the CPU, attention to a token is the same whatever runs beside it; costs a row per single
      sequence
    - `pad_steps`: with `batch_invariant`, so are matrix multiplications with any type of weights; costs several rows
    - `flash_attention`: None leaves it to llama.cpp
    - `cache_type_k`, `cache_type_v`: types of keys and values in the KV cache
    - `n_rs_seq`: number of drafted tokens that can be removed from a recurrent state, each by a copy of the state
    """

    length: int = 0
    slots: int = 1
    n_threads: int = 0
    n_ubatch: int = 0
    kv_unified: bool = False
    batch_invariant: bool = False
    pad_steps: bool = False
    n_threads_batch: int = 0
    flash_attention: bool | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    n_rs_seq: int = 0

    @property
    def state_copies(self) -> int:
        """Number of copies of a sequence's recurrent states."""
        return 1 + self.n_rs_seq

    @property
    def n_streams(self) -> int:
        """Number of KV caches of that length."""
        return 1 if self.kv_unified else self.slots

    def cells(self, layer: LayerSizes) -> int:
        """Number of tokens that each KV cache holds of a layer: with a sliding window, no more than a step reads."""
        length = pad_length(self.length)
        if not layer.window:
            return length
        windows = self.slots if self.kv_unified else 1
        return min(length, pad_length(layer.window * windows + self.n_ubatch))

    def n_outputs_max(self, vocabulary_size: int) -> int:
        """Maximum number of rows with logits in one decode; llama.cpp aborts the process for more."""
        if self.pad_steps:  # marks rows of padding too
            return max(self.slots, self.n_ubatch)
        scored = OUTPUT_BYTES // (4 * max(1, vocabulary_size))
        return max(self.slots, min(self.n_ubatch, max(MIN_OUTPUTS, scored)))

    def token_bytes(self, layer: LayerSizes) -> float:
        keys, values = CACHE_ELEMENT_SIZE[self.cache_type_k], CACHE_ELEMENT_SIZE[self.cache_type_v]
        return layer.key_length * keys + layer.value_length * values


SINGLE = ContextOptions()  # one sequence


class MemoryNeeds(NamedTuple):
    """Bytes needed on the host, and on each GPU."""

    host: int
    devices: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.host + sum(self.devices)


def pad_length(length: int) -> int:
    """Round a length up as llama.cpp does."""
    return -(-length // PADDING) * PADDING


def memory_needs(sizes: ModelSizes, context: ContextOptions, offloaded: Sequence[int] = ()) -> MemoryNeeds:
    """Memory for the weights, the KV cache, recurrent states and buffers.

    `offloaded` is the number of layers on each GPU. llama.cpp offloads the last layers, the output layer after them.
    """
    layers = [_layer_bytes(layer, context) for layer in sizes.layers]
    on_host = max(0, len(layers) + 1 - sum(offloaded))
    host = sizes.input_bytes + sum(layers[:on_host]) + 4 * context.slots * sizes.vocabulary_size  # and the logits
    inputs = 4 * context.n_ubatch * sizes.embedding_length + _mask_bytes(sizes, context)
    host += compute_bytes(sizes, context) if on_host else inputs
    host += sizes.output_bytes if on_host > len(layers) else 0
    host += checkpoint_budget(sizes, context)
    devices, start = list[int](), on_host
    for count in offloaded:
        end = start + count
        need = sum(layers[start:end]) + (compute_bytes(sizes, context) if count else 0)
        if start <= len(layers) < end:
            need += sizes.output_bytes + sizes.input_bytes * sizes.is_tied
        devices.append(need)
        start = end
    return MemoryNeeds(host, tuple(devices))


def compute_bytes(sizes: ModelSizes, context: ContextOptions) -> int:
    """Size of the compute buffer, measured on several architectures: the largest of a layer's phases or the logits."""
    embedding, state = sizes.embedding_length, max((layer.state_bytes for layer in sizes.layers), default=0)
    outputs = min(context.n_ubatch, context.n_outputs_max(sizes.vocabulary_size))
    logits = 4 * (outputs * sizes.vocabulary_size + 2 * context.n_ubatch * embedding)
    feed_forward = 4 * context.n_ubatch * (4 * embedding + sizes.activation_length) + _mask_bytes(sizes, context)
    attention = 0
    if context.flash_attention is False:
        scores = sizes.n_heads * pad_length(context.length)
        attention = 4 * context.n_ubatch * (scores + 11 * embedding // 2) + _mask_bytes(sizes, context)
    return max(logits, feed_forward, attention) + state * context.slots * context.state_copies


def checkpoint_bytes(sizes: ModelSizes, context: ContextOptions) -> int:
    """Size of a sequence's recurrent states and windows: what cannot be trimmed. 0 if everything can."""
    length = pad_length(context.length)
    windows = [layer for layer in sizes.layers if context.cells(layer) < length]
    states = sum(layer.state_bytes for layer in sizes.layers)
    return states + sum(int(context.token_bytes(layer) * layer.window) for layer in windows)


def checkpoint_budget(sizes: ModelSizes, context: ContextOptions) -> int:
    """Bytes of the host's memory for checkpoints of sequences, which a context with one KV cache needs."""
    if context.n_streams > 1:
        return 0
    each = checkpoint_bytes(sizes, context)
    return max(MIN_CHECKPOINTS * each, min(CHECKPOINTS * each, CHECKPOINT_BYTES))


def is_quantized(cache_type: str | None) -> bool:
    return cache_type is not None and cache_type.startswith("q")


def sequence_bytes(layers: Sequence[LayerSizes], context: ContextOptions) -> int:
    """Size of one sequence in the KV cache and recurrent states of these layers."""
    states = context.state_copies * sum(layer.state_bytes for layer in layers)
    return states + sum(int(context.token_bytes(each) * context.cells(each)) for each in layers)


def fits(needs: MemoryNeeds, free: FreeMemory) -> bool:
    """Whether it fits with some memory left on the host and on each GPU."""
    pairs = zip(needs.devices, free.devices, strict=True)
    return host_bytes(needs, free.devices) + HEADROOM <= free.host and all(
        not need or need + HEADROOM <= device.free for need, device in pairs
    )


def host_bytes(needs: MemoryNeeds, devices: Sequence[Device]) -> int:
    """Bytes of the host's memory, with those of GPUs that share it."""
    return needs.host + sum(need for need, device in zip(needs.devices, devices, strict=True) if device.is_unified)


def plan_layers(
    sizes: ModelSizes, requested: str, context: ContextOptions, devices: tuple[Device, ...]
) -> tuple[int, ...]:
    """Number of layers to offload to each GPU: the requested total, or what fits; the output layer counts as one more.

    GPUs are filled in order. Layers that were requested and do not fit go to the last one.
    """
    all_layers = len(sizes.layers) + 1
    if not devices:
        return ()
    if requested != "auto":
        count = all_layers if requested == "all" else min(int(requested), all_layers)
        filled = _fill(sizes, context, devices, count)
        return (*filled[:-1], filled[-1] + count - sum(filled))
    for count in range(all_layers, 0, -1):
        filled = _fill(sizes, context, devices, count)
        if sum(filled) == count:
            return filled
    return (0,) * len(devices)


def default_context(trained: int) -> int:
    return min(trained, DEFAULT_CONTEXT)


def plan_context(sizes: ModelSizes, default: ContextOptions, gpu_layers: str, free: FreeMemory) -> int:
    """Length of a context that fits in memory, at most that of the default one and at least 256 tokens."""

    def fits_with(length: int) -> bool:
        context = replace(default, length=length)
        return fits(memory_needs(sizes, context, plan_layers(sizes, gpu_layers, context, free.devices)), free)

    if fits_with(default.length):
        return default.length
    low, high = 1, -(-default.length // PADDING)  # in units of the padding; `high` does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits_with(middle * PADDING) else (low, middle)
    return low * PADDING


def require_context(
    sizes: ModelSizes, context: ContextOptions, trained: int, gpu_layers: str, free: FreeMemory
) -> None:
    """Raise EngineError if the KV cache of the requested context exceeds free memory.

    Weights do not count: they are mapped, so that the system can drop them from memory.
    """
    offloaded = plan_layers(sizes, gpu_layers, context, free.devices)
    weightless = replace(sizes, layers=tuple(each._replace(weight_bytes=0) for each in sizes.layers))
    weightless = replace(weightless, input_bytes=0, output_bytes=0)
    needed = host_bytes(memory_needs(weightless, context, offloaded), free.devices)
    if needed <= free.host:
        return
    most = int(free.host / 2 / max(1.0, sum(map(context.token_bytes, sizes.layers)))) // PADDING * PADDING
    raise EngineError(
        f"a context of {context.length} tokens needs {needed / 1e9:.1f} GB,"
        f" but only {free.host / 1e9:.1f} GB of memory is free",
        f"use --ctx {max(PADDING, min(trained, most))} or less",
    )


def require_devices(needs: MemoryNeeds, devices: Sequence[Device]) -> None:
    """Raise EngineError if what was requested of a GPU exceeds its free memory."""
    for need, device in zip(needs.devices, devices, strict=True):
        if need > device.free:
            raise EngineError(
                f"{device.description} has {device.free / 1e9:.1f} GB of free memory, of which {need / 1e9:.1f} GB"
                " would be needed",
                "use a smaller --gpu-layers",
            )


def plan_slots(
    sizes: ModelSizes, requested: int, context: ContextOptions, offloaded: Sequence[int], free: FreeMemory
) -> int:
    """Number of concurrent sequences: the requested number, or what fits beside the loaded weights; at least one."""
    layers = sizes.layers
    start = max(0, len(layers) + 1 - sum(offloaded))
    working = compute_bytes(sizes, replace(context, slots=1)) + HEADROOM
    state = max((layer.state_bytes for layer in layers), default=0) * context.state_copies + 4 * sizes.vocabulary_size

    def count(memory: int, held: Sequence[LayerSizes]) -> int:
        return max(0, memory - working) // max(1, sequence_bytes(held, context) + state)

    slots = [requested]
    on_host = [*layers[:start]]
    for device, number in zip(free.devices, offloaded, strict=True):
        held = layers[start : start + number]
        start += number
        if held:
            slots.append(count(device.free, held))
        on_host += held if device.is_unified else ()
    return max(1, min(*slots, count(free.host, on_host)))


def group_lengths(lengths: Iterable[int], slots_for: Callable[[int], int]) -> list[int]:
    """Divide sequences into groups by length, to run one after the other: the maximum length of each, ascending.

    A sequence belongs to the first group it fits. `slots_for` is how many slots of a length fit in memory. Of all
    divisions, this is the cheapest: short sequences in many small slots against one context for all.
    """
    counts = sorted(Counter(map(pad_length, lengths)).items())
    cheapest: list[tuple[float, list[int]]] = [(0.0, [])]  # for the shortest sequences: cost, and lengths of groups
    for end, (length, _) in enumerate(counts, 1):
        slots, count = slots_for(length), 0
        candidates = []
        for start in range(end - 1, -1, -1):
            count += counts[start][1]
            rows = min(slots, count)
            masked = length / MASKED_CELLS if rows > 1 else 0.0
            cost = GROUP_COST + STEP_COST * max(1.0, count / rows) + count * (1 + masked)
            candidates.append((cheapest[start][0] + cost, [*cheapest[start][1], length]))
        cheapest.append(min(candidates))
    return cheapest[-1][1]


def _layer_bytes(layer: LayerSizes, context: ContextOptions) -> int:
    cells = context.cells(layer) * context.n_streams
    weights = layer.weight_bytes + layer.adapter_bytes
    states = layer.state_bytes * context.state_copies * context.slots
    return weights + int(context.token_bytes(layer) * cells) + states


def _mask_bytes(sizes: ModelSizes, context: ContextOptions) -> int:
    """Size of the attention masks, one for each kind of layers."""
    element = 4 if context.flash_attention is False else 2
    masked = {layer.window: context.cells(layer) for layer in sizes.layers if layer.key_length}
    return element * context.n_ubatch * sum(masked.values())


def _fill(sizes: ModelSizes, context: ContextOptions, devices: tuple[Device, ...], count: int) -> tuple[int, ...]:
    """Offload up to `count` of the last layers, to each GPU as many as fit."""
    output_bytes = sizes.output_bytes + sizes.input_bytes * sizes.is_tied
    layers = [*(_layer_bytes(layer, context) for layer in sizes.layers), output_bytes]
    waiting = iter(layers[len(layers) - count :])
    size, filled = next(waiting, None), []
    for device in devices:
        room, number = device.free - HEADROOM - compute_bytes(sizes, context), 0
        while size is not None and size <= room:
            room, number, size = room - size, number + 1, next(waiting, None)
        filled.append(number)
    return tuple(filled)
