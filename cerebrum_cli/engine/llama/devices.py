"""GPUs that this build of llama.cpp can use."""

from __future__ import annotations

import ctypes
from typing import Any

from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.machine import available_memory
from cerebrum_cli.engine.memory import Device, FreeMemory

GPU, INTEGRATED_GPU = 1, 2  # of ggml_backend_dev_type
UNIFIED = ("Metal", "MTL")  # names of GPUs of type GPU that use the memory of the host


def can_offload() -> bool:
    """Whether this build of llama.cpp supports GPUs."""
    return bool(llama.llama_supports_gpu_offload())


def accelerators() -> tuple[Device, ...]:
    """Find the GPUs that llama.cpp uses, with their memory: integrated ones only if there are no others."""
    if not can_offload():
        return ()
    library = llama._lib
    count, get, kind, memory, name, describe = (
        bind(library, symbol, result, arguments)
        for symbol, result, arguments in (
            ("ggml_backend_dev_count", ctypes.c_size_t, ()),
            ("ggml_backend_dev_get", ctypes.c_void_p, (ctypes.c_size_t,)),
            ("ggml_backend_dev_type", ctypes.c_int, (ctypes.c_void_p,)),
            ("ggml_backend_dev_memory", None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)),
            ("ggml_backend_dev_name", ctypes.c_char_p, (ctypes.c_void_p,)),
            ("ggml_backend_dev_description", ctypes.c_char_p, (ctypes.c_void_p,)),
        )
    )
    found: dict[int, list[Device]] = {GPU: [], INTEGRATED_GPU: []}
    for device in map(get, range(count())):
        devices = found.get(kind(device))
        if devices is not None:
            free, total, label = ctypes.c_size_t(), ctypes.c_size_t(), name(device).decode()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            # With GGML_CUDA_ENABLE_UNIFIED_MEMORY, free memory is the host's, and may be more than there is in all.
            is_unified = kind(device) == INTEGRATED_GPU or label.startswith(UNIFIED) or free.value > total.value
            devices.append(Device(label, describe(device).decode(), free.value, total.value, is_unified))
    return tuple(found[GPU] or found[INTEGRATED_GPU])


def free_memory() -> FreeMemory:
    return FreeMemory(available_memory(), accelerators())


def bind(library: Any, symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
    """Declare the types of a function of llama.cpp's library that its bindings omit."""
    function = getattr(library, symbol)
    function.restype, function.argtypes = result, arguments
    return function
