"""`cerebrum search`: GGUF repositories on the Hub, the most downloaded first."""

import json

import pytest
from command_line import assert_error
from hub_server import RATE_LIMITED, Fault
from hub_user import HubUser

CATALOGUED = "unsloth/Qwen3.5-4B-GGUF"
LONG = f"mradermacher/{'Qwen3.5-Tiny-' * 3}i1-GGUF"


@pytest.fixture(autouse=True)
def repositories(hub_user: HubUser) -> None:
    """Upload repositories that a search for "qwen" finds or not."""
    hub = hub_user.hub
    files = {"x-Q4_K_M.gguf": b""}
    hub.repository(CATALOGUED, files, downloads=2_000_000)
    hub.repository("unsloth/Qwen3.5-122B-GGUF", files, downloads=30_000, license="other")
    hub.repository("meta/Qwen-like-GGUF", files, gated="manual", license="llama3.2", downloads=7)
    hub.repository(LONG, files, downloads=400)
    hub.repository("owner/secret-qwen-GGUF", files, private=True)
    hub.repository("owner/other-GGUF", files, downloads=10**9)


def test_search_lists_repositories_by_downloads(hub_user: HubUser) -> None:
    rows = hub_user.run("search", "QWEN", "--json").object
    assert [row["repo_id"] for row in rows] == [*(CATALOGUED, "unsloth/Qwen3.5-122B-GGUF", LONG, "meta/Qwen-like-GGUF")]
    assert rows[0] == {
        "repo_id": CATALOGUED,
        "downloads": 2_000_000,
        "updated": "2026-01-02",
        "license": "apache-2.0",
        "gated": False,
    }
    assert rows[-1]["gated"] and [row["license"] for row in rows[1:]] == ["other", "apache-2.0", "llama3.2"]
    assert len(hub_user.hub.log.requests()) == 1


def test_search_shows_at_most_ten(hub_user: HubUser) -> None:
    for number in range(20):
        hub_user.hub.repository(f"owner/many-{number}-GGUF", {"x-Q4_K_M.gguf": b""}, downloads=number)
    rows = hub_user.run("search", "many-", "--json").object
    assert [row["downloads"] for row in rows] == list(range(19, 9, -1))


def test_search_leaves_out_control_sequences_of_the_hub(hub_user: HubUser) -> None:
    hub = hub_user.hub
    hub.repository("owner/evil-\x1b[2J-GGUF", {"x-Q4_K_M.gguf": b""})
    hub.repository("owner/evil-GGUF", {"x-\x1b]0;title\x07.gguf": b""}, license="mit\x1b[31m\n\u202e")
    done = hub_user.run("search", "evil")
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(done.out + done.err)
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == ["owner/evil-GGUF"]


@pytest.mark.parametrize("offline", [("--offline",), ()])
def test_search_offline_is_an_error_of_one_line(hub_user: HubUser, offline: tuple[str, ...]) -> None:
    done = hub_user.run("search", *offline, "qwen", **({} if offline else {"HF_HUB_OFFLINE": "1"}))
    assert_error(done, 1, "cannot search the Hub: the network is disabled", "--offline")
    assert len(done.err.splitlines()) == 2 and not hub_user.hub.log.requests()
    refused = hub_user.run("search", "qwen", HF_ENDPOINT="http://127.0.0.1:1")
    assert_error(refused, 1, "127.0.0.1:1: connection refused", "check the network")
    assert json.loads(hub_user.run("search", "qwen", "--json").out)


def test_search_is_retried_when_the_hub_asks_for_it(hub_user: HubUser) -> None:
    now = (("RateLimit", '"api";r=0;t=0'),)
    hub_user.hub.arm(Fault(part="api", path="search=", refusal=RATE_LIMITED, headers=now, times=2))
    done = hub_user.run("search", "qwen", "--json")
    assert done.err.count("note: the Hub responded 429 Too Many Requests") == 2
    assert len(done.object) == 4


@pytest.mark.slow
def test_search_sends_no_telemetry(hub_user: HubUser) -> None:
    variables = hub_user.environment({})
    del variables["HF_HUB_DISABLE_TELEMETRY"]
    assert hub_user.command.run_process("search", "other", env=variables).code == 0
    assert {request.part for request in hub_user.hub.log.requests()} == {"api"}
