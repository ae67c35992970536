"""GPUs that this build of llama.cpp can use."""

from __future__ import annotations

import ctypes
from typing import Any

from cerebrum_cli.engine.llama.library import llama
from cerebrum_cli.engine.machine import available_memory
from cerebrum_cli.engine.plan import Device

GPU_DEVICES = (1, 2)  # of ggml_backend_dev_type: 0 CPU, 1 GPU, 2 integrated GPU, 3 accelerator


def can_offload() -> bool:
    """Whether this build of llama.cpp supports GPUs."""
    return bool(llama.llama_supports_gpu_offload())


def accelerators() -> tuple[Device, ...]:
    """Find the GPUs this build can use, with their memory."""
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
    devices = []
    for index in range(count()):
        device = get(index)
        if kind(device) in GPU_DEVICES:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            devices.append(Device(name(device).decode(), describe(device).decode(), free.value, total.value))
    return tuple(devices)


def free_memory() -> int:
    return available_memory() + sum(device.free for device in accelerators())


def bind(library: Any, symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
    """Declare the types of a function of llama.cpp's library that its bindings omit."""
    function = getattr(library, symbol)
    function.restype, function.argtypes = result, arguments
    return function
