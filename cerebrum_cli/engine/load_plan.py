"""Plan how a model is loaded: its context, layers on GPUs, experts on the CPU, and whether weights are repacked. Pure.

Free memory is measured before anything is loaded, so all weights count. Mapped ones do too: the system could drop them
from memory, but each step would read them again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import Event
from cerebrum_cli.engine.load_options import MAX_SLOTS, LoadOptions, large_model_notice, short_context_notice
from cerebrum_cli.engine.memory import (
    CPU_UBATCH,
    EXPECTED_LENGTH,
    GPU_UBATCH,
    PADDING,
    ContextOptions,
    Device,
    FreeMemory,
    MemoryNeeds,
    context_needs,
    default_context,
    fits,
    host_bytes,
    memory_needs,
    pad_length,
    plan_experts,
    plan_layers,
    require_devices,
    weight_needs,
)
from cerebrum_cli.gguf.sizes import ModelSizes

EXPERTS_UBATCH = 512  # tokens, of a mixture of experts on a CPU
HOST_EXPERTS_UBATCH = 2048  # each step copies experts to the GPU; gpt-oss-20b prefills 3 times as fast as with 512
UNIFIED_STATE_BYTES = 512 * 2**20  # of the recurrent states of all slots in a unified cache


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Where the weights of a model go beside a context, and whether they are repacked.

    `offloaded` is the number of layers on each GPU. The experts of the first `host_experts` layers stay in host memory,
    as in `sizes`. `baseline` is the context without a tuning, if there is one.
    """

    sizes: ModelSizes
    context: ContextOptions
    offloaded: tuple[int, ...] = ()
    host_experts: int = 0
    repack: bool = False
    baseline: ContextOptions | None = None

    @property
    def needs(self) -> MemoryNeeds:
        return memory_needs(self.sizes, self.context, self.offloaded)

    def with_one_slot(self) -> LoadPlan:
        baseline = self.baseline and replace(self.baseline, slots=1)
        return replace(self, context=replace(self.context, slots=1), baseline=baseline)


def plan_load(options: LoadOptions, free: FreeMemory, emit: Callable[[Event], None]) -> LoadPlan:
    """Plan for this free memory. The context is as long as requested, or as fits; its number of threads is left open.

    Raises EngineError for a requested context or tuned GPU layers that do not fit, and UsageError for experts to keep
    on the CPU without a GPU.
    """
    if options.vocabulary_only:
        length = options.context.length or default_context(options.file.trained_context)
        return LoadPlan(options.file.sizes, resolve(replace(options.context, length=length), options.file.sizes, ()))
    if options.cpu_moe.isdecimal() and not free.devices:
        raise UsageError(
            f"cpu_moe={options.cpu_moe} needs a GPU", "omit cpu_moe: without a GPU, all experts are on the CPU"
        )
    fits_memory = fits(_single(options, PADDING, free).needs, free)
    if not fits_memory:
        emit(large_model_notice(options.file.sizes.weight_bytes))
    if length := options.context.length:
        require_context(options, free, counts_weights=fits_memory)
    else:
        length = plan_context(options, free, emit)
    context = replace(options.context, length=length)
    slots = fitting_slots(options, context, free)
    plan = place(options, replace(context, slots=slots), free.devices)
    if options.baseline:
        require_devices(plan.needs, free.devices)

    def made_with(context: ContextOptions) -> ContextOptions:
        if context.kv_unified:  # with separate caches, the number depends on the length of the sequences
            context = replace(context, slots=slots)
        return resolve(replace(context, length=length), plan.sizes, plan.offloaded)

    return replace(
        plan,
        context=made_with(context),
        baseline=made_with(options.baseline.context) if options.baseline else None,
        repack=options.repack and fits_memory and not plan.host_experts,
    )


def plan_context(options: LoadOptions, free: FreeMemory, emit: Callable[[Event], None]) -> int:
    """Length of a context for one sequence that fits in memory: the default one, or less, but at least 256 tokens."""

    def fits_with(length: int) -> bool:
        return fits(_single(options, length, free).needs, free)

    default = default_context(options.file.trained_context)
    length = default if fits_with(default) else _longest(default, fits_with)
    if shortage := short_context_notice(length, default):
        emit(shortage)
    return length


def require_context(options: LoadOptions, free: FreeMemory, counts_weights: bool) -> None:
    """Raise EngineError if the requested context exceeds the host's free memory, if need be without the weights."""

    def needed(length: int) -> int:
        plan = _single(options, length, free)
        without = context_needs(plan.sizes, plan.context, plan.offloaded)
        return host_bytes(plan.needs if counts_weights else without, free.devices)

    length = options.context.length
    if needed(length) <= free.host:
        return
    longest = _longest(length, lambda length: needed(length) <= free.host)
    weights = " including the model's weights" if counts_weights else ""
    raise EngineError(
        f"a context of {length} tokens needs {needed(length) / 1e9:.1f} GB{weights}; {free.host / 1e9:.1f} GB is free",
        f"use --ctx {min(longest, options.file.trained_context)} or less",
    )


def fitting_slots(options: LoadOptions, context: ContextOptions, free: FreeMemory) -> int:
    """Number of slots to place weights beside: as many as fit, at least one.

    In a unified cache, slots cost no more than recurrent states, which leave the weights on the GPUs. Sliding windows
    allow a single one there: llama.cpp never reuses cells of a window that two sequences share.
    """
    sizes, most = options.file.sizes, context.slots
    if context.kv_unified:
        if sizes.has_windows and not context.swa_full:
            return 1
        if not sizes.state_bytes:
            return most
        most = min(most, UNIFIED_STATE_BYTES // (sizes.state_bytes * context.state_copies))

    def on_host(plan: LoadPlan) -> int:
        return weight_needs(plan.sizes, plan.offloaded).host * context.kv_unified

    least = on_host(place(options, replace(context, slots=1), free.devices))

    def lacks_memory(slots: int) -> bool:
        plan = place(options, replace(context, slots=slots), free.devices)
        return not fits(plan.needs, free) or on_host(plan) > least

    return max(1, bisect_left(range(1, most + 1), True, key=lacks_memory))


def place(options: LoadOptions, context: ContextOptions, devices: tuple[Device, ...]) -> LoadPlan:
    """Place weights beside a context: layers on GPUs, experts on the CPU where that lets all layers fit."""
    sizes = options.file.sizes
    if context.n_streams > 1:  # concurrent sequences are rarely as long as the context
        context = replace(context, length=max(context.length // context.slots, EXPECTED_LENGTH))
    resolved = resolve(context, sizes, (1,) * len(devices))
    while True:  # twice at most: steps are larger if experts stay on the host
        count = plan_experts(sizes, options.cpu_moe, options.gpu_layers, resolved, devices)
        placed = sizes.with_experts_on_host(count)
        plan = LoadPlan(placed, resolved, plan_layers(placed, options.gpu_layers, resolved, devices), count)
        resolved = resolve(context, placed, plan.offloaded)
        if resolved.n_ubatch <= plan.context.n_ubatch:
            return plan


def resolve(context: ContextOptions, sizes: ModelSizes, offloaded: Sequence[int]) -> ContextOptions:
    """Choose what a context leaves to this machine, besides its length and threads.

    On a CPU, a mixture of experts gets larger steps, since tiled kernels need 8 rows for each expert. Measured with 64
    experts of which 8 are used, in Q4_K_M, 1,024 prompt tokens, on two cores with AVX-512: 9.4 ms of CPU time a token
    with 128 rows, 7.3 ms with 256 and 6.4 ms with 512; repacked 12.1, 11.6 and 11.2 ms.
    """
    n_ubatch = GPU_UBATCH if any(offloaded) else EXPERTS_UBATCH if sizes.has_experts else CPU_UBATCH
    if any(offloaded) and sizes.host_expert_bytes:
        n_ubatch = HOST_EXPERTS_UBATCH
    min_ubatch = MAX_SLOTS if context.pad_steps else context.slots + 1
    return replace(
        context,
        n_ubatch=max(min_ubatch, context.n_ubatch or n_ubatch),
        kv_unified=context.slots > 1 and context.kv_unified,
        flash_attention=None if context.pad_steps else context.flash_attention,  # off, kernels depend on rows per slot
    )


def _single(options: LoadOptions, length: int, free: FreeMemory) -> LoadPlan:
    return place(options, replace(options.context, length=length, slots=1), free.devices)


def _longest(limit: int, fits_with: Callable[[int], bool]) -> int:
    """The longest context below a limit that fits, and at least 256 tokens; the limit itself does not fit."""
    lengths = range(PADDING, pad_length(limit), PADDING)
    count = bisect_left(lengths, True, key=lambda length: not fits_with(length))
    return lengths[count - 1] if count else PADDING
