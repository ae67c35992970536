"""Memory that a model and its context need, on the host and on each GPU. Pure; sizes in bytes.

A layer's weights, its part of the KV cache and its recurrent states are on the device it was offloaded to, or else on
the host; so are compute buffers. A GPU that shares the host's memory draws from both limits.

Of a loaded model, `plan_cache` chooses the length of the context for the sequences that wait, and `group_lengths` which
requests run together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.engine.requests import ContextOptions
from cerebrum_cli.gguf.sizes import LayerSizes, ModelSizes

if TYPE_CHECKING:
    from cerebrum_cli.engine.requests import Request

HEADROOM = 512 * 2**20  # left free on the host and on each GPU, for other programs and the driver
CPU_UBATCH = 256  # tokens: larger steps are as fast, and report progress less often
GPU_UBATCH = 512
PADDING = 256  # tokens; llama.cpp rounds contexts up to it
MIN_OUTPUTS = 64  # rows with logits that a step may have in any context: the most of a step with draft tokens
SAMPLING_BYTES = 20  # for each token of the vocabulary, for all sequences together
POOL_BYTES = 96 * 2**20  # of a GPU's kernels: 43 to 80 MiB on an H100, and 176 with experts
CACHE_COPIES = 2.5  # of a layer's KV cache on a GPU that evaluates layers in host memory; of 32 and more sequences
OUTPUT_BYTES = 32 * 2**20  # of logits in one step, for texts to score: 256 rows of a vocabulary of 32,000 tokens
CHECKPOINTS, MIN_CHECKPOINTS, CHECKPOINT_BYTES = 8, 2, 512 * 2**20  # number, and bytes of all of them together
EXPECTED_LENGTH = 1024  # tokens of a sequence in a batch, to plan offloading before any is known
MAX_RESERVED_TOKENS = 65_536  # in all slots, beyond the expected lengths: memory is zeroed, which takes 1 s a gigabyte
MIN_GROUP = 8  # sequences of similar length: as many as are decoded in the time in which the weights are read

CACHE_ELEMENT_SIZE = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}  # with the scale of a block


@frozen
class Device:
    """A GPU; memory in bytes, as reported by its driver. `is_unified`: it is the host's memory."""

    name: str
    description: str
    free: int
    total: int
    is_unified: bool = False


Devices = tuple[Device, ...]  # in the order in which layers are offloaded to them
LayerCounts = Sequence[int]  # numbers of layers on each of them


class FreeMemory(NamedTuple):
    """Memory that can be allocated: on the host, and on each GPU."""

    host: int
    devices: Devices = ()


class MemoryNeeds(NamedTuple):
    """Bytes needed on the host, and on each GPU."""

    host: int
    devices: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.host + sum(self.devices)

    def on_host(self, devices: Sequence[Device]) -> int:
        """Bytes of the host's memory, with those of GPUs that share it."""
        shared = (need for need, device in zip(self.devices, devices, strict=True) if device.is_unified)
        return self.host + sum(shared)

    def fits_devices(self, devices: Sequence[Device]) -> bool:
        """Whether it fits on each GPU that is used, with some memory left."""
        pairs = zip(self.devices, devices, strict=True)
        return all(need + HEADROOM <= device.free for need, device in pairs if need)

    def fits(self, free: FreeMemory) -> bool:
        """Whether it fits with some memory left on the host and on each GPU."""
        return self.fits_devices(free.devices) and self.on_host(free.devices) + HEADROOM <= free.host


@frozen
class LoadPlan:
    """Where the weights of a model go beside a context, and whether they are repacked.

    `offloaded` is the number of layers on each GPU: the last layers of the model, and the output layer after them. The
    experts of the first `host_experts` layers stay in host memory, as in `sizes`.
    """

    sizes: ModelSizes
    context: ContextOptions
    offloaded: LayerCounts = ()
    host_experts: int = 0
    repack: bool = False

    @property
    def is_offloaded(self) -> bool:
        """Whether all layers are on GPUs, with the output layer."""
        return sum(self.offloaded) > len(self.sizes.layers)

    @property
    def needs(self) -> MemoryNeeds:
        weights, others = self.weights, self.context_needs
        return MemoryNeeds(
            weights.host + others.host, tuple(map(sum, zip(weights.devices, others.devices, strict=True)))
        )

    @property
    def weights(self) -> MemoryNeeds:
        """Bytes of the weights, mapped ones included."""
        sizes = self.sizes
        output_bytes = sizes.offloaded_output_bytes if any(self.offloaded) else sizes.output_bytes
        host, devices = self._divide([*(layer.weight_bytes for layer in sizes.layers), output_bytes])
        return MemoryNeeds(sizes.input_bytes + sizes.host_expert_bytes + host, devices)

    @property
    def context_needs(self) -> MemoryNeeds:
        """Bytes of the KV cache, recurrent states and their checkpoints, compute buffers and logits."""
        sizes, context = self.sizes, self.context
        host, caches = self._divide([*(cache_bytes(layer, context) for layer in sizes.layers), 0])
        host += checkpoint_budget(sizes, context) + (4 * context.slots + SAMPLING_BYTES) * sizes.vocabulary_size
        if self.is_offloaded:
            host += 8 * context.n_ubatch * sizes.embedding_length + _mask_bytes(sizes, context)
        else:
            host += compute_bytes(sizes, context)
        buffer = device_buffer(sizes, context, not self.is_offloaded)
        devices = (cache + buffer if count else 0 for cache, count in zip(caches, self.offloaded, strict=True))
        return MemoryNeeds(host, tuple(devices))

    def _divide(self, sizes: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Sums of the sizes of layers on the host and on each GPU, the output layer last."""
        ends = [*accumulate(self.offloaded, initial=max(0, len(sizes) - sum(self.offloaded)))]
        return sum(sizes[: ends[0]]), tuple(sum(sizes[start:end]) for start, end in pairwise(ends))

    def with_context(self, **changes: Any) -> LoadPlan:
        """The same weights in the same places, with other options of the context."""
        return replace(self, context=replace(self.context, **changes))

    def slots_for(self, length: int, free: FreeMemory) -> int:
        """Number of concurrent sequences of a length: that of the context, or what fits; at least one.

        `free` is measured beside the weights, also beside those that are mapped.
        """
        numbers = range(1, self.context.slots + 1)
        return largest(numbers, lambda slots: self.with_context(length=length, slots=slots).context_needs.fits(free))

    def longest_context(self, most: int, free: FreeMemory) -> int:
        """Length of a longer context with one slot: `most`, or what fits beside the weights."""
        return longest(most, lambda length: self.with_context(length=length, slots=1).context_needs.fits(free))


def pad_length(length: int) -> int:
    """Round a length up as llama.cpp does."""
    return -(-length // PADDING) * PADDING


def cells(layer: LayerSizes, context: ContextOptions) -> int:
    """Number of tokens that each KV cache holds of a layer: with a sliding window, no more than a step reads."""
    length = pad_length(context.length)
    if not layer.window or context.swa_full:
        return length
    windows = context.slots if context.kv_unified else 1
    return min(length, pad_length(layer.window * windows + context.n_ubatch))


def n_outputs_max(context: ContextOptions, vocabulary_size: int) -> int:
    """Maximum number of rows with logits in one decode; llama.cpp aborts the process for more."""
    scored = OUTPUT_BYTES // (4 * max(1, vocabulary_size))
    return max(context.slots, min(context.n_ubatch, max(MIN_OUTPUTS, scored)))


def token_bytes(layer: LayerSizes, context: ContextOptions) -> float:
    keys = CACHE_ELEMENT_SIZE[context.cache_type_k]
    values = CACHE_ELEMENT_SIZE[context.cache_type_v]
    return layer.key_length * keys + layer.value_length * values


def cache_bytes(layer: LayerSizes, context: ContextOptions) -> int:
    stored = cells(layer, context) * context.n_streams
    return int(token_bytes(layer, context) * stored) + layer.state_bytes * (1 + context.n_rs_seq) * context.slots


def compute_bytes(sizes: ModelSizes, context: ContextOptions) -> int:
    """Size of the compute buffer, measured on several architectures: the largest of a layer's phases or the logits."""
    embedding = sizes.embedding_length
    state = max((layer.state_bytes for layer in sizes.layers), default=0)
    outputs = min(context.n_ubatch, n_outputs_max(context, sizes.vocabulary_size))
    logits = 4 * (outputs * sizes.vocabulary_size + 2 * context.n_ubatch * embedding)
    feed_forward = 4 * context.n_ubatch * (4 * embedding + sizes.activation_length) + _mask_bytes(sizes, context)
    attention = 0
    if context.flash_attention is False:
        scores = sizes.n_heads * pad_length(context.length)
        attention = 4 * context.n_ubatch * (scores + 11 * embedding // 2) + _mask_bytes(sizes, context)
    return max(logits, feed_forward, attention) + state * context.slots * (sizes.step_states + context.n_rs_seq)


def checkpoint_budget(sizes: ModelSizes, context: ContextOptions) -> int:
    """Bytes of the host's memory for checkpoints of sequences, which a context with one KV cache needs."""
    if context.n_streams != 1:
        return 0
    length = pad_length(context.length)
    checkpoint = sizes.state_bytes
    for layer in sizes.layers:
        if cells(layer, context) < length:
            checkpoint += int(token_bytes(layer, context) * layer.window)
    return max(MIN_CHECKPOINTS * checkpoint, min(CHECKPOINTS * checkpoint, CHECKPOINT_BYTES))


def device_buffer(sizes: ModelSizes, context: ContextOptions, is_partial: bool) -> int:
    """Size of the compute buffer and of the kernels' pool on each GPU.

    Larger steps copy weights in host memory to a GPU, one tensor at a time, and for attention the KV cache of a layer.
    """
    buffer = compute_bytes(sizes, context) + POOL_BYTES
    if is_partial or sizes.host_expert_bytes:
        buffer += max((layer.largest_tensor for layer in sizes.layers), default=0)
        buffer += 4 * context.n_ubatch * sizes.embedding_length
    if is_partial:
        caches = (token_bytes(layer, context) * cells(layer, context) for layer in sizes.layers)
        buffer += int(CACHE_COPIES * context.n_streams * max(caches, default=0))
    return buffer


def _mask_bytes(sizes: ModelSizes, context: ContextOptions) -> int:
    """Size of the attention masks, one for each kind of layers."""
    element = 4 if context.flash_attention is False else 2
    masked = {layer.window: cells(layer, context) for layer in sizes.layers if layer.key_length}
    return element * context.n_ubatch * sum(masked.values())


def largest(numbers: range, fit: Callable[[int], bool]) -> int:
    """The largest of some ascending numbers that fits into memory; the first if none does."""
    if fit(numbers[-1]):
        return numbers[-1]
    fitting = bisect_left(numbers, True, key=lambda number: not fit(number))
    return numbers[max(0, fitting - 1)]


def longest(most: int, fit: Callable[[int], bool]) -> int:
    """The longest context that fits: of `most` tokens, or of fewer, but at least 256."""
    if fit(most):
        return most
    return largest(range(PADDING, max(most, PADDING + 1), PADDING), fit)


def plan_cache(
    required: int, waiting: Sequence[Request], context_size: int, max_slots: int, slots_for: Callable[[int], int]
) -> tuple[int, int]:
    """Length and number of separate slots for waiting requests: for `max_tokens` if memory allows, or those `required`.

    Short slots are all created, for later requests; long ones only as many as there are samples.
    """
    limited = [request.max_length(context_size) for request in waiting if request.params.max_tokens]

    def slots_of(length: int) -> int:
        return min(max_slots, max(len(waiting), max_slots * EXPECTED_LENGTH // length))

    longest = max([required, *limited])
    slots = slots_of(longest)
    if longest * slots <= MAX_RESERVED_TOKENS and slots_for(longest) >= slots:
        return longest, slots
    return required, slots_of(required)


def group_lengths(lengths: Iterable[int]) -> list[int]:
    """Divide sequences into groups by length, to run one after the other: the maximum length of each, ascending.

    A sequence belongs to the first group it fits. Attention takes time for the unused cells of all slots up to the
    longest sequence, so a group ends before a length of twice its shortest. One of few sequences is extended instead:
    each group has a context of its own, and reads the weights once for all rows of a step.
    """
    limits: list[int] = []
    shortest = count = 0  # of the last group
    for length in sorted(map(pad_length, lengths)):
        if not limits or (count >= MIN_GROUP and length >= 2 * shortest):
            limits.append(length)
            shortest, count = length, 0
        limits[-1] = length
        count += 1
    return limits
