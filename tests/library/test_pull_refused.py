"""What cannot be pulled, or is no Hub: a line that says why, one that says what to do, soon, and nothing else."""

import os
import re
import struct
import sys
from pathlib import Path

import pytest
from cases import rows
from command_line import CommandLine, Finished, assert_error
from gguf_files import write_model
from hostile_hub import DIGEST, LFS, REPLIES, SEARCHES, HostileHub, Pieces, head, http, listing
from hub_server import FORBIDDEN, Fault, Refusal
from hub_user import CATALOGUED, OTHER, READER, HubUser, named

from cerebrum_cli.library import hub_requests


@pytest.fixture
def hub_user(hub_user: HubUser, chatml_model: Path) -> HubUser:
    """With repositories that may not be read, or have no model."""
    model = {"own-Q8_0.gguf": chatml_model}
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): chatml_model, named("Q2_K"): chatml_model})
    hub_user.hub.repository("owner/bare", {"README.md": b"# Bare\n"})
    hub_user.hub.repository("owner/private", model, private=True, readers=(READER,))
    hub_user.hub.repository("owner/gated", model, gated="manual", readers=(READER,))
    return hub_user


def refused(hub_user: HubUser, *arguments: str, **more: str) -> tuple[int, str, str]:
    """Return the exit code of a pull and its two lines; nothing else may be said, and nothing come."""
    done = hub_user.run("pull", *arguments, **more)
    assert done.out == ""
    error, do = done.err.splitlines()
    assert (error[:7], do[:7]) == ("error: ", " hint: ")
    assert not hub_user.cache.exists()
    return done.code, error[7:], do[7:]


UNKNOWN = "no such repository on the Hub, or it is private"
LOG_IN = "; for a private repository run hf auth login, or set HF_TOKEN"


@pytest.mark.parametrize(("reference", "stored", "token", "code", "error", "hint"), rows("refused_pulls"))
def test_pull_refuses_what_it_may_not_read_or_cannot_find(
    hub_user: HubUser, reference: str, stored: str | None, token: str | None, code: int, error: str, hint: str
) -> None:
    """With a token in its file, and one in HF_TOKEN; HUB stands for the Hub's address, PATH for the token's file."""
    if stored:
        hub_user.token.write_text(stored)
    expected = (text.replace("HUB", hub_user.hub.url).replace("PATH", str(hub_user.token)) for text in (error, hint))
    more = {"HF_TOKEN": token} if token else {}
    assert refused(hub_user, reference, **more) == (code, *expected)


def test_pull_of_a_renamed_repository_is_redirected(hub_user: HubUser) -> None:
    """The Hub redirects the old name of a repository to its new one, which is not the storage of its files."""
    place = (("Location", f"{hub_user.hub.url}/api/models/owner/new?blobs=true"),)
    moved = hub_user.hub.arm(Fault(part="api", path="owner/old", refusal=Refusal(307, "Renamed", headers=place)))
    assert refused(hub_user, "owner/old") == (3, f"owner/old: {UNKNOWN}", f"check the spelling{LOG_IN}")
    assert moved.struck == 1


def test_pull_token_without_access_names_what_is_missing(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="api", times=None, refusal=FORBIDDEN))
    said = f"the Hub denied access to {CATALOGUED}: This token has no access to this resource"
    assert refused(hub_user, CATALOGUED, HF_TOKEN=OTHER) == (1, said, "use a token with access: set HF_TOKEN")


@pytest.mark.parametrize(
    ("endpoint", "error"),
    [
        ("http://127.0.0.1:1", "127.0.0.1:1: connection refused"),
        ("http://no-such-host.invalid", "no-such-host.invalid: cannot resolve the host name"),
    ],
)
def test_pull_gives_up_soon_on_an_unreachable_hub(hub_user: HubUser, endpoint: str, error: str) -> None:
    done = hub_user.run("pull", CATALOGUED, HF_ENDPOINT=endpoint)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"note: {error}: retrying in 1 s\n"
        f"error: {error}\n hint: check the network, the proxy settings, SSL_CERT_FILE and HF_ENDPOINT; "
        "these need no Hub: cerebrum pull ./model.gguf, cerebrum pull starter\n"
    )


def test_pull_refuses_a_broken_repository_without_a_request(hub_user: HubUser) -> None:
    repo_id = "bartowski/Cerebrum-1.0-8x7b-GGUF-old"
    said = f"{repo_id}: its files are broken, according to its own page"
    for reference in (repo_id, f"https://huggingface.co/{repo_id}/blob/main/Cerebrum-1.0-8x7b-Q4_K_M.gguf"):
        assert refused(hub_user, reference) == (1, said, "cerebrum pull cerebrum-8x7b")
    assert not hub_user.hub.log.requests()


def test_pull_refuses_old_mixtral_files_by_their_header(hub_user: HubUser, tmp_path: Path) -> None:
    def text(said: bytes) -> bytes:
        return struct.pack("<Q", len(said)) + said

    key = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    size = 3 * 2**20
    tensor = text(b"blk.0.ffn_gate.0.weight") + struct.pack("<IQIQ", 1, size // 4, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor
    old = tmp_path / "old-Q4_K_M.gguf"
    old.write_bytes(head + bytes(-len(head) % 32) + bytes(size))
    hub_user.hub.repository("owner/old", {old.name: old})
    what = "made before April 2024 with one tensor per expert, which llama.cpp no longer loads"
    do = "pull a newer conversion of this model; for Cerebrum-1.0-8x7b: cerebrum pull cerebrum-8x7b"
    assert refused(hub_user, "owner/old") == (2, f"owner/old/{old.name}: {what}", do)
    [header] = hub_user.hub.log.requests("cdn")
    assert header.sent == 2**20
    assert refused(hub_user, str(old)) == (2, f"{old}: {what}", do)
    done = hub_user.run("ask", "-m", old, "Why?")
    assert (done.code, done.out, done.err) == (2, "", f"error: {old}: {what}\n hint: {do}\n")


MODEL_THAT_IS_TOO_BIG = """
[models.huge]
title = "Huge"
repo_id = "owner/huge"
file = "huge-{quant}.gguf"
context_size = 8192
kv_bytes_per_token = 1_000_000_000
"""


def test_pull_of_a_model_that_does_not_fit_needs_yes(hub_user: HubUser, chatml_model: Path) -> None:
    (hub_user.command.config / "models.toml").write_text(MODEL_THAT_IS_TOO_BIG)
    hub_user.hub.repository("owner/huge", {"huge-Q4_K_M.gguf": chatml_model})
    code, error, do = refused(hub_user, "huge")
    assert (code, do) == (1, "choose a smaller quantization, or force it with -y")
    needed = r"huge:Q4_K_M needs {}\d\.\d\d GB of memory at {} tokens of context; [\d,]+\.\d\d GB is available"
    assert re.fullmatch(needed.format("8,19", 8192), error)
    assert re.fullmatch(needed.format("4,09", 4096), refused(hub_user, "huge", CEREBRUM_CTX="4096")[1])
    assert not hub_user.hub.log.requests("cdn")
    hub_user.pull("huge", "-y")


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"HF_TOKEN": "t\u00f6k"}, "invalid characters in the token from HF_TOKEN"),
        ({"ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}, "the 'socksio' package"),
        ({"ALL_PROXY": "socks://me:secret@127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}, "socks://me:[secure]@"),
        ({"HF_ENDPOINT": "nonsense"}, "check the network, and HF_ENDPOINT"),
        ({"HF_ENDPOINT": "file://user:secret@host"}, "unexpected response from file://host: not a Hugging Face Hub"),
    ],
)
def test_pull_reports_invalid_variables(
    hub_user: HubUser, more: dict[str, str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # which other packages may have installed
    code, said, do = refused(hub_user, CATALOGUED, **more)
    assert code == 1
    assert error in f"{said}\n{do}"


def test_pull_does_not_wait_for_a_pipe_in_place_of_the_token(hub_user: HubUser) -> None:
    token = Path(hub_user.environment({})["HF_TOKEN_PATH"])
    token.parent.mkdir(exist_ok=True)
    os.mkfifo(token)
    assert_error(hub_user.run("pull", CATALOGUED), 1, f"{token} is a pipe, not a file with a token")


@pytest.mark.slow
def test_pull_reports_variables_huggingface_hub_rejects(hub_user: HubUser) -> None:
    done = hub_user.run_process("pull", CATALOGUED, HF_HUB_DOWNLOAD_TIMEOUT="soon")
    assert_error(done, 2, "invalid HF_ environment variable: ")


def test_pull_names_the_proxy_that_it_cannot_reach(hub_user: HubUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_requests, "sleep", lambda _: None)
    proxy = {"HTTP_PROXY": "http://me:secret@127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}
    done = hub_user.run("pull", CATALOGUED, **proxy)
    host = hub_user.hub.url.removeprefix("http://")
    assert_error(done, 1, f"{host} via proxy 127.0.0.1:1: connection refused", "check the network, the proxy settings")
    assert "secret" not in done.err


def run_on(user: CommandLine, server: HostileHub, *arguments: str) -> Finished:
    """Run a command on the server, without waiting before it is asked again."""
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(user.home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    network = {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DOWNLOAD_TIMEOUT": "10"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_requests, "sleep", lambda _: None)
        return user.run(*arguments, env={**variables, **network})


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_pull_survives_any_reply(new_user: CommandLine, reply: Pieces) -> None:
    with HostileHub(reply) as server:
        done = run_on(new_user, server, "pull", "a/b")
        assert_error(done, done.code)
        assert done.code in (1, 3) and not (new_user.home / "hf").exists()
        assert {path.partition("?")[0] for path in server.paths} <= {"/api/models/a/b/revision/main", "/x"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reference", "code", "problem"),
    [
        ("{}.gguf", "a/b", 2, "a/b has several models without a quantization"),
        ("{}.gguf", "a/b:Q8_0", 3, ", and 13950 more"),
        ("m-{:05}-of-14000.gguf", "a/b", 2, "a/b/m-00001-of-14000.gguf: truncated or damaged"),
        ("m-{:05}-of-99999.gguf", "a/b", 3, "a/b lacks m-14001-of-99999.gguf"),
        ("m{}-00001-of-99999.gguf", "a/b", 3, "a/b lacks m1-00002-of-99999.gguf"),
    ],
)
def test_pull_plans_a_repository_of_14000_files(
    new_user: CommandLine, name: str, reference: str, code: int, problem: str
) -> None:
    files = [{"rfilename": name.format(number), "size": number, "lfs": LFS} for number in range(1, 14_001)]
    with HostileHub(http(listing(siblings=files)), http(b"GGUF")) as server:
        assert_error(run_on(new_user, server, "pull", reference), code, problem)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["{}.gguf", "m{}-Q4_K_M.gguf"])
def test_a_few_of_14000_models_are_read_and_named(new_user: CommandLine, tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path / "model.gguf", lambda writer: writer.add_context_length(32)).read_bytes()
    files = [{"rfilename": name.format(number), "size": len(model), "lfs": LFS} for number in range(14_000)]
    with HostileHub(http(listing(siblings=files)), http(model)) as server:
        done = run_on(new_user, server, "pull", "a/b")
        assert_error(done, 2, "or one of the others")
        assert len(done.err) < 6000 and len(server.paths) < 30


@pytest.mark.parametrize("name", ["Q4_" * 5000, "a/b:" + "x" * 16_000, f"{'x y' * 5000}", f"./{'x y' * 5000}"])
def test_errors_print_at_most_200_characters_of_a_name(new_user: CommandLine, name: str) -> None:
    done = new_user.run("ask", "-m", name, "hi")
    assert_error(done, done.code)
    assert done.code in (2, 3) and max(map(len, done.err.splitlines())) < 500


FILES: dict[str, Pieces] = {
    "absurd length": [head(200, f"Content-Length: {'9' * 5000}"), b"abcde"],
    "compressed": http(b"abcde" * 250_000, 200, "Content-Encoding: gzip"),
    "redirect to itself": http(b"", 302, "Location: /a/b"),
}


@pytest.mark.parametrize("reply", FILES.values(), ids=FILES)
def test_pull_survives_any_reply_for_a_file(new_user: CommandLine, reply: Pieces) -> None:
    with HostileHub(http(listing()), reply) as server:
        done = run_on(new_user, server, "pull", "a/b")
        assert_error(done, done.code)
        assert done.code in (1, 2, 3) and not list(new_user.home.rglob(DIGEST))


@pytest.mark.parametrize("reply", SEARCHES.values(), ids=SEARCHES)
def test_search_survives_any_reply(new_user: CommandLine, reply: bytes) -> None:
    with HostileHub(http(reply)) as server:
        done = run_on(new_user, server, "search", "x")
        assert_error(done, 1, f"unexpected response from {server.url}: not a Hugging Face Hub")


def test_search_requests_one_page(new_user: CommandLine) -> None:
    found = b",".join(b'{"id": "a/b%d"}' % number for number in range(1000))
    with HostileHub(http(b"[%b]" % found, 200, 'Link: </api/models?more>; rel="next"')) as server:
        assert run_on(new_user, server, "search", "x").code == 0
        assert len(server.paths) == 1


@pytest.mark.parametrize("name", ["not JSON", "null"])
def test_dataset_survives_any_reply(new_user: CommandLine, name: str) -> None:
    with HostileHub(REPLIES[name], http(b"")) as server:
        assert_error(run_on(new_user, server, "eval", "gsm8k", "-m", "nano"), 1)
