"""Load a GGUF file with llama.cpp: plan, report progress, and explain failures."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from cerebrum_cli.core.errors import EngineError, ModelFileError
from cerebrum_cli.core.events import Emit, LoadEvent, NoticeEvent
from cerebrum_cli.engine.llama.bindings import (
    SHOW_LOG,
    bind,
    expert_overrides,
    free_memory,
    keep_log,
    llama,
    log,
    suppress_log,
)
from cerebrum_cli.engine.llama.context import Adapters, has_recurrent_state, model_metadata
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.repacking import Repacking
from cerebrum_cli.engine.machine import instruction_set, save_devices, thread_count
from cerebrum_cli.engine.memory import Device, Devices, FreeMemory, LoadPlan
from cerebrum_cli.engine.memory_plan import plan_load
from cerebrum_cli.engine.requests import LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.sizes import facts_of

# Repacked K-quants generate faster, but take longer to load, and with AVX-512, prompts take 1.4 times as long. So the
# prompt of a single reply is evaluated with the weights of the file while a second thread repacks them. That delays the
# first token, but a reply that is longer than this ends earlier.
#
# Qwen2.5-Coder 1.5B in Q4_K_M on two threads of an AMD EPYC with AVX-512, seconds to the first token of a prompt of
# 46 tokens, and to the 32nd: 0.37 and 1.3 as in the file, 0.78 and 1.5 if repacked at once, 0.61 and 1.4 meanwhile.
REPACKED_REPLY = 32  # tokens


def open_llama(options: LoadOptions, emit: Emit, stop: StopFlag, records: Path | None = None) -> LlamaBackend:
    """Load the model with llama.cpp on this thread; ModelFileError if it rejects the file.

    The GPUs found are recorded in the directory of `records`, for commands that do not load llama.cpp. A file that is
    neither verified nor recorded there as loaded is first loaded in a child process.
    """
    if records:
        require_loadable(options, records, emit, stop)
    free = free_memory()
    if records:
        save_devices(records, free.devices)
    for notice in option_notices(options, free.devices):
        emit(notice)
    if options.repack is None:
        options = replace(options, repack=plan_repacking(options, free.host))
    plan = plan_load(options, free, emit)
    repacking = None
    if plan.repack and repacks_meanwhile(options, plan):
        repacking = Repacking(options.path, load_params(options, plan, free.devices))
        plan = replace(plan, repack=False)
    try:
        model = load_model(options, plan, free.devices, emit, stop)
    except BaseException:
        if repacking:
            repacking.close()
        raise
    adapters = load_adapters(model, options.adapters)
    if plan.context.slots > 1 and is_sequential(model) and not options.whole_context:  # a chat may never run several
        emit(NoticeEvent("llama.cpp crashes when this model runs several sequences", "running them one at a time"))
    plan = adapted(plan, model)
    backend = LlamaBackend(model, plan, stop, adapters, mapped_bytes(plan, free), repacking)
    if options.whole_context:
        backend.reserve(plan.context.length)
    return backend


def require_loadable(options: LoadOptions, records: Path, emit: Emit, stop: StopFlag) -> None:
    """Load unverified files in a child process first, unless they are recorded as loaded. Raises ModelFileError."""
    if options.is_verified and not options.adapters:
        return
    from cerebrum_cli.engine.llama.first_load import require_loads

    require_loads(options.path, records, stop, emit=emit)
    for adapter, _ in options.adapters:
        require_loads(options.path, records, stop, adapter=adapter, emit=emit)


def option_notices(options: LoadOptions, devices: Devices) -> Iterator[NoticeEvent]:
    """Yield notices about options that have no or an adverse effect."""
    trained = options.trained_context
    length = options.context.length
    if options.gpu_layers not in ("auto", "0") and not devices:
        problem = f"--gpu-layers {options.gpu_layers}: llama.cpp finds no GPU; using the CPU"
        yield NoticeEvent(problem, "run cerebrum doctor, or omit --gpu-layers")
    if length > trained:
        yield NoticeEvent(
            f"--ctx {length} exceeds the model's trained context of {trained} tokens",
            "answers degrade beyond that; omit --ctx",
        )


def is_sequential(model: Any) -> bool:
    return facts_of(model_metadata(model, "general.architecture")).is_sequential


def mapped_bytes(plan: LoadPlan, free: FreeMemory) -> int:
    """Bytes of weights in host memory that loading has not allocated, from what was free before."""
    weights = plan.weights.on_host(free.devices)
    allocated = max(0, free.host - free_memory().host)
    return max(0, weights - allocated)


def adapted(plan: LoadPlan, model: Any) -> LoadPlan:
    """The plan with a context that suits the loaded model, whose file may not show that it has states or windows."""
    context, sizes, has_state = plan.context, plan.sizes, has_recurrent_state(model)
    has_unknown_state = has_state and not sizes.state_bytes
    has_unknown_window = llama.llama_model_n_swa(model) and not sizes.has_windows and not context.swa_full
    slots = min(context.slots, llama.llama_max_parallel_sequences())
    if is_sequential(model) or (context.kv_unified and (has_unknown_state or has_unknown_window)):
        slots = 1
    return plan.with_context(
        slots=slots,
        kv_unified=context.kv_unified and slots > 1,
        n_threads=context.n_threads or thread_count(),
        batch_invariant=context.batch_invariant and not has_state and not any(plan.offloaded),
    )


def load_model(options: LoadOptions, plan: LoadPlan, devices: Sequence[Device], emit: Emit, stop: StopFlag) -> Any:
    """Load the model; raise ModelFileError if llama.cpp rejects it, or if it is no decoder-only model."""
    params = load_params(options, plan, devices)
    params.progress_callback = progress_callback(emit, stop)
    path = os.fsencode(options.path)
    log.problems.clear()
    emit(LoadEvent(0.0))  # only now: its receivers import modules, which would delay this thread
    if any(plan.offloaded):  # greedy sampling needs it; it is imported while native code loads
        Thread(target=import_module, args=("numpy",), daemon=True).start()
    with suppress_log():
        model = llama.llama_model_load_from_file(path, params)
    if not model and not stop:
        with keep_log():  # the model may be repacked meanwhile, which suppresses it
            model = llama.llama_model_load_from_file(path, params)
    if not model:
        if stop:
            raise EngineError("loading interrupted")
        reason = _reason("error loading model: ")
        hint = f"update cerebrum if the model is newer, or {SHOW_LOG}"
        raise ModelFileError(options.path, f"llama.cpp cannot load it: {reason}", hint)
    if kind := unsupported_kind(model):
        llama.llama_model_free(model)
        raise ModelFileError(options.path, f"{kind}, which is not supported", "use a decoder-only model")
    return model


def load_params(options: LoadOptions, plan: LoadPlan, devices: Sequence[Device]) -> Any:
    params = llama.llama_model_default_params()
    params.n_gpu_layers = sum(plan.offloaded)
    params.vocab_only = options.vocabulary_only
    params.use_extra_bufts = plan.repack
    place_weights(params, plan, devices)
    return params


def place_weights(params: Any, plan: LoadPlan, devices: Sequence[Device]) -> None:
    """Place layers and experts by the plan. The parameters keep the arrays alive that they point to.

    llama.cpp is given only the GPUs that get layers: on others, it would allocate memory and evaluate prompts.
    """
    used = [(device, count) for device, count in zip(devices, plan.offloaded, strict=False) if count]
    handles = (ctypes.c_void_p * (len(used) + 1))()  # a null pointer ends the list
    split = (ctypes.c_float * llama.llama_max_devices())()
    find = bind("ggml_backend_dev_by_name", ctypes.c_void_p, (ctypes.c_char_p,))
    for index, (device, count) in enumerate(used):
        handles[index] = find(device.name.encode())
        split[index] = count
    params.devices = ctypes.cast(handles, ctypes.c_void_p)
    params.tensor_split = split
    if plan.host_experts:
        params.tensor_buft_overrides = ctypes.cast(expert_overrides(plan.host_experts), ctypes.c_void_p)


def progress_callback(emit: Emit, stop: StopFlag) -> Any:
    """A callback of llama.cpp that reports each percent, and ends the load if the flag is set."""
    reported = -1.0

    def progress(fraction: float, _: object) -> bool:
        nonlocal reported
        if fraction - reported >= 0.01:
            reported = fraction
            emit(LoadEvent(fraction))
        return not stop

    return llama.llama_progress_callback(progress)


def unsupported_kind(model: Any) -> str:
    """What a model is that cannot continue a prompt; empty for a decoder-only model."""
    if llama.llama_model_is_diffusion(model):
        return "a diffusion model"
    if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
        return "a model with an encoder"
    return ""


def load_adapters(model: Any, files: Sequence[tuple[Path, float]]) -> Adapters:
    """Load LoRA adapters, which the model owns from then on; free it and raise ModelFileError if one is rejected."""
    adapters = []
    for path, scale in files:
        log.problems.clear()
        adapter = llama.llama_adapter_lora_init(model, os.fsencode(path))
        if not adapter:
            llama.llama_model_free(model)
            reason = _reason("failed to apply lora adapter: ")
            raise ModelFileError(path, f"llama.cpp cannot apply it: {reason}", SHOW_LOG)
        adapters.append((adapter, scale))
    return adapters


def _reason(label: str) -> str:
    """The first logged error with this label, or else the first logged problem."""
    problems = [line for line in log.problems if "failed to load model from" not in line]
    labeled = [line.partition(label)[2].strip() for line in problems]
    return next(filter(None, (*labeled, *problems)), "no reason given")


def plan_repacking(options: LoadOptions, free: int) -> bool:
    """Whether to repack weights on this processor, with `free` bytes of memory.

    Other weights than K-quants, and those on other processors than x86, are repacked, which is llama.cpp's default:
    Q4_0 as in the file is slower in everything. K-quants on x86 are repacked for a chat, for a batch without AVX-512
    (32 sequences as in the file are 1.05 to 1.15 times as fast with it, 0.9 times without), and for a single reply
    unless it is expected to be short, if memory also holds the file: otherwise the next command would read it again.
    """
    instructions = instruction_set()
    if not is_k_quant(options) or instructions not in ("x86", "avx512") or options.whole_context:
        return True
    if options.context.slots > 1:
        return instructions == "x86"
    if 2 * options.sizes.weight_bytes > free:
        return False
    return not options.reply_tokens or options.reply_tokens > REPACKED_REPLY


def repacks_meanwhile(options: LoadOptions, plan: LoadPlan) -> bool:
    """Whether weights are repacked while the prompt of a single reply is evaluated with those of the file."""
    is_single = bool(options.reply_tokens) and options.context.slots == 1  # not a batch with one row at a time
    return is_single and is_k_quant(options) and not (any(plan.offloaded) or options.adapters)


def is_k_quant(options: LoadOptions) -> bool:
    return "_K" in (options.quantization or "")
