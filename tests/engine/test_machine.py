"""The machine and the build of llama.cpp: cached GPUs, memory limits of cgroups, and fingerprints."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import psutil
import pytest

from cerebrum_cli.core import llama_cpp
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.memory import Device

GPU = Device("CUDA0", "NVIDIA H200", 140_000_000_000, 150_000_000_000)
STRANGE = Device("", 'größe "\udcff" \n', 0, 0)


def test_devices_are_saved_if_changed_and_loaded(tmp_path: Path) -> None:
    records = tmp_path / "new" / "data"
    path = records / "devices.json"
    assert machine.load_devices(records) is None
    for devices in ((), (GPU,), (GPU, STRANGE)):
        machine.save_devices(records, devices)
        assert machine.load_devices(records) == devices
    assert [each.name for each in records.iterdir()] == ["devices.json"]
    os.utime(path, (1, 1))
    machine.save_devices(records, (GPU, STRANGE))
    assert path.stat().st_mtime == 1
    unwritable = path
    machine.save_devices(unwritable, (GPU,))
    assert machine.load_devices(unwritable) is None


def test_this_machine_reports_plausible_memory() -> None:
    found = machine.memory()
    assert 0 < found.available <= found.total <= psutil.virtual_memory().total


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of this process's cgroup, the second of three."""
    (tmp_path / "membership").write_text("4:pids:/elsewhere\n0::/user.slice/me.scope\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    folder = tmp_path / "cgroup" / "user.slice" / "me.scope"
    folder.mkdir(parents=True)
    return folder


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "damaged"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
    ],
)
def test_cgroups_limit_the_cpus(cgroup: Path, files: dict[str, str], quota: float) -> None:
    write_files(cgroup.parent, files)
    assert machine.own_cgroups() == [cgroup, cgroup.parent, cgroup.parent.parent]
    assert min(map(machine.cgroup_quota, machine.own_cgroups())) == quota


MEMORY = {"memory.max": "1000\n", "memory.current": "600\n"}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, None),
        ({"memory.max": "max\n", "memory.current": "5\n", "memory.stat": ""}, None),
        ({**MEMORY, "memory.stat": "anon 600\n"}, 400),
        ({**MEMORY, "memory.stat": "active_file 100\ninactive_file 250\n"}, 750),
    ],
)
def test_cgroups_limit_the_memory_without_cached_files(
    cgroup: Path, files: dict[str, str], available: int | None
) -> None:
    write_files(cgroup.parent, files)
    found, whole = machine.memory(), psutil.virtual_memory().total
    assert found.total == (1000 if available else whole)
    assert not available or found.available == available


def record_cpus(
    devices: Path, cores: list[set[int]], hybrid: str = "", capacities: dict[int, int] | None = None
) -> Path:
    """Write what Linux lists in /sys/devices: the CPUs of each core, those of a hybrid's P-cores, and capacities."""
    siblings = {cpu: ",".join(map(str, sorted(core))) for core in cores for cpu in core}
    for cpu, text in siblings.items():
        folder = devices / "system" / "cpu" / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology" / "thread_siblings_list").write_text(f"{text}\n")
        if capacities:
            (folder / "cpu_capacity").write_text(f"{capacities[cpu]}\n")
    if hybrid:
        (devices / "cpu_core").mkdir()
        (devices / "cpu_core" / "cpus").write_text(f"{hybrid}\n")
    return devices


PAIRS, ALONE = [{n, n + 1} for n in range(0, 12, 2)], [{n} for n in range(12, 20)]
EIGHT, TWO = [{n} for n in range(8)], [{0}, {1}]
BIG_LITTLE = dict.fromkeys(range(4), 530) | dict.fromkeys(range(4, 8), 1024)
THREE_KINDS = dict.fromkeys(range(4), 250) | dict.fromkeys((4, 5), 620) | dict.fromkeys((6, 7), 1024)


@pytest.mark.parametrize(
    ("listed", "allowed", "quota", "threads"),
    [
        ((PAIRS + ALONE, "0-11"), range(20), math.inf, 6),  # 6 P-cores, 8 E-cores
        ((PAIRS + ALONE, "0-3,6-11"), range(20), 8.0, 5),
        ((PAIRS + ALONE, "0-11"), (4, 5), math.inf, 1),  # a cpuset of both hyper-threads of a core
        ((PAIRS + ALONE, "0-11"), (14, 15, 16), math.inf, 3),
        ((EIGHT, "", BIG_LITTLE), range(8), math.inf, 4),
        ((EIGHT, "", BIG_LITTLE), range(4), math.inf, 4),
        ((EIGHT, "", THREE_KINDS), range(8), math.inf, 4),
        ((TWO,), (0, 1), 1.5, 2),
        ((TWO,), (0, 1), 0.5, 1),
        (([],), (0, 2, 3), math.inf, 3),
    ],
)
def test_default_threads_are_the_performance_cores(
    listed: tuple[Any, ...],
    allowed: Iterable[int],
    quota: float,
    threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "DEVICES", record_cpus(tmp_path, *listed))
    assert machine.linux_threads({*allowed}, quota) == threads


@pytest.mark.parametrize(
    ("numbers", "threads"),
    [
        ({"hw.physicalcpu": 10, "hw.perflevel0.physicalcpu": 8}, 8),
        ({"hw.physicalcpu": 4}, 4),  # with Intel's processors
        ({}, 16),
    ],
)
def test_default_threads_on_macos(
    numbers: dict[str, int], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysctl = tmp_path / "sysctl"
    sysctl.write_text("#!/bin/sh\n" + "".join(f"[ $2 = {name} ] && echo {numbers[name]}\n" for name in numbers))
    sysctl.chmod(0o700)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(machine, "SYSCTL", sysctl)
    assert machine.thread_count() == threads


CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor @ 2.10GHz
flags\t\t: fpu vme de pse : tsc

processor\t: 1
model name\t: another
"""


def test_processor_name_is_that_of_the_first_core_or_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", path)
    path.write_text(CPUINFO)
    assert machine.processor_name() == "Intel(R) Xeon(R) Processor @ 2.10GHz"
    path.write_text("processor : 0\nBogoMIPS : 50.00\n")
    unnamed = machine.processor_name()
    path.unlink()
    assert machine.processor_name() == unnamed != ""


@pytest.mark.parametrize(
    ("architecture", "flags", "expected"),
    [
        ("x86_64", {"avx2", "avx512f"}, "avx512"),
        ("AMD64", {"avx2"}, "x86"),
        ("x86_64", None, "x86"),
        ("arm64", {"asimd"}, "arm64"),
    ],
)
def test_instruction_set_names_what_kernels_depend_on(
    architecture: str, flags: set[str] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: architecture)
    monkeypatch.setattr(machine, "processor_flags", lambda: flags)
    assert machine.instruction_set() == expected


def test_build_fingerprint_changes_with_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("llama_cpp", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: spec)
    seen, library = [llama_cpp.build_fingerprint()], tmp_path / "lib" / "libllama.so"
    library.parent.mkdir()
    for path, time in ((library, 1), (library, 2), (library.with_name("libggml-cuda.so"), 2)):
        path.write_bytes(b"machine code")
        os.utime(path, ns=(1, time))
        seen.append(llama_cpp.build_fingerprint())
    assert seen[0] == "none" and re.fullmatch("[0-9a-f]{16}", seen[1]) and len({*seen}) == len(seen)
