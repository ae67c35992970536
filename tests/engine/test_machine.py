"""The machine: its memory, processor, threads and speed, and whether weights are repacked for it."""

import math
import os
import re
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import psutil
import pytest
from cases import rows
from command_line import CommandLine

from cerebrum_cli.core import llama_cpp
from cerebrum_cli.core.events import Timings
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.capacity import Capacity, Forecast
from cerebrum_cli.engine.llama import load
from cerebrum_cli.engine.llama.load import plan_repacking
from cerebrum_cli.engine.local import MachineRecords
from cerebrum_cli.engine.machine import Speed, expected_speed, instruction_set, thread_count
from cerebrum_cli.engine.memory import Device
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.gguf.contents import Metadata
from cerebrum_cli.gguf.sizes import Hyperparameters, LayerSizes, ModelSizes, model_sizes

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


MEMORY = {"memory.max": "1000\n", "memory.current": "600\n"}


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of this process's cgroup, the second of three."""
    (tmp_path / "membership").write_text("4:pids:/elsewhere\n0::/user.slice/me.scope\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    folder = tmp_path / "cgroup" / "user.slice" / "me.scope"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("files", "quota", "available"),
    [
        ({}, math.inf, None),
        (
            {"cpu.max": "max 100000\n", "memory.max": "max\n", "memory.current": "5\n", "memory.stat": ""},
            math.inf,
            None,
        ),
        ({"cpu.max": "damaged", "memory.max": "1000\n"}, math.inf, None),
        ({"cpu.max": "150000 100000\n", **MEMORY, "memory.stat": "anon 600\n"}, 1.5, 400),
        ({**MEMORY, "memory.stat": "active_file 100\ninactive_file 250\n"}, math.inf, 750),  # cached files
    ],
)
def test_cgroups_limit_cpus_and_memory(
    cgroup: Path, files: dict[str, str], quota: float, available: int | None
) -> None:
    for name, content in files.items():
        (cgroup.parent / name).write_text(content)
    assert machine.own_cgroups() == [cgroup, cgroup.parent, cgroup.parent.parent]
    assert min(map(machine.cgroup_quota, machine.own_cgroups())) == quota
    found, whole = machine.memory(), psutil.virtual_memory().total
    assert found.total == (1000 if available else whole)
    assert found.available == available or (not available and 0 < found.available <= whole)


@pytest.mark.parametrize(
    ("name", "cores", "hybrid", "capacities", "allowed", "quota", "threads"), rows("default_threads")
)
def test_default_threads_are_the_performance_cores(
    name: str,
    cores: list[list[int]],
    hybrid: str,
    capacities: list[int],
    allowed: list[int],
    quota: float | None,
    threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux lists the CPUs of each core in /sys/devices, those of a hybrid's P-cores, and capacities."""
    for cpu, siblings in ((cpu, core) for core in cores for cpu in core):
        folder = tmp_path / "system" / "cpu" / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology" / "thread_siblings_list").write_text(",".join(map(str, siblings)) + "\n")
        if capacities:
            (folder / "cpu_capacity").write_text(f"{capacities[cpu]}\n")
    if hybrid:
        (tmp_path / "cpu_core").mkdir()
        (tmp_path / "cpu_core" / "cpus").write_text(f"{hybrid}\n")
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    assert machine.linux_threads({*allowed}, quota or math.inf) == threads


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


@pytest.mark.parametrize(
    ("architecture", "listed", "name", "instructions"),
    [
        ("x86_64", "model name\t: Xeon\nflags\t\t: avx2 : avx512f\n\nmodel name\t: another\n", "Xeon", "avx512"),
        ("AMD64", "flags : fpu avx2\n\nflags : avx512f\n", "generic", "x86"),
        ("x86_64", None, "generic", "x86"),
        ("arm64", "processor : 0\nBogoMIPS : 50.00\nFeatures : asimd\n", "generic", "arm64"),
    ],
)
def test_processor_is_that_of_the_first_core_or_the_platform(
    architecture: str, listed: str | None, name: str, instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: architecture)
    monkeypatch.setattr("platform.processor", lambda: "generic")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    if listed:
        machine.CPUINFO.write_text(listed)
    assert (machine.processor_name(), machine.instruction_set()) == (name, instructions)


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


MB = 1_000_000
DENSE: Metadata = {"general.architecture": "llama", "llama.block_count": 1}
MIXTURE: Metadata = {**DENSE, "llama.expert_count": 8, "llama.expert_used_count": 2}


@pytest.mark.parametrize(
    ("metadata", "tensors", "active"),
    [
        (DENSE, {"blk.0.ffn_up.weight": 700, "token_embd.weight": 200, "output.weight": 300}, 1000),
        (DENSE, {"blk.0.ffn_up.weight": 700, "token_embd.weight": 200}, 900),  # which are the output matrix, too
        (DENSE, {"blk.0.ffn_up.weight": 700, "token_embd.weight": 200, "per_layer_token_embd.weight": 500}, 900),
        (MIXTURE, {"blk.0.ffn_up_exps.weight": 800, "blk.0.attn_q.weight": 50, "output.weight": 60}, 310),
        (DENSE, {}, 0),
    ],
)
def test_sizes_count_the_weights_that_are_read_for_a_token(
    metadata: Metadata, tensors: dict[str, int], active: int
) -> None:
    sizes = model_sizes(Hyperparameters(Path(), metadata), tensors.items())
    assert round(sizes.active_bytes) == active
    assert round(sizes.with_weights(2 * sum(tensors.values())).active_bytes) == 2 * active


SIZES = ModelSizes((LayerSizes(36 * MB),) * 24, output_bytes=40 * MB)  # 904 MB, and 96 or 288 MB for layers


def test_forecast_is_in_proportion_to_bytes_and_layers() -> None:
    with_avx512 = Capacity(0, (), Speed(28e9, 119.2e9, prompt_layer=12 * MB))
    assert with_avx512.forecast(SIZES, 2000) == Forecast(28, 2, 71)
    found = Capacity(0, (), Speed(28e9, 100e9)).forecast(SIZES)
    assert found and found.first_token_s == 2
    assert found.answer_s == pytest.approx(2 + 100 / 28)


REPLY = Timings(prefill_s=2, prefill_tokens=200, decode_s=2, decode_steps=56)


@pytest.mark.parametrize(
    ("recorded", "reply", "speed"),
    [
        (Speed(), REPLY, Speed(28e9, 100e9)),
        (Speed(30e9, 90e9, 1), REPLY, Speed(30e9, 100e9, 1)),
        (Speed(prompt_layer=12 * MB), REPLY, Speed(28e9, 119.2e9, prompt_layer=12 * MB)),
        (Speed(), REPLY._replace(decode_steps=70, draft_n=16, draft_n_accepted=14), Speed(28e9, 100e9)),
        (Speed(), REPLY._replace(prefill_s=0.1, prefill_tokens=31), Speed()),
        (Speed(), REPLY._replace(decode_s=0.1, decode_steps=15), Speed()),
        (Speed(), REPLY._replace(decode_s=0.1, draft_n=18), Speed()),
    ],
    ids=["first", "slower", "avx512", "accepted drafts are no steps", "short prompt", "short reply", "many drafts"],
)
def test_speed_is_that_of_the_fastest_reply_that_is_long_enough(recorded: Speed, reply: Timings, speed: Speed) -> None:
    assert recorded.with_reply(SIZES, reply) == speed


def test_speed_before_a_reply_is_that_of_the_processor_within_the_memory() -> None:
    assert expected_speed(2, True, Speed(prompt_layer=5)) == Speed(28e9, 120e9, prompt_layer=5)
    assert expected_speed(2, False, Speed(bandwidth=50e9)) == Speed(20e9, 70e9, 50e9)
    assert expected_speed(16, False, Speed(bandwidth=20e9)) == Speed(40e9, 560e9, 20e9)


def test_speed_file_is_of_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "speed.json"
    MachineRecords(tmp_path).record_replies(ModelSizes((LayerSizes(MB),) * 24), [REPLY])
    assert not path.exists(), "the model is too small"
    monkeypatch.setattr(machine, "READ_BYTES", 1000)
    machine.record_bandwidth(tmp_path)
    recorded = path.read_bytes()
    machine.record_bandwidth(tmp_path)
    assert path.read_bytes() == recorded, "once"
    machine.record_replies(tmp_path, SIZES, [REPLY, REPLY])
    measured = machine.load_speed(tmp_path)
    assert measured.bandwidth and measured.generation == pytest.approx(28e9, rel=0.01)
    monkeypatch.setattr(machine, "processor_name", lambda: "another")
    other = machine.load_speed(tmp_path)
    unknown = Speed(prompt_layer=other.prompt_layer)
    assert other == expected_speed(thread_count(), instruction_set() == "avx512", unknown)
    path.write_text("[]")
    assert not machine.load_speed(tmp_path).bandwidth


def test_list_forecasts_from_earlier_replies(
    new_user: CommandLine, chatml_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.machine.MIN_BYTES", 0)
    new_user.run("pull", chatml_model, "--name", "tiny")
    [before] = new_user.run("list", "--json").object
    options = ("--no-log", "--raw", "-n", "20", "--set", "speculative=off")
    asked = new_user.run("ask", "-m", "tiny", *options, "x" * 40)
    assert asked.code == 0, asked.err
    [after] = new_user.run("list", "--json").object
    assert before["speed"] and after["speed"] and before["speed"] != after["speed"]
    assert " t/s after " in new_user.run("list").out


K_QUANT = LoadOptions(Path("m"), 4096, SIZES, quantization="Q4_K_M")


@pytest.mark.parametrize(("name", "slots", "options", "instructions", "repacks"), rows("repacking"))
def test_weights_are_repacked_where_that_pays(
    name: str,
    slots: int,
    options: dict[str, Any],
    instructions: str,
    repacks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "instruction_set", lambda: instructions)
    asked = replace(K_QUANT, context=ContextOptions(slots=slots), **options)
    assert plan_repacking(asked, 3 * SIZES.weight_bytes) is repacks


def test_weights_are_repacked_beside_those_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "instruction_set", lambda: "x86")
    for free, repacks in ((2 * SIZES.weight_bytes, True), (2 * SIZES.weight_bytes - 1, False)):
        assert plan_repacking(K_QUANT, free) is repacks
