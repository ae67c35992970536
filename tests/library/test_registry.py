"""Which models are here: kept in one file, whoever else changes it at the same time."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.core.errors import ConfigError, ModelFileError
from cerebrum_cli.library.registry import Registry, RegistryEntry, hash_file


def model(name: str, path: str = "/models/file.gguf") -> RegistryEntry:
    return RegistryEntry(name, Path(path), size=7, sha256="ab" * 32, mtime_ns=1_700_000_000_123_456_789, source="local")


def test_registry_concurrent_adds_lose_nothing(tmp_path: Path) -> None:
    names = {f"model-{number}" for number in range(60)}
    with ThreadPoolExecutor(4) as pool:  # each call opens and locks a file of its own, as another process would
        list(pool.map(lambda name: Registry(tmp_path).add(model(name)), names))
    assert {entry.name for entry in Registry(tmp_path).entries()} == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["registry.json", "registry.lock"]


@pytest.mark.usefixtures("no_locks")
def test_registry_works_where_the_file_system_has_no_locks(tmp_path: Path) -> None:
    Registry(tmp_path).add(model("a"))
    assert Registry(tmp_path).entries() == (model("a"),)


OTHER_VERSION = '{"version": 2, "models": [], "digests": []}'
NO_PATH = '{"version": 1, "models": [{"name": "a"}], "digests": []}'
ENTRY = {"name": "a", "path": "/a", "size": 1, "sha256": "", "mtime_ns": 1, "source": "local"}
EMPTY: dict[str, Any] = {"version": 1, "models": [], "digests": []}
WRONG_ENTRIES: list[dict[str, Any]] = [{"name": 5}, {"source": "other"}, {"mtime_ns": 1e400}, {"path": "\ud800"}]
WRONG_TYPES = [json.dumps(EMPTY | {"models": [ENTRY | wrong]}) for wrong in WRONG_ENTRIES]


@pytest.mark.parametrize("content", ["", "[]", "\udcff", '{"version": 1}', OTHER_VERSION, NO_PATH, *WRONG_TYPES])
def test_registry_reports_and_keeps_a_damaged_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(os.fsencode(content))
    for attempt in (Registry(tmp_path).entries, lambda: Registry(tmp_path).add(model("a"))):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert caught.value.message.startswith(f"{path}: damaged")
        assert "move it elsewhere" in caught.value.hint
    assert path.read_bytes() == os.fsencode(content)


def test_registry_reports_an_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="Not a directory"):
        Registry(tmp_path / "file" / "models").add(model("a"))
    (tmp_path / "registry.json").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        Registry(tmp_path).entries()


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "written"])
def test_hash_of_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path, replaced: bool) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    for each in (path, other):
        each.write_bytes(os.urandom(1000))

    def change(done: int, total: int) -> None:
        if replaced:
            other.replace(path)
        else:
            path.write_bytes(b"half")

    with pytest.raises(ModelFileError, match="changed while it was read"):
        hash_file(path, change)


@pytest.mark.parametrize("seconds", [15_000_000_000, 300_000_000_000, -2_000_000_000, -90_000_000_000])
def test_files_of_any_year_are_registered(tmp_path: Path, seconds: int) -> None:
    """In nanoseconds, some of these are beyond 64 bits; a file system may store the nearest time that it can."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x")
    os.utime(file, (seconds, seconds))
    registry = Registry(tmp_path / "registry")
    registry.add(RegistryEntry.of_file(file, "ab" * 32, "a"))
    [entry] = registry.entries()
    assert entry.is_current and hash_file(file).mtime_ns == entry.mtime_ns
