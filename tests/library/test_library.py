"""Which model a name means, and which models are here: the registry, kept in one file."""

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import rows
from gguf_files import write_model
from hub_user import RecordedProgress, puller

from cerebrum_cli.cli.model_objects import row
from cerebrum_cli.core.errors import ConfigError, ModelFileError, ModelNotFound, UsageError
from cerebrum_cli.engine.capacity import Capacity
from cerebrum_cli.library.cache import Cache, CachePath
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.registry import Registry, RegistryEntry, hash_file

COMMIT, DIGEST = "c" * 40, "d" * 64
REPO = "someone/Thinker-GGUF"
CATALOGUE = """
[models.thinker]
title = "Thinker-1.0"
repo_id = "someone/Thinker-GGUF"
file = "Thinker-{quant}.gguf"
format = "cerebrum"
context_size = 4096
quantizations = {Q4_K_M = 1000}

[models.packed]
[models.packed.package]
requirement = "packed==1"
member = "packed/Packed.Q4_1.gguf"
sha256 = "%s"
size = 10
download_size = 10

[models.unpublished]
title = "Unpublished-9"
notes = "Merge it yourself."
""" % ("0" * 64)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    path = tmp_path / "models.toml"
    path.write_text(CATALOGUE)
    library = Library((path,), Registry(tmp_path / "models"), lambda: Capacity(16 * 2**30))
    library.cache = Cache(tmp_path / "hub")
    return library


@pytest.fixture
def other(tmp_path: Path, chatml_model: Path) -> Path:
    return changed(shutil.copy(chatml_model, tmp_path / "other.gguf"))


def changed(path: str | Path) -> Path:
    path = Path(path)
    data = bytearray(path.read_bytes())
    data[-1] = (data[-1] + 1) % 256
    path.write_bytes(data)
    return path


def error_of(action: Callable[..., object], *arguments: object) -> tuple[str, str, str | None]:
    """Message and hint of the error that an action raises, and the reference that it could pull."""
    with pytest.raises(ModelNotFound) as caught:
        action(*arguments)
    return caught.value.message, caught.value.hint, caught.value.pullable


def pulled(library: Library, text: str | Path, name: str | None = None, **options: Any) -> InstalledModel:
    return puller(library, **options).pull(library.parse(str(text)), name)


def test_library_registers_a_file_in_place(library: Library, other: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        library.resolve(None)
    assert (caught.value.exit_code, caught.value.pullable) == (3, "starter")
    progress = RecordedProgress()
    model = pulled(library, other, progress=progress)
    assert (model.name, model.path, model.spec) == ("other", other, None)
    assert progress.stages[-1] == ("verify", other.stat().st_size, other.stat().st_size)
    assert library.resolve("other") == model
    assert model.entry is not None
    assert (model.entry.source, model.entry.sha256) == ("local", hashlib.sha256(other.read_bytes()).hexdigest())
    assert [entry.name for entry in library.models()] == ["other"]
    assert library.resolve(str(other)) == model
    assert pulled(library, other, "again", offline=True).name == "again"


def test_library_name_never_means_a_file(library: Library, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the current folder cannot take over the name of a model."""
    monkeypatch.chdir(other.parent)
    for name in ("mine", "thinker", "bare", "someone/else"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(other, name)
    mine = pulled(library, other, "mine")
    assert library.resolve("mine") == pulled(library, "mine") == mine
    for name in ("thinker", "bare", "someone/else"):
        with pytest.raises(ModelNotFound):
            pulled(library, name, offline=True)
        assert error_of(library.resolve, name)[1].endswith(f"; for a file or folder of this name, use ./{name}")
        assert library.resolve(f"./{name}").path == other.parent / name
    with pytest.raises(UsageError, match="invalid name"):
        pulled(library, other, "mine.gguf")


def test_library_keeps_the_name_of_a_link(library: Library, other: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    blob = other.rename(tmp_path / "blobs" / ("ab" * 32))
    link = tmp_path / "Thinker-Q4_K_M.gguf"
    link.symlink_to(blob)
    model = pulled(library, link)
    assert (model.name, model.path) == ("Thinker-Q4_K_M", link)
    assert model.spec is not None
    assert model.spec.name == "thinker"


def test_library_names_are_valid_and_unique(library: Library, other: Path, chatml_model: Path) -> None:
    pulled(library, other, "mine")
    for path, name in ((chatml_model, "mine"), *((other, each) for each in ("packed", "thinker", "unpublished"))):
        with pytest.raises(UsageError, match=f"the name {name} belongs to another model") as caught:
            pulled(library, path, name)
        assert "--name" in caught.value.hint
    assert library.resolve("mine").path == other
    with pytest.raises(UsageError, match="the name thinker belongs to another model"):
        pulled(library, "packed", "thinker")
    for name in ("a/b c", "-x", ""):
        with pytest.raises(UsageError, match="invalid name"):
            pulled(library, other, name)
    spaced = Path(shutil.copy(other, other.with_name("my own (model).gguf")))
    assert pulled(library, spaced).name == "my-own-model"


def test_library_registers_a_moved_file_by_the_same_name(library: Library, other: Path, tmp_path: Path) -> None:
    pulled(library, other)
    (tmp_path / "elsewhere").mkdir()
    moved = other.rename(tmp_path / "elsewhere" / "other.gguf")
    message, hint, _ = error_of(library.resolve, "other")
    assert message == f"other: {other} no longer exists"
    assert hint == "pull it again, or remove it: cerebrum rm other"
    assert row(library, library.models()[0], library.capacity())["error"] == f"{other}: file not found; {hint}"
    assert pulled(library, moved).path == moved
    copy = Path(shutil.copy(moved, tmp_path / "other.gguf"))
    assert pulled(library, copy).path == copy
    changed(moved)
    with pytest.raises(UsageError, match="the name other belongs to another"):
        pulled(library, moved)
    copy.unlink()
    assert pulled(library, moved).path == moved


def test_bundled_model_is_referred_to_by_name_and_cannot_be_deleted(library: Library) -> None:
    nano = library.resolve("nano")
    assert (nano.reference, nano.label, library.resolve(nano.reference).path) == ("nano", "nano", nano.path)
    with pytest.raises(UsageError, match="cannot be deleted"):
        library.removal("nano")


def test_library_offers_downloadable_models(library: Library) -> None:
    for name in ("packed", "thinker", "thinker:Q4_K_M", "someone/else:Q8_0"):
        assert error_of(library.resolve, name) == (f"{name} is not downloaded", f"cerebrum pull {name}", name)
    problem = "unpublished is not installed and cannot be downloaded"
    assert error_of(library.resolve, "unpublished") == (problem, "Merge it yourself.", None)
    with pytest.raises(ModelNotFound, match="packed is not downloaded, and the network is disabled"):
        pulled(library, "packed", offline=True)


def test_library_digest_is_stored_until_the_file_changes(library: Library, other: Path) -> None:
    model = pulled(library, other)
    assert model.entry is not None
    library.registry.add(replace(model.entry, sha256="remembered"))
    assert library.registry.digest(library.resolve("other").path).sha256 == "remembered"
    changed(other)
    os.utime(other, ns=(1, 1))
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    assert library.registry.digest(library.resolve("other").path).sha256 == digest
    assert library.registry.known_digest(other) == RegistryEntry("", other, other.stat().st_size, digest, 1)
    assert library.registry.digest(library.resolve(str(other)).path).sha256 == digest
    assert pulled(library, other).entry != model.entry


def test_library_identity_covers_all_parts_of_a_model(library: Library, other: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"split-0000{part}-of-00002.gguf" for part in (1, 2)]
    for path in paths:
        path.write_bytes(other.read_bytes())
    model, digest = pulled(library, paths[0]), hashlib.sha256(other.read_bytes()).hexdigest()
    identity = library.identity(model)
    assert identity.startswith(f"{digest} {other.stat().st_size} {paths[1]} ")
    library.registry.digest(paths[1])
    hashed = library.identity(model)
    assert hashed == " ".join([f"{digest} {other.stat().st_size}"] * 2)
    changed(paths[1])
    os.utime(paths[1], ns=(1, 1))
    assert len({identity, hashed, library.identity(model)}) == 3
    assert model.entry
    assert not replace(model, source="hub").is_verified


def store(cache: Cache, model: Path) -> Path:
    name = "Thinker-Q4_K_M.gguf"
    place = CachePath(cache.repository_directory(REPO), COMMIT, name, DIGEST)
    place.make_directories()
    place.blob.write_bytes(model.read_bytes())
    return place.link()


def test_library_takes_no_other_commit_for_a_branch_that_was_never_pulled(library: Library, chatml_model: Path) -> None:
    path, url = store(library.cache, chatml_model), f"https://huggingface.co/{REPO}/resolve/%s/Thinker-Q4_K_M.gguf"
    library.cache.write_ref(REPO, "main", COMMIT)
    assert library.resolve(url % "main").path == path
    assert error_of(library.resolve, url % "v2")[:2] == (
        f"{url % 'v2'} is not downloaded",
        f"cerebrum pull {url % 'v2'}",
    )


def test_library_never_chooses_a_file_that_is_no_language_model(library: Library, tmp_path: Path) -> None:
    path = store(library.cache, write_model(tmp_path / "draft.gguf", architecture="eagle3"))
    assert error_of(library.resolve, None)[0] == "no model is installed"
    [model] = library.models()
    words = "a draft head for speculative decoding, not a whole model (architecture eagle3)"
    assert row(library, model, library.capacity())["error"] == f"{path}: {words}; use the model that it was made for"


def entry_of(name: str, path: str = "/models/file.gguf") -> RegistryEntry:
    return RegistryEntry(name, Path(path), size=7, sha256="ab" * 32, mtime_ns=1_700_000_000_123_456_789, source="local")


def test_registry_concurrent_adds_lose_nothing(tmp_path: Path) -> None:
    names = {f"model-{number}" for number in range(60)}
    with ThreadPoolExecutor(4) as pool:  # each call opens and locks a file of its own, as another process would
        list(pool.map(lambda name: Registry(tmp_path).add(entry_of(name)), names))
    assert {entry.name for entry in Registry(tmp_path).entries()} == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["registry.json", "registry.lock"]


@pytest.mark.usefixtures("no_locks")
def test_registry_works_where_the_file_system_has_no_locks(tmp_path: Path) -> None:
    Registry(tmp_path).add(entry_of("a"))
    assert Registry(tmp_path).entries() == (entry_of("a"),)


@pytest.mark.parametrize("content", rows("damaged_registries"))
def test_registry_reports_and_keeps_a_damaged_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(os.fsencode(content))
    for attempt in (Registry(tmp_path).entries, lambda: Registry(tmp_path).add(entry_of("a"))):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert caught.value.message.startswith(f"{path}: damaged")
        assert "move it elsewhere" in caught.value.hint
    assert path.read_bytes() == os.fsencode(content)


def test_registry_reports_an_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="Not a directory"):
        Registry(tmp_path / "file" / "models").add(entry_of("a"))
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
