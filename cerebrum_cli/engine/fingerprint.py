"""Fingerprints of this machine and of the installed llama.cpp, for which measured speeds are valid.

Neither loads llama.cpp.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from cerebrum_cli.engine.machine import cgroup_quota, own_cgroups
from cerebrum_cli.engine.memory import Device

CPUINFO_BYTES = 4096  # bytes of /proc/cpuinfo, enough for the first core: listing many cores takes Linux milliseconds


def machine_fingerprint(devices: Sequence[Device] | None) -> str:
    """Text that identifies the hardware: processor, number of cores, memory in GB, GPUs."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(map(cgroup_quota, own_cgroups()))
    count = allowed if quota == math.inf else min(allowed, math.ceil(quota))
    gpus = ", ".join(device.description for device in devices or ()) or "no GPU"
    return f"{processor_name()}, {count} processors, {memory_gb()} GB, {gpus}"


def processor_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """Model name of the first processor, or the best substitute that the system offers."""
    try:
        with path.open("rb") as file:
            lines = file.read(CPUINFO_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in lines)
    name = next((value.strip() for key, _, value in pairs if key.strip() == "model name"), "")
    return name or platform.processor() or platform.machine()


def memory_gb() -> int:
    """Memory of this machine in whole GB; 0 if unknown."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)
    except (AttributeError, OSError, ValueError):
        return 0


def build_fingerprint() -> str:
    """Digest that identifies a build of llama.cpp, of the names, sizes and times of its libraries."""
    spec = find_spec("llama_cpp")
    folders = (spec and spec.submodule_search_locations) or ()
    files = []
    for folder in folders:
        for path in sorted(Path(folder, "lib").glob("*")):
            files.append(path.name)
            with contextlib.suppress(OSError):  # a broken link
                stat = path.stat()
                files[-1] += f" {stat.st_size} {stat.st_mtime_ns}"
    return sha256("\n".join(files).encode()).hexdigest()[:16] if files else "none"
