"""Which models are here: kept in one file, whoever else changes it at the same time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cerebrum_cli.core.errors import ConfigError, ModelFileError
from cerebrum_cli.models.registry import Digest, Registry, RegistryEntry, hash_file

ROOT = Path(__file__).parents[2]


def model(name: str, path: str = "/models/file.gguf") -> RegistryEntry:
    return RegistryEntry(name, Path(path), size=7, sha256="ab" * 32, mtime_ns=1_700_000_000_123_456_789, source="local")


def test_registry_reads_an_empty_directory_without_writing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    assert (registry.entries(), registry.default, registry.find("a")) == ((), None, None)
    assert not (tmp_path / "models").exists()


def test_registry_entries_are_added_replaced_and_removed(tmp_path: Path) -> None:
    strange = model("b", os.fsdecode("/models/ä \udcff.gguf"))
    Registry(tmp_path / "new" / "models").add(model("a"))
    Registry(tmp_path / "new" / "models").add(strange)
    registry = Registry(tmp_path / "new" / "models")
    assert registry.entries() == (model("a"), strange)
    assert registry.find("b") == strange
    registry.add(model("a", "/elsewhere.gguf"))
    assert registry.entries() == (strange, model("a", "/elsewhere.gguf"))
    registry.remove("b")
    assert registry.entries() == (model("a", "/elsewhere.gguf"),)


def test_registry_sets_the_default_conditionally(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.set_default("a", replacing=(None,))
    registry.set_default("b", replacing=(None,))
    assert registry.default == "a"
    registry.set_default("b", replacing=("a", None))
    assert Registry(tmp_path).default == "b"
    registry.set_default("owner/repo:Q4_0")
    assert registry.default == "owner/repo:Q4_0"
    registry.set_default(None)
    assert registry.default is None


def test_registry_digest_is_valid_until_the_file_changes(tmp_path: Path) -> None:
    registry, file, gone = Registry(tmp_path / "models"), tmp_path / "file", tmp_path / "gone"
    file.write_bytes(b"one")
    gone.write_bytes(b"two")
    registry.remember_digest(Digest.known(gone, "cd" * 32))
    registry.remember_digest(Digest.known(file, "ab" * 32))
    assert Registry(tmp_path / "models").digest(file) == Digest.known(file, "ab" * 32)
    gone.unlink()
    file.write_bytes(b"other")
    assert registry.digest(file) is None
    registry.remember_digest(Digest.known(file, "ef" * 32))
    assert registry.digest(file) == Digest.known(file, "ef" * 32)
    content = json.loads((tmp_path / "models" / "registry.json").read_text())
    assert [digest["path"] for digest in content["digests"]] == [str(file)]


def test_registry_touch_sets_last_used(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    assert registry.last_used("a") is None
    before = time.time()
    registry.touch("a")
    used = registry.last_used("a")
    assert used is not None
    assert before - 1 <= used <= time.time() + 1
    assert registry.last_used("b") is None
    (tmp_path / "file").write_bytes(b"")
    Registry(tmp_path / "file").touch("a")  # cannot be written, and nobody minds


@pytest.mark.slow
def test_registry_concurrent_adds_lose_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from cerebrum_cli.models.registry import RegistryEntry, Registry\n"
        "for number in range(15): Registry(Path(sys.argv[1])).add("
        "RegistryEntry(f'{sys.argv[2]}-{number}', Path('/m.gguf'), 1, '00', 1, 'local'))"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    adders = [subprocess.Popen([*argv, str(number)], cwd=ROOT) for number in range(4)]
    assert [adder.wait() for adder in adders] == [0] * 4
    names = {entry.name for entry in Registry(tmp_path).entries()}
    assert names == {f"{adder}-{number}" for adder in range(4) for number in range(15)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["registry.json", "registry.lock"]


@pytest.mark.usefixtures("no_locks")
def test_registry_works_where_the_file_system_has_no_locks(tmp_path: Path) -> None:
    Registry(tmp_path).add(model("a"))
    Registry(tmp_path).set_default("a")
    assert (Registry(tmp_path).entries(), Registry(tmp_path).default) == ((model("a"),), "a")


OTHER_VERSION = '{"version": 2, "default": null, "models": [], "digests": []}'
NO_PATH = '{"version": 1, "default": null, "models": [{"name": "a"}], "digests": []}'


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff", '{"version": 1}', OTHER_VERSION, NO_PATH])
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


def test_sha256_reports_progress(tmp_path: Path) -> None:
    content = os.urandom(2_500_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    told: list[tuple[int, int]] = []
    assert hash_file(path, lambda done, total: told.append((done, total))).sha256 == hashlib.sha256(content).hexdigest()
    assert told == [(1 << 20, 2_500_000), (2 << 20, 2_500_000), (2_500_000, 2_500_000)]
    assert hash_file(path).sha256 == hashlib.sha256(content).hexdigest()
    with pytest.raises(ModelFileError, match="No such file"):
        hash_file(tmp_path / "nowhere.gguf")


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
