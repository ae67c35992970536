"""How a model is to be opened: pure numbers, from what was asked, what its file says, and what the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import NoticeEvent

DEFAULT_CONTEXT = 8192
HEADROOM = 512 * 2**20  # bytes left alone beside weights and cache: compute buffers, and the rest of the machine

CacheType = Literal["f16", "q8_0"]
CACHE_SIZE_RATIO = {"f16": 1.0, "q8_0": 34 / 64}  # of the bytes of a key-value cache in f16
MAX_VALUES = {"slots": 256, "n_ubatch": 65536}  # in a tuning; threads are 1024 at most


@dataclass(frozen=True, slots=True)
class Shape:
    """What a plan must know of a model: trained context in tokens, bytes of weights, layers, KV bytes of one token."""

    trained_context: int
    weight_bytes: int
    layers: int
    kv_bytes_per_token: int

    def with_cache_type(self, cache_type: CacheType) -> Shape:
        """Return the shape with a key-value cache of another type than f16."""
        return replace(self, kv_bytes_per_token=int(self.kv_bytes_per_token * CACHE_SIZE_RATIO[cache_type]))


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is to be opened; None and "auto" leave it to the machine.

    `slots` is how many sequences may run at once, as far as memory holds them; `shared` ones have one memory together,
    of that length. With `whole_context` it is made for the longest sequence while the model loads, as somebody who will
    talk wants it; one answer is sooner there with as much as it takes. `repack` has weights laid out anew for the
    processor: one sequence is said faster so, many are not, and loading takes longer and twice the memory. `evenly` has
    a CPU evaluate a token the same whatever runs beside it, for a row more where one runs alone.

    `threads` say tokens; `prefill_threads`, as many where None, read prompts and say those of several sequences.
    `micro_batch` is how many tokens of a prompt one step reads; `flash_attention` None leaves it to llama.cpp.
    """

    path: Path
    shape: Shape
    context_size: int | None = None
    gpu_layers: str = "auto"
    n_threads: int | None = None
    slots: int = 1
    vocabulary_only: bool = False
    whole_context: bool = False
    repack: bool = True
    kv_unified: bool = False
    batch_invariant: bool = False
    n_threads_batch: int | None = None
    n_ubatch: int | None = None
    flash_attention: bool | None = None
    cache_type: CacheType = "f16"

    def with_tuning(self, tuning: Tuning) -> LoadOptions:
        """Return these with what a tuning says in their place."""
        return replace(self, **tuning.overrides)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Those of the options that change how fast a model is, and at most close choices of what it says.

    None is as usual.
    """

    repack: bool | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_ubatch: int | None = None
    flash_attention: bool | None = None
    cache_type: CacheType | None = None
    gpu_layers: str | None = None
    slots: int | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """What is not as usual, by its name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def validated(self) -> Tuning:
        """Return this where each value is of its kind, as what was read from a file must be; ValueError where not."""
        kinds: dict[str, type] = {"repack": bool, "flash_attention": bool, "cache_type": str, "gpu_layers": str}
        for name, value in self.overrides.items():
            wrong = type(value) is not kinds.get(name, int)
            if wrong or (type(value) is int and not 1 <= value <= MAX_VALUES.get(name, 1024)):
                raise ValueError(f"{name} is {value!r}")
        if self.cache_type not in (None, *CACHE_SIZE_RATIO):
            raise ValueError(f"cache_type is {self.cache_type!r}")
        if self.cache_type == "q8_0" and self.flash_attention is False:
            raise ValueError("a quantised cache takes flash attention")
        layers = self.gpu_layers
        if layers not in (None, "auto", "all") and not (layers.isdecimal() and len(layers) < 6):
            raise ValueError(f"gpu_layers is {layers!r}")
        return self


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator; memory in bytes, as its driver tells now."""

    name: str
    description: str
    free: int
    total: int


def plan_context(shape: Shape, requested: int | None, memory: int) -> int:
    """Return the context of one sequence: what was asked for, or the smallest of trained, 8192 and what fits.

    Raises EngineError where the cache of what was asked for is larger than all free memory.
    """
    token_bytes = max(1, shape.kv_bytes_per_token)
    if requested is not None:
        if requested * token_bytes > memory:
            raise EngineError(
                f"a context of {requested} tokens takes {requested * token_bytes / 1e9:.1f} GB,"
                f" and {memory / 1e9:.1f} GB of memory are free",
                f"ask for --ctx {min(shape.trained_context, memory // 2 // token_bytes // 256 * 256)} or less",
            )
        return requested
    free = (memory - shape.weight_bytes - HEADROOM) // token_bytes
    fits = max(256, free // 256 * 256)
    return min(default_context(shape), fits)


def default_context(shape: Shape) -> int:
    """Return the context a model gets where memory is no matter."""
    return min(shape.trained_context, DEFAULT_CONTEXT)


def short_context_notice(shape: Shape, context: int) -> NoticeEvent | None:
    """Return what the user should know of a context nobody asked for that memory has made smaller than usual."""
    default = default_context(shape)
    if context >= default:
        return None
    return NoticeEvent(
        f"free memory holds a context of {context} tokens, not the usual {default}",
        "end other programs, choose a smaller quantisation, or insist with --ctx",
    )


def plan_repacking(quantization: str | None, is_batch: bool, machine: str) -> bool:
    """Return whether weights are laid out anew, as llama.cpp does by itself.

    On x86 K-quants are better left as they are where many are asked: a model of Mistral-7B's shape in Q4_K_M, on two
    cores with AVX-512, then read prompts 1.5 times as fast, said 1.15 times as much in a batch of 32, loaded in a
    tenth of the time and took 4.6 GB and not 7.9. One sequence was said 1.4 times as fast with them repacked, and Q4_0
    was slower in everything without.
    """
    return not is_batch or "_K" not in (quantization or "") or machine.lower() not in ("x86_64", "amd64")


def plan_slots(requested: int, length: int, kv_bytes_per_token: int, memory: int) -> int:
    """Return how many sequences of a length run at once: as many as were asked for and memory holds; at least one."""
    sequence_bytes = max(1, length * kv_bytes_per_token)
    return max(1, min(requested, (memory - HEADROOM) // sequence_bytes))


def plan_layers(shape: Shape, requested: str, context: int, devices: tuple[Device, ...]) -> int:
    """Return how many layers to offload: the output layer counts as one more than the model has."""
    all_layers = shape.layers + 1
    if requested == "all":
        return all_layers
    if requested != "auto":
        return int(requested)
    layer_bytes = (shape.weight_bytes + shape.kv_bytes_per_token * context) / all_layers
    return min(all_layers, int(sum(max(0, device.free - HEADROOM) for device in devices) // layer_bytes))


def option_notices(options: LoadOptions, offloads: bool, devices: tuple[Device, ...]) -> Iterator[NoticeEvent]:
    """Yield what the user should know of what was asked for; `offloads` says whether this build can use a GPU."""
    trained = options.shape.trained_context
    wants_gpu = options.gpu_layers not in ("auto", "0")
    if wants_gpu and offloads and not devices:
        yield NoticeEvent(
            f"--gpu-layers {options.gpu_layers}: llama.cpp finds no GPU here, so all runs on the CPU",
            "check the driver, or leave --gpu-layers out",
        )
    elif wants_gpu and not offloads:
        yield NoticeEvent(
            f"--gpu-layers {options.gpu_layers}: this build of llama.cpp knows no GPU, so all runs on the CPU",
            'install one that knows it: CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir'
            " llama-cpp-python  (GGML_METAL or GGML_VULKAN likewise)",
        )
    if options.context_size and options.context_size > trained:
        yield NoticeEvent(
            f"--ctx {options.context_size} is more than the {trained} tokens this model was trained to",
            "beyond those its answers get worse; leave --ctx out to stay within",
        )
