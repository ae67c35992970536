"""Results of checks, and the assessment of their findings: whether there is a problem, and the fix. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Literal

from cerebrum_cli.core.text import enumeration, format_count, format_size
from cerebrum_cli.engine.machine import CPU_FLAGS, KEY_FEATURES, Build, Processors, lacking, rebuild_command

MIN_MEMORY = 2 * 10**9  # bytes; a small model, its KV cache and other programs
MIN_DISK = 5 * 10**9  # bytes; the default model takes 4.4 GB


Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. A warning means that something is slow, limited or not set up yet.

    `name` is that of the check, which `run_table` adds. `endpoint` names the server that was checked; it is empty for
    checks of this machine.
    """

    status: Status
    detail: str
    hint: str = ""
    name: str = ""
    endpoint: str = ""

    @property
    def recorded(self) -> dict[str, str]:
        values = {"name": self.name, **asdict(self)}
        return {key: value for key, value in values.items() if value or key != "endpoint"}


def check_result(detail: str, *problems: tuple[str, str] | None) -> CheckResult:
    """Result of a check: ok, or a warning if there are problems, each with its hint."""
    warnings = [problem for problem in problems if problem]
    details = "; ".join(filter(None, [detail, *(problem for problem, _ in warnings)]))
    return CheckResult("warning" if warnings else "ok", details, "; ".join(hint for _, hint in warnings))


@dataclass(frozen=True, slots=True)
class DirectoryState:
    """A directory that is written to, or will be created: its use, the device number of its disk, and free bytes."""

    use: str
    path: Path
    writable: bool
    disk: int
    free: int


def assess_build(build: Build, flags: frozenset[str] | None) -> CheckResult:
    detail = (
        f"llama-cpp-python {build.version}, ggml {build.ggml}; backends {', '.join(build.backends) or 'none'};"
        f" {'offload' if build.offloads else 'no offload'};"
        f" CPU: {', '.join(build.cpu_features) or 'no features reported'}"
    )
    if unsupported := lacking(build.cpu_features, flags):
        return CheckResult(
            "failure",
            f"{detail}; built for another CPU: this one lacks {', '.join(unsupported)}",
            f"rebuild it on this machine: {rebuild_command()}",
        )
    unused = [name for name in KEY_FEATURES if CPU_FLAGS[name] in (flags or ()) and name not in build.cpu_features]
    slow = f"slow: it does not use this CPU's {', '.join(unused)}", f"rebuild it: {rebuild_command('-DGGML_NATIVE=on')}"
    return check_result(detail, slow if unused else None)


def assess_devices(build: Build, likely_accelerator: str | None) -> CheckResult:
    if build.offloads and not build.devices:
        problem = "llama.cpp was built for GPUs and finds none"
        return check_result("", (problem, "check the GPU's driver; for NVIDIA, run nvidia-smi"))
    if likely_accelerator and not build.devices:
        problem = "this machine seems to have a GPU, but llama.cpp was built without GPU support"
        command = rebuild_command(f"-DGGML_{likely_accelerator.upper()}=on")
        return check_result(
            "", (problem, f"rebuild it: {command}  (in a checkout: make setup ACCEL={likely_accelerator})")
        )
    devices = (
        f"{device.name} {device.description}: {format_size(device.free)} of {format_size(device.total)} free"
        for device in build.devices
    )
    return check_result("; ".join(devices) or "none: everything runs on the CPU")


def assess_threads(processors: Processors, requested: int | None) -> CheckResult:
    slower = processors.cores - processors.performance_cores
    detail = (
        f"{format_count(requested or processors.threads, 'thread')};"
        f" {format_count(processors.cores, 'core')} available"
        + (f" ({slower} of them efficiency cores)" if slower else "")
        + f", {processors.allowed} of {processors.logical} logical CPUs allowed, "
        + ("no cgroup quota" if processors.quota == inf else f"cgroup quota {processors.quota:g}")
    )
    too_many = (
        f"{requested} requested, but only {processors.usable} can run concurrently",
        "lower CEREBRUM_THREADS or threads in config.toml",
    )
    return check_result(detail, too_many if requested and requested > processors.usable else None)


def assess_memory(free: int, total: int, machine: int) -> CheckResult:
    """Assess the free bytes of memory; `total` is within this process's cgroups, `machine` is without."""
    limit = ""
    if total < machine:
        limit = f"; a cgroup allows {format_size(total)} of the machine's {format_size(machine)}"
    too_little = (
        f"less than {format_size(MIN_MEMORY)} of memory is free",
        "close other programs, or choose a smaller quantization",
    )
    return check_result(
        f"{format_size(free)} of {format_size(total)} free{limit}", too_little if free < MIN_MEMORY else None
    )


def assess_disk(directories: Sequence[DirectoryState]) -> CheckResult:
    """Assess free space by disk. Only a data directory that is not writable fails: chats could not be saved."""
    free = {directory.disk: directory.free for directory in directories}
    uses = {disk: enumeration([item.use for item in directories if item.disk == disk]) for disk in free}
    detail = "; ".join(f"{format_size(free[disk])} free for {uses[disk]}" for disk in free)
    if data := next((item for item in directories if item.use == "data" and not item.writable), None):
        return CheckResult(
            "failure",
            f"{detail}; {data.path} is not writable",
            "make it writable, or set XDG_DATA_HOME to a writable directory",
        )
    full = (
        f"less than {format_size(MIN_DISK)} free: a model may not fit",
        "free some space, remove models with cerebrum rm, or set HF_HUB_CACHE to a directory on a larger disk",
    )
    unwritable = [item.path for item in directories if item.use == "models" and not item.writable]
    return check_result(
        detail,
        full if min(free.values()) < MIN_DISK else None,
        (f"{unwritable[0]} is not writable", "make it writable, or set HF_HUB_CACHE") if unwritable else None,
    )


def assess_prompt_cache(directory: DirectoryState, files: int, size: int, limit: float) -> CheckResult:
    """Assess the prompt cache on disk; sizes are in bytes, and a limit of 0 turns it off."""
    if not limit:
        return check_result(f"off (cache_gb is 0); {format_size(size)} still on disk")
    problem = f"{directory.path} is not writable, so no prompt can be cached", "make it writable, or set cache_gb to 0"
    return check_result(
        f"{format_count(files, 'file')}, {format_size(size)} of at most {format_size(int(limit))}",
        None if directory.writable else problem,
    )
