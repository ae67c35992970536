"""Load a GGUF file with llama.cpp: plan, report progress, and explain failures."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import EngineError, ModelFileError
from cerebrum_cli.core.events import Event, LoadEvent, NoticeEvent
from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.llama.bindings import llama, log, suppress_log
from cerebrum_cli.engine.llama.context import has_recurrent_state
from cerebrum_cli.engine.llama.devices import can_offload, free_memory
from cerebrum_cli.engine.llama.first_load import FileCheck, require_adapter_loads, require_loads
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.load_options import (
    MAX_SLOTS,
    AdapterFile,
    LoadOptions,
    option_notices,
    short_context_notice,
)
from cerebrum_cli.engine.machine import save_devices, thread_count
from cerebrum_cli.engine.memory import (
    CPU_UBATCH,
    EXPECTED_LENGTH,
    GPU_UBATCH,
    ContextOptions,
    FreeMemory,
    default_context,
    memory_needs,
    plan_context,
    plan_layers,
    require_context,
    require_devices,
)


def open_llama(
    options: LoadOptions,
    emit: Callable[[Event], None],
    stop: StopFlag,
    devices_file: Path | None = None,
    loaded_files: Path | None = None,
    check: FileCheck | None = None,
) -> LlamaBackend:
    """Load the model with llama.cpp on this thread; ModelFileError if it rejects the file.

    The GPUs found are cached in `devices_file`, for commands that do not load llama.cpp. A file that is not yet in
    `loaded_files` is first loaded in a child process, after a `check`.
    """
    emit(LoadEvent(0.0))
    file = options.file
    if loaded_files:
        require_loads(file.path, loaded_files, stop, options.vocabulary_only, check)
        for path, _ in () if options.vocabulary_only else file.adapters:
            require_adapter_loads(Path(path), file.path, loaded_files, stop)
    free = free_memory()
    if devices_file:
        save_devices(devices_file, free.devices)
    for notice in option_notices(options, can_offload(), free.devices):
        emit(notice)
    planned = expected = plan_length(options, free, emit)
    if planned.n_streams > 1:  # concurrent sequences are rarely as long as the context
        expected = replace(planned, length=max(planned.length // planned.slots, EXPECTED_LENGTH))
    offloaded = plan_layers(file.sizes, options.gpu_layers, expected, free.devices)
    if options.baseline:
        require_devices(memory_needs(file.sizes, expected, offloaded), free.devices)
    model = load_model(options, offloaded, emit, stop)
    can_unify, offloads = not has_recurrent_state(model), any(offloaded)
    is_invariant = options.context.batch_invariant and can_unify and not offloads
    if options.context.pad_steps and not is_invariant:
        hint = "use the CPU with --gpu-layers 0" if offloads else "use --parallel 1"
        emit(NoticeEvent(f"batch_invariant has no effect on a {'GPU' if offloads else 'recurrent model'}", hint))

    def made_with(context: ContextOptions) -> ContextOptions:
        pad_steps = context.pad_steps and is_invariant
        context = replace(context, length=planned.length, batch_invariant=is_invariant, pad_steps=pad_steps)
        return resolve(context, can_unify, offloads)

    fallback = made_with(options.baseline.context) if options.baseline else None
    adapters = () if options.vocabulary_only else load_adapters(model, file.adapters)
    backend = LlamaBackend(model, made_with(options.context), stop, file.sizes, offloaded, fallback, adapters)
    if options.whole_context and (replaced := backend.reserve(planned.length)):
        emit(replaced)
    return backend


def plan_length(options: LoadOptions, free: FreeMemory, emit: Callable[[Event], None]) -> ContextOptions:
    """The context to load for, of the length that was asked for or fits; EngineError if the former does not fit."""
    file = options.file
    planned = resolve(options.context, not any(layer.state_bytes for layer in file.sizes.layers), bool(free.devices))
    if planned.length:
        require_context(file.sizes, replace(planned, slots=1), file.trained_context, options.gpu_layers, free)
        return planned
    default = default_context(file.trained_context)
    length = plan_context(file.sizes, replace(planned, length=default, slots=1), options.gpu_layers, free)
    if shortage := short_context_notice(length, default):
        emit(shortage)
    return replace(planned, length=length)


def resolve(options: ContextOptions, can_unify: bool, offloads: bool) -> ContextOptions:
    """Choose what is left to this machine, besides the length."""
    slots = 1 if options.kv_unified and not can_unify else options.slots
    min_ubatch = MAX_SLOTS if options.pad_steps else slots + 1
    return replace(
        options,
        slots=slots,
        n_threads=options.n_threads or thread_count(),
        n_ubatch=max(min_ubatch, options.n_ubatch or (GPU_UBATCH if offloads else CPU_UBATCH)),
        kv_unified=slots > 1 and options.kv_unified,
        flash_attention=None if options.pad_steps else options.flash_attention,  # off, kernels depend on rows per slot
    )


def load_model(options: LoadOptions, offloaded: tuple[int, ...], emit: Callable[[Event], None], stop: StopFlag) -> Any:
    """Load the model, with a number of layers on each GPU; weights are memory-mapped unless they are repacked."""
    reported = -1.0

    def progress(fraction: float, _: object) -> bool:
        nonlocal reported
        if fraction - reported >= 0.01:
            reported = fraction
            emit(LoadEvent(fraction))
        return not stop

    params = llama.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = sum(offloaded), options.vocabulary_only
    params.use_extra_bufts = options.repack
    if len(offloaded) > 1:
        params.tensor_split = (ctypes.c_float * llama.llama_max_devices())(*offloaded)
    params.progress_callback = llama.llama_progress_callback(progress)
    log.problems.clear()
    with suppress_log():
        model = llama.llama_model_load_from_file(os.fsencode(options.file.path), params)
    if not model and not stop:  # again, with logging
        model = llama.llama_model_load_from_file(os.fsencode(options.file.path), params)
    if model:
        return require_decoder(model, options.file.path)
    if stop:
        raise EngineError("loading interrupted")
    raise ModelFileError(
        options.file.path,
        f"llama.cpp cannot load it: {_reason(list(log.problems))}",
        "show its log with --set verbose=on",
    )


def load_adapters(model: Any, files: Sequence[AdapterFile]) -> tuple[tuple[Any, float], ...]:
    """Load LoRA adapters, which the model owns from then on; free it and raise ModelFileError if one is rejected."""
    adapters = []
    for path, scale in files:
        log.problems.clear()
        adapter = llama.llama_adapter_lora_init(model, os.fsencode(path))
        if not adapter:
            llama.llama_model_free(model)
            reason = _reason(list(log.problems), "failed to apply lora adapter: ")
            raise ModelFileError(
                Path(path), f"llama.cpp cannot apply it: {reason}", "show its log with --set verbose=on"
            )
        adapters.append((adapter, scale))
    return tuple(adapters)


def require_decoder(model: Any, path: Path) -> Any:
    """The model, if it generates text token by token; otherwise free it and raise ModelFileError."""
    has_encoder, is_diffusion = llama.llama_model_has_encoder(model), llama.llama_model_is_diffusion(model)
    if not has_encoder and not is_diffusion and llama.llama_model_has_decoder(model):
        return model
    llama.llama_model_free(model)
    kind = "a diffusion model" if is_diffusion else "a model with an encoder"
    raise ModelFileError(path, f"{kind}, which is not supported", "use a decoder-only model")


def _reason(problems: list[str], label: str = "error loading model: ") -> str:
    """The first logged error, or else the first logged problem."""
    for line in problems:
        _, found, reason = line.partition(label)
        if found and "failed to load model from" not in reason:
            return reason.strip()
    return next((line.partition(": ")[2] or line for line in problems if line.strip()), "no reason given")
