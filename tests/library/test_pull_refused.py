"""What cannot be pulled, or is no Hub: a line that says why, one that says what to do, soon, and nothing else."""

import os
import re
import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from cases import rows
from command_line import CommandLine, Finished, assert_error
from gguf_files import write_model
from hostile_hub import DIGEST, LFS, REPLIES, head, http, listing
from hub_server import FORBIDDEN, Fault, refusal
from hub_user import CATALOGUED, OTHER, READER, HubUser, named


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


@pytest.mark.parametrize("case", rows("refused_pulls"), ids=itemgetter(0))
def test_pull_refuses_what_it_may_not_read_or_cannot_find(hub_user: HubUser, case: list[Any]) -> None:
    """With a token in its file, and one in HF_TOKEN, and with or without a request.

    HUB stands for the Hub's address, PATH for the token's file.
    """
    reference, stored, token, code, error, hint, is_asked = case
    if stored:
        hub_user.token.write_text(stored)
    expected = (text.replace("HUB", hub_user.hub.url).replace("PATH", str(hub_user.token)) for text in (error, hint))
    more = {"HF_TOKEN": token} if token else {}
    assert refused(hub_user, reference, **more) == (code, *expected)
    assert bool(hub_user.hub.log.requests()) == is_asked


def test_pull_of_a_renamed_repository_is_redirected(hub_user: HubUser) -> None:
    """The Hub redirects the old name of a repository to its new one, which is not the storage of its files."""
    place = (("Location", f"{hub_user.hub.url}/api/models/owner/new?blobs=true"),)
    moved = hub_user.hub.arm(Fault(part="api", path="owner/old", refusal=refusal(307, "Renamed", headers=place)))
    assert refused(hub_user, "owner/old") == (3, f"owner/old: {UNKNOWN}", f"check the spelling{LOG_IN}")
    assert moved.struck == 1


def test_pull_token_without_access_names_what_is_missing(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="api", times=None, refusal=FORBIDDEN))
    said = f"the Hub denied access to {CATALOGUED}: This token has no access to this resource"
    assert refused(hub_user, CATALOGUED, HF_TOKEN=OTHER) == (1, said, "use a token with access: set HF_TOKEN")


UNREACHABLE = rows("unreachable_hubs")


@pytest.mark.parametrize(("more", "error"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_pull_gives_up_soon_on_an_unreachable_hub(hub_user: HubUser, more: dict[str, str], error: str) -> None:
    error = error.replace("HUB", hub_user.hub.url.removeprefix("http://"))
    done = hub_user.run("pull", CATALOGUED, **more)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"note: {error}: retrying in 1 s\n"
        f"error: {error}\n hint: check the network, the proxy settings, SSL_CERT_FILE and HF_ENDPOINT; "
        "these need no Hub: cerebrum pull ./model.gguf, cerebrum pull starter\n"
    )


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


INVALID = rows("invalid_variables")


@pytest.mark.parametrize(("more", "error"), INVALID.values(), ids=INVALID)
def test_pull_reports_invalid_variables(
    hub_user: HubUser, more: dict[str, str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # which other packages may have installed
    code, said, do = refused(hub_user, CATALOGUED, **more)
    assert code == 1
    assert error in f"{said}\n{do}"


def test_pull_does_not_wait_for_a_pipe_in_place_of_the_token(hub_user: HubUser) -> None:
    os.mkfifo(hub_user.token)
    assert_error(hub_user.run("pull", CATALOGUED), 1, f"{hub_user.token} is a pipe, not a file with a token")


@pytest.mark.slow
def test_pull_reports_variables_huggingface_hub_rejects(hub_user: HubUser) -> None:
    done = hub_user.run_process("pull", CATALOGUED, HF_HUB_DOWNLOAD_TIMEOUT="soon")
    assert_error(done, 2, "invalid HF_ environment variable: ")


def run_on(user: HubUser, api: Sequence[bytes], file: Sequence[bytes], *arguments: str) -> Finished:
    """Run a command on a server that sends one reply to all requests for metadata, and one to those for files."""
    for part in ("api", "resolve", "other"):
        user.hub.arm(Fault(part=part, times=None, raw=api if part == "api" else file))
    return user.run(*arguments)


def paths(user: HubUser) -> list[str]:
    return [request.path for request in user.hub.log.requests()]


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_pull_survives_any_reply(hub_user: HubUser, reply: Sequence[bytes]) -> None:
    done = run_on(hub_user, reply, (), "pull", "a/b")
    assert_error(done, done.code)
    assert done.code in (1, 3) and not hub_user.cache.exists()
    assert {path.partition("?")[0] for path in paths(hub_user)} == {"/api/models/a/b/revision/main"}


FILES: dict[str, Sequence[bytes]] = {
    "absurd length": [head(200, f"Content-Length: {'9' * 5000}"), b"abcde"],
    "compressed": http(b"abcde" * 250_000, 200, "Content-Encoding: gzip"),
    "redirect to itself": http(b"", 302, "Location: /a/b"),
}


@pytest.mark.parametrize("reply", FILES.values(), ids=FILES)
def test_pull_survives_any_reply_for_a_file(hub_user: HubUser, reply: Sequence[bytes]) -> None:
    done = run_on(hub_user, http(listing()), reply, "pull", "a/b")
    assert_error(done, done.code)
    assert done.code in (1, 2, 3) and not list(hub_user.command.home.rglob(DIGEST))


SEARCHES = rows("hostile_searches")


@pytest.mark.parametrize("reply", SEARCHES.values(), ids=SEARCHES)
def test_search_survives_any_reply(hub_user: HubUser, reply: str) -> None:
    done = run_on(hub_user, http(reply), (), "search", "x")
    assert_error(done, 1, f"unexpected response from {hub_user.hub.url}: not a Hugging Face Hub")


def test_search_requests_one_page(hub_user: HubUser) -> None:
    found = b",".join(b'{"id": "a/b%d"}' % number for number in range(1000))
    page = http(b"[%b]" % found, 200, 'Link: </api/models?more>; rel="next"')
    assert run_on(hub_user, page, (), "search", "x").code == 0
    assert len(paths(hub_user)) == 1


@pytest.mark.parametrize("name", ["not JSON", "null"])
def test_dataset_survives_any_reply(hub_user: HubUser, name: str) -> None:
    assert_error(run_on(hub_user, REPLIES[name], http(), "eval", "gsm8k", "-m", "nano"), 1)


LARGE = rows("large_repositories")  # names of the files, and what is sent of them: a damaged file, or a model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "reference", "code", "problem"), LARGE.values(), ids=LARGE)
def test_pull_reads_and_names_a_few_of_4000_files(
    hub_user: HubUser, tmp_path: Path, name: str, kind: str, reference: str, code: int, problem: str
) -> None:
    model = write_model(tmp_path / "model.gguf", lambda writer: writer.add_context_length(32)).read_bytes()
    data = model if kind == "model" else b"GGUF"
    files = [{"rfilename": name.format(number), "size": len(model), "lfs": LFS} for number in range(1, 4_001)]
    done = run_on(hub_user, http(listing(siblings=files)), http(data), "pull", reference)
    assert_error(done, code, problem)
    assert len(done.err) < 6000 and len(paths(hub_user)) < 30


@pytest.mark.parametrize("name", ["Q4_" * 5000, "a/b:" + "x" * 16_000, f"{'x y' * 5000}", f"./{'x y' * 5000}"])
def test_errors_print_at_most_200_characters_of_a_name(new_user: CommandLine, name: str) -> None:
    done = new_user.run("ask", "-m", name, "hi")
    assert_error(done, done.code)
    assert done.code in (2, 3) and max(map(len, done.err.splitlines())) < 500
