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
from cerebrum_cli.engine.llama.bindings import SHOW_LOG, llama, log, suppress_log
from cerebrum_cli.engine.llama.context import has_recurrent_state, model_metadata
from cerebrum_cli.engine.llama.devices import bind, expert_overrides, free_memory, offloads
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.machine import save_devices, thread_count
from cerebrum_cli.engine.memory import ContextOptions, Device, FreeMemory, host_bytes, weight_needs
from cerebrum_cli.engine.memory_plan import LoadPlan, plan_load
from cerebrum_cli.engine.model_options import AdapterFile, LoadOptions, option_notices
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.architectures import facts_of


def open_llama(
    options: LoadOptions,
    emit: Callable[[Event], None],
    stop: StopFlag,
    devices_file: Path | None = None,
    loaded_files: Path | None = None,
    check: str = "",
) -> LlamaBackend:
    """Load the model with llama.cpp on this thread; ModelFileError if it rejects the file.

    The GPUs found are cached in `devices_file`, for commands that do not load llama.cpp. A file that is neither
    verified nor in `loaded_files` is first loaded in a child process, after a `check`.
    """
    emit(LoadEvent(0.0))
    file = options.file
    if loaded_files and (file.adapters or not file.is_verified):
        from cerebrum_cli.engine.llama.first_load import require_loads

        needs_weights = not options.vocabulary_only
        require_loads(file.path, loaded_files, stop, check=check, kind="model" if needs_weights else "vocabulary")
        for path, _ in file.adapters if needs_weights else ():
            require_loads(Path(path), loaded_files, stop, kind="adapter", model=file.path)
    free = free_memory()
    if devices_file:
        save_devices(devices_file, free.devices)
    for notice in option_notices(options, offloads, free.devices):
        emit(notice)
    plan = plan_load(options, free, emit)
    model = load_model(options, plan, free.devices, emit, stop)
    has_state, uses_gpu = has_recurrent_state(model), any(plan.offloaded)
    is_sequential = facts_of(model_metadata(model, "general.architecture")).is_sequential
    if is_sequential and plan.context.slots > 1 and not options.whole_context:  # a chat may never run several
        emit(NoticeEvent("llama.cpp crashes when this model runs several sequences", "running them one at a time"))
    if options.context.pad_steps and (has_state or uses_gpu):
        hint = "use the CPU with --gpu-layers 0" if uses_gpu else "use --parallel 1"
        emit(NoticeEvent(f"batch_invariant has no effect on a {'GPU' if uses_gpu else 'recurrent model'}", hint))
    adapters = load_adapters(model, file.adapters) if file.adapters and not options.vocabulary_only else ()
    plan = replace(plan, context=adapted(plan, model, is_sequential))
    mapped = mapped_bytes(plan, free) if plan.context.n_streams > 1 else 0
    backend = LlamaBackend(model, plan, stop, adapters, mapped)
    if options.whole_context:
        backend.reserve(plan.context.length)
    return backend


def mapped_bytes(plan: LoadPlan, free: FreeMemory) -> int:
    """Bytes of weights in host memory that loading has not allocated, from what was free before."""
    weights = host_bytes(weight_needs(plan.sizes, plan.offloaded), free.devices)
    return max(0, weights - max(0, free.host - free_memory().host))


def adapted(plan: LoadPlan, model: Any, is_sequential: bool) -> ContextOptions:
    """Options of a context that suit the loaded model, whose file may not show that it has states or windows."""
    context, sizes, has_state = plan.context, plan.sizes, has_recurrent_state(model)
    is_invariant = context.batch_invariant and not has_state and not any(plan.offloaded)
    needs_own_cells = (has_state and not sizes.state_bytes) or (
        llama.llama_model_n_swa(model) and not (sizes.has_windows or context.swa_full)
    )
    is_single = is_sequential or context.slots == 1 or (context.kv_unified and needs_own_cells)
    return replace(
        context,
        slots=1 if is_single else context.slots,
        kv_unified=context.kv_unified and not is_single,
        n_threads=context.n_threads or thread_count(),
        batch_invariant=is_invariant,
        pad_steps=context.pad_steps and is_invariant,
    )


def load_model(
    options: LoadOptions, plan: LoadPlan, devices: Sequence[Device], emit: Callable[[Event], None], stop: StopFlag
) -> Any:
    """Load the model, with a number of layers on each GPU; weights are memory-mapped unless they are repacked.

    llama.cpp is given only the GPUs that get layers. On others, it would allocate memory and evaluate prompts.
    """
    reported = -1.0

    def progress(fraction: float, _: object) -> bool:
        nonlocal reported
        if fraction - reported >= 0.01:
            reported = fraction
            emit(LoadEvent(fraction))
        return not stop

    params = llama.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = sum(plan.offloaded), options.vocabulary_only
    params.use_extra_bufts = plan.repack
    used = [(device, count) for device, count in zip(devices, plan.offloaded, strict=False) if count]
    # alive until the model is loaded; a null pointer ends the list
    handles = (ctypes.c_void_p * (len(used) + 1))()
    if used:
        find = bind("ggml_backend_dev_by_name", ctypes.c_void_p, (ctypes.c_char_p,))
        handles[:-1] = [find(device.name.encode()) for device, _ in used]
    params.devices = ctypes.cast(handles, ctypes.c_void_p)
    params.tensor_split = (ctypes.c_float * llama.llama_max_devices())(*(count for _, count in used))
    overrides: Any = expert_overrides(plan.host_experts) if plan.host_experts else None
    params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    params.progress_callback = llama.llama_progress_callback(progress)
    log.problems.clear()
    with suppress_log():
        model = llama.llama_model_load_from_file(os.fsencode(options.file.path), params)
    if not model and not stop:  # again, with logging
        model = llama.llama_model_load_from_file(os.fsencode(options.file.path), params)
    if not model and stop:
        raise EngineError("loading interrupted")
    if not model:
        reason = _reason("error loading model: ")
        raise ModelFileError(options.file.path, f"llama.cpp cannot load it: {reason}", SHOW_LOG)
    has_encoder, is_diffusion = llama.llama_model_has_encoder(model), llama.llama_model_is_diffusion(model)
    if has_encoder or is_diffusion or not llama.llama_model_has_decoder(model):
        llama.llama_model_free(model)
        kind = "a diffusion model" if is_diffusion else "a model with an encoder"
        raise ModelFileError(options.file.path, f"{kind}, which is not supported", "use a decoder-only model")
    return model


def load_adapters(model: Any, files: Sequence[AdapterFile]) -> tuple[tuple[Any, float], ...]:
    """Load LoRA adapters, which the model owns from then on; free it and raise ModelFileError if one is rejected."""
    adapters = []
    for path, scale in files:
        log.problems.clear()
        adapter = llama.llama_adapter_lora_init(model, os.fsencode(path))
        if not adapter:
            llama.llama_model_free(model)
            reason = _reason("failed to apply lora adapter: ")
            raise ModelFileError(Path(path), f"llama.cpp cannot apply it: {reason}", SHOW_LOG)
        adapters.append((adapter, scale))
    return tuple(adapters)


def _reason(label: str) -> str:
    """The first logged error with this label, or else the first logged problem."""
    errors = (line.partition(label)[2].strip() for line in log.problems if "failed to load model from" not in line)
    problems = (line.partition(": ")[2] or line for line in log.problems if line.strip())
    return next(filter(None, errors), None) or next(problems, "no reason given")
