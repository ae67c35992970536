"""`--endpoint`: compared with models on this machine; servers that come and go; options, names, keys, certificates."""

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, assert_error
from loopback import Loopback, LoopbackHandler
from remote_engines import set_patience
from served import SEEDS, Served
from server_kinds import BUILD

ROWS = 100


def without_times(reply: dict[str, Any]) -> dict[str, Any]:
    """An object of `ask --json` without what depends on where it was generated."""
    return {key: value for key, value in reply.items() if key not in ("timings", "file", "cached_tokens", "model")}


def rows_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output).read_text().splitlines()]


def assert_local_rows(remote: str, local: str, origins: set[tuple[str, str]]) -> None:
    """Check that a result of servers is that of a model on this machine, and besides names each of these servers."""
    rows = rows_of(remote)
    assert {(row.pop("server"), row.pop("served_model")) for row in rows} == origins
    assert [list(row.items()) for row in rows] == [list(row.items()) for row in rows_of(local)]


@pytest.mark.parametrize("votes", ["5", "auto:2..7"])
def test_endpoint_vote_has_the_local_tally_in_one_request(served: Served, votes: str) -> None:
    arguments = ("ask", "--json", "--votes", votes, "--seed", "1", "--no-log", "What is 2 + 2?")
    remote, local = served.run(*arguments, servers=2), served.run_alone(*arguments)
    served_name = "tiny.gguf (1000 bytes)"
    assert (remote.code, remote.err) == (0, f"note: the server answers with {served_name}\n")
    assert remote.object["model"] == served_name
    assert without_times(remote.object) == without_times(local.object)
    first, *more = served.asked()
    assert first["n_cmpl"] == int(votes.removeprefix("auto:")[0]) and bool(more) == votes.startswith("auto")
    assert 0 in [len(server.completions()) for server in served.servers]


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--parallel", "2"), ("--votes", "auto:2..5")])
def test_endpoint_batch_writes_the_local_result(served: Served, options: tuple[str, ...]) -> None:
    questions = served.questions(12)
    arguments: tuple[str | Path, ...] = (questions, "--seed", "7", "-q", *options)
    remote = served.run("batch", *arguments, "-o", "remote.jsonl", servers=2)
    local = served.run_alone("batch", *arguments, "-o", "local.jsonl")
    assert (remote.code, remote.err, local.code) == (0, "", 0)
    weights = "tiny.gguf (1000 bytes)"
    assert_local_rows("remote.jsonl", "local.jsonl", {("server 1", weights), ("server 2", weights)})
    for row in rows_of("remote.jsonl"):
        asked = served.servers[int(row["server"][-1]) - 1].completions()
        assert any(f"{row['prompt']}<" in bytes(each.prompt).decode() for each in asked)
    record = Path("remote.jsonl.meta.json").read_text()
    assert json.loads(record)["notes"]["servers"] == [
        {"kind": "llama-server", "build": BUILD, "model": "tiny.gguf (1000 bytes)"}
    ]
    assert "127.0.0.1" not in record and "/srv" not in record


# Several servers that come and go.


def assert_all_answered(output: Path) -> None:
    """Check that a result has every row once, with its seed and the reply to it."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["seed"], row["error"]) for row in rows] == [(n + 1, n + 7, None) for n in range(ROWS)]
    assert [row["text"] for row in rows] == [SEEDS[(n + 7) % 3] for n in range(ROWS)]


@pytest.mark.slow
def test_endpoint_batch_resumes_on_servers_of_its_model_only(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = served.servers
    command = (served.questions(ROWS), "--seed", "7", "-o", "out.jsonl")
    with monkeypatch.context() as hasty:
        set_patience(hasty, GIVE_UP_S=2.0)
        for server in served.servers:
            server.arm(times=None, let_through=5, status=500)
            server.arm(path="/v1/models", times=None, let_through=1, reset_after=0)
        done = served.run("batch", *command, servers=2)
    assert_error(done, 7, "no server answers", first.url, second.url, "run the same command again")
    for server in served.servers:
        server.disarm()
    finished, asked = Path("out.jsonl.partial").read_bytes(), len(served.asked())
    second.models = ("other.gguf",)
    done = served.run("batch", *command, servers=2)
    problem = f"{second.url} serves other.gguf (1000 bytes) on llama-server instead of tiny.gguf"
    assert_error(done, 1, problem, "--restart")
    assert Path("out.jsonl.partial").read_bytes() == finished
    second.models = first.models
    path = Path("out.jsonl.meta.json")
    record = json.loads(path.read_text())
    earlier = {"servers": [{"kind": "vLLM", "build": "1", "model": "x"}]}
    path.write_text(json.dumps({**record, "notes": {**record["notes"], **earlier}}))
    assert_error(served.run("batch", *command), 1, "on llama-server instead of x on vLLM")
    path.write_text(json.dumps(record))
    assert served.run("batch", *command, "-q", servers=2).code == 0
    assert len(served.asked()) - asked == ROWS - 2 * 5  # those that were let through
    assert_all_answered(Path("out.jsonl"))


# Errors: an exit code, one line for the problem, one for the fix.


def test_endpoint_prompt_too_long_exits_4_or_is_an_error_row(served: Served) -> None:
    served.servers[0].context_size = 90
    assert_error(served.run("ask", "x" * 200), 4)
    questions = served.home / "in.txt"
    questions.write_text(f"{'x' * 200}\nShort?\n")
    done = served.run("batch", questions, "-q", "-o", "-")
    rows = {row["prompt"][0]: row for row in map(json.loads, done.out.splitlines())}
    assert done.code == 6
    assert (rows["x"]["error"]["type"], rows["S"]["error"]) == ("context_length_exceeded", None)


def test_endpoint_results_name_servers_without_their_addresses(served: Served) -> None:
    first, second = served.servers
    served.config(f'[endpoints.big]\nurl = "{first.url}"\n')
    for server in served.servers:
        server.arm(times=1, status=400, message="the prompt exceeds the available context size")
        server.arm(times=3, status=500, let_through=8)
    endpoints = ("--endpoint", "big", "--endpoint", second.url)
    done = served.run_alone("batch", served.questions(12), "-o", "out.jsonl", *endpoints)
    assert done.code == 6
    result = Path("out.jsonl").read_text()
    failed = [row for row in map(json.loads, result.splitlines()) if row["error"]]
    assert {row["error"]["message"].partition(":")[0] for row in failed} >= {"big", "server 2"}
    assert {row["server"] for row in failed} == {"big", "server 2"}
    assert "127.0.0.1" not in result + Path("out.jsonl.meta.json").read_text()


def test_endpoint_reply_of_a_lost_server_is_printed_and_can_be_continued(served: Served) -> None:
    served.servers[0].arm(edit=lambda at, chunk: b"data: {\n\n" if "4" in str(chunk.get("content")) else chunk)
    done = served.run("ask", "--seed", "0", "What is 2 + 2?")
    assert done.out == "The answer is\n"
    saved = (
        f"the answer so far is saved; resume it with /continue in cerebrum chat -c --endpoint {served.servers[0].url}"
    )
    assert_error(done, 1, "the reply is not JSON: {", saved)
    served.servers[0].disarm()
    assert served.run("chat", "-c", "--seed", "0", piped=b"/continue\n").code == 0
    assert CommandLine(served.home).contents("what-is-2-2") == ["What is 2 + 2?", "The answer is 4."]


CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"  # with its key, self-signed

# Options.


def test_endpoint_ignores_local_options_set_elsewhere(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.config("ctx = 10\ngpu-layers = 3\n")
    for name in ("CTX", "THREADS", "CACHE_GB", "CACHE_TYPE", "SPECULATIVE", "GPU_LAYERS"):
        monkeypatch.setenv(f"CEREBRUM_{name}", {"SPECULATIVE": "on", "CACHE_TYPE": "q8_0"}.get(name, "1"))
    done = served.run("ask", "--seed", "0", "What is 2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err


def test_endpoint_variable_names_several_servers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = served.servers
    served.config(f'[endpoints.big]\nurl = "{first.url}"\n')
    monkeypatch.setenv("CEREBRUM_ENDPOINT", f"big  {second.url}")
    done = served.run_alone("batch", served.questions(12), "-q", "-o", "out.jsonl")
    assert (done.code, len(served.asked())) == (0, 12), done.err
    assert all(server.completions() for server in served.servers)


def test_endpoint_url_may_have_a_version_and_a_slash(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # unused: a server on loopback is asked directly
    url = served.servers[0].url
    for form in (f"{url}/", f"{url}/v1", f"{url}/v1/", url.replace("127.0.0.1", "localhost")):
        done = served.run_alone("ask", "--endpoint", form, "--seed", "0", "2 + 2?")
        assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err


def test_endpoint_refuses_a_key_that_is_no_header(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("two\nlines", "schlüssel", "tab\t"):
        monkeypatch.setenv("CEREBRUM_API_KEY", key)
        done = served.run("ask", "hi")
        assert_error(done, 2, "API key")
        assert key not in done.err
    assert served.asked() == []


def test_endpoint_name_stands_for_a_table(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    [server, _] = served.servers
    server.key, server.models = "sesame", ("a.gguf", "b.gguf")
    served.config(f'[endpoints.big]\nurl = "{server.url}/v1"\nkey_env = "BIG_KEY"\nserved_model = "b.gguf"\n')
    assert_error(served.run_alone("ask", "--endpoint", "big", "hi"), 2, "BIG_KEY is not set")
    monkeypatch.setenv("BIG_KEY", "sesame")
    done = served.run_alone("ask", "--endpoint", "big", "--seed", "0", "2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err
    assert served.asked()[0]["model"] == "b.gguf"
    other = served.run_alone("ask", "--endpoint", "big", "--set", "served_model_name=a.gguf", "hi")
    assert (other.code, served.asked()[1]["model"]) == (0, "a.gguf")
    assert_error(served.run_alone("ask", "--endpoint", "small", "hi"), 2, "unknown endpoint 'small'", "big")


def test_endpoint_servers_of_different_models_are_refused(served: Served) -> None:
    served.servers[1].models = ("other.gguf",)
    done = served.run("batch", served.questions(12), "-o", "out.jsonl", servers=2)
    assert_error(done, 1, " serves ", "tiny.gguf (1000 bytes)", "other.gguf (1000 bytes)", "use servers of one model")
    assert served.asked() == []


@pytest.mark.slow
def test_endpoint_key_is_sent_to_the_server_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    [server, other] = served.servers
    server.key = "sesame"
    assert_error(served.run("ask", "hi"), 1, "requires an API key", "CEREBRUM_API_KEY")
    monkeypatch.setenv("CEREBRUM_API_KEY", "wrong-key")
    done = served.run("ask", "--set", "verbose=on", "hi")
    assert_error(done, 1, "refuses this API key")
    assert "wrong-key" not in done.err + done.out
    monkeypatch.setenv("CEREBRUM_API_KEY", "sesame")
    assert served.run("ask", "--seed", "0", "2 + 2?").code == 0
    server.arm(path="/props", status=302, headers={"Location": f"{other.url}/props"})
    done = served.run("ask", "hi")
    assert_error(done, 1, "redirects to")
    assert other.asked == [] and "sesame" not in done.err
    assert served.run("batch", served.questions(3), "-o", "out.jsonl").code == 0
    files = [path for path in served.home.rglob("*") if path.is_file()]
    assert not any(b"sesame" in path.read_bytes() for path in files)


def test_endpoint_key_is_not_sent_over_plain_http(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEREBRUM_API_KEY", "sesame")
    url = served.servers[0].url.replace("127.0.0.1", "0.0.0.0")  # reaches the same server, and is not loopback by name
    assert_error(served.run_alone("ask", "--endpoint", url, "hi"), 2, "unencrypted", "ssh -L")
    assert served.servers[0].asked == []


def test_endpoint_untrusted_certificate_stops_immediately(served: Served) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    port = Loopback(LoopbackHandler)
    port.socket = context.wrap_socket(port.socket, server_side=True)
    port.start()
    try:
        url = f"https://127.0.0.1:{port.server_port}"
        done = served.run_alone("batch", served.questions(2), "-o", "out", "--endpoint", url)
    finally:
        port.stop()
    assert_error(done, 1, f"{url}: untrusted certificate: ", "SSL_CERT_FILE")
