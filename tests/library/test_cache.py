"""The shared cache of the Hugging Face Hub: whoever wrote it, its models are found; what we write, others can read."""

import os
from pathlib import Path

import huggingface_hub.constants
import pytest
from cases import rows
from command_line import environment_of

from cerebrum_cli.library.cache import Cache, CachePath, cache_directory

OLD, NEW, NEWER = ("0" * 39 + digit for digit in "123")
FILE = "Model-Q4_K_M.gguf"


def digest(letter: str) -> str:
    return letter * 64


def snapshot(cache: Cache, commit: str, links: dict[str, str], repo_id: str = "o/r", age: int = 0) -> Path:
    """Write a commit's folder as others do: links by their names without .gguf, to blobs with a letter."""
    repository = cache.directory / f"models--{repo_id.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    for name, content in links.items():
        path, blob = folder / f"{name}.gguf", repository / "blobs" / digest(content)
        for each in (path, blob):
            each.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(content)
        path.symlink_to(os.path.relpath(blob, path.parent))
    os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "hub")


def found(cache: Cache) -> list[tuple[str, str, str]]:
    return [(model.repo_id, model.commit[-1], model.quantization) for model in cache.models()]


def test_cache_lists_main_first_then_newest(cache: Cache) -> None:
    snapshot(cache, OLD, {"x": "a"}, age=30)
    snapshot(cache, NEW, {"x": "b"}, age=20)
    snapshot(cache, NEWER, {"x": "c"}, age=10)
    assert [model.commit for model in cache.models()] == [NEWER, NEW, OLD]
    cache.write_ref("o/r", "main", OLD)
    cache.write_ref("o/r", "refs/pr/1", NEW)
    assert [model.commit for model in cache.models()] == [OLD, NEWER, NEW]


def test_cache_lists_a_model_once_by_each_of_its_names(cache: Cache) -> None:
    snapshot(cache, OLD, {"x-Q4_0": "a", "x-Q8_0": "b"}, age=20)
    snapshot(cache, NEW, {"x-Q4_0": "a", "x-Q8_0": "c"}, age=10)
    snapshot(cache, NEWER, {"x-Q4_K_S": "a", "x-Q4_K_M": "a", "x-Q2_K": "d"}, "other/r")
    CachePath(cache.repository_directory("other/r"), NEW, FILE, digest("d")).blob.unlink()
    old, new = [("o/r", "1", "Q8_0")], [("o/r", "2", "Q4_0"), ("o/r", "2", "Q8_0")]
    assert found(cache) == [*new, *old, ("other/r", "3", "Q4_K_M"), ("other/r", "3", "Q4_K_S")]


def test_cache_blob_may_be_a_link(cache: Cache, tmp_path: Path) -> None:
    snapshot(cache, OLD, {"x-Q4_0": "a"})
    shared = CachePath(cache.repository_directory("o/r"), NEW, FILE, digest("a")).blob
    shared.rename(tmp_path / "shared")
    shared.symlink_to(tmp_path / "shared")
    (model,) = cache.models()
    assert (model.blobs, model.paths[0].read_text()) == ((shared,), "a")


def test_cache_ignores_other_files(cache: Cache) -> None:
    folder = snapshot(cache, OLD, {"x-Q4_0": "a"})
    snapshot(cache, NEW, {"x-Q8_0-00001-of-00002": "a"}, "o/half")
    for foreign in ("datasets--o--r", "spaces--o--r", "models--bert", "o--r", "tmp", ".locks/models--o--r"):
        (cache.directory / foreign / "snapshots" / NEW).mkdir(parents=True)
        (cache.directory / foreign / "snapshots" / NEW / FILE).touch()
    for file in ("models--o--file", "version.txt", "models--o--r/snapshots/.DS_Store"):
        (cache.directory / file).touch()
    for file in ("README.md", "mmproj-F16.gguf"):
        (folder / file).touch()
    (folder / "folder.gguf").mkdir()
    (cache.directory / "models--o--empty").mkdir()
    assert found(cache) == [("o/r", "1", "Q4_0")]


def put(cache: Cache, name: str, content: str, commit: str = OLD, revision: str = "main", repo_id: str = "o/r") -> Path:
    place = CachePath(cache.repository_directory(repo_id), commit, name, digest(content))
    place.make_directories()
    place.blob.write_text(content)
    cache.write_ref(repo_id, revision, commit)
    return place.link()


def test_cache_link_is_replaced_only_if_it_leads_elsewhere(cache: Cache) -> None:
    path = put(cache, FILE, "a")
    before = path.lstat()
    assert (CachePath(cache.repository_directory("o/r"), OLD, FILE, digest("a")).link(), path.lstat()) == (path, before)
    put(cache, FILE, "b")
    assert (path.read_text(), [*path.parent.iterdir()]) == ("b", [path])
    path.unlink()
    path.symlink_to("../../blobs/gone")
    assert put(cache, FILE, "a").read_text() == "a"


def test_cache_ref_with_slashes_and_of_a_commit(cache: Cache) -> None:
    put(cache, FILE, "a", revision="refs/pr/1")
    put(cache, FILE, "b", NEW, revision=NEW)
    refs = cache.repository_directory("o/r") / "refs"
    assert {path for path in refs.rglob("*") if path.is_file()} == {refs / NEW, refs / "refs/pr/1"}
    (refs / "damaged").write_bytes(b"\xff\xfe")
    assert [cache.commit("o/r", revision) for revision in ("refs/pr/1", NEW, NEWER)] == [OLD, NEW, NEWER]
    for revision in ("v2", "refs", "refs/pr", "x" * 300, "damaged"):
        assert cache.commit("o/r", revision) is None
    put(cache, FILE, "b", NEW, revision="refs/pr/1")
    assert cache.commit("o/r", "refs/pr/1") == NEW


@pytest.mark.parametrize("variables", rows("cache_variables"))
def test_cache_is_where_huggingface_hub_has_it(variables: dict[str, str], tmp_path: Path) -> None:
    with environment_of({"HOME": str(tmp_path), **variables}):
        assert str(cache_directory()) == huggingface_hub.constants.HF_HUB_CACHE
