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
from cerebrum_cli.engine.llama.bindings import SHOW_LOG, bind, expert_overrides, free_memory, llama, log, suppress_log
from cerebrum_cli.engine.llama.context import Adapters, has_recurrent_state, model_metadata
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.machine import instruction_set, load_speed, save_devices, thread_count
from cerebrum_cli.engine.memory import Device, Devices, FreeMemory, LoadPlan
from cerebrum_cli.engine.memory_plan import plan_load
from cerebrum_cli.engine.requests import LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.sizes import facts_of

# Repacking makes generation faster, but the first token later. The process takes longer, by about as much as it takes
# to generate some dozens of tokens, and with AVX-512, prompts are evaluated at 0.65 times the speed. Qwen2.5-Coder 1.5B
# in Q4_K_M on two threads, whole processes, as in the file / repacked:
#
# | processor | all but tokens, s | a token, ms | break-even length of the reply, tokens |
# |---|---|---|---|
# | AMD EPYC, AVX-512 | 0.76 more | 34 / 26.5 | 84 |
# | Intel Xeon, AVX-512 | 0.79 more | 117 / 97 | 43 |
# | Intel Xeon, AVX2 | 0.66 more | 137 / 119 | 41 |
#
# What it costs and what it saves are both in proportion to the bytes of the weights, so the number of tokens depends on
# the processor alone, and grows with its speed of generation.
TOKENS = 28  # of a reply that make up for the longer load
TOKENS_PER_GBS = 1.5  # further ones, for each GB/s of generation
AVX512_PROMPT = 0.2  # further tokens of a reply, for each token of the prompt


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
        options = replace(options, repack=plan_repacking(options, free.host, records))
    plan = plan_load(options, free, emit)
    model = load_model(options, plan, free.devices, emit, stop)
    adapters = load_adapters(model, options.adapters)
    if plan.context.slots > 1 and is_sequential(model) and not options.whole_context:  # a chat may never run several
        emit(NoticeEvent("llama.cpp crashes when this model runs several sequences", "running them one at a time"))
    plan = adapted(plan, model)
    backend = LlamaBackend(model, plan, stop, adapters, mapped_bytes(plan, free))
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
    params = llama.llama_model_default_params()
    params.n_gpu_layers = sum(plan.offloaded)
    params.vocab_only = options.vocabulary_only
    params.use_extra_bufts = plan.repack
    place_weights(params, plan, devices)
    params.progress_callback = progress_callback(emit, stop)
    path = os.fsencode(options.path)
    log.problems.clear()
    emit(LoadEvent(0.0))  # only now: its receivers import modules, which would delay this thread
    if any(plan.offloaded):  # greedy sampling needs it; it is imported while native code loads
        Thread(target=import_module, args=("numpy",), daemon=True).start()
    with suppress_log():
        model = llama.llama_model_load_from_file(path, params)
    if not model and not stop:  # again, with logging
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


def plan_repacking(options: LoadOptions, free: int, records: Path | None) -> bool:
    """Whether to repack weights with this processor and so many free bytes; `records` has the speed of replies.

    Other weights than K-quants, and those on other processors than x86, are repacked, which is llama.cpp's default:
    Q4_0 as in the file is slower in everything. K-quants on x86 are repacked for a chat, for a batch without AVX-512
    (32 sequences as in the file are 1.05 to 1.15 times as fast with it, 0.9 times without), and for a single reply
    unless it is expected to end later, if memory also holds the file: otherwise the next command would read it again.
    """
    instructions = instruction_set()
    is_k_quant = "_K" in (options.quantization or "")
    if not is_k_quant or instructions not in ("x86", "avx512") or options.whole_context:
        return True
    if options.context.slots > 1:
        return instructions == "x86"
    if 2 * options.sizes.weight_bytes > free:
        return False
    if not options.reply_tokens:
        return True
    generation = load_speed(records).generation if records else 0
    longer_load = TOKENS + TOKENS_PER_GBS * generation / 1e9
    longer_prompt = AVX512_PROMPT * options.prompt_tokens if instructions == "avx512" else 0
    return options.reply_tokens > longer_load + longer_prompt
