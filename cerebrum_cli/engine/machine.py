"""This machine: CPUs and memory available to this process, within its cgroups, the GPUs seen last, and its speed.

The speed is that of the memory, and of the fastest replies of any models, which are recorded without their names. The
time of a token is in proportion to the bytes of weights that are read for it, and to the number of layers.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import asdict
from itertools import takewhile
from math import ceil, inf
from pathlib import Path
from timeit import repeat
from typing import Literal, NamedTuple

from cerebrum_cli.core.events import Timings
from cerebrum_cli.core.files import cache_json, read_small_json
from cerebrum_cli.core.llama_cpp import build_fingerprint
from cerebrum_cli.engine.memory import Device, Devices
from cerebrum_cli.gguf.sizes import ModelSizes

# CPU features as llama.cpp names them, and as Linux does in /proc/cpuinfo. An instruction that the CPU lacks kills the
# process, so the two are compared before anything is evaluated. Those that Linux before 5.19 may not list are left out.
CPU_FLAGS = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "SVE": "sve",
}

MIN_CAPACITY = 0.6  # of the fastest core: Cortex-A55 in an RK3588 has 0.52, Cortex-A76 in a Tensor 0.61
CPUINFO = Path("/proc/cpuinfo")
PROCESSES = Path("/proc")
DEVICES_FILE = "devices.json"
DEVICES = Path("/sys/devices")
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
SYSCTL = "/usr/sbin/sysctl"

# Bytes that could be read in the time that a layer takes beside its weights; measured with models of 24 to 30 layers.
LAYER_BYTES = 4_000_000
AVX512_PROMPT_LAYER = 12_000_000  # for a token of a prompt, whose weights take less time
MIN_PREFILL, MIN_STEPS = 32, 16  # tokens; shorter prompts and replies say little about speed
MAX_DRAFTED = 0.3  # draft tokens by step; more slow the steps down
MIN_BYTES = 50_000_000  # of weights read for a token; so do models that caches hold
AVX2_SPEED, AVX512_SPEED = (10e9, 35e9), (14e9, 60e9)  # bytes per second of a thread, measured on AMD EPYC
MEMORY_THREADS = 2  # that read as fast as the memory is on most desktop computers
SPEED_FILE = "speed.json"
READ_BYTES, READS = 128 * 2**20, 5  # more bytes than caches hold


def thread_count() -> int:
    """Fastest number of threads for decoding, within this process's affinity and its cgroups' quotas."""
    if hasattr(os, "sched_getaffinity"):
        return linux_threads(os.sched_getaffinity(0), min(map(cgroup_quota, own_cgroups())))
    return _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or os.cpu_count() or 1


def linux_threads(allowed: Set[int], quota: float) -> int:
    """One thread for each performance core, since threads wait for the slowest core after each operation.

    Linux lists the cores of CPUs, which may be hyper-threads. Where it lists nothing, each CPU is a core.
    """
    folder = DEVICES / "system" / "cpu"
    # an x86 processor that also has efficiency cores lists the others
    fast = allowed & cpus_listed(_text(DEVICES / "cpu_core" / "cpus")) or allowed
    # listed for ARM, with 1024 at most
    capacities = {cpu: _integer(folder / f"cpu{cpu}" / "cpu_capacity") for cpu in fast}
    least = MIN_CAPACITY * max(capacities.values())
    # hyper-threads of a core list the same siblings
    siblings = {
        _text(folder / f"cpu{cpu}" / "topology" / "thread_siblings_list") or cpu
        for cpu, capacity in capacities.items()
        if capacity >= least
    }
    return max(1, ceil(min(len(siblings), quota)))


def cpus_listed(text: str) -> set[int]:
    """CPUs in a list of Linux, such as "0-3,8"."""
    ranges = re.findall(r"(\d+)-?(\d*)", text)
    return {cpu for first, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _text(path: Path) -> str:
    """Text of a file; empty if it does not exist."""
    with suppress(OSError):
        return path.read_text().strip()
    return ""


def _integer(path: Path) -> float:
    """Number in a file; infinity if there is none, such as for "max"."""
    text = _text(path)
    return int(text) if text.isdecimal() else inf


def _sysctl(name: str) -> int:
    """Number that macOS reports by this name; 0 if it knows none."""
    import subprocess

    found = subprocess.run([SYSCTL, "-n", name], capture_output=True, check=False)
    return int(found.stdout or 0)


def processor_flags() -> frozenset[str] | None:
    """CPU features as listed by Linux; None elsewhere."""
    first = _first_processor()
    listed = first.get("flags") or first.get("Features")
    return frozenset(listed.split()) if listed else None


def instruction_set() -> str:
    """The processor's architecture: "x86", or "avx512" if it has that, or another in lower case."""
    architecture = platform.machine().lower()
    if architecture not in ("x86_64", "amd64"):
        return architecture
    flags = processor_flags() or frozenset()
    if "avx512f" in flags:
        return "avx512"
    return "x86"


def processor_name() -> str:
    """Model name of the first processor, or the best substitute that the system offers."""
    return _first_processor().get("model name") or platform.processor() or platform.machine()


def _first_processor() -> dict[str, str]:
    """Properties of the first processor as Linux lists them: listing all takes milliseconds if there are many."""
    properties = {}
    with suppress(OSError), CPUINFO.open(encoding="utf-8", errors="replace") as lines:
        for line in takewhile(str.strip, lines):
            key, _, value = line.partition(":")
            properties[key.strip()] = value.strip()
    return properties


def likely_accelerator(root: Path = Path("/")) -> Literal["cuda", "metal", "vulkan"] | None:
    """GPU backend that llama.cpp could be built with for this machine; None if no GPU is evident."""
    if (root / "dev" / "nvidia0").exists() or shutil.which("nvidia-smi"):
        return "cuda"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "metal"
    if any((root / "dev" / "dri").glob("renderD*")):  # a card that can only display has none
        return "vulkan"
    return None


def own_cgroups() -> list[Path]:
    """Directories of this process's cgroup (v2) and its ancestors; the root if membership is unknown."""
    listed = re.search(r"^0::/(.*)$", _text(MEMBERSHIP), re.MULTILINE)
    folder = CGROUPS / (listed[1] if listed else "")
    return [each for each in (folder, *folder.parents) if each.is_relative_to(CGROUPS)]


def cgroup_quota(root: Path) -> float:
    """CPU quota of a cgroup; infinity if unlimited."""
    limit = re.fullmatch(r"([1-9]\d*) ([1-9]\d*)", _text(root / "cpu.max"))
    return int(limit[1]) / int(limit[2]) if limit else inf


class Memory(NamedTuple):
    """Bytes of memory that this process can still allocate, and of all."""

    available: int
    total: int


def memory() -> Memory:
    """Memory of this machine, within this process's cgroups; cached files that they can drop count as available."""
    available, total = system_memory()
    for folder in own_cgroups():
        used, limit = _integer(folder / "memory.current"), _integer(folder / "memory.max")
        if inf not in (used, limit):
            cached = re.findall(r"^(?:in)?active_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
            available = min(available, int(limit - used) + sum(map(int, cached)))
            total = min(total, int(limit))
    return Memory(max(0, available), total)


def system_memory() -> Memory:
    """Memory without cgroups, as Linux lists it: importing psutil takes 20 ms of each command's start."""
    listed = dict(re.findall(r"^(MemAvailable|MemTotal): +(\d+) kB$", _text(PROCESSES / "meminfo"), re.MULTILINE))
    if len(listed) == 2:
        return Memory(int(listed["MemAvailable"]) * 1024, int(listed["MemTotal"]) * 1024)
    import psutil

    found = psutil.virtual_memory()
    return Memory(found.available, found.total)


def lacking(features: Iterable[str]) -> list[str]:
    """Those of CPU_FLAGS' features that this CPU lacks; empty if its flags are unknown."""
    flags = processor_flags()
    if flags is None:
        return []
    return [name for name in features if CPU_FLAGS[name] not in flags]


def save_devices(records: Path, devices: Devices) -> None:
    """Record the GPUs that llama.cpp found, since finding them requires loading it; failures are ignored."""
    if load_devices(records) != devices:
        cache_json(records / DEVICES_FILE, list(map(asdict, devices)))


def load_devices(records: Path) -> Devices | None:
    """Read the recorded GPUs; None before the first model was loaded."""
    try:
        return tuple(Device(**device) for device in read_small_json(records / DEVICES_FILE))
    except (OSError, ValueError, TypeError):
        return None


class Speed(NamedTuple):
    """Bytes per second: to generate, to evaluate prompts, and of memory that one thread reads; 0 is unknown.

    In a prompt, a layer takes as much time as `prompt_layer` bytes of weights.
    """

    generation: float = 0.0
    prompts: float = 0.0
    bandwidth: float = 0.0
    prompt_layer: int = LAYER_BYTES

    def with_reply(self, sizes: ModelSizes, timings: Timings) -> Speed:
        """The faster of this and of a model's reply, if that is long enough: other programs only slow replies down."""
        steps = timings.decode_steps - timings.draft_n_accepted
        is_short = timings.prefill_tokens < MIN_PREFILL or steps < MIN_STEPS
        if is_short or timings.draft_n > MAX_DRAFTED * steps:
            return self
        generation = steps / timings.decode_s * token_work(sizes, LAYER_BYTES)
        prompts = timings.prompt_tokens_per_second * token_work(sizes, self.prompt_layer)
        return self._replace(generation=max(self.generation, generation), prompts=max(self.prompts, prompts))


def token_work(sizes: ModelSizes, layer: int) -> float:
    """Bytes that could be read in the time of a token."""
    return sizes.active_bytes + layer * len(sizes.layers)


def expected_speed(threads: int, has_avx512: bool, recorded: Speed) -> Speed:
    """The speed before any reply, limited by that of the memory if it is known."""
    generation, prompts = AVX512_SPEED if has_avx512 else AVX2_SPEED
    read = threads * generation
    if recorded.bandwidth:
        read = min(read, MEMORY_THREADS * recorded.bandwidth)
    return recorded._replace(generation=read, prompts=threads * prompts)


def load_speed(records: Path) -> Speed:
    """The speed of replies on this machine; before there are any, the one to expect."""
    recorded = _read_speed(records)
    if recorded.generation:
        return recorded
    return expected_speed(thread_count(), instruction_set() == "avx512", recorded)


def record_replies(records: Path, sizes: ModelSizes, replies: Iterable[Timings]) -> None:
    """Record how fast a model on this machine has replied; failures are ignored."""
    recorded = speed = _read_speed(records)
    for timings in replies:
        speed = speed.with_reply(sizes, timings)
    if speed != recorded:
        _write_speed(records, speed)


def record_bandwidth(records: Path) -> None:
    """Measure how fast a thread reads memory, unless anything is recorded; takes 0.2 s."""
    recorded = _read_speed(records)
    if recorded.generation or recorded.bandwidth:
        return
    data = b"\1" * READ_BYTES
    seconds = min(repeat(lambda: data.find(0), number=1, repeat=READS))
    _write_speed(records, Speed(bandwidth=READ_BYTES / seconds))


def _read_speed(records: Path) -> Speed:
    layer = AVX512_PROMPT_LAYER if instruction_set() == "avx512" else LAYER_BYTES
    try:
        generation, prompts, bandwidth = read_small_json(records / SPEED_FILE)[_machine_name()]
        return Speed(generation, prompts, bandwidth, layer)
    except (OSError, ValueError, TypeError, KeyError):
        return Speed(prompt_layer=layer)


def _write_speed(records: Path, speed: Speed) -> None:
    cache_json(records / SPEED_FILE, {_machine_name(): (speed.generation, speed.prompts, speed.bandwidth)})


def _machine_name() -> str:
    return f"{processor_name()}, {thread_count()} threads, {build_fingerprint()}"
