"""Fingerprints of the machine and of the llama.cpp build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cerebrum_cli.engine.build import build_fingerprint
from cerebrum_cli.engine.machine import machine_fingerprint, memory_gb, processor_name
from cerebrum_cli.engine.memory import Device

CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor @ 2.10GHz
flags\t\t: fpu vme de pse : tsc

processor\t: 1
model name\t: another
"""
NAMES = (
    "from cerebrum_cli.engine import build, machine\n"
    "print(build.build_fingerprint(), machine.machine_fingerprint(None))"
)
LOADED = "\nimport sys; print(sorted({'llama_cpp', 'numpy', 'psutil'} & {*sys.modules}))"
GPUS = tuple(Device(name, "NVIDIA H200", 1, 2) for name in ("CUDA0", "CUDA1"))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a fake llama.cpp package, and get the directory of its libraries."""
    package = tmp_path / "site" / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('must not be imported')\n")
    for name in ("libllama.so", "libggml.so"):
        (package / "lib" / name).write_bytes(b"machine code")
        os.utime(package / "lib" / name, ns=(1, 1))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    return package / "lib"


def test_processor_name_is_that_of_the_first_core(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO)
    assert processor_name(path) == "Intel(R) Xeon(R) Processor @ 2.10GHz"
    path.write_text(CPUINFO + CPUINFO * 1000)
    assert processor_name(path) == "Intel(R) Xeon(R) Processor @ 2.10GHz"


@pytest.mark.parametrize("text", ["", "processor : 0\nBogoMIPS : 50.00\n", "model name\n", "model name :  \n"])
def test_processor_name_falls_back_to_the_platform(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_name(tmp_path / "cpuinfo") == processor_name(tmp_path / "nowhere") != ""


def test_processor_name_may_end_within_a_character(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_bytes(b"model name : " + "é".encode() * 4096)
    assert processor_name(tmp_path / "cpuinfo").startswith("éé")


def test_machine_fingerprint_has_cores_memory_and_gpus() -> None:
    alone, with_gpus = machine_fingerprint(()), machine_fingerprint(GPUS)
    assert re.fullmatch(r".+, \d+ processors, \d+ GB, no GPU", alone)
    assert alone == machine_fingerprint(None)
    assert with_gpus == alone.replace("no GPU", "NVIDIA H200, NVIDIA H200")
    assert f", {memory_gb()} GB" in alone
    assert memory_gb() > 0


def test_machine_fingerprint_ignores_free_gpu_memory() -> None:
    assert machine_fingerprint((Device("CUDA0", "NVIDIA H200", 9, 10),)) == machine_fingerprint(
        (Device("CUDA0", "NVIDIA H200", 1, 10),)
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")
def test_machine_fingerprint_counts_available_cores() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert ", 1 processors, " in machine_fingerprint(())
    finally:
        os.sched_setaffinity(0, allowed)


def test_build_fingerprint_changes_with_the_libraries(library: Path) -> None:
    first = build_fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert build_fingerprint() == first
    seen = {first}
    os.utime(library / "libllama.so", ns=(1, 2))
    seen.add(build_fingerprint())
    (library / "libllama.so").write_bytes(b"other machine code")
    os.utime(library / "libllama.so", ns=(1, 1))
    seen.add(build_fingerprint())
    shutil.copy2(library / "libggml.so", library / "libggml-cuda.so")
    seen.add(build_fingerprint())
    (library / "libggml.so").unlink()
    seen.add(build_fingerprint())
    assert len(seen) == 5


def test_build_fingerprint_ignores_the_directory(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_fingerprint()
    other = library.parents[2] / "other" / "llama_cpp"
    shutil.copytree(library.parent, other)
    monkeypatch.syspath_prepend(str(other.parent))
    assert build_fingerprint() == first


def test_build_fingerprint_allows_a_broken_link(library: Path) -> None:
    first = build_fingerprint()
    (library / "libgone.so").symlink_to(library / "nowhere.so")
    assert build_fingerprint() != first


def test_build_fingerprint_is_none_without_llama_cpp(library: Path) -> None:
    shutil.rmtree(library)
    assert build_fingerprint() == "none"


def test_fingerprints_import_nothing_heavy() -> None:
    script = [sys.executable, "-c", NAMES + LOADED]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True)
    fingerprints, loaded = done.stdout.splitlines()
    assert fingerprints == f"{build_fingerprint()} {machine_fingerprint(None)}"
    assert loaded == "[]"
