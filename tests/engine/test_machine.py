"""Resources of the machine: cached GPUs, and memory limits of cgroups."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import psutil
import pytest
from disks import full_disk

from cerebrum_cli.engine.machine import available_memory, cgroup_limit, load_devices, save_devices, total_memory
from cerebrum_cli.engine.memory import Device

GPU = Device("CUDA0", "NVIDIA H200", 140_000_000_000, 150_000_000_000)
STRANGE = Device("", 'größe "\udcff" \n', 0, 0)


@pytest.mark.parametrize("devices", [(), (GPU,), (GPU, STRANGE)])
def test_devices_are_saved_and_loaded(tmp_path: Path, devices: tuple[Device, ...]) -> None:
    path = tmp_path / "new" / "data" / "devices.json"
    assert load_devices(path) is None
    save_devices(path, devices)
    assert load_devices(path) == devices
    assert [each.name for each in path.parent.iterdir()] == ["devices.json"]


def test_devices_are_written_only_if_changed(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    save_devices(path, (GPU, STRANGE))
    os.utime(path, (1, 1))
    save_devices(path, (GPU, STRANGE))
    assert path.stat().st_mtime == 1
    save_devices(path, ())
    assert load_devices(path) == ()


GOOD = {"name": "CUDA0", "description": "NVIDIA H200", "free": 1, "total": 2}
DAMAGED = [
    b"",
    b"\xff\xfe",
    b"[",
    b"7",
    b"null",
    b"{}",
    b'"CUDA0"',
    b"[1]",
    b"[[]]",
    b"[{}]",
    json.dumps([GOOD | {"more": 1}]).encode(),
    json.dumps([GOOD | {"free": "1"}]).encode(),
    json.dumps([GOOD | {"free": None}]).encode(),
    json.dumps([GOOD | {"name": 1}]).encode(),
    json.dumps([GOOD]).encode()[:-9],
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:40].decode(errors="replace"))
def test_damaged_devices_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "devices.json"
    path.write_bytes(content)
    assert load_devices(path) is None


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:40].decode(errors="replace"))
def test_damaged_devices_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "devices.json"
    path.write_bytes(content)
    save_devices(path, (GPU,))
    assert load_devices(path) == (GPU,)


def test_devices_file_survives_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    save_devices(path, (GPU,))
    with full_disk():
        save_devices(path, ())
    assert load_devices(path) == (GPU,)
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_devices_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "devices.json", tmp_path / "folder"):
        save_devices(path, (GPU,))
        assert load_devices(path) is None
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_read_only_directory_gets_no_devices_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        save_devices(tmp_path / "devices.json", (GPU,))
        assert load_devices(tmp_path / "devices.json") is None
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        (None, math.inf),
        ("max\n", math.inf),
        ("", math.inf),
        ("damaged", math.inf),
        ("8589934592\n", 8 * 2**30),
        ("8589934592", 8 * 2**30),
        ("0\n", 0),
    ],
)
def test_cgroup_limit_is_parsed(tmp_path: Path, content: str | None, limit: float) -> None:
    if content is not None:
        (tmp_path / "memory.max").write_text(content)
    assert cgroup_limit(tmp_path) == limit


def test_cgroup_limit_of_an_unreadable_file_is_infinite(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert cgroup_limit(tmp_path / "file") == math.inf
    (tmp_path / "memory.max").mkdir()
    assert cgroup_limit(tmp_path) == math.inf


def test_this_machine_reports_plausible_memory() -> None:
    assert 0 < total_memory() <= psutil.virtual_memory().total
    assert 0 < available_memory() <= total_memory()
