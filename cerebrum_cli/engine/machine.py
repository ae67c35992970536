"""What this machine lets a process use: processors and memory, within its cgroups, and the accelerators last seen."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

from cerebrum_cli.engine.plan import Device

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


def total_memory() -> int:
    """Return the bytes of memory this machine has, or its cgroups allow, whatever is in use now."""
    import psutil

    return int(min(psutil.virtual_memory().total, *map(cgroup_limit, own_cgroups())))


def cgroup_limit(root: Path) -> float:
    """Return the bytes a cgroup allows; infinity where there is no limit."""
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of version 2, and of version 1
        with contextlib.suppress(OSError, ValueError):  # "max"
            return int((root / file).read_text())
    return math.inf


def cgroup_memory(root: Path) -> float:
    """Return the bytes a cgroup leaves this process; infinity where there is no limit. Cached files give way to it."""
    try:
        left = int((root / "memory.max").read_text()) - int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # "max"
        return math.inf
    return left + sum(int(stat.get(cached, "0")) for cached in ("active_file", "inactive_file"))


def keep_devices(path: Path, devices: tuple[Device, ...]) -> None:
    """Write down which accelerators llama.cpp has seen: asking it anew would load it. Nobody minds where that fails."""
    text = json.dumps([asdict(device) for device in devices]).encode()
    with contextlib.suppress(OSError):
        if not path.exists() or path.read_bytes() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)


def kept_devices(path: Path) -> tuple[Device, ...] | None:
    """Return the accelerators that were written down; None where no model has been loaded yet."""
    try:
        listed = json.loads(path.read_bytes())
        return tuple(_device(**each) for each in listed) if isinstance(listed, list) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _device(*, name: str, description: str, free: int, total: int) -> Device:
    if not (isinstance(name, str) and isinstance(description, str) and type(free) is int and type(total) is int):
        raise TypeError("a value of the wrong kind")
    return Device(name, description, free, total)
