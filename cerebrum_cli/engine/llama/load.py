"""Load a GGUF file: a plan of pure numbers first, then llama.cpp, with its progress told and its refusals explained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.llama.backend import LlamaBackend
from cerebrum_cli.engine.llama.devices import Device, accelerators, available_memory, can_offload, thread_count
from cerebrum_cli.engine.llama.library import llama, log
from cerebrum_cli.engine.llama.memory import ContextOptions
from cerebrum_cli.ground.errors import EngineError, ModelFileError
from cerebrum_cli.ground.events import Event, LoadEvent, NoticeEvent

DEFAULT_CONTEXT = 8192
HEADROOM = 512 * 2**20  # bytes left alone beside weights and cache: compute buffers, and the rest of the machine
CPU_BATCH = 128  # tokens of one step: an interrupt waits for no more, and a slow CPU takes long enough for these
GPU_BATCH = 512


@dataclass(frozen=True, slots=True)
class Shape:
    """What a plan must know of a model: trained context in tokens, bytes of weights, layers, KV bytes of one token."""

    trained_context: int
    weight_bytes: int
    layers: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is to be opened; None and "auto" leave it to the machine."""

    path: Path
    shape: Shape
    context_size: int | None = None
    gpu_layers: str = "auto"
    threads: int | None = None
    slots: int = 1
    vocabulary_only: bool = False


def plan_context(shape: Shape, asked: int | None, slots: int, memory: int) -> int:
    """Return the context of one sequence: what was asked for, or the smallest of trained, 8192 and what fits."""
    if asked is not None:
        return asked
    room = (memory - shape.weight_bytes - HEADROOM) // (max(1, shape.kv_bytes_per_token) * slots)
    fits = max(256, room // 256 * 256)
    return min(shape.trained_context, DEFAULT_CONTEXT, fits)


def plan_layers(shape: Shape, asked: str, context: int, devices: tuple[Device, ...]) -> int:
    """Return how many layers to offload: the output layer counts as one more than the model has."""
    everything = shape.layers + 1
    if asked == "all":
        return everything
    if asked != "auto":
        return int(asked)
    layer_bytes = (shape.weight_bytes + shape.kv_bytes_per_token * context) / everything
    return min(everything, int(sum(max(0, device.free - HEADROOM) for device in devices) // layer_bytes))


def remarks(options: LoadOptions, offloads: bool) -> Iterator[NoticeEvent]:
    """Yield what the user should know of what was asked for; `offloads` says whether this build knows a GPU."""
    trained = options.shape.trained_context
    if options.gpu_layers not in ("auto", "0") and not offloads:
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


def open_llama(options: LoadOptions, tell: Callable[[Event], None], stop: StopFlag) -> LlamaBackend:
    """Load the model with llama.cpp on this thread; ModelFileError if it refuses the file."""
    for notice in remarks(options, can_offload()):
        tell(notice)
    shape, devices = options.shape, accelerators()
    memory = available_memory() + sum(device.free for device in devices)
    context = plan_context(shape, options.context_size, options.slots, memory)
    layers = plan_layers(shape, options.gpu_layers, context * options.slots, devices)
    model = load_model(options, layers, tell, stop)
    threads = options.threads or thread_count()
    batch_size = max(options.slots, GPU_BATCH if layers and devices else CPU_BATCH)
    return LlamaBackend(model, ContextOptions(context, options.slots, threads, batch_size), stop)


def load_model(options: LoadOptions, layers: int, tell: Callable[[Event], None], stop: StopFlag) -> Any:
    """Return llama.cpp's model; weights are mapped, not read, where nothing has to be repacked."""
    told = -1.0

    def progress(fraction: float, _: object) -> bool:
        nonlocal told
        if fraction - told >= 0.01:
            told = fraction
            tell(LoadEvent(fraction))
        return not stop

    params = llama.llama_model_default_params()
    params.n_gpu_layers = layers
    params.vocab_only = options.vocabulary_only
    callback = llama.llama_progress_callback(progress)
    params.progress_callback = callback
    log.problems.clear()
    model = llama.llama_model_load_from_file(os.fsencode(options.path), params)
    if model:
        return model
    if stop:
        raise EngineError("loading was interrupted")
    raise ModelFileError(
        options.path, f"llama.cpp cannot load it: {_reason(list(log.problems))}", "see its log with -v"
    )


def _reason(problems: list[str]) -> str:
    """Return the most telling of llama.cpp's complaints: the first that names an error, or else what led to it."""
    for line in problems:
        _, found, reason = line.partition("error loading model: ")
        if found and "failed to load model from" not in reason:
            return reason.strip()
    return next((line.partition(": ")[2] or line for line in problems if line.strip()), "it gives no reason")
