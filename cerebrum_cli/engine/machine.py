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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
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
CPUINFO = Path("/proc/cpuinfo")
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

    allowed = allowed_processors()
    logical = psutil.cpu_count(logical=True) or allowed
    return Processors(logical, psutil.cpu_count(logical=False) or logical, allowed, processor_quota())


def allowed_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_quota() -> float:
    """CPUs that the cgroups of this process may use; infinity if unlimited."""
    return min(map(cgroup_quota, own_cgroups()))


def thread_count() -> int:
    return processors().threads


def processor_flags(path: Path = CPUINFO, release: str | None = None) -> frozenset[str] | None:
    """CPU features as listed by Linux, and those that a kernel of this release may not list; None if unavailable."""
    numbers = re.match(r"(\d+)\.(\d+)", platform.release() if release is None else release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    first = _first_processor(path)
    flags = first.get("flags") or first.get("Features")
    unlisted = (flag for flag, listed_by in LISTED_BY.items() if version < listed_by)
    return frozenset((*flags.split(), *unlisted)) if flags else None


def processor_name(path: Path = CPUINFO) -> str:
    """Model name of the first processor, or the best substitute that the system offers."""
    return _first_processor(path).get("model name") or platform.processor() or platform.machine()


def _first_processor(path: Path) -> dict[str, str]:
    """What Linux lists of the first processor: listing all takes milliseconds where there are many."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            pairs = (line.partition(":") for line in takewhile(str.strip, lines))
            return {key.strip(): value.strip() for key, _, value in pairs}
    except OSError:
        return {}


def likely_accelerator(root: Path = Path("/")) -> Literal["cuda", "metal", "vulkan"] | None:
    """GPU backend that llama.cpp could be built with for this machine; None if no GPU is evident."""
    if (root / "dev" / "nvidia0").exists() or shutil.which("nvidia-smi"):
        return "cuda"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "metal"
    return "vulkan" if any((root / "dev" / "dri").glob("renderD*")) else None  # a card that can only display has none


def own_cgroups(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> set[Path]:
    """Directories of this process's cgroups, also of v1, and their ancestors; the root if membership is unknown."""
    mounts = [(root, "/")]
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            names = {"memory", "cpu"} & {*controllers.split(",")}
            mounts += [(root / name, path) for name in names] if controllers else [(root, path)]
    folders = ((mount, mount / path.lstrip("/")) for mount, path in mounts)
    return {each for mount, folder in folders for each in (folder, *folder.parents) if each.is_relative_to(mount)}


def cgroup_quota(root: Path) -> float:
    """CPU quota of a cgroup; infinity if unlimited."""
    v1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    for folder, names in ((root, ("cpu.max",)), (root / "cpu", v1), (root, v1)):
        with contextlib.suppress(OSError, ValueError):  # "max"
            quota, period = (int(number) for name in names for number in (folder / name).read_text().split())
            return quota / period if quota > 0 else math.inf
    return math.inf


def available_memory() -> int:
    """Bytes of memory this process can still allocate, within its cgroups."""
    import psutil

    return int(max(0, min(psutil.virtual_memory().available, *map(cgroup_memory, own_cgroups()))))


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, mapped files included."""
    import resource

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
    """Bytes of memory of this machine, ignoring cgroups; 0 if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def machine_fingerprint(devices: Sequence[Device] | None) -> str:
    """Text that identifies the hardware, for which measured speeds are valid: processor, cores, memory in GB, GPUs."""
    count = math.ceil(min(allowed_processors(), processor_quota()))
    gpus = ", ".join(device.description for device in devices or ()) or "no GPU"
    return f"{processor_name()}, {count} processors, {round(machine_memory() / 1e9)} GB, {gpus}"


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
        return tuple(Device(**each) for each in json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
