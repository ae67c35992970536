"""`list --outdated` asks the Hub for newer uploads of installed files, and `pull` of the same name gets them."""

from pathlib import Path

import pytest
from command_line import assert_error
from hub_user import CATALOGUED, HubUser, named
from tiny_models import write_chatml

OWNED = "someone/tiny-GGUF"
FILE = "tiny-Q8_0.gguf"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def installed(hub_user: HubUser, chatml_model: Path) -> None:
    """Pull a model of the catalog, one by its repository, and one more under a name of the user's."""
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): chatml_model})
    for repo_id in (OWNED, "someone/named-GGUF"):
        hub_user.hub.repository(repo_id, {FILE: chatml_model})
    hub_user.pull("cerebrum-7b")
    hub_user.pull(OWNED)
    hub_user.pull("someone/named-GGUF", "--name", "mine")


def outdated(hub_user: HubUser) -> list[str]:
    done = hub_user.run("list", "--outdated", "--json")
    assert done.code == 0, done.err
    return [row["reference"] for row in done.object]


def test_list_outdated_shows_newer_uploads_and_pull_gets_them(hub_user: HubUser, tmp_path: Path) -> None:
    done = hub_user.run("list", "--outdated")
    assert (done.code, done.out, done.err) == (0, "", "no installed model has a newer upload\n")
    newer = write_chatml(tmp_path / "newer.gguf", seed=1)
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


def test_list_outdated_compares_a_model_with_its_own_revision(hub_user: HubUser, tmp_path: Path) -> None:
    newer = write_chatml(tmp_path / "newer.gguf", seed=1)
    pinned = hub_user.hub.repository("someone/pinned-GGUF", {FILE: newer})
    hub_user.pull(f"someone/pinned-GGUF@{hub_user.commit('someone/pinned-GGUF')}")
    pinned.commit({FILE: write_chatml(tmp_path / "newest.gguf", seed=2)})
    assert outdated(hub_user) == []


def test_list_outdated_skips_a_repository_that_is_gone(hub_user: HubUser, tmp_path: Path) -> None:
    newer = write_chatml(tmp_path / "newer.gguf", seed=1)
    hub_user.hub.repositories[CATALOGUED].commit({named("Q4_K_M"): newer})
    del hub_user.hub.repositories[OWNED]
    done = hub_user.run("list", "--outdated")
    assert f"{OWNED}: no such repository on the Hub" in done.err
    assert done.err.endswith("next: cerebrum pull MODEL\n")


def test_list_outdated_without_a_network_is_one_error(hub_user: HubUser) -> None:
    assert_error(hub_user.run_process("list", "--outdated", HF_HUB_OFFLINE="1"), 1, "offline mode is enabled")
    assert_error(hub_user.run("list", "--outdated", "--found"), 2, "--found and --outdated cannot be used together")
    assert hub_user.listed() and hub_user.run("list", HF_ENDPOINT="http://127.0.0.1:9").code == 0
