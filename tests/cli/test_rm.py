"""What is removed is gone from the disk, and nothing else is."""

import re
import shutil
from pathlib import Path

import pytest
from command_line import CommandLine, assert_error
from hub_user import CATALOGUED, HubUser, named
from tiny_models import write_chatml

OWNED = "someone/tiny-GGUF"
UNLISTED = "removed other from the list; its file is kept\n"


@pytest.fixture(autouse=True)
def repositories(hub_user: HubUser, chatml_model: Path, mistral_model: Path, tmp_path: Path) -> None:
    """Upload cerebrum-7b in two sizes and other models, and pull the larger, of 9 MB."""
    other = write_chatml(tmp_path / "other.gguf", seed=1)
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): mistral_model, named("Q2_K"): chatml_model})
    hub_user.hub.repository(OWNED, {"tiny-Q8_0.gguf": other})
    hub_user.hub.repository("owner/theirs", {"theirs-Q8_0.gguf": other})
    hub_user.pull("cerebrum-7b:Q4_K_M")


def removed(hub_user: HubUser, *references: str) -> str:
    """Return what is said of models that go."""
    done = hub_user.run("rm", "-y", *references)
    assert (done.code, done.out) == (0, "")
    return done.err


def test_rm_of_an_unregistered_file_or_without_confirmation_removes_nothing(hub_user: HubUser, tmp_path: Path) -> None:
    done = hub_user.run("rm", "cerebrum-7b")
    assert (done.code, done.out, done.err) == (1, "", "cerebrum-7b:Q4_K_M not deleted; confirm with -y\n")
    assert hub_user.path(named("Q4_K_M")).exists()
    own = tmp_path / "other.gguf"
    for reference in (own, "./other.gguf"):
        assert_error(hub_user.run("rm", reference), 3, f"{own} is not registered", "delete the file yourself")
    assert own.exists()


@pytest.mark.slow
def test_rm_keeps_other_quantizations_and_partial_downloads(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b:Q2_K")
    answer = hub_user.ask("-m", "cerebrum-7b:Q2_K")
    partial = hub_user.folder() / "blobs" / f"{'0' * 64}.incomplete"
    partial.write_bytes(b"GGUF")
    assert removed(hub_user, "cerebrum-7b:Q4_K_M").startswith("deleted cerebrum-7b:Q4_K_M, freed 9 MB")
    size = hub_user.path(named("Q2_K")).stat().st_size
    assert hub_user.blobs() == {hub_user.digest(named("Q2_K")): size, partial.name: 4}
    assert hub_user.ask("-m", "cerebrum-7b") == answer


def test_rm_frees_a_file_that_several_commits_have(hub_user: HubUser) -> None:
    hub_user.pull(OWNED, "--name", "mine")
    for repo_id in (CATALOGUED, OWNED):
        hub_user.hub.repositories[repo_id].commit({"README.md": b"# Better\n"})
        hub_user.pull(repo_id)
    assert [row["name"] for row in hub_user.listed()] == ["mine", "cerebrum-7b"]
    both = removed(hub_user, "mine", "cerebrum-7b", "cerebrum-7b:Q4_K_M").splitlines()
    assert [line.partition(";")[0] for line in both] == [
        "deleted mine, freed 225 kB",
        "deleted cerebrum-7b:Q4_K_M, freed 9 MB",
    ]
    assert not hub_user.blobs() and not hub_user.blobs(OWNED) and not hub_user.listed()
    assert_error(hub_user.run("rm", "-y", "cerebrum-7b"), 3, "cerebrum-7b is not downloaded", "cerebrum list")


def test_rm_empties_the_prompt_cache(hub_user: HubUser) -> None:
    assert_error(hub_user.run("rm"), 2, "no model given", "--prompt-cache")
    states = hub_user.command.home / ".cache/cerebrum/states"
    states.mkdir(parents=True)
    (states / "0-1.state").write_bytes(bytes(2_000))
    assert removed(hub_user, "--prompt-cache") == "emptied the prompt cache, freed 2 kB\n"
    assert not [*states.iterdir()] and hub_user.listed()


def test_rm_keeps_the_file_of_a_local_model(hub_user: HubUser, tmp_path: Path) -> None:
    own = tmp_path / "other.gguf"
    hub_user.pull(own)
    assert removed(hub_user, "other") == UNLISTED
    assert own.exists()
    hub_user.pull(own)
    own.unlink()
    assert removed(hub_user, "other") == UNLISTED
    assert [row["name"] for row in hub_user.listed()] == ["cerebrum-7b"]


def test_rm_of_the_default_leaves_none_until_a_model_is_pulled(hub_user: HubUser) -> None:
    hub_user.pull(OWNED)
    assert [row["default"] for row in hub_user.listed()] == [True, False]
    said = removed(hub_user, "cerebrum-7b")
    assert re.search(r", freed \d+ MB; no default model is set now\n$", said)
    assert_error(hub_user.run("ask", "Why?"), 3, "no default model is set", f"cerebrum pull --default {OWNED}:Q8_0")
    removed(hub_user, OWNED)
    assert_error(hub_user.run("ask", "Why?"), 3, "no model is installed")
    hub_user.pull(OWNED)
    assert hub_user.ask()


def test_rm_of_an_older_upload_keeps_the_newer_one_of_a_name(hub_user: HubUser, tmp_path: Path) -> None:
    hub_user.pull(OWNED, "--name", "mine")
    hub_user.hub.repositories[OWNED].commit({"tiny-Q8_0.gguf": write_chatml(tmp_path / "newer.gguf", seed=7)})
    hub_user.pull("mine")
    newer = hub_user.path("tiny-Q8_0.gguf", OWNED)
    rows = {row["reference"]: row["path"] for row in hub_user.listed()}
    assert rows.pop("mine") == str(newer)
    [older] = [reference for reference in rows if reference.startswith("https:")]
    assert removed(hub_user, OWNED).startswith(f"deleted {older}, freed ")
    assert newer.exists() and len(hub_user.blobs(OWNED)) == 1 and hub_user.ask("-m", "mine")


def test_rm_keeps_files_of_another_name(hub_user: HubUser) -> None:
    hub_user.pull(OWNED, "--name", "one")
    hub_user.pull(OWNED, "--name", "two")
    assert "total: 9 MB" in hub_user.run("list").err  # with the file once
    path = hub_user.path("tiny-Q8_0.gguf", OWNED)
    assert removed(hub_user, "one") == "removed one from the list; its file is kept\n"
    assert path.exists()
    assert hub_user.ask("-m", "two")
    assert removed(hub_user, "two").startswith("deleted two, ")
    assert hub_user.blobs(OWNED) == {}


def test_split_model_without_all_its_files_is_never_the_default(
    user: CommandLine, parts: dict[str, Path], tmp_path: Path
) -> None:
    for path in parts.values():
        shutil.copy(path, tmp_path / path.name)
    first, *_, last = (tmp_path / path.name for path in parts.values())
    assert user.run("pull", first, "--name", "split").code == 0
    last.unlink()
    assert_error(user.run("ask", "Hi", "-m", "split"), 3, f"split: {last} no longer exists", "cerebrum rm split")
    assert_error(
        user.run("ask", "Hi", "-m", first), 3, f"{last}: file not found", "put all files of the model in one directory"
    )
    assert user.run("pull", "--default", "small").code == 0
    assert user.run("rm", "-y", "small").code == 0
    assert user.run("rm", "-y", "split").code == 0
    assert_error(user.run("pull", first), 3, f"{last}: file not found", "put all files of the model in one directory")
