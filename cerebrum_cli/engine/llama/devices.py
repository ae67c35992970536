"""What this machine lets us use: processors, memory, and the accelerators this build of llama.cpp can reach."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path
from typing import Any

from cerebrum_cli.engine.llama.library import llama
from cerebrum_cli.engine.plan import Device

GPU_DEVICES = (1, 2)  # of ggml_backend_dev_type: 0 CPU, 1 GPU, 2 integrated GPU, 3 accelerator beside the CPU
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def thread_count() -> int:
    """Return how many threads decode fastest: processors this process may use, one for each core."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    logical = psutil.cpu_count(logical=True) or allowed
    cores = psutil.cpu_count(logical=False) or logical
    if allowed == logical:
        allowed = cores
    return max(1, math.ceil(min(allowed, *map(cgroup_quota, own_cgroups()))))


def own_cgroups(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> list[Path]:
    """Return the folders of the cgroup this process is in and of all above it; just the root where that is not told."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return [root]
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    folders = [root / path.lstrip("/")]
    while folders[-1] != root and root in folders[-1].parents:
        folders.append(folders[-1].parent)
    return folders


def cgroup_quota(root: Path) -> float:
    """Return the processors a cgroup allows this process; infinity where there is no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except ValueError:  # "max"
        return math.inf


def available_memory() -> int:
    """Return the bytes of memory this process can still take: what is free, or what its cgroup leaves."""
    import psutil

    return int(max(0, min(psutil.virtual_memory().available, *map(cgroup_memory, own_cgroups()))))


def cgroup_memory(root: Path) -> float:
    """Return the bytes a cgroup leaves this process; infinity where there is no limit. Cached files give way to it."""
    try:
        left = int((root / "memory.max").read_text()) - int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # "max"
        return math.inf
    return left + sum(int(stat.get(cached, "0")) for cached in ("active_file", "inactive_file"))


def can_offload() -> bool:
    """Return whether this build of llama.cpp has any accelerator to offload to."""
    return bool(llama.llama_supports_gpu_offload())


def accelerators() -> tuple[Device, ...]:
    """Return the GPUs this build can use, with their memory."""
    if not can_offload():
        return ()
    library = llama._lib
    count, get, kind, memory, name, describe = (
        _function(library, symbol, result, arguments)
        for symbol, result, arguments in (
            ("ggml_backend_dev_count", ctypes.c_size_t, ()),
            ("ggml_backend_dev_get", ctypes.c_void_p, (ctypes.c_size_t,)),
            ("ggml_backend_dev_type", ctypes.c_int, (ctypes.c_void_p,)),
            ("ggml_backend_dev_memory", None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)),
            ("ggml_backend_dev_name", ctypes.c_char_p, (ctypes.c_void_p,)),
            ("ggml_backend_dev_description", ctypes.c_char_p, (ctypes.c_void_p,)),
        )
    )
    found = []
    for index in range(count()):
        device = get(index)
        if kind(device) in GPU_DEVICES:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            found.append(Device(name(device).decode(), describe(device).decode(), free.value, total.value))
    return tuple(found)


def _function(library: Any, symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
    function = getattr(library, symbol)
    function.restype, function.argtypes = result, arguments
    return function
