"""CPUs and memory available to this process, within its cgroups; the GPUs seen last; and llama.cpp's build."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Literal

from cerebrum_cli.core.files import atomic_write, read_small, read_small_json
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.engine.memory import Device

# CPU features as llama.cpp names them, and as Linux does in /proc/cpuinfo. An instruction that the CPU lacks kills the
# process, so the two are compared before anything is evaluated.
CPU_FLAGS: Mapping[str, str] = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX_VNNI": "avx_vnni",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
    "SME": "sme",
}
KEY_FEATURES = ("AVX2", "FMA", "F16C", "DOTPROD")  # many times slower without; others change speed by a fraction
REQUIREMENT = "llama-cpp-python>=0.3.36,<0.3.37"  # as in pyproject.toml

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
MAX_OPEN_FILES = 10_240  # macOS refuses more where its hard limit is unlimited
MIN_CAPACITY = 0.6  # of the fastest core: Cortex-A55 in an RK3588 has 0.52, Cortex-A76 in a Tensor 0.61
CPUINFO, DEVICES = Path("/proc/cpuinfo"), Path("/sys/devices")
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes", "memory/memory.limit_in_bytes")  # of cgroup v2 and v1
MEMORY_USED = ("memory.current", "memory.usage_in_bytes", "memory/memory.usage_in_bytes")
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Processors:
    """Logical CPUs of this machine, and what this process may use of it.

    Hyper-threads count as `allowed` CPUs, but not as `cores`. `performance_cores` are the cores that are not efficiency
    cores, or all if there are none. `quota` is that of the cgroups, in CPUs.
    """

    logical: int
    allowed: int
    cores: int
    performance_cores: int
    quota: float

    @property
    def threads(self) -> int:
        """Fastest number of threads for decoding: the threads wait for the slowest core after each operation."""
        return self._within_quota(self.performance_cores)

    @property
    def most_threads(self) -> int:
        """Largest number of threads that may be faster: with efficiency cores, or, without any, with hyper-threads."""
        return self._within_quota(self.cores if self.cores > self.performance_cores else self.allowed)

    @property
    def usable(self) -> int:
        """Number of threads that can run concurrently, hyper-threads included."""
        return self._within_quota(self.allowed)

    def _within_quota(self, count: int) -> int:
        return max(1, math.ceil(min(count, self.quota)))


def processors() -> Processors:
    """Count the CPUs, within this process's affinity and its cgroups' quotas."""
    logical = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return linux_processors(logical, os.sched_getaffinity(0), min(map(cgroup_quota, own_cgroups())))
    cores = _sysctl("hw.physicalcpu") or logical
    return Processors(logical, logical, cores, _sysctl("hw.perflevel0.physicalcpu") or cores, math.inf)


def linux_processors(logical: int, allowed: Set[int], quota: float, devices: Path = DEVICES) -> Processors:
    """Count cores by what Linux lists in `devices`; where it lists nothing, each CPU is a performance core."""
    folders = {cpu: devices / "system" / "cpu" / f"cpu{cpu}" for cpu in allowed}
    # an x86 processor that also has efficiency cores lists the others, as "0-11", for example
    ranges = (part.partition("-") for part in _text(devices, "cpu_core/cpus").split(",") if part)
    performance = {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}
    fast = allowed & performance or allowed
    capacities = {cpu: _integer(folders[cpu], "cpu_capacity") for cpu in fast}  # listed for ARM, with 1024 at most
    fast = {cpu for cpu in fast if capacities[cpu] >= MIN_CAPACITY * max(capacities.values())}
    siblings = {cpu: _text(folder, "topology/thread_siblings_list") or cpu for cpu, folder in folders.items()}
    cores, performance_cores = (len({siblings[cpu] for cpu in cpus}) for cpus in (allowed, fast))
    return Processors(logical, len(allowed), cores, performance_cores, quota)


def _text(root: Path, *names: str) -> str:
    """Text of the first of these files that exists; empty if none does."""
    for name in names:
        with contextlib.suppress(OSError):
            return (root / name).read_text().strip()
    return ""


def _integer(root: Path, *names: str) -> float:
    """Number in the first of these files that exists; infinity if there is none, such as for "max"."""
    text = _text(root, *names)
    return int(text) if text.isdecimal() else math.inf


def _sysctl(name: str) -> int:
    """Number that macOS reports by this name; 0 if it knows none."""
    import ctypes

    value, size = ctypes.c_int64(), ctypes.c_size_t(8)
    library = ctypes.CDLL(None)
    failed = library.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return 0 if failed else value.value


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


def instruction_set() -> str:
    """The processor's architecture: "x86", or "avx512" if it has that, or another in lower case."""
    architecture = platform.machine().lower()
    if architecture not in ("x86_64", "amd64"):
        return architecture
    return "avx512" if "avx512f" in (processor_flags() or ()) else "x86"


def processor_name(path: Path = CPUINFO) -> str:
    """Model name of the first processor, or the best substitute that the system offers."""
    return _first_processor(path).get("model name") or platform.processor() or platform.machine()


def _first_processor(path: Path) -> dict[str, str]:
    """Properties of the first processor as Linux lists them: listing all takes milliseconds if there are many."""
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
    return {path for mount, folder in folders for path in (folder, *folder.parents) if path.is_relative_to(mount)}


def cgroup_quota(root: Path) -> float:
    """CPU quota of a cgroup; infinity if unlimited."""
    v1 = (_text(root, f"cpu/cpu.cfs_{name}_us", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    with contextlib.suppress(ValueError):  # "max"
        quota, period = map(int, (_text(root, "cpu.max") or " ".join(v1)).split())
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


def raise_open_files() -> int:
    """Raise the limit of this process's open files, connections included, as far as it may be; return it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    if soft < highest:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def total_memory() -> int:
    """Bytes of memory of this machine, used or free, within its cgroups."""
    import psutil

    return int(min(psutil.virtual_memory().total, *(_integer(root, *MEMORY_LIMITS) for root in own_cgroups())))


def cgroup_memory(root: Path) -> float:
    """Bytes a cgroup still allows, reclaimable file cache included; infinity if unlimited or unknown."""
    used, limit = _integer(root, *MEMORY_USED), _integer(root, *MEMORY_LIMITS)
    if math.inf in (used, limit):
        return math.inf
    stat = dict(re.findall(r"^(\w+) (\d+)$", _text(root, "memory.stat", "memory/memory.stat"), re.MULTILINE))
    prefix = "total_" if "total_active_file" in stat else ""  # of cgroup v1, with its descendants
    return limit - used + sum(int(stat.get(f"{prefix}{kind}_file", "0")) for kind in ("active", "inactive"))


def machine_memory() -> int:
    """Bytes of memory of this machine, ignoring cgroups; 0 if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def machine_fingerprint(devices: Sequence[Device] | None) -> str:
    """Text that identifies the hardware, for which measured speeds are valid: processor, cores, memory in GB, GPUs."""
    gpus = ", ".join(device.description for device in devices or ()) or "no GPU"
    return f"{processor_name()}, {processors().usable} processors, {round(machine_memory() / 1e9)} GB, {gpus}"


def save_devices(path: Path, devices: tuple[Device, ...]) -> None:
    """Cache the GPUs llama.cpp found, since finding them requires loading it; failures are ignored."""
    text = json.dumps([asdict(device) for device in devices]).encode()
    with contextlib.suppress(OSError):
        if not path.exists() or read_small(path) != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, text)


def load_devices(path: Path) -> tuple[Device, ...] | None:
    """Read the cached GPUs; None before the first model was loaded."""
    try:
        return tuple(Device(**device) for device in read_small_json(path))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Build:
    """An installed llama.cpp: versions, backends, the features each was built with, and visible accelerators.

    One that `offloads` was built for GPUs, even if it finds none.
    """

    version: str
    ggml: str
    backends: tuple[str, ...]
    features: Mapping[str, Mapping[str, str]]
    offloads: bool
    devices: tuple[Device, ...]

    @property
    def cpu_features(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.features.get("CPU", {}).items() if value != "0")


def lacking(features: Iterable[str], flags: frozenset[str] | None) -> tuple[str, ...]:
    """Features that a CPU with these flags lacks; empty if the flags are unknown."""
    return tuple(name for name in features if flags and name in CPU_FLAGS and CPU_FLAGS[name] not in flags)


def read_features(text: str) -> dict[str, dict[str, str]]:
    """Parse llama.cpp's system info, such as "CPU : AVX2 = 1 | FMA = 1 | CUDA : ARCHS = 900 | ", by backend."""
    features: dict[str, dict[str, str]] = {}
    backend = ""
    for part in text.split("|"):
        head, colon, pair = part.rpartition(" : ")
        if colon:
            backend = head.strip()
        name, sign, value = pair.partition("=")
        if sign:
            features.setdefault(backend, {})[name.strip()] = value.strip()
    return features


def rebuild_command(option: str = "") -> str:
    arguments = f'CMAKE_ARGS="{option}" ' if option else ""
    return arguments + pip_install(f'--force-reinstall --no-cache-dir --no-deps "{REQUIREMENT}"')


def build_fingerprint() -> str:
    """Digest that identifies a build of llama.cpp, of the names, sizes and times of its libraries."""
    spec = find_spec("llama_cpp") or find_spec("cerebrum_llama")
    folders = (spec and spec.submodule_search_locations) or ()
    paths = [path for folder in folders for path in sorted(Path(folder, "lib").glob("*")) if path.exists()]
    files = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths]
    return sha256("\n".join(files).encode()).hexdigest()[:16] if files else "none"
