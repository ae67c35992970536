"""Plan memory of a model before it is loaded. Pure.

`plan_load` chooses the length and the slots of its context, the layers on GPUs and the experts on the CPU; `place` also
assesses downloads. All weights count, mapped ones too: the system could drop them from memory, but each step would read
them again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import Emit, NoticeEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.engine.memory import (
    CPU_UBATCH,
    EXPECTED_LENGTH,
    GPU_UBATCH,
    HEADROOM,
    PADDING,
    Devices,
    FreeMemory,
    LayerCounts,
    MemoryNeeds,
    cache_bytes,
    context_needs,
    device_buffers,
    fits,
    fits_devices,
    host_bytes,
    largest,
    longest,
    memory_needs,
    weight_needs,
)
from cerebrum_cli.engine.requests import DEFAULT_CONTEXT, ContextOptions, LoadOptions
from cerebrum_cli.gguf.sizes import ModelSizes

THINKING_CONTEXT = 32_768  # of a model that thinks, if memory allows; cards of such models suggest as much
EXPERTS_UBATCH = 512  # tokens, of a mixture of experts on a CPU
HOST_EXPERTS_UBATCH = 2048  # each step copies experts to the GPU; gpt-oss-20b prefills 3 times as fast as with 512
UNIFIED_STATE_BYTES = 512 * 2**20  # of the recurrent states of all slots in a unified cache


@frozen
class LoadPlan:
    """Where the weights of a model go beside a context, and whether they are repacked.

    `offloaded` is the number of layers on each GPU. The experts of the first `host_experts` layers stay in host memory,
    as in `sizes`.
    """

    sizes: ModelSizes
    context: ContextOptions
    offloaded: LayerCounts = ()
    host_experts: int = 0
    repack: bool = False

    def is_whole(self, devices: Devices) -> bool:
        """Whether all layers are on GPUs, with the output layer, and fit there."""
        return sum(self.offloaded) > len(self.sizes.layers) and fits_devices(self.needs, devices)

    @property
    def needs(self) -> MemoryNeeds:
        return memory_needs(self.sizes, self.context, self.offloaded)

    @property
    def context_needs(self) -> MemoryNeeds:
        """Bytes of all but the weights."""
        return context_needs(self.sizes, self.context, self.offloaded)

    @property
    def weights(self) -> MemoryNeeds:
        """Bytes of the weights, mapped ones included."""
        return weight_needs(self.sizes, self.offloaded)

    def with_context(self, **changes: Any) -> LoadPlan:
        """The same weights in the same places, with other options of the context."""
        return replace(self, context=replace(self.context, **changes))

    def slots_for(self, length: int, free: FreeMemory) -> int:
        """Number of concurrent sequences of a length: that of the context, or what fits; at least one.

        `free` is measured beside the weights, also beside those that are mapped.
        """
        numbers = range(1, self.context.slots + 1)
        return largest(numbers, lambda slots: fits(self.with_context(length=length, slots=slots).context_needs, free))

    def longest_context(self, most: int, free: FreeMemory) -> int:
        """Length of a longer context with one slot: `most`, or what fits beside the weights."""
        return longest(most, lambda length: fits(self.with_context(length=length, slots=1).context_needs, free))


def plan_load(options: LoadOptions, free: FreeMemory, emit: Emit) -> LoadPlan:
    """Plan for this free memory. The context is as long as requested, or as fits; its number of threads is left open.

    Without a request, it is up to 8,192 tokens long, or 32,768 if the model thinks.
    Raises EngineError for a requested context that does not fit, and UsageError for experts to keep
    on the CPU without a GPU.
    """
    if options.vocabulary_only:
        length = options.context.length or min(options.trained_context, DEFAULT_CONTEXT)
        on_host = (0,) * len(free.devices)
        context = resolve(replace(options.context, length=length), options.sizes, on_host)
        return LoadPlan(options.sizes, context, on_host)
    if options.cpu_moe.isdecimal() and not free.devices:
        problem = f"cpu_moe={options.cpu_moe} needs a GPU"
        raise UsageError(problem, "omit cpu_moe: without a GPU, all experts are on the CPU")
    fits_memory = fits(_single(options, PADDING, free).needs, free)
    if not fits_memory:
        emit(mapped_weights_notice(options.sizes))
    require_context(options, free, counts_weights=fits_memory)
    length = options.context.length or default_length(options, free, emit)
    context = replace(options.context, length=length)
    slots = fitting_slots(options, context, free)
    plan = place(options, replace(context, slots=slots), free.devices)
    if context.kv_unified:  # with separate caches, the number depends on the length of the sequences
        context = replace(context, slots=slots)
    return replace(
        plan,
        context=resolve(context, plan.sizes, plan.offloaded),
        repack=bool(options.repack) and fits_memory and not plan.host_experts,
    )


def mapped_weights_notice(sizes: ModelSizes) -> NoticeEvent:
    """The weights are mapped, so that the model runs all the same."""
    problem = f"the model ({sizes.weight_bytes / 1e9:.1f} GB) does not fit in free memory"
    hint = "close other programs, or use a smaller model or quantization"
    return NoticeEvent(f"{problem}: weights are read from disk for each token", hint)


def default_length(options: LoadOptions, free: FreeMemory, emit: Emit) -> int:
    """Length of a context without a request, with a notice if memory leaves less than for a model that does not think.

    As long as fits, and at most THINKING_CONTEXT if the model thinks.
    """
    default = min(options.trained_context, DEFAULT_CONTEXT)
    most = default
    if options.thinks:
        most = min(options.trained_context, THINKING_CONTEXT)
    length = longest(most, lambda length: fits(_single(options, length, free).needs, free))
    if length < default:
        problem = f"context limited to {length} tokens by free memory (default: {default})"
        emit(NoticeEvent(problem, "close other programs, use a smaller quantization, or force it with --ctx"))
    return length


def require_context(options: LoadOptions, free: FreeMemory, counts_weights: bool) -> None:
    """Raise EngineError if the requested context exceeds the host's free memory, if need be without the weights."""

    def needed(length: int) -> int:
        plan = _single(options, length, free)
        needs = plan.needs
        if not counts_weights:
            needs = plan.context_needs
        return host_bytes(needs, free.devices)

    length = options.context.length
    if needed(length) <= free.host:
        return
    most = longest(length, lambda length: needed(length) <= free.host)
    size = f"{needed(length) / 1e9:.1f} GB"
    if counts_weights:
        size += " including the model's weights"
    raise EngineError(
        f"a context of {length} tokens needs {size}; {free.host / 1e9:.1f} GB is free",
        f"use --ctx {min(most, options.trained_context)} or less",
    )


def fitting_slots(options: LoadOptions, context: ContextOptions, free: FreeMemory) -> int:
    """Number of slots to place weights beside: as many as fit, at least one.

    In a unified cache, slots cost no more than recurrent states, which leave the weights on the GPUs. Sliding windows
    allow a single one there: llama.cpp never reuses cells of a window that two sequences share.
    """
    sizes = options.sizes
    most = context.slots
    if context.kv_unified:
        if sizes.has_windows and not context.swa_full:
            return 1
        if not sizes.state_bytes:
            return most
        most = max(1, min(most, UNIFIED_STATE_BYTES // (sizes.state_bytes * (1 + context.n_rs_seq))))
    if most == 1:
        return 1
    single = place(options, replace(context, slots=1), free.devices)

    def have_memory(slots: int) -> bool:
        plan = place(options, replace(context, slots=slots), free.devices)
        takes_weights_off_gpus = context.kv_unified and plan.weights.host > single.weights.host
        return fits(plan.needs, free) and not takes_weights_off_gpus

    return largest(range(1, most + 1), have_memory)


def place(options: LoadOptions, context: ContextOptions, devices: Devices) -> LoadPlan:
    """Place weights beside a context: layers on GPUs, and all experts on the CPU if only that lets all layers fit."""
    sizes = options.sizes
    if context.n_streams > 1:  # concurrent sequences are rarely as long as the context
        context = replace(context, length=max(context.length // context.slots, EXPECTED_LENGTH))
    if options.cpu_moe.isdecimal():
        return _place(options, context, devices, min(int(options.cpu_moe), len(sizes.layers)))
    plan = _place(options, context, devices, 0)
    may_move = sizes.has_experts and options.cpu_moe == "auto" and options.gpu_layers in ("auto", "all")
    if not may_move or all(device.is_unified for device in devices) or plan.is_whole(devices):
        return plan
    without_experts = _place(options, context, devices, len(sizes.layers))
    return without_experts if without_experts.is_whole(devices) else plan


def _place(options: LoadOptions, context: ContextOptions, devices: Devices, host_experts: int) -> LoadPlan:
    sizes = options.sizes.with_experts_on_host(host_experts)
    context = resolve(context, sizes, (1,) * len(devices))
    return LoadPlan(sizes, context, plan_layers(sizes, options.gpu_layers, context, devices), host_experts)


def resolve(context: ContextOptions, sizes: ModelSizes, offloaded: LayerCounts) -> ContextOptions:
    """Choose what a context leaves to this machine, besides its length and threads.

    On a CPU, a mixture of experts gets larger steps, since tiled kernels need 8 rows for each expert. Measured with 64
    experts of which 8 are used, in Q4_K_M, 1,024 prompt tokens, on two cores with AVX-512: 9.4 ms of CPU time a token
    with 128 rows, 7.3 ms with 256 and 6.4 ms with 512; repacked 12.1, 11.6 and 11.2 ms.
    """
    return replace(
        context,
        n_ubatch=max(context.slots + 1, context.n_ubatch or _default_ubatch(sizes, offloaded)),
        kv_unified=context.slots > 1 and context.kv_unified,
    )


def _default_ubatch(sizes: ModelSizes, offloaded: LayerCounts) -> int:
    if any(offloaded):
        return HOST_EXPERTS_UBATCH if sizes.host_expert_bytes else GPU_UBATCH
    return EXPERTS_UBATCH if sizes.has_experts else CPU_UBATCH


def _single(options: LoadOptions, length: int, free: FreeMemory) -> LoadPlan:
    return place(options, replace(options.context, length=length, slots=1), free.devices)


def plan_layers(sizes: ModelSizes, requested: str, context: ContextOptions, devices: Devices) -> LayerCounts:
    """Number of layers to offload to each GPU: the requested total, or what fits; the output layer counts as one more.

    The last layers of the model are offloaded, divided among the GPUs in proportion to their free memory.
    """
    if not devices:
        return ()
    layers = [layer.weight_bytes + cache_bytes(layer, context) for layer in sizes.layers]
    layers.append(sizes.offloaded_output_bytes)
    most = len(layers)
    if requested.isdecimal():
        most = min(int(requested), most)
    for count in range(most, 0, -1):
        buffers = HEADROOM + device_buffers(sizes, context, count, len(devices))
        offloaded = _divide_layers(layers[-count:], [max(0, device.free - buffers) for device in devices])
        if requested != "auto" or fits_devices(memory_needs(sizes, context, offloaded), devices):
            return offloaded
    return (0,) * len(devices)


def _divide_layers(layers: Sequence[int], rooms: Sequence[int]) -> LayerCounts:
    """Numbers of consecutive layers for devices, by bytes of layers and of room; all for the last one without any."""
    middles = [end - size / 2 for end, size in zip(accumulate(layers), layers, strict=True)]
    share = sum(layers) / max(1, sum(rooms))
    ends = [bisect_left(middles, share * room) for room in accumulate(rooms[:-1])]
    return tuple(end - start for start, end in pairwise([0, *ends, len(layers)]))
