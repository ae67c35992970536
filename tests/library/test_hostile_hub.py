"""What is no Hub, or lists what cannot be downloaded: one line for the problem and one for the fix, soon."""

from pathlib import Path

import pytest
from command_line import CommandLine, Finished, assert_error
from gguf_files import write_model
from hostile_hub import DIGEST, LFS, REPLIES, SEARCHES, HostileHub, Pieces, head, http, listing

from cerebrum_cli.library import hub_requests


def run(user: CommandLine, server: HostileHub, *arguments: str) -> Finished:
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(user.home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    network = {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DOWNLOAD_TIMEOUT": "10"}
    return user.run(*arguments, env={**variables, **network})


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_requests, "sleep", lambda _: None)


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_pull_survives_any_reply(new_user: CommandLine, reply: Pieces) -> None:
    with HostileHub(reply) as server:
        done = run(new_user, server, "pull", "a/b")
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
        assert_error(run(new_user, server, "pull", reference), code, problem)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["{}.gguf", "m{}-Q4_K_M.gguf"])
def test_a_few_of_14000_models_are_read_and_named(new_user: CommandLine, tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path / "model.gguf", lambda writer: writer.add_context_length(32)).read_bytes()
    files = [{"rfilename": name.format(number), "size": len(model), "lfs": LFS} for number in range(14_000)]
    with HostileHub(http(listing(siblings=files)), http(model)) as server:
        done = run(new_user, server, "pull", "a/b")
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
        done = run(new_user, server, "pull", "a/b")
        assert_error(done, done.code)
        assert done.code in (1, 2, 3) and not list(new_user.home.rglob(DIGEST))


@pytest.mark.parametrize("reply", SEARCHES.values(), ids=SEARCHES)
def test_search_survives_any_reply(new_user: CommandLine, reply: bytes) -> None:
    with HostileHub(http(reply)) as server:
        done = run(new_user, server, "search", "x")
        assert_error(done, 1, f"unexpected response from {server.url}: not a Hugging Face Hub")


def test_search_requests_one_page(new_user: CommandLine) -> None:
    found = b",".join(b'{"id": "a/b%d"}' % number for number in range(1000))
    with HostileHub(http(b"[%b]" % found, 200, 'Link: </api/models?more>; rel="next"')) as server:
        assert run(new_user, server, "search", "x").code == 0
        assert len(server.paths) == 1


@pytest.mark.parametrize("name", ["not JSON", "null"])
def test_dataset_survives_any_reply(new_user: CommandLine, name: str) -> None:
    with HostileHub(REPLIES[name], http(b"")) as server:
        assert_error(run(new_user, server, "eval", "gsm8k", "-m", "nano"), 1)
