"""What is removed is gone from the disk, and nothing else is."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_user import CATALOGUED, HubUser, hub_user, named
from tiny_models import write_chatml

pytestmark = pytest.mark.slow

OWNED = "someone/tiny-GGUF"


@pytest.fixture
def user(tmp_path: Path, chatml_model: Path, mistral_model: Path) -> Iterator[HubUser]:
    """Return a user who has pulled cerebrum-7b, of 9 MB, and could have it smaller, and another model."""
    other = write_chatml(tmp_path / "other.gguf", seed=1)
    with hub_user(tmp_path) as each:
        each.hub.repository(CATALOGUED, {named("Q4_K_M"): mistral_model, named("Q2_K"): chatml_model})
        each.hub.repository(OWNED, {"tiny-Q8_0.gguf": other})
        each.hub.repository("owner/theirs", {"theirs-Q8_0.gguf": other})
        each.pull("cerebrum-7b:Q4_K_M")
        yield each


def removed(user: HubUser, reference: str) -> str:
    """Return what is said of a model that goes."""
    done = user.run("rm", "-y", reference)
    assert (done.code, done.out) == (0, "")
    return done.err


def test_rm_without_confirmation_removes_nothing(user: HubUser) -> None:
    done = user.run("rm", "cerebrum-7b")
    assert (done.code, done.out, done.err) == (1, "", "cerebrum-7b:Q4_K_M not deleted; confirm with -y\n")
    assert user.path(named("Q4_K_M")).exists()


def test_rm_frees_the_bytes_of_a_model(user: HubUser) -> None:
    assert removed(user, "cerebrum-7b") == "deleted cerebrum-7b:Q4_K_M, freed 9 MB\n"
    assert user.blobs() == {}
    assert not user.folder().exists()
    assert user.listed() == []
    done = user.run("rm", "-y", "cerebrum-7b")
    assert (done.code, done.out, done.err) == (
        3,
        "",
        "error: cerebrum-7b is not downloaded\n  try: list installed models with cerebrum list\n",
    )
    assert user.hugging_face("[*map(str, scan_cache_dir().warnings)]", "len(scan_cache_dir().repos)") == [[], 0]


def test_rm_keeps_other_quantizations(user: HubUser) -> None:
    user.pull("cerebrum-7b:Q2_K")
    answer = user.ask("-m", "cerebrum-7b:Q2_K")
    removed(user, "cerebrum-7b:Q4_K_M")
    assert user.blobs() == {user.digest(named("Q2_K")): user.path(named("Q2_K")).stat().st_size}
    assert user.ask() == answer


def test_rm_keeps_files_of_another_revision(user: HubUser) -> None:
    old = user.path(named("Q4_K_M"))
    user.hub.repositories[CATALOGUED].commit({"README.md": b"# Better\n"})
    user.pull("cerebrum-7b:Q4_K_M")
    kept = "its file is kept, since another revision in the cache uses it"
    assert removed(user, "cerebrum-7b") == f"removed cerebrum-7b:Q4_K_M; {kept}\n"
    assert [row["path"] for row in user.listed()] == [str(old)]
    assert removed(user, "cerebrum-7b") == "deleted cerebrum-7b:Q4_K_M, freed 9 MB\n"
    assert user.blobs() == {}


def test_rm_keeps_the_file_of_a_local_model(user: HubUser, tmp_path: Path) -> None:
    own = tmp_path / "other.gguf"
    user.pull(own)
    assert removed(user, "other") == f"removed other from the list; kept {own}\n"
    assert own.exists()
    assert [row["name"] for row in user.listed()] == ["cerebrum-7b"]


def test_rm_of_the_default_chooses_another(user: HubUser) -> None:
    user.pull(OWNED)
    assert [row["default"] for row in user.listed()] == [True, False]
    user.hugging_face("hf_hub_download('owner/theirs', 'theirs-Q8_0.gguf')")  # sorts before what we pulled
    said = removed(user, "cerebrum-7b")
    assert re.search(rf", freed \d+ MB; the default model is now {OWNED}:Q8_0\n$", said)
    assert [row["reference"] for row in user.listed() if row["default"]] == [f"{OWNED}:Q8_0"]
    removed(user, "owner/theirs")
    removed(user, OWNED)
    done = user.run("ask", "Why?")
    assert (done.code, done.err.splitlines()[0]) == (3, "error: no model is installed")
    user.pull(OWNED)
    assert user.ask()


def test_rm_deletes_the_files_of_a_named_model(user: HubUser) -> None:
    user.pull(OWNED, "--name", "mine")
    assert removed(user, "mine").startswith("deleted mine, ")
    assert user.blobs(OWNED) == {}
    assert [row["name"] for row in user.listed()] == ["cerebrum-7b"]


def test_rm_keeps_partial_downloads(user: HubUser) -> None:
    partial = user.folder() / "blobs" / f"{user.digest(named('Q2_K'))}.incomplete"
    partial.write_bytes(b"GGUF")
    removed(user, "cerebrum-7b:Q4_K_M")
    assert user.blobs() == {partial.name: 4}
    assert user.listed() == []


def test_rm_removes_a_model_without_its_file(user: HubUser, tmp_path: Path) -> None:
    own = Path(shutil.copy(tmp_path / "other.gguf", tmp_path / "own.gguf"))
    user.pull(own)
    own.unlink()
    assert removed(user, "own") == "removed own from the list; its file no longer exists\n"
    assert [row["name"] for row in user.listed()] == ["cerebrum-7b"]


def test_rm_keeps_files_of_another_name(user: HubUser) -> None:
    user.pull(OWNED, "--name", "one")
    user.pull(OWNED, "--name", "two")
    path = user.path("tiny-Q8_0.gguf", OWNED)
    assert removed(user, "one") == f"removed one from the list; kept {path}, two uses it\n"
    assert user.ask("-m", "two")
    assert removed(user, "two").startswith("deleted two, ")


def test_rm_models_with_one_name_have_distinct_references(user: HubUser) -> None:
    files = {"a-Q4_0.gguf": b"", "b-Q4_0.gguf": b""}
    models = [user.command.home / "other.gguf", user.command.home / "another.gguf"]
    write_chatml(models[1], seed=2)
    user.hub.repository("owner/two", dict(zip(files, models, strict=True)))
    page = "https://huggingface.co/owner/two/resolve/main"
    for file in files:
        user.pull(f"{page}/{file}")
    user.pull("--default", f"{page}/b-Q4_0.gguf")
    references = {Path(row["path"]).name: row["reference"] for row in user.listed() if row["repo_id"] == "owner/two"}
    assert references["a-Q4_0.gguf"] == "owner/two:Q4_0"
    assert references["b-Q4_0.gguf"].endswith("/b-Q4_0.gguf")
    assert [Path(row["path"]).name for row in user.listed() if row["default"]] == ["b-Q4_0.gguf"]
    removed(user, references["b-Q4_0.gguf"])
    assert [Path(row["path"]).name for row in user.listed() if row["repo_id"] == "owner/two"] == ["a-Q4_0.gguf"]


def test_rm_reports_a_read_only_cache(user: HubUser) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    folder = user.folder()
    directories = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for directory in directories:
        directory.chmod(0o555)
    try:
        user.pull("cerebrum-7b:Q4_K_M")
        done = user.run("rm", "-y", "cerebrum-7b")
    finally:
        for directory in directories:
            directory.chmod(0o755)
    assert (done.code, done.err.count("\n")) == (1, 2)
    assert "Permission denied" in done.err
