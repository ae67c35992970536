"""Resources available to this process: CPUs and memory within its cgroups, and the GPUs seen last."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cerebrum_cli.core.files import atomic_write
from cerebrum_cli.engine.memory import Device

# Linux versions by which CPU features are listed, by their flags; an older kernel may not know that the CPU has one.
LISTED_BY = {
    "asimddp": (4, 16),
    "sve": (4, 16),
    "avx512vbmi": (4, 16),
    "avx512_vnni": (4, 16),
    "avx512_bf16": (5, 4),
    "i8mm": (5, 7),
    "avx_vnni": (5, 12),
    "amx_int8": (5, 16),
    "sme": (5, 19),
}
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Processors:
    """Logical CPUs and cores of this machine, and how many of them this process may use."""

    logical: int
    cores: int
    allowed: int
    quota: float

    @property
    def threads(self) -> int:
        """Fastest number of threads for decoding: one for each core this process may use."""
        allowed = self.cores if self.allowed == self.logical else self.allowed
        return max(1, math.ceil(min(allowed, self.quota)))

    @property
    def usable(self) -> int:
        """Number of threads that can run concurrently, hyper-threads included."""
        return max(1, math.ceil(min(self.allowed, self.quota)))


def processors() -> Processors:
    """Count the CPUs, within this process's affinity and its cgroups' quotas."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    logical = psutil.cpu_count(logical=True) or allowed
    cores = psutil.cpu_count(logical=False) or logical
    return Processors(logical, cores, allowed, min(map(cgroup_quota, own_cgroups())))


def thread_count() -> int:
    """Fastest number of threads for decoding on this machine."""
    return processors().threads


def processor_flags(path: Path = Path("/proc/cpuinfo"), release: str | None = None) -> frozenset[str] | None:
    """CPU features as listed by Linux, and those that a kernel of this release may not list; None if unavailable."""
    numbers = re.match(r"(\d+)\.(\d+)", platform.release() if release is None else release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    unlisted = (flag for flag, listed_by in LISTED_BY.items() if version < listed_by)
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:  # of the first CPU: there may be hundreds
            pairs = (line.partition(":") for line in lines)
            flags = (words for key, _, words in pairs if key.strip() in ("flags", "Features"))
            return frozenset((*next(flags).split(), *unlisted))
    except (OSError, StopIteration):
        return None


def likely_accelerator(root: Path = Path("/")) -> Literal["cuda", "metal", "vulkan"] | None:
    """GPU backend that llama.cpp could be built with for this machine; None if no GPU is evident."""
    if (root / "dev" / "nvidia0").exists() or shutil.which("nvidia-smi"):
        return "cuda"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "metal"
    renderers = (root / "dev" / "dri").glob("renderD*")  # absent for a card that can only display
    return "vulkan" if next(renderers, None) else None


def own_cgroups(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> list[Path]:
    """Directories of this process's cgroups and their ancestors, also those of cgroup v1's controllers.

    Only the root if the membership is unknown.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return [root]
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    folders = _with_ancestors(root / path.lstrip("/"), root)
    for controllers, path in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        for name in {"memory", "cpu"} & {*controllers.split(",")}:
            folders += _with_ancestors(root / name / path.lstrip("/"), root / name)
    return folders


def _with_ancestors(folder: Path, root: Path) -> list[Path]:
    return [folder, *(each for each in folder.parents if root in (each, *each.parents))]


def cgroup_quota(root: Path) -> float:
    """CPU quota of a cgroup; infinity if unlimited."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            controller = root / "cpu" if (root / "cpu" / "cpu.cfs_quota_us").exists() else root
            quota = (controller / "cpu.cfs_quota_us").read_text().strip()
            period = (controller / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except ValueError:  # "max"
        return math.inf


def available_memory() -> int:
    """Bytes of memory this process can still allocate, within its cgroups."""
    import psutil

    return int(max(0, min(psutil.virtual_memory().available, *map(cgroup_memory, own_cgroups()))))


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, mapped files included; 0 if unknown."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def total_memory() -> int:
    """Bytes of memory of this machine, used or free, within its cgroups."""
    import psutil

    return int(min(psutil.virtual_memory().total, *map(cgroup_limit, own_cgroups())))


def cgroup_limit(root: Path) -> float:
    """Memory limit of a cgroup in bytes; infinity if unlimited."""
    return _integer(root, "memory.max", "memory.limit_in_bytes", "memory/memory.limit_in_bytes")


def cgroup_memory(root: Path) -> float:
    """Bytes a cgroup still allows, reclaimable file cache included; infinity if unlimited or unknown."""
    used = _integer(root, "memory.current", "memory.usage_in_bytes", "memory/memory.usage_in_bytes")
    if math.isinf(used) or math.isinf(limit := cgroup_limit(root)):
        return math.inf
    return limit - used + _cached_bytes(root)


def _integer(root: Path, *names: str) -> float:
    """Number in the first of these files that has one, for cgroup v2 and v1; infinity if none does."""
    for name in names:
        with contextlib.suppress(OSError, ValueError):  # "max"
            return int((root / name).read_text())
    return math.inf


def _cached_bytes(root: Path) -> int:
    """File cache of a cgroup and its descendants, which the system can reclaim."""
    for name in ("memory.stat", "memory/memory.stat"):
        with contextlib.suppress(OSError, ValueError):
            stat = dict(line.split() for line in (root / name).read_text().splitlines())
            prefix = "total_" if "total_active_file" in stat else ""  # of cgroup v1
            return sum(int(stat.get(f"{prefix}{kind}_file", "0")) for kind in ("active", "inactive"))
    return 0


def machine_memory() -> int:
    """Bytes of memory of this machine, ignoring cgroups."""
    import psutil

    return int(psutil.virtual_memory().total)


def save_devices(path: Path, devices: tuple[Device, ...]) -> None:
    """Cache the GPUs llama.cpp found, since finding them requires loading it; failures are ignored."""
    text = json.dumps([asdict(device) for device in devices]).encode()
    with contextlib.suppress(OSError):
        if not path.exists() or path.read_bytes() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, text)


def load_devices(path: Path) -> tuple[Device, ...] | None:
    """Read the cached GPUs; None before the first model was loaded."""
    try:
        listed = json.loads(path.read_bytes())
        return tuple(_device(**each) for each in listed) if isinstance(listed, list) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _device(*, name: str, description: str, free: int, total: int, is_unified: bool = False) -> Device:
    valid = isinstance(name, str) and isinstance(description, str) and type(free) is int and type(total) is int
    if not (valid and isinstance(is_unified, bool)):
        raise TypeError("a value of the wrong type")
    return Device(name, description, free, total, is_unified)
