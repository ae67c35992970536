"""Results of checks, and the assessment of their findings: whether there is a problem, and the fix. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Literal

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.llama_cpp import rebuild_command
from cerebrum_cli.core.text import enumeration, format_count, format_size
from cerebrum_cli.engine.capacity import Build, MachineState

MIN_MEMORY = 2 * 10**9  # bytes; a small model, its KV cache and other programs
MIN_DISK = 5 * 10**9  # bytes; the default model takes 4.4 GB
NEED_SPACE = "free some space, remove models with cerebrum rm, or set HF_HUB_CACHE to a directory on a larger disk"
DATA = "data"  # the use of the directory of chats


Status = Literal["ok", "warning", "failure"]


@frozen
class CheckResult:
    """The result of one check. A warning means that something is slow, limited or not set up yet.

    `name` is that of the check, which `run_checks` adds. `endpoint` names the server that was checked; it is empty for
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
        if not self.endpoint:
            del values["endpoint"]
        return values


def check_result(detail: str, *problems: tuple[str, str]) -> CheckResult:
    """Result of a check: ok, or a warning if there are problems, each with its hint."""
    details = [detail] if detail else []
    details += [problem for problem, _ in problems]
    hints = "; ".join(hint for _, hint in problems)
    return CheckResult("warning" if problems else "ok", "; ".join(details), hints)


@frozen
class DirectoryState:
    """A directory that is written to, or will be created: its use, the device number of its disk, and free bytes.

    The environment variable moves it elsewhere.
    """

    use: str
    variable: str
    path: Path
    writable: bool
    disk: int
    free: int


def assess_build(build: Build, flags: frozenset[str] | None) -> CheckResult:
    """Assess a build that could be loaded: it needs no feature that this CPU lacks."""
    backends = ", ".join(build.backends) or "none"
    features = ", ".join(build.cpu_features) or "no features reported"
    offload = "offload" if build.offloads else "no offload"
    version = f"llama-cpp-python {build.version}, ggml {build.ggml}"
    detail = f"{version}; backends {backends}; {offload}; CPU: {features}"
    unused = build.unused_features(flags)
    if not unused:
        return check_result(detail)
    slow = f"slow: it does not use this CPU's {', '.join(unused)}"
    return check_result(detail, (slow, f"rebuild it: {rebuild_command('-DGGML_NATIVE=on')}"))


def assess_devices(build: Build, likely_accelerator: str | None) -> CheckResult:
    if build.devices:
        return check_result("; ".join(build.gpus))
    if build.offloads:
        problem = "llama.cpp was built for GPUs and finds none"
        return check_result("", (problem, "check the GPU's driver; for NVIDIA, run nvidia-smi"))
    if likely_accelerator is None:
        return check_result("none: everything runs on the CPU")
    problem = "this machine seems to have a GPU, but llama.cpp was built without GPU support"
    command = rebuild_command(f"-DGGML_{likely_accelerator.upper()}=on")
    hint = f"rebuild it: {command}  (in a checkout: make setup ACCEL={likely_accelerator})"
    return check_result("", (problem, hint))


def assess_threads(machine: MachineState, requested: int | None) -> CheckResult:
    processors = machine.processors
    threads = format_count(requested or processors.threads, "thread")
    detail = f"{threads}; {format_count(processors.allowed, 'CPU')} available"
    if processors.quota < inf:
        detail += f", cgroup quota {processors.quota:g}"
    if not requested or requested <= processors.usable:
        return check_result(detail)
    problem = f"{requested} requested, but only {processors.usable} can run concurrently"
    return check_result(detail, (problem, "lower CEREBRUM_THREADS or threads in config.toml"))


def assess_memory(machine: MachineState) -> CheckResult:
    """Assess the memory that this process's cgroups allow it."""
    detail = f"{format_size(machine.memory.available)} of {format_size(machine.memory.total)} free"
    if machine.memory.available >= MIN_MEMORY:
        return check_result(detail)
    problem = f"less than {format_size(MIN_MEMORY)} of memory is free"
    return check_result(detail, (problem, "close other programs, or choose a smaller quantization"))


def assess_disk(directories: Sequence[DirectoryState]) -> CheckResult:
    """Assess free space by disk, and directories that are not writable."""
    uses: dict[int, list[str]] = {}
    problems = []
    for directory in directories:
        uses.setdefault(directory.disk, []).append(directory.use)
        if not directory.writable:
            problems.append((f"{directory.path} is not writable", f"make it writable, or set {directory.variable}"))
    free = {directory.disk: directory.free for directory in directories}
    detail = "; ".join(f"{format_size(free[disk])} free for {enumeration(uses[disk])}" for disk in uses)
    if min(free.values()) < MIN_DISK:
        full = f"less than {format_size(MIN_DISK)} free: a model may not fit"
        problems.append((full, NEED_SPACE))
    result = check_result(detail, *problems)
    if any(directory.use == DATA and not directory.writable for directory in directories):  # chats could not be saved
        return replace(result, status="failure")
    return result
