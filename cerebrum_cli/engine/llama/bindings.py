"""llama.cpp's C interface, imported without the package around it, its log in a ring buffer, its build, and its GPUs.

Importing `llama_cpp` itself imports numpy and jinja2 and takes five times as long as the bindings alone; with an empty
parent module registered first, only the bindings are loaded.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from cerebrum_cli.core.environment import environment, environment_defaults
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.llama_cpp import REQUIREMENT, rebuild_command
from cerebrum_cli.core.text import Texts, pip_install
from cerebrum_cli.engine.machine import CPU_FLAGS, lacking, memory, processor_name
from cerebrum_cli.engine.memory import Device, Devices, FreeMemory

DEBUG, WARNING, CONTINUED = 1, 3, 5  # ggml's log levels; 2 is info, 4 error
CPU, GPU, INTEGRATED_GPU = 0, 1, 2  # of ggml_backend_dev_type
UNIFIED = ("Metal", "MTL")  # names of GPUs of type GPU that use the memory of the host
SHOW_LOG = "show its log with --set verbose=on"


@dataclass(slots=True)
class Log:
    """The last problems in llama.cpp's log; the whole log is forwarded to a listener if there is one."""

    problems: deque[str] = field(default_factory=partial(deque, maxlen=20))
    forward: Callable[[str], None] | None = None
    _open: str = ""
    _level: int = 0

    def write(self, level: int, text: bytes, _: object = None) -> None:
        """Append log text from llama.cpp: a line, or part of one."""
        if level != CONTINUED:
            self._level = level
        if self._level == DEBUG:
            return
        self._open += text.decode(errors="replace")
        while "\n" in self._open:
            line, self._open = self._open.split("\n", 1)
            if self._level >= WARNING:
                self.problems.append(line)
            if self.forward is not None:
                self.forward(line)


def import_bindings() -> Any:
    """Import the bindings of `llama_cpp` without running the package's `__init__`."""
    # llama-cpp-python or, without it, our wheel for any processor, which contains its bindings
    spec = find_spec("llama_cpp") or find_spec("cerebrum_llama")
    if spec is None or spec.submodule_search_locations is None:
        raise EngineError("llama-cpp-python is not installed", pip_install(f'"{REQUIREMENT}"'))
    package = ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    is_imported = "llama_cpp" in sys.modules
    sys.modules.setdefault("llama_cpp", package)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (RuntimeError, OSError, ImportError, AttributeError) as error:  # the last: another version
        # a build for GPUs needs their driver's libraries
        hint = f"install what is missing, or reinstall it: {rebuild_command()}"
        raise EngineError(f"cannot load llama.cpp's library: {error}", hint) from error
    finally:
        if not is_imported:
            del sys.modules["llama_cpp"]  # a program's own import then runs the package's `__init__`


# llama.cpp's threads busy-wait for each other, forever by default. Two processes on the same cores then wait for
# threads that are not scheduled: on 2 cores, two concurrent answers fell from 200 to 0.3 tokens per second each. With
# this spin count, after which a thread sleeps, they fell to 16; a single answer is as fast.
SPINNING = {} if environment("OMP_WAIT_POLICY") else {"GOMP_SPINCOUNT": "3000"}
# An uncaught exception would start a debugger.
READ_WHILE_LOADING = {**SPINNING, "GGML_NO_BACKTRACE": "1"}

log = Log()
with environment_defaults(READ_WHILE_LOADING):
    llama = import_bindings()
# Initializing a library that was built for another CPU would kill the process. One that chooses its code for the CPU
# when it is initialized has no functions to ask.
_cpu_checks = {name: getattr(llama._lib, f"ggml_cpu_has_{name.lower()}", None) for name in CPU_FLAGS}
if _missing := lacking(name for name, has in _cpu_checks.items() if has and has()):
    raise EngineError(
        f"llama.cpp was built for another CPU: this one lacks {', '.join(_missing)}",
        f"rebuild it on this machine: {rebuild_command()}",
    )
_write_log = llama.llama_log_callback(log.write)
_receivers = [_write_log]  # kept alive: llama.cpp holds a pointer to the last
llama.llama_log_set(_write_log, None)
# A failed assertion would start a debugger, too, unless something else prints it.
_write_assertion = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda message: os.write(2, message + b"\n"))
llama._lib.ggml_set_abort_callback(_write_assertion)

# libc's abs, called with the log level, does nothing, and needs no Python and no GIL.
_discard_log = ctypes.cast(ctypes.CDLL(None).abs, llama.llama_log_callback)


def suppress_log() -> AbstractContextManager[None]:
    """Discard llama.cpp's log, unless it is forwarded: loading a model logs two thousand lines."""
    return _log_to(_discard_log if log.forward is None else _write_log)


def keep_log() -> AbstractContextManager[None]:
    """Keep the problems in llama.cpp's log, also while it is suppressed."""
    return _log_to(_write_log)


@contextmanager
def _log_to(receiver: Any) -> Iterator[None]:
    """Send llama.cpp's log to a callback. These contexts must be left in the reverse order."""
    _receivers.append(receiver)
    llama.llama_log_set(receiver, None)
    try:
        yield
    finally:
        _receivers.pop()
        llama.llama_log_set(_receivers[-1], None)


if not llama._lib.ggml_backend_reg_count():  # the wheel for any processor: load the best kernels for this one
    with environment_defaults(READ_WHILE_LOADING):
        llama._lib.ggml_backend_load_all_from_path(str(llama._base_path).encode())
llama.llama_backend_init()


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
