"""The installed llama.cpp: how it was built, and the GPUs that it can use."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from cerebrum_cli.core.text import Texts
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.machine import memory, processor_name
from cerebrum_cli.engine.memory import Device, Devices, FreeMemory

CPU, GPU, INTEGRATED_GPU = 0, 1, 2  # of ggml_backend_dev_type
UNIFIED = ("Metal", "MTL")  # names of GPUs of type GPU that use the memory of the host


def accelerators() -> Devices:
    """Find the GPUs that llama.cpp uses, with their memory: integrated ones only if there are no others."""
    if not llama.llama_supports_gpu_offload():
        return ()
    found: dict[int, list[Device]] = {GPU: [], INTEGRATED_GPU: []}
    for handle in _registered("dev"):
        kind = _ask_device("type", ctypes.c_int, handle)
        if kind in found:
            found[kind].append(_describe_device(handle, kind == INTEGRATED_GPU))
    return tuple(found[GPU] or found[INTEGRATED_GPU])


def _registered(kind: str) -> Iterator[Any]:
    """Handles of all devices (`dev`), or all backends (`reg`)."""
    count = bind(f"ggml_backend_{kind}_count", ctypes.c_size_t, ())
    get = bind(f"ggml_backend_{kind}_get", ctypes.c_void_p, (ctypes.c_size_t,))
    return map(get, range(count()))


def _describe_device(handle: Any, is_integrated: bool) -> Device:
    free = ctypes.c_size_t()
    total = ctypes.c_size_t()
    _ask_device("memory", None, handle, ctypes.byref(free), ctypes.byref(total))
    name = _ask_device("name", ctypes.c_char_p, handle).decode()
    description = _ask_device("description", ctypes.c_char_p, handle).decode()
    # With GGML_CUDA_ENABLE_UNIFIED_MEMORY, free memory is the host's, and may be more than there is in all.
    is_unified = is_integrated or name.startswith(UNIFIED) or free.value > total.value
    return Device(name, description, free.value, total.value, is_unified)


def _ask_device(symbol: str, result: Any, *pointers: Any) -> Any:
    """Call one of the functions whose arguments are a device and what they write to."""
    return bind(f"ggml_backend_dev_{symbol}", result, (ctypes.c_void_p,) * len(pointers))(*pointers)


def free_memory() -> FreeMemory:
    return FreeMemory(memory().available, accelerators())


def expert_overrides(layers: int) -> Any:
    """Buffer overrides, ended by an empty one, that keep the experts of the first layers in host memory."""

    class BufferOverride(ctypes.Structure):
        """llama_model_tensor_buft_override: the kind of buffer of tensors whose names match a regular expression."""

        _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))

    cpu = bind("ggml_backend_dev_by_type", ctypes.c_void_p, (ctypes.c_int,))(CPU)
    buffers = bind("ggml_backend_dev_buffer_type", ctypes.c_void_p, (ctypes.c_void_p,))(cpu)
    pattern = rf"blk\.({'|'.join(map(str, range(layers)))})\.ffn_(up|down|gate|gate_up)_(ch)?exps"
    return (BufferOverride * 2)(BufferOverride(pattern.encode(), buffers), BufferOverride())


def bind(symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
    """Declare the types of a function of llama.cpp's library that its bindings omit."""
    function = getattr(llama._lib, symbol)
    function.restype = result
    function.argtypes = arguments
    return function


def package_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("llama-cpp-python", "cerebrum-llama"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown version"  # not installed as a package


def library_text(symbol: str) -> str:
    value: bytes = bind(symbol, ctypes.c_char_p, ())()
    return value.decode(errors="replace")


def hardware() -> str:
    """Names of the processor and the GPUs, whose drivers it initializes."""
    return ", ".join((processor_name(), *(device.description for device in accelerators())))


def offloads() -> bool:
    """Whether llama.cpp was built for GPUs. Without a driver, it may not register the backend."""
    return any(hasattr(llama._lib, f"ggml_backend_{name}_reg") for name in ("cuda", "metal", "opencl", "sycl", "vk"))


def backends() -> Texts:
    name = bind("ggml_backend_reg_name", ctypes.c_char_p, (ctypes.c_void_p,))
    return tuple(name(handle).decode(errors="replace") for handle in _registered("reg"))


def cpu_features() -> Texts:
    """CPU features in llama.cpp's system info, such as "CPU : AVX2 = 1 | FMA = 0 | CUDA : ARCHS = 900 | "."""
    info = llama.llama_print_system_info().decode(errors="replace")
    of_cpu = info.partition("CPU : ")[2].partition(" : ")[0]
    return tuple(re.findall(r"(\w+) = [1-9]", of_cpu))
