"""`cerebrum search`: GGUF repositories on the Hub, the most downloaded first, and what of each fits this machine."""

import json

import pytest
from command_line import assert_error
from hub_server import FORBIDDEN, RATE_LIMITED, Fault
from hub_user import HubUser

from cerebrum_cli.engine.memory import HEADROOM
from cerebrum_cli.engine.requests import DEFAULT_CONTEXT

GIB = 2**30
CATALOGUED = "unsloth/Qwen3.5-4B-GGUF"
LONG = f"mradermacher/{'Qwen3.5-Tiny-' * 3}i1-GGUF"


@pytest.fixture(autouse=True)
def repositories(hub_user: HubUser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload repositories that a search for "qwen" finds or not; this machine has 16 GiB."""
    monkeypatch.setattr("cerebrum_cli.engine.machine.total_memory", lambda: 16 * GIB)
    hub = hub_user.hub
    quants = {"Q4_K_M": 2_740_937_888, "Q8_0": 4_482_403_488}
    hub.repository(CATALOGUED, {f"Qwen3.5-4B-{name}.gguf": size for name, size in quants.items()}, downloads=2_000_000)
    big = {f"Q4_K_M/Qwen3.5-122B-Q4_K_M-0000{n}-of-00003.gguf": 25 * 10**9 for n in (1, 2, 3)}
    hub.repository("unsloth/Qwen3.5-122B-GGUF", big, downloads=30_000, license="other")
    hub.repository("owner/qwen-mmproj-GGUF", {"mmproj-F16.gguf": 10**9}, downloads=50)
    hub.repository("meta/Qwen-like-GGUF", {"x-Q4_K_M.gguf": 5 * 10**9}, gated="manual", license="llama3.2", downloads=7)
    hub.repository(LONG, {"x.i1-Q4_K_M.gguf": 10**9}, downloads=400)
    hub.repository("owner/secret-qwen-GGUF", {"x-Q4_K_M.gguf": 10**9}, private=True)
    hub.repository("owner/other-GGUF", {"x-Q4_K_M.gguf": 10**9}, downloads=10**9)


def test_search_lists_repositories_by_downloads_with_the_best_fit(hub_user: HubUser) -> None:
    rows = hub_user.run("search", "QWEN", "--json").object
    assert [row["repo_id"] for row in rows] == [
        *(CATALOGUED, "unsloth/Qwen3.5-122B-GGUF", LONG, "owner/qwen-mmproj-GGUF", "meta/Qwen-like-GGUF")
    ]
    assert [row["fit"] for row in rows] == ["fits", "too big", "fits", None, "fits"]
    assert [row["gated"] for row in rows] == [False, False, False, False, True]
    first, second, long, nothing, gated = rows
    planned = hub_user.run("pull", "--dry-run", "--json", CATALOGUED).object
    assert [first["recommended"], first["size"]] == ["Q4_K_M", 2_740_937_888] and planned["chosen"] == "Q4_K_M"
    assert first["memory"] == next(each["needed"] for each in planned["quantizations"] if each["recommended"])
    assert (first["license"], second["license"], gated["license"]) == ("apache-2.0", "other", "llama3.2")
    assert (first["downloads"], first["updated"], second["size"]) == (2_000_000, "2026-01-02", 75 * 10**9)
    assert 0 < long["memory"] - 10**9 - HEADROOM - DEFAULT_CONTEXT * 131_072 < 5_000_000  # assumed: no header is read
    assert nothing["recommended"] is None and not hub_user.hub.log.requests("cdn")


def test_search_shows_at_most_ten(hub_user: HubUser) -> None:
    for number in range(20):
        hub_user.hub.repository(f"owner/many-{number}-GGUF", {"x-Q4_K_M.gguf": 10**9}, downloads=number)
    rows = hub_user.run("search", "many-", "--json").object
    assert [row["downloads"] for row in rows] == list(range(19, 9, -1))


def test_search_leaves_out_control_sequences_of_the_hub(hub_user: HubUser) -> None:
    hub = hub_user.hub
    hub.repository("owner/evil-\x1b[2J-GGUF", {"x-Q4_K_M.gguf": 10**9})
    hub.repository("owner/evil-GGUF", {"x-\x1b]0;title\x07.gguf": 10**9}, license="mit\x1b[31m\n\u202e")
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


def test_search_is_retried_where_the_hub_asks_for_it_but_no_repository(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="api", path="search=", refusal=RATE_LIMITED.resetting_after(0), times=2))
    hub_user.hub.arm(Fault(part="api", path=CATALOGUED, refusal=RATE_LIMITED.resetting_after(45)))
    hub_user.hub.arm(Fault(part="api", path=LONG, refusal=FORBIDDEN))
    done = hub_user.run("search", "qwen", "--json")
    assert done.err.count("note: the Hub responded 429 Too Many Requests") == 2
    assert [row["fit"] for row in done.object] == [None, "too big", None, None, "fits"]


@pytest.mark.slow
def test_search_sends_no_telemetry(hub_user: HubUser) -> None:
    variables = hub_user.environment({})
    del variables["HF_HUB_DISABLE_TELEMETRY"]
    assert hub_user.command.run_process("search", "other", env=variables).code == 0
    assert {request.part for request in hub_user.hub.log.requests()} == {"api"}
