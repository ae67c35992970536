"""What `doctor` makes of facts: each is well, or could be better, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from cerebrum_cli.application.doctor.check_result import CheckResult, check_result
from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.build import Build
from cerebrum_cli.engine.machine import Processors

LEAST_MEMORY = 2 * 10**9  # bytes; a small model, its cache and the rest of the machine
LEAST_DISK = 5 * 10**9  # bytes; the model that is usually pulled takes 4.4 GB
ON_A_CPU = "small models are fastest on a CPU: cerebrum list --available"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that is written to, or will be made: what for, its disk's number, and the bytes free there."""

    use: str
    path: Path
    writable: bool
    disk: int
    free: int


def rebuilt(option: str) -> str:
    """Return how to have llama.cpp built here with an option of CMake's."""
    arguments = f'CMAKE_ARGS="{option}" ' if option else ""
    return f"{arguments}pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"


def judged_build(build: Build, flags: frozenset[str] | None) -> CheckResult:
    """Judge llama.cpp by what it was built for, and by a processor with these flags."""
    features = ", ".join(build.cpu_features) or "no features reported"
    offload = "offload" if build.offloads else "no offload"
    backends = ", ".join(build.backends) or "none"
    detail = f"llama-cpp-python {build.version}, ggml {build.ggml}; backends {backends}; {offload}; CPU: {features}"
    if foreign := build.unsupported_features(flags):
        what = f"{detail}; built for another processor: this one lacks {', '.join(foreign)}"
        return CheckResult("llama_cpp", "failure", what, f"build it on this machine: {rebuilt('')}")
    if unused := build.unused_features(flags):
        slow = (f"it leaves {', '.join(unused)} of this processor unused and is slow", rebuilt("-DGGML_NATIVE=on"))
        return check_result("llama_cpp", detail, slow)
    return check_result("llama_cpp", detail)


def judged_devices(build: Build, likely: str | None) -> CheckResult:
    """Judge the accelerators llama.cpp finds, beside what the machine seems to have."""
    if build.devices:
        told = (
            f"{device.name} {device.description}: {format_size(device.free)} of {format_size(device.total)} free"
            for device in build.devices
        )
        return check_result("devices", "; ".join(told))
    if build.offloads:
        do = "check its driver; for NVIDIA's: nvidia-smi"
        return check_result("devices", "", (f"llama.cpp, with {', '.join(build.backends)}, finds no GPU", do))
    if likely:
        do = f"{rebuilt(f'-DGGML_{likely.upper()}=on')}  (in a checkout: make setup ACCEL={likely})"
        return check_result(
            "devices", "", ("there seems to be a GPU, but this llama.cpp was built without GPU support", do)
        )
    return check_result("devices", "", ("no GPU: everything runs on the CPU", ON_A_CPU))


def judged_threads(here: Processors, asked: int | None) -> CheckResult:
    """Judge how many threads would be used."""
    quota = "no limit" if here.quota == inf else f"{here.quota:g}"
    detail = (
        f"{asked or here.threads} used; {here.logical} processors in {here.cores} cores,"
        f" affinity {here.allowed}, cgroup {quota}"
    )
    if asked and asked > here.usable:
        what = f"{asked} requested, but only {here.usable} can run at the same time"
        return check_result("threads", detail, (what, "remove --threads, CEREBRUM_THREADS, and threads in config.toml"))
    return check_result("threads", detail)


def judged_memory(free: int, allowed: int, machine: int) -> CheckResult:
    """Judge memory, in bytes: what is free, what this process may have, and what the machine has."""
    limit = (
        f"; a cgroup allows {format_size(allowed)} of the machine's {format_size(machine)}" if allowed < machine else ""
    )
    detail = f"{format_size(free)} of {format_size(allowed)} free{limit}"
    if free < LEAST_MEMORY:
        return check_result(
            "memory", detail, ("very little memory is free", "close other programs, or choose a smaller quantization")
        )
    return check_result("memory", detail)


def judged_disk(places: Sequence[Place]) -> CheckResult:
    """Judge the folders that are written to: the user's data must be kept, of the rest one can do without."""
    disks = dict.fromkeys(place.disk for place in places)
    free = {place.disk: place.free for place in places}
    uses = {disk: in_words([place.use for place in places if place.disk == disk]) for disk in disks}
    detail = "; ".join(f"{format_size(free[disk])} free for {uses[disk]}" for disk in disks)
    if lost := next((place for place in places if place.use == "data" and not place.writable), None):
        do = "make the directory writable, or set XDG_DATA_HOME to one that is"
        return CheckResult("disk", "failure", f"{detail}; {lost.path} is not writable", do)
    if any(free[disk] < LEAST_DISK for disk in disks):
        do = "free some space, remove models with cerebrum rm, or set HF_HUB_CACHE to a directory on a larger disk"
        return check_result("disk", detail, ("a model may not fit", do))
    return check_result("disk", detail)


def judged_states(place: Place, files: int, size: int, limit: float) -> CheckResult:
    """Judge what is kept of what models have read, in bytes; a limit of 0 keeps nothing."""
    if not limit:
        return check_result("prompt_cache", f"off (cache_gb is 0); {format_size(size)} still on disk")
    detail = f"{files or 'no'} files, {format_size(size)} of at most {format_size(int(limit))}"
    if not place.writable:
        do = "make it writable, or set cache_gb to 0"
        return check_result(
            "prompt_cache", detail, (f"{place.path} is not writable, so every prompt is evaluated again", do)
        )
    return check_result("prompt_cache", detail)


def in_words(names: Sequence[str]) -> str:
    """Return names as a sentence has them: "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
