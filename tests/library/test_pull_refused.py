"""What cannot be pulled is refused with a line that says why and one that says what to do, and nothing else."""

import os
import re
import struct
import sys
from pathlib import Path

import pytest
from command_line import assert_error
from hub_server import FORBIDDEN, Fault, Refusal
from hub_user import CATALOGUED, OTHER, READER, HubUser, named

from cerebrum_cli.library import hub_requests

PAGE = f"https://huggingface.co/{CATALOGUED}"


@pytest.fixture(autouse=True)
def repositories(hub_user: HubUser, chatml_model: Path) -> None:
    model = {"own-Q8_0.gguf": chatml_model}
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): chatml_model, named("Q2_K"): chatml_model})
    hub_user.hub.repository("owner/bare", {"README.md": b"# Bare\n"})
    hub_user.hub.repository("owner/private", model, private=True, readers=(READER,))
    hub_user.hub.repository("owner/gated", model, gated="manual", readers=(READER,))


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
TERMS = "is gated: you must accept its terms first", "accept them at HUB/owner/gated"
REJECTED = "the Hub rejected the token in"
NO_SUCH_REVISION = f"{CATALOGUED} has no such revision", f"see its branches at HUB/{CATALOGUED}/tree/main"
# The reference, a token in its file and one in HF_TOKEN, and the refusal: exit code, error and hint. HUB stands for
# the Hub's address, and PATH for that of the token's file.
REFUSALS = [
    ("nobody/nothing", None, None, 3, f"nobody/nothing: {UNKNOWN}", f"check the spelling{LOG_IN}"),
    ("owner/private", None, None, 3, f"owner/private: {UNKNOWN}", f"check the spelling{LOG_IN}"),
    ("owner/private", None, OTHER, 3, f"owner/private: {UNKNOWN}", f"check the spelling{LOG_IN}"),
    ("owner/gated", None, None, 1, f"owner/gated {TERMS[0]}", f"{TERMS[1]}, then run hf auth login, or set HF_TOKEN"),
    ("owner/gated", OTHER, None, 1, f"owner/gated {TERMS[0]}", f"{TERMS[1]}, then run hf auth login, or set HF_TOKEN"),
    (CATALOGUED, "hf_unknown", None, 1, f"{REJECTED} PATH", "run hf auth login, or set HF_TOKEN"),
    # a variable outweighs what `hf auth login` writes
    (CATALOGUED, "hf_unknown", "hf_unknown", 1, f"{REJECTED} HF_TOKEN", "run hf auth login, or set HF_TOKEN"),
    ("cerebrum-7b:Q5_K_M", None, None, 3, "cerebrum-7b has no quantization Q5_K_M", "available: Q2_K, Q4_K_M"),
    (
        *("owner/bare", None, None, 3, "owner/bare has no config.json with safetensors to convert"),
        "name a repository or folder with a language model, or one of its .gguf files",
    ),
    (f"{PAGE}/blob/{'0' * 40}/{named('Q2_K')}", None, None, 3, *NO_SUCH_REVISION),
    (
        *(f"{PAGE}/resolve/main/nothing.gguf", None, None, 3, f"{CATALOGUED} has no complete model nothing.gguf"),
        f"list its models: cerebrum pull --dry-run {CATALOGUED}",
    ),
    (
        *("cerebum-7b", None, None, 3, "unknown model 'cerebum-7b'"),
        "did you mean cerebrum-7b or cerebrum-8x7b or cerebrum-12b?"
        " to find others: cerebrum search cerebum-7b, then cerebrum pull OWNER/REPO",
    ),
    (
        *("./nowhere.gguf", None, None, 3, "nowhere.gguf: file not found"),
        "check the path, or list installed models with cerebrum list",
    ),
]


@pytest.mark.parametrize(("reference", "stored", "token", "code", "error", "hint"), REFUSALS)
def test_pull_refuses_what_it_may_not_read_or_cannot_find(
    hub_user: HubUser, reference: str, stored: str | None, token: str | None, code: int, error: str, hint: str
) -> None:
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
