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

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import Emit, NoticeEvent
from cerebrum_cli.engine.memory import (
    CPU_UBATCH,
    EXPECTED_LENGTH,
    GPU_UBATCH,
    HEADROOM,
    PADDING,
    Devices,
    FreeMemory,
    LayerCounts,
    LoadPlan,
    cache_bytes,
    device_buffer,
    largest,
    longest,
)
from cerebrum_cli.engine.requests import DEFAULT_CONTEXT, ContextOptions, LoadOptions
from cerebrum_cli.gguf.sizes import ModelSizes

THINKING_CONTEXT = 32_768  # of a model that thinks, if memory allows; cards of such models suggest as much
LARGE_UBATCH = 512  # tokens, on a CPU
MANY_SLOTS = 32  # of one cache, so that short texts fill such steps
HOST_EXPERTS_UBATCH = 2048  # each step copies experts to the GPU; gpt-oss-20b prefills 3 times as fast as with 512
UNIFIED_STATE_BYTES = 512 * 2**20  # of the recurrent states of all slots in a unified cache


def plan_load(options: LoadOptions, free: FreeMemory, emit: Emit) -> LoadPlan:
    """Plan for this free memory. The context is as long as requested, or as fits; its number of threads is left open.

    Without a request, it is up to 8,192 tokens long, or 32,768 if the model thinks.
    Raises EngineError for a requested context that does not fit, and UsageError for experts to keep
    on the CPU without a GPU.
    """
    if options.vocabulary_only:
        length = options.context.length or min(options.trained_context, DEFAULT_CONTEXT)
        context = resolve(replace(options.context, length=length), options.sizes, ())
        return LoadPlan(options.sizes, context, (0,) * len(free.devices))
    if options.cpu_moe.isdecimal() and not free.devices:
        problem = f"cpu_moe={options.cpu_moe} needs a GPU"
        raise UsageError(problem, "omit cpu_moe: without a GPU, all experts are on the CPU")
    fits_memory = place(options, PADDING, 1, free.devices).needs.fits(free)
    if not fits_memory:
        emit(mapped_weights_notice(options.sizes))
    if length := options.context.length:
        require_context(options, free, counts_weights=fits_memory)
    else:
        length = default_length(options, free, emit)
    slots = fitting_slots(options, length, free)
    plan = place(options, length, slots, free.devices)
    if not options.context.kv_unified:  # the number depends on the length of the sequences, which is not known yet
        slots = options.context.slots
    context = resolve(replace(options.context, length=length, slots=slots), plan.sizes, plan.offloaded)
    repack = bool(options.repack) and fits_memory and not plan.host_experts
    return replace(plan, context=context, repack=repack)


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
    most = min(options.trained_context, THINKING_CONTEXT) if options.thinks else default
    length = longest(most, lambda length: place(options, length, 1, free.devices).needs.fits(free))
    if length < default:
        problem = f"context limited to {length} tokens by free memory (default: {default})"
        emit(NoticeEvent(problem, "close other programs, use a smaller quantization, or force it with --ctx"))
    return length


def require_context(options: LoadOptions, free: FreeMemory, counts_weights: bool) -> None:
    """Raise EngineError if the requested context exceeds the host's free memory, if need be without the weights."""

    def needed(length: int) -> int:
        plan = place(options, length, 1, free.devices)
        needs = plan.needs if counts_weights else plan.context_needs
        return needs.on_host(free.devices)

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


def fitting_slots(options: LoadOptions, length: int, free: FreeMemory) -> int:
    """Number of slots to place weights beside: as many as fit, at least one.

    In a unified cache, slots cost no more than recurrent states, which leave the weights on the GPUs. Sliding windows
    allow a single one there: llama.cpp never reuses cells of a window that two sequences share.
    """
    sizes, context = options.sizes, options.context
    most = context.slots
    if most == 1 or (context.kv_unified and sizes.has_windows and not context.swa_full):
        return 1
    if context.kv_unified and not sizes.state_bytes:
        return most
    if context.kv_unified:
        most = max(1, min(most, UNIFIED_STATE_BYTES // (sizes.state_bytes * (1 + context.n_rs_seq))))
    single = place(options, length, 1, free.devices)

    def have_memory(slots: int) -> bool:
        plan = place(options, length, slots, free.devices)
        takes_weights_off_gpus = context.kv_unified and plan.weights.host > single.weights.host
        return plan.needs.fits(free) and not takes_weights_off_gpus

    return largest(range(1, most + 1), have_memory)


def place(options: LoadOptions, length: int, slots: int, devices: Devices) -> LoadPlan:
    """Place weights beside a context of this length with this many slots.

    Layers go to GPUs, and all experts to the CPU if only that lets all layers fit.
    """
    if slots > 1 and not options.context.kv_unified:  # concurrent sequences are rarely as long as the context
        length = max(length // slots, EXPECTED_LENGTH)
    context = replace(options.context, length=length, slots=slots)
    n_layers = len(options.sizes.layers)
    if options.cpu_moe.isdecimal():
        return _place(options, context, devices, min(int(options.cpu_moe), n_layers))
    plan = _place(options, context, devices, 0)
    may_move = options.sizes.has_experts and options.cpu_moe == "auto" and not options.gpu_layers.isdecimal()
    has_own_memory = any(not device.is_unified for device in devices)
    if may_move and has_own_memory and not _is_on_devices(plan, devices):
        on_host = _place(options, context, devices, n_layers)
        if _is_on_devices(on_host, devices):
            return on_host
    return plan


def _is_on_devices(plan: LoadPlan, devices: Devices) -> bool:
    """Whether all layers are on GPUs, and fit there."""
    return plan.is_offloaded and plan.needs.fits_devices(devices)


def _place(options: LoadOptions, context: ContextOptions, devices: Devices, host_experts: int) -> LoadPlan:
    sizes = options.sizes.with_experts_on_host(host_experts)
    context = resolve(context, sizes, (1,) * len(devices))
    return LoadPlan(sizes, context, plan_layers(sizes, options.gpu_layers, context, devices), host_experts)


def resolve(context: ContextOptions, sizes: ModelSizes, offloaded: LayerCounts) -> ContextOptions:
    """Choose what a context leaves to this machine, besides its length and threads.

    On a CPU, a mixture of experts gets larger steps, since tiled kernels need 8 rows for each expert. Measured with 64
    experts of which 8 are used, in Q4_K_M, 1,024 prompt tokens, on two cores with AVX-512: 9.4 ms of CPU time a token
    with 128 rows, 7.3 ms with 256 and 6.4 ms with 512; repacked 12.1, 11.6 and 11.2 ms. Many short texts in
    one cache get them, too: Qwen2.5-Coder 1.5B in Q4_K_M evaluates these 1.08 times as fast, but a long prompt only
    0.94 times.
    """
    n_ubatch = context.n_ubatch
    if not n_ubatch and any(offloaded):
        n_ubatch = HOST_EXPERTS_UBATCH if sizes.host_expert_bytes else GPU_UBATCH
    elif not n_ubatch:
        has_many = context.kv_unified and context.slots >= MANY_SLOTS
        n_ubatch = LARGE_UBATCH if sizes.has_experts or has_many else CPU_UBATCH
    kv_unified = context.slots > 1 and context.kv_unified
    return replace(context, n_ubatch=max(context.slots + 1, n_ubatch), kv_unified=kv_unified)


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
        buffer = HEADROOM + device_buffer(sizes, context, is_partial=count < len(layers))
        offloaded = _divide_layers(layers[-count:], [max(0, device.free - buffer) for device in devices])
        if requested != "auto" or LoadPlan(sizes, context, offloaded).needs.fits_devices(devices):
            return offloaded
    return (0,) * len(devices)


def _divide_layers(layers: Sequence[int], rooms: Sequence[int]) -> LayerCounts:
    """Numbers of consecutive layers for devices, by bytes of layers and of room; all for the last one without any."""
    middles = [end - size / 2 for end, size in zip(accumulate(layers), layers, strict=True)]
    share = sum(layers) / max(1, sum(rooms))
    ends = [bisect_left(middles, share * room) for room in accumulate(rooms[:-1])]
    return tuple(end - start for start, end in pairwise([0, *ends, len(layers)]))
