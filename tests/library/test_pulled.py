"""What was pulled is listed, shown and asked without a network; a pull says what is new."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cases import rows
from command_line import assert_error
from hub_server import UNAVAILABLE, Fault
from hub_user import CATALOGUED, OFFLINE, HubUser, cleaned, named
from tiny_models import write_chatml

OWNED = "someone/tiny-GGUF"


@pytest.fixture(autouse=True)
def repositories(hub_user: HubUser, chatml_model: Path, tmp_path: Path) -> None:
    other = write_chatml(tmp_path / "other.gguf", seed=1)
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): chatml_model, named("Q2_K"): other})
    hub_user.hub.repository(OWNED, {"tiny-Q8_0.gguf": other})


@pytest.mark.slow
@pytest.mark.parametrize(("offline", "more"), OFFLINE)
def test_offline_has_what_is_installed(hub_user: HubUser, offline: tuple[str, ...], more: dict[str, str]) -> None:
    path = hub_user.path(named("Q4_K_M"))
    hub_user.pull("cerebrum-7b")
    hub_user.hub.log.clear()
    assert hub_user.pull(CATALOGUED, *offline, **more).err == f"installed cerebrum-7b:Q4_K_M: {path}\n"
    assert hub_user.ask("-m", "cerebrum-7b", *offline, **more)
    assert hub_user.run("list", **more).code == hub_user.run("show", "cerebrum-7b", **more).code == 0
    for reference in ("cerebrum-7b:Q2_K", OWNED, "starter"):
        done = hub_user.run("pull", reference, *offline, **more)
        assert_error(done, 3, f"error: {reference} is not downloaded, and the network is disabled")
    assert not hub_user.hub.log.requests()


def test_offline_dry_run_shows_the_catalogue(hub_user: HubUser) -> None:
    done = hub_user.run("pull", "--dry-run", "--json", "--offline", "cerebrum-7b")
    assert (done.code, done.object["revision"], done.object["repo_id"]) == (0, None, CATALOGUED)
    assert "Q8_0" in {each["quantization"] for each in done.object["quantizations"]}
    assert_error(hub_user.run("pull", "--dry-run", "--offline", OWNED), 3, f"error: {OWNED} is not downloaded")
    assert not hub_user.hub.log.requests()


def test_pull_uses_the_installed_model_if_the_hub_fails(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b")
    late = (("RateLimit", '"api";r=0;t=7000'),)
    hub_user.hub.arm(Fault(part="api", times=None, refusal=UNAVAILABLE, headers=late))
    assert hub_user.pull("cerebrum-7b").err == (
        "note: the Hub responded 503 Service Unavailable: using the installed cerebrum-7b:Q4_K_M\n"
        f"installed cerebrum-7b:Q4_K_M: {hub_user.path(named('Q4_K_M'))}\n"
    )
    assert hub_user.run("pull", "cerebrum-7b:Q2_K").code == 1


@pytest.mark.slow
def test_list_shows_installed_models(hub_user: HubUser) -> None:
    assert (hub_user.run("list").out, hub_user.listed()) == ("", [])
    hub_user.pull("cerebrum-7b")
    hub_user.pull(OWNED)
    before = datetime.now(UTC).replace(microsecond=0)
    hub_user.ask("-m", OWNED)
    first, second = hub_user.listed()
    assert set(first.pop("speed")) == {"tokens_per_second", "first_token_s", "thinking_s"}
    varying = {"path": str(hub_user.path(named("Q4_K_M"))), "revision": hub_user.commit()}
    assert first == rows("listed_model") | varying
    assert (second["reference"], second["default"], second["format"]) == (f"{OWNED}:Q8_0", False, "embedded")
    used = datetime.fromisoformat(second["last_used"])
    assert timedelta(0) <= used - before < timedelta(minutes=1)
    done = hub_user.run("list")
    lines = [re.sub(r"\S+ t/s after \S+ s", "", line).split() for line in done.out.splitlines()]
    assert lines == [
        ["name", "quant", "size", "format", "context", "speed", "last", "used", "where"],
        ["*", "cerebrum-7b:Q4_K_M", "Q4_K_M", "225", "kB", "cerebrum", "2048", "-", f"hf.co/{CATALOGUED}"],
        [f"{OWNED}:Q8_0", "Q8_0", "225", "kB", "embedded", "2048", second["last_used"][:10], f"hf.co/{OWNED}"],
    ]
    assert done.err == "* default model\ntotal: 451 kB; prompt cache: 0 kB\nbundled, for trying the program: nano\n"
    done = hub_user.run("list", CEREBRUM_MODEL="nano")
    assert done.err.splitlines()[:2] == ["* default model", "note: CEREBRUM_MODEL sets nano, which takes precedence"]


def test_show_describes_an_installed_model(hub_user: HubUser) -> None:
    pulled = hub_user.run("pull", "cerebrum-7b", "--json", "--quiet")
    [row] = hub_user.listed()
    assert (pulled.code, pulled.err, pulled.out) == (0, "", f"{json.dumps(row, ensure_ascii=False)}\n")
    del row["error"], row["speed"]  # the table has the speed of each quantization
    done = hub_user.run("show", "cerebrum-7b", "--json")
    assert (done.code, done.err) == (0, "")
    shown = done.object
    assert {key: shown[key] for key in row} == row
    assert (shown["sha256"], shown["files"]) == (hub_user.digest(named("Q4_K_M")), [row["path"]])
    assert (shown["license"], shown["metadata"]["general.name"]) == ("apache-2.0", "tiny chatml")
    installed = {each["quantization"]: each["installed"] for each in shown["quantizations"]}
    assert (installed["Q4_K_M"], installed["Q2_K"]) == (True, False)
    lines = hub_user.run("show", "cerebrum-7b").out.splitlines()
    described = dict(line.split(maxsplit=1) for line in lines[: lines.index("")])
    assert [described[key] for key in ("path", "sha256", "license")] == [row["path"], shown["sha256"], "apache-2.0"]


def test_pull_dry_run_downloads_nothing(hub_user: HubUser) -> None:
    done = hub_user.run("pull", "--dry-run", "--json", "cerebrum-7b:q2_k")
    assert (done.code, done.err) == (0, "")
    found = done.object
    assert (found["name"], found["repo_id"], found["revision"]) == ("cerebrum-7b", CATALOGUED, hub_user.commit())
    assert (found["chosen"], found["context"]) == ("Q2_K", 8192)
    sizes = [(each["quantization"], each["size"]) for each in found["quantizations"]]
    assert sizes == [("Q2_K", 225_440), ("Q4_K_M", 225_440)]
    keys = ["quantization", "size", "needed", "fit", "installed", "recommended", "speed"]
    assert list(found["quantizations"][0]) == keys
    smaller = hub_user.run("pull", "--dry-run", "--json", "cerebrum-7b", CEREBRUM_CTX="1024").object
    needed = [each["quantizations"][1]["needed"] for each in (found, smaller)]
    assert (smaller["context"], needed[0] - needed[1]) == (1024, 7168 * (131_072 + 2 * 256)), "with the attention mask"
    done = hub_user.run("pull", "--dry-run", "cerebrum-7b:q2_k", CEREBRUM_CTX="1024")
    assert done.code == 0 and done.err.startswith("note: Cerebrum-1.0-7b\n      Reasons step by step")
    assert done.err.endswith("\ncerebrum pull cerebrum-7b:q2_k would download cerebrum-7b:Q2_K\n")
    assert done.out.startswith("\ncerebrum-7b at a context of 1024 tokens; this machine has ")
    assert [line.split()[0] for line in done.out.splitlines()[3:6]] == ["quant", "Q2_K", "*"]
    assert not hub_user.hub.log.requests("cdn") and not hub_user.cache.exists()


@pytest.mark.slow
def test_default_model_is_the_first_until_another_is_set(hub_user: HubUser) -> None:
    hub_user.pull("cerebrum-7b:Q2_K")
    hub_user.pull("cerebrum-7b:Q4_K_M")
    first = hub_user.ask()
    hub_user.pull("cerebrum-7b:Q4_K_M", "--default")
    assert hub_user.ask() == hub_user.ask("-m", hub_user.path(named("Q4_K_M"))) != first
    defaults = {row["reference"]: row["default"] for row in hub_user.listed()}
    assert defaults == {"cerebrum-7b:Q2_K": False, "cerebrum-7b:Q4_K_M": True}


def test_pull_registers_a_name(hub_user: HubUser) -> None:
    done = hub_user.run("pull", OWNED, "--name", "mine", "--json")
    assert (done.code, done.object["name"], done.object["reference"]) == (0, "mine", "mine")
    hub_user.pull("--offline", "--name", "mine", OWNED)
    assert [row["name"] for row in hub_user.listed()] == ["mine"]
    assert hub_user.ask("-m", "MINE", "--offline")


@pytest.mark.slow
def test_pull_downloads_a_new_commit_and_keeps_the_old(hub_user: HubUser, tmp_path: Path) -> None:
    hub_user.pull("cerebrum-7b")
    old = hub_user.path(named("Q4_K_M"))
    newer = write_chatml(tmp_path / "newer.gguf", seed=7)
    hub_user.hub.repositories[CATALOGUED].commit({named("Q4_K_M"): newer})
    new = hub_user.path(named("Q4_K_M"))
    url = f"https://huggingface.co/{CATALOGUED}/resolve/{old.parent.name}/{old.name}"
    assert cleaned(hub_user.pull("cerebrum-7b")) == f"installed cerebrum-7b:Q4_K_M: {new}\n"
    done = hub_user.run("list")
    first, second = done.out.splitlines()[1:]
    assert first.endswith(f"hf.co/{CATALOGUED}") and second.endswith(f"{CATALOGUED}, commit {old.parent.name[:7]}")
    assert f"another cerebrum-7b:Q4_K_M, by its URL: {url}\n" in done.err
    assert new.read_bytes() == newer.read_bytes()
    assert hub_user.ask() == hub_user.ask("-m", new) != hub_user.ask("-m", old)
    assert len(hub_user.blobs()) == 2
    hub_user.hub.repositories[CATALOGUED].commit({"README.md": b"# Better\n"})
    hub_user.hub.log.clear()
    assert hub_user.path(named("Q4_K_M")) != new
    assert f" {hub_user.path(named('Q4_K_M'))}\n" in cleaned(hub_user.pull("cerebrum-7b"))
    assert not hub_user.downloads()


@pytest.mark.slow
def test_list_survives_a_missing_or_damaged_file(hub_user: HubUser, chatml_model: Path, tmp_path: Path) -> None:
    gone = Path(shutil.copy(chatml_model, tmp_path / named("Q5_0")))
    hub_user.pull(gone)
    gone.unlink()
    hub_user.pull("cerebrum-7b:Q4_K_M")
    hub_user.pull("cerebrum-7b:Q2_K")
    blob = hub_user.path(named("Q2_K")).resolve()
    blob.write_bytes(b"GGUF" + bytes(100))
    for arguments in (
        ["list", "--available"],
        ["show", "cerebrum-7b"],
        ["pull", "--dry-run", "--offline", "cerebrum-7b"],
    ):
        done = hub_user.run(*arguments)
        assert (done.code, "Traceback" in done.err) == (0, False), done.err
    assert hub_user.ask("-m", "cerebrum-7b")
    errors = [line for line in hub_user.run("list").err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
