"""What measured speeds hold for: this machine and the llama.cpp that is installed, told without loading either."""

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
from cerebrum_cli.engine.plan import Device

HEAD = 4096  # bytes of /proc/cpuinfo: the first processor's; Linux takes milliseconds to write down all of many


def machine_text(devices: Sequence[Device] | None) -> str:
    """Return what of this machine decides how fast a model is: processors, memory in GB, accelerators."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(map(cgroup_quota, own_cgroups()))
    count = allowed if quota == math.inf else min(allowed, math.ceil(quota))
    gpus = ", ".join(device.description for device in devices or ()) or "no GPU"
    return f"{processor()}, {count} processors, {memory_gb()} GB, {gpus}"


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, as well as it is told."""
    try:
        with path.open("rb") as file:
            lines = file.read(HEAD).decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in lines)
    name = next((value.strip() for key, _, value in pairs if key.strip() == "model name"), "")
    return name or platform.processor() or platform.machine()


def memory_gb() -> int:
    """Return the memory of this machine in whole GB; 0 where the system does not tell."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)
    except (AttributeError, OSError, ValueError):
        return 0


def build_text() -> str:
    """Return a digest that another build of llama.cpp does not have: names, sizes and times of its libraries."""
    spec = find_spec("llama_cpp")
    folders = (spec and spec.submodule_search_locations) or ()
    found = []
    for folder in folders:
        for path in sorted(Path(folder, "lib").glob("*")):
            found.append(path.name)
            with contextlib.suppress(OSError):  # a link that leads nowhere
                stat = path.stat()
                found[-1] += f" {stat.st_size} {stat.st_mtime_ns}"
    return sha256("\n".join(found).encode()).hexdigest()[:16] if found else "none"
