"""A model comes from the Hub by any of its names, into the cache that every tool of the Hub shares."""

import contextlib
import errno
import hashlib
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from command_line import assert_error
from hub_server import Fault
from hub_user import CATALOGUED, READER, HubUser, cleaned, named
from scripted_command import app_for
from tiny_models import write_chatml
from waiting import wait_until

from cerebrum_cli.main import run
from cerebrum_cli.terminal.streams import Streams


@pytest.fixture(autouse=True)
def repositories(hub_user: HubUser, chatml_model: Path, tmp_path: Path) -> None:
    """Upload cerebrum-7b in two quantizations."""
    other = write_chatml(tmp_path / "other.gguf", seed=1)
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): chatml_model, named("Q2_K"): other})


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
    assert {each.authorization for each in requests if each.part == "cdn"} == {None}


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
        assert text.endswith(shown) and " expected speed after a prompt of 200 tokens: " in text


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


def test_rm_refuses_a_name_of_several_quantizations(hub_user: HubUser) -> None:
    for quantization in ("Q2_K", "Q4_K_M"):
        hub_user.pull(f"cerebrum-7b:{quantization}")
    done = hub_user.run("rm", "-y", "cerebrum-7b")
    assert_error(done, 2, "cerebrum-7b names 2 installed models", "name one: cerebrum-7b:Q2_K, cerebrum-7b:Q4_K_M")
    assert hub_user.run("rm", "-y", "cerebrum-7b:Q2_K").code == 0
    assert hub_user.run("rm", "-y", "cerebrum-7b").err.startswith("deleted cerebrum-7b:Q4_K_M, freed ")
