"""What measured speeds hold for is told without loading anything, and is another text wherever they would not hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cerebrum_cli.engine.bench.fingerprint import (
    CPUINFO_BYTES,
    build_fingerprint,
    machine_fingerprint,
    memory_gb,
    processor_name,
)
from cerebrum_cli.engine.plan import Device

CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor @ 2.10GHz
flags\t\t: fpu vme de pse : tsc

processor\t: 1
model name\t: another
"""
NAMES = "from cerebrum_cli.engine.bench.fingerprint import *\nprint(build_fingerprint(), machine_fingerprint(None))"
LOADED = "\nimport sys; print(sorted({'llama_cpp', 'numpy', 'psutil'} & {*sys.modules}))"
GPUS = tuple(Device(name, "NVIDIA H200", 1, 2) for name in ("CUDA0", "CUDA1"))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the libraries of a llama.cpp that stands in the place of ours."""
    package = tmp_path / "site" / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('nobody has to load this')\n")
    for name in ("libllama.so", "libggml.so"):
        (package / "lib" / name).write_bytes(b"machine code")
        os.utime(package / "lib" / name, ns=(1, 1))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    return package / "lib"


def test_the_processors_name_is_the_first_ones(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO)
    assert processor_name(path) == "Intel(R) Xeon(R) Processor @ 2.10GHz"
    path.write_text(CPUINFO + CPUINFO * 1000)
    assert processor_name(path) == "Intel(R) Xeon(R) Processor @ 2.10GHz"


@pytest.mark.parametrize("text", ["", "processor : 0\nBogoMIPS : 50.00\n", "model name\n", "model name :  \n"])
def test_where_no_name_is_told_the_systems_word_for_it_is_taken(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_name(tmp_path / "cpuinfo") == processor_name(tmp_path / "nowhere") != ""


def test_a_name_cut_in_the_middle_of_a_letter_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_bytes(b"model name : " + "é".encode() * CPUINFO_BYTES)
    assert processor_name(tmp_path / "cpuinfo").startswith("éé")


def test_a_machine_is_its_processors_memory_and_accelerators() -> None:
    alone, with_gpus = machine_fingerprint(()), machine_fingerprint(GPUS)
    assert re.fullmatch(r".+, \d+ processors, \d+ GB, no GPU", alone)
    assert alone == machine_fingerprint(None)
    assert with_gpus == alone.replace("no GPU", "NVIDIA H200, NVIDIA H200")
    assert f", {memory_gb()} GB" in alone
    assert memory_gb() > 0


def test_how_much_memory_of_an_accelerator_is_free_makes_no_other_machine() -> None:
    assert machine_fingerprint((Device("CUDA0", "NVIDIA H200", 9, 10),)) == machine_fingerprint(
        (Device("CUDA0", "NVIDIA H200", 1, 10),)
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_fewer_processors_make_another_machine() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert ", 1 processors, " in machine_fingerprint(())
    finally:
        os.sched_setaffinity(0, allowed)


def test_another_library_is_another_build(library: Path) -> None:
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


def test_the_same_libraries_elsewhere_are_the_same_build(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_fingerprint()
    other = library.parents[2] / "other" / "llama_cpp"
    shutil.copytree(library.parent, other)
    monkeypatch.syspath_prepend(str(other.parent))
    assert build_fingerprint() == first


def test_a_library_that_cannot_be_looked_at_is_no_failure(library: Path) -> None:
    first = build_fingerprint()
    (library / "libgone.so").symlink_to(library / "nowhere.so")
    assert build_fingerprint() != first


def test_without_llama_cpp_there_is_no_build(library: Path) -> None:
    shutil.rmtree(library)
    assert build_fingerprint() == "none"


def test_nothing_heavy_is_loaded_to_tell_machine_and_build() -> None:
    script = [sys.executable, "-c", NAMES + LOADED]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True)
    told, loaded = done.stdout.splitlines()
    assert told == f"{build_fingerprint()} {machine_fingerprint(None)}"
    assert loaded == "[]"
