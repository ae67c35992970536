"""A model comes from the Hub by any of its names, into the cache that every tool of it shares, and goes again."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from command_line import CommandLine, assert_error
from hub_server import Fault
from hub_user import CATALOGUED, READER, HubUser, cleaned, named
from scripted_command import app_for
from tiny_models import write_chatml
from waiting import wait_until

from cerebrum_cli.main import run
from cerebrum_cli.terminal.streams import Streams


@pytest.fixture(autouse=True)
def repositories(hub_user: HubUser, chatml_model: Path, mistral_model: Path, tmp_path: Path) -> None:
    """Upload cerebrum-7b in two quantizations, the larger of 9 MB, and other models."""
    other = write_chatml(tmp_path / "other.gguf", seed=1)
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): mistral_model, named("Q2_K"): chatml_model})
    for repo_id in (OWNED, "someone/named-GGUF"):
        hub_user.hub.repository(repo_id, {FILE: other})


OWNED, FILE = "someone/tiny-GGUF", "tiny-Q8_0.gguf"
UNLISTED = "removed other from the list; its file is kept\n"

# HUB is the address of the Hub, COMMIT what `main` is.
REFERENCES = [
    ("Cerebrum-1.0-7B:q2_k", "Q2_K"),
    (CATALOGUED, "Q4_K_M"),
    (f"hf.co/{CATALOGUED}:Q2_K", "Q2_K"),
    (f"https://huggingface.co/{CATALOGUED}/resolve/main/{named('Q2_K')}?download=true", "Q2_K"),
    (f"HUB/{CATALOGUED}/resolve/COMMIT/{named('Q2_K')}", "Q2_K"),
    (f"HUB/{CATALOGUED}/blob/main/{named('Q2_K')}", "Q2_K"),
]


@pytest.mark.slow
def test_pull_and_ask_accept_any_name_of_a_model(hub_user: HubUser) -> None:
    references = [
        (reference.replace("HUB", hub_user.hub.url).replace("COMMIT", hub_user.commit()), quantization)
        for reference, quantization in [("cerebrum-7b", "Q4_K_M"), *REFERENCES]
    ]
    for reference, quantization in references:
        path = hub_user.path(named(quantization))
        assert cleaned(hub_user.pull(reference)) == f"installed cerebrum-7b:{quantization}: {path}\n"
    assert set(hub_user.blobs()) == {hub_user.digest(named(quantization)) for quantization in ("Q4_K_M", "Q2_K")}
    answers = {
        quantization: hub_user.ask("-m", hub_user.path(named(quantization))) for quantization in ("Q4_K_M", "Q2_K")
    }
    assert answers["Q4_K_M"] != answers["Q2_K"]
    hub_user.hub.log.clear()
    for reference, quantization in references:
        assert hub_user.ask("-m", reference) == answers[quantization], reference
    assert not hub_user.hub.log.requests()
    hub_user.pull(CATALOGUED)
    assert [each.part for each in hub_user.hub.log.requests()] == ["api"]


SCANNED = """[
    [[repo.repo_id, repo.nb_files, [[each.commit_hash, list(each.refs)] for each in repo.revisions]]
     for repo in scan_cache_dir().repos],
    list(map(str, scan_cache_dir().warnings)),
]"""


@pytest.mark.slow
def test_pull_and_huggingface_hub_find_each_others_files(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b:Q4_K_M")
    hub_user.hub.log.clear()
    ours, theirs = str(hub_user.path(named("Q4_K_M"))), str(hub_user.path(named("Q2_K")))
    file = f"'{CATALOGUED}', '{named('Q4_K_M')}'"
    assert hub_user.hugging_face(
        f"hf_hub_download({file}, local_files_only=True)",
        f"try_to_load_from_cache({file})",
        f"hf_hub_download('{CATALOGUED}', '{named('Q2_K')}')",
        SCANNED,
    ) == [ours, ours, theirs, [[[CATALOGUED, 2, [[hub_user.commit(), ["main"]]]]], []]]
    assert all(each.path.endswith(named("Q2_K")) for each in hub_user.hub.log.requests("resolve"))
    assert [row["reference"] for row in hub_user.listed()] == ["cerebrum-7b:Q2_K", "cerebrum-7b:Q4_K_M"]
    assert hub_user.ask("-m", "cerebrum-7b:Q2_K")
    hub_user.hub.log.clear()
    assert cleaned(hub_user.pull("cerebrum-7b:Q2_K")) == f"installed cerebrum-7b:Q2_K: {theirs}\n"
    assert not hub_user.hub.log.requests("cdn")
    hub_user.hub.log.clear()
    command = [str(Path(sys.executable).with_name("hf")), "download", CATALOGUED, named("Q4_K_M")]
    environment = hub_user.command.environment(hub_user.environment({}))
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    assert [each.method for each in hub_user.hub.log.requests("resolve")] == ["HEAD"]
    assert not hub_user.hub.log.requests("cdn")


@pytest.mark.parametrize("access", ["private", "gated"])
def test_pull_sends_the_token_to_the_hub_only(hub_user: HubUser, chatml_model: Path, access: str) -> None:
    repository = hub_user.hub.repository("owner/own", {"own-Q8_0.gguf": chatml_model}, readers=(READER,))
    if access == "private":
        repository.private = True
        hub_user.pull("owner/own", HF_TOKEN=READER)
    else:
        repository.gated = "manual"
        hub_user.token.write_text(f"{READER}\n")
        hub_user.pull("owner/own")
    requests = hub_user.hub.log.requests()
    assert {each.token for each in requests if each.part != "cdn"} == {READER}
    assert {each.token for each in requests if each.part == "cdn"} == {None}


@pytest.mark.slow
def test_pull_concurrent_pulls_download_once(hub_user: HubUser, mistral_model: Path) -> None:
    hub_user.hub.repository("owner/large", {"large-Q4_K_M.gguf": mistral_model})
    armed = hub_user.hub.arm(Fault(part="cdn", let_through=1, hang_after=1_000_000))
    with hub_user.start("pull", "owner/large") as first, contextlib.ExitStack() as stack:
        hub_user.hub.log.wait_for(lambda request: request in hub_user.downloads() and request.sent > 0)
        before = len(hub_user.hub.log.requests())
        second = stack.enter_context(hub_user.start("pull", "owner/large"))
        wait_until(lambda: len(hub_user.hub.log.requests()) > before)
        armed.release()
        said = [process.communicate(timeout=30)[1].decode() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    here = f"installed owner/large:Q4_K_M: {hub_user.path('large-Q4_K_M.gguf', 'owner/large')}\n"
    assert said[0].endswith(here)
    assert said[1].endswith(here)
    [download] = hub_user.downloads()
    assert download.sent == mistral_model.stat().st_size
    assert list(hub_user.blobs("owner/large")) == [hashlib.sha256(mistral_model.read_bytes()).hexdigest()]


@pytest.mark.slow
def test_pull_downloads_all_parts_of_a_split_model(
    hub_user: HubUser, parts: dict[str, Path], chatml_model: Path
) -> None:
    assert list(parts) == [f"tiny-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    hub_user.hub.repository("owner/split", {f"Q8_0/{name}": path for name, path in parts.items()})
    first = hub_user.path("Q8_0/tiny-Q8_0-00001-of-00003.gguf", "owner/split")
    assert cleaned(hub_user.pull("owner/split")) == f"installed owner/split:Q8_0: {first}\n"
    assert sum(hub_user.blobs("owner/split").values()) == sum(path.stat().st_size for path in parts.values())
    [row] = hub_user.listed()
    assert (row["reference"], row["size"]) == ("owner/split:Q8_0", sum(hub_user.blobs("owner/split").values()))
    answer = hub_user.ask("-m", "owner/split")
    assert answer == hub_user.ask("-m", chatml_model) == hub_user.ask("-m", first)
    hub_user.hub.repository("owner/other", dict(parts))
    hub_user.pull(f"https://huggingface.co/owner/other/resolve/main/{list(parts)[1]}")  # one part
    assert len(hub_user.blobs("owner/other")) == 3


def test_pull_names_a_next_command_that_works(tmp_path: Path) -> None:
    for file, shown in (
        (write_chatml(tmp_path / "chatty.gguf"), "next: cerebrum chat chatty"),
        (
            write_chatml(tmp_path / "bare.gguf", chat_template=None),
            'its file has no chat template; next: cerebrum ask --raw -m bare "Once upon a time"',
        ),
    ):
        errors = StringIO()
        streams = Streams(StringIO(), errors, None, False, True, False)
        assert run(["pull", str(file)], app_for({}, tmp_path, streams)) == 0
        text = " ".join(errors.getvalue().split())
        assert text.endswith(shown) and " for a 200-token prompt" in text


def test_pull_without_links_lays_files_where_huggingface_hub_does(
    hub_user: HubUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")  # as on exFAT

    monkeypatch.setattr(os, "symlink", refuse)
    path = hub_user.path(named("Q2_K"))
    for expected in (True, False):
        hub_user.hub.log.clear()
        assert cleaned(hub_user.pull("cerebrum-7b:Q2_K")) == f"installed cerebrum-7b:Q2_K: {path}\n"
        assert path.is_file() and not path.is_symlink() and not hub_user.blobs()
        assert bool(hub_user.hub.log.requests("cdn")) == expected
    assert hub_user.ask("-m", "cerebrum-7b:Q2_K")
    assert not hub_user.run("list", "--outdated", "--json").object
    [listed] = hub_user.run("list", "--json").object
    assert (listed["path"], listed["quantization"]) == (str(path), "Q2_K")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "is damaged" in hub_user.run("pull", "cerebrum-7b:Q2_K").err
    assert hub_user.run("rm", "-y", "cerebrum-7b:Q2_K").code == 0
    assert not path.exists()


def test_pull_refuses_to_do_without_links(hub_user: HubUser) -> None:
    done = hub_user.run("pull", "cerebrum-7b:Q2_K", HF_HUB_DISABLE_SYMLINKS="1")
    assert_error(done, 1, "HF_HUB_DISABLE_SYMLINKS is not supported", "unset it")


# What is newer on the Hub.


def install(hub_user: HubUser) -> None:
    """Pull a model of the catalog, one by its repository, and one more under a name of the user's."""
    hub_user.pull("cerebrum-7b")
    hub_user.pull(OWNED)
    hub_user.pull("someone/named-GGUF", "--name", "mine")


def outdated(hub_user: HubUser) -> list[str]:
    done = hub_user.run("list", "--outdated", "--json")
    assert done.code == 0, done.err
    return [row["reference"] for row in done.object]


@pytest.mark.slow
def test_list_outdated_shows_newer_uploads_and_pull_gets_them(hub_user: HubUser, tmp_path: Path) -> None:
    install(hub_user)
    done = hub_user.run("list", "--outdated")
    assert (done.code, done.out, done.err) == (0, "", "no installed model has a newer upload\n")
    newer = write_chatml(tmp_path / "newer.gguf", seed=3)
    repositories = hub_user.hub.repositories
    repositories[CATALOGUED].commit({named("Q4_K_M"): newer})
    repositories["someone/named-GGUF"].commit({FILE: newer})
    repositories[OWNED].commit({FILE: newer, "other-Q4_K_M.gguf": newer})
    names = ["mine", "cerebrum-7b:Q4_K_M", f"{OWNED}:Q8_0"]
    assert sorted(outdated(hub_user)) == sorted(names)
    for name in names:
        hub_user.pull(name)
        assert name not in outdated(hub_user)
    assert hub_user.run("show", "mine", "--json").object["sha256"] == hub_user.digest(named("Q4_K_M"))
    assert not hub_user.run("list", "--outdated").out
    repositories[OWNED].commit({FILE: write_chatml(tmp_path / "newest.gguf", seed=2)})
    assert outdated(hub_user) == [f"{OWNED}:Q8_0"]  # and not the first upload, which was superseded before


@pytest.mark.slow
def test_list_outdated_compares_revisions_and_skips_a_repository_that_is_gone(
    hub_user: HubUser, tmp_path: Path
) -> None:
    install(hub_user)
    newer = write_chatml(tmp_path / "newer.gguf", seed=3)
    pinned = hub_user.hub.repository("someone/pinned-GGUF", {FILE: newer})
    hub_user.pull(f"someone/pinned-GGUF@{hub_user.commit('someone/pinned-GGUF')}")
    pinned.commit({FILE: write_chatml(tmp_path / "newest.gguf", seed=2)})
    assert outdated(hub_user) == []
    hub_user.hub.repositories[CATALOGUED].commit({named("Q4_K_M"): newer})
    del hub_user.hub.repositories[OWNED]
    done = hub_user.run("list", "--outdated")
    assert f"{OWNED}: no such repository on the Hub" in done.err
    assert done.err.endswith("next: cerebrum pull MODEL\n")


@pytest.mark.slow
def test_list_outdated_without_a_network_is_one_error(hub_user: HubUser) -> None:
    install(hub_user)
    assert_error(hub_user.run_process("list", "--outdated", HF_HUB_OFFLINE="1"), 1, "offline mode is enabled")
    assert_error(hub_user.run("list", "--outdated", "--found"), 2, "--found and --outdated cannot be used together")
    assert hub_user.listed() and hub_user.run("list", HF_ENDPOINT="http://127.0.0.1:9").code == 0


# What is removed is gone from the disk, and nothing else is.


def removed(hub_user: HubUser, *references: str) -> str:
    """Return what is said of models that go."""
    done = hub_user.run("rm", "-y", *references)
    assert (done.code, done.out) == (0, "")
    return done.err


def test_rm_of_an_unregistered_file_or_without_confirmation_removes_nothing(hub_user: HubUser, tmp_path: Path) -> None:
    hub_user.pull("cerebrum-7b:Q4_K_M")
    done = hub_user.run("rm", "cerebrum-7b")
    assert (done.code, done.out, done.err) == (1, "", "cerebrum-7b:Q4_K_M not deleted; confirm with -y\n")
    assert hub_user.path(named("Q4_K_M")).exists()
    own = tmp_path / "other.gguf"
    for reference in (own, "./other.gguf"):
        assert_error(hub_user.run("rm", reference), 3, f"{own} is not registered", "delete the file yourself")
    assert own.exists()


@pytest.mark.slow
def test_rm_keeps_other_quantizations_and_partial_downloads(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b:Q4_K_M")
    hub_user.pull("cerebrum-7b:Q2_K")
    answer = hub_user.ask("-m", "cerebrum-7b:Q2_K")
    partial = hub_user.folder() / "blobs" / f"{'0' * 64}.incomplete"
    partial.write_bytes(b"GGUF")
    assert removed(hub_user, "cerebrum-7b:Q4_K_M").startswith("deleted cerebrum-7b:Q4_K_M, freed 9 MB")
    size = hub_user.path(named("Q2_K")).stat().st_size
    assert hub_user.blobs() == {hub_user.digest(named("Q2_K")): size, partial.name: 4}
    assert hub_user.ask("-m", "cerebrum-7b") == answer


def test_rm_frees_a_file_that_several_commits_have(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b:Q4_K_M")
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
    hub_user.pull("cerebrum-7b:Q4_K_M")
    assert_error(hub_user.run("rm"), 2, "no model given", "--prompt-cache")
    states = hub_user.command.home / ".cache/cerebrum/states"
    states.mkdir(parents=True)
    (states / "0-1.state").write_bytes(bytes(2_000))
    assert removed(hub_user, "--prompt-cache") == "emptied the prompt cache, freed 2 kB\n"
    assert not [*states.iterdir()] and hub_user.listed()


def test_rm_keeps_the_file_of_a_local_model(hub_user: HubUser, tmp_path: Path) -> None:
    hub_user.pull("cerebrum-7b:Q4_K_M")
    own = tmp_path / "other.gguf"
    hub_user.pull(own)
    assert removed(hub_user, "other") == UNLISTED
    assert own.exists()
    hub_user.pull(own)
    own.unlink()
    assert removed(hub_user, "other") == UNLISTED
    assert [row["name"] for row in hub_user.listed()] == ["cerebrum-7b"]


def test_rm_of_the_default_leaves_none_until_a_model_is_pulled(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b:Q4_K_M")
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
    hub_user.pull("cerebrum-7b:Q4_K_M")
    hub_user.pull(OWNED, "--name", "mine")
    hub_user.hub.repositories[OWNED].commit({FILE: write_chatml(tmp_path / "newer.gguf", seed=7)})
    hub_user.pull("mine")
    newer = hub_user.path(FILE, OWNED)
    rows = {row["reference"]: row["path"] for row in hub_user.listed()}
    assert rows.pop("mine") == str(newer)
    [older] = [reference for reference in rows if reference.startswith("https:")]
    assert removed(hub_user, OWNED).startswith(f"deleted {older}, freed ")
    assert newer.exists() and len(hub_user.blobs(OWNED)) == 1 and hub_user.ask("-m", "mine")


def test_rm_keeps_files_of_another_name(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b:Q4_K_M")
    hub_user.pull(OWNED, "--name", "one")
    hub_user.pull(OWNED, "--name", "two")
    assert "total: 9 MB" in hub_user.run("list").err  # with the file once
    path = hub_user.path(FILE, OWNED)
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


def test_rm_refuses_a_name_of_several_quantizations(hub_user: HubUser) -> None:
    for quantization in ("Q2_K", "Q4_K_M"):
        hub_user.pull(f"cerebrum-7b:{quantization}")
    done = hub_user.run("rm", "-y", "cerebrum-7b")
    assert_error(done, 2, "cerebrum-7b names 2 installed models", "name one: cerebrum-7b:Q2_K, cerebrum-7b:Q4_K_M")
