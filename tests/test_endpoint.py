"""`--endpoint`: the commands on servers, compared with the same commands on this machine; options, keys and errors."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from asking import loaded
from command_line import CommandLine, Finished, assert_error
from llama_server import BUILD, LlamaServer
from loopback import Loopback, LoopbackHandler
from remote_engines import HASTY, QUICK
from scripted_command import batch_backend, run_here
from waiting import TIMEOUT_S

from cerebrum_cli.application.inference import batch
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.remote import engine as remote_engine

SEEDS = ("The answer is 4.", "Perhaps 5. The answer is 5.", "Four. The answer is 4.")
REPLIES: dict[str, Any] = {"seeds": SEEDS, "rows": {}}
SLOTS = 8
CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"  # with its key, self-signed
ROWS = 200


class Served:
    """A user of two servers, and of the same model on this machine."""

    def __init__(self, home: Path, model: Path, servers: list[LlamaServer]) -> None:
        self.home = home
        self.model = model
        self.servers = servers

    def run(self, command: str, *arguments: str | Path, servers: int = 1, piped: bytes | None = None) -> Finished:
        """Run a command on some of the servers."""
        urls = [part for server in self.servers[:servers] for part in ("--endpoint", server.url)]
        return self.run_alone(command, *arguments, *urls, piped=piped)

    def run_alone(self, command: str, *arguments: str | Path, piped: bytes | None = None) -> Finished:
        """Run a command without these servers."""
        return run_here(dict(REPLIES), self.home, command, "-m", self.model, *arguments, piped=piped)

    def asked(self) -> list[dict[str, Any]]:
        """The bodies of all completions asked for."""
        return [asked.body for server in self.servers for asked in server.completions()]

    def config(self, text: str) -> None:
        """Write config.toml."""
        (CommandLine(self.home).config / "config.toml").write_text(text, encoding="utf-8")

    def questions(self, count: int) -> Path:
        path = self.home / "questions.txt"
        path.write_text("".join(f"Question {number}: what is {number} + 1?\n" for number in range(count)))
        return path


@pytest.fixture
def served(tmp_path: Path, chatml_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Two servers of a scripted model, and a user with little patience."""
    monkeypatch.setattr(remote_engine, "Patience", lambda: QUICK)
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        servers = []
        for _ in range(2):
            backend = batch_backend(dict(REPLIES), SLOTS)
            engine = stack.enter_context(loaded(LocalEngine(backend.open)))
            servers.append(stack.enter_context(LlamaServer(engine, slots=SLOTS)))
        yield Served(tmp_path, chatml_model, servers)


def without_times(reply: dict[str, Any]) -> dict[str, Any]:
    """An object of `ask --json` without what depends on where it was generated."""
    return {key: value for key, value in reply.items() if key not in ("timings", "file", "cached_tokens")}


# The same answers.


def test_endpoint_ask_prints_the_local_answer(served: Served) -> None:
    arguments = ("ask", "--seed", "1", "--no-log", "What is 2 + 2?")
    remote, local = served.run(*arguments, "--json"), served.run_alone(*arguments, "--json")
    assert (remote.code, remote.err) == (0, "")
    assert without_times(remote.object) == without_times(local.object)
    assert remote.object["file"] is None
    assert served.run(*arguments).out == served.run_alone(*arguments).out == "Perhaps 5. The answer is 5.\n"
    preview = served.run(*arguments, "--json", "--dry-run").object
    assert [body["prompt"] for body in served.asked()] == [preview["token_ids"]] * 2


def test_endpoint_ask_continues_with_the_tokens_it_generated(served: Served) -> None:
    first = served.run("ask", "--json", "--seed", "0", "What is 2 + 2?")
    assert served.run("ask", "--json", "--seed", "1", "-c", "Sure?").code == 0
    [one, two] = [body["prompt"] for body in served.asked()]
    text = first.object["text"].encode()
    assert two[: len(one) + len(text)] == [*one, *text]


@pytest.mark.parametrize("votes", ["3", "5", "auto:2..7"])
def test_endpoint_vote_has_the_local_tally_in_one_request(served: Served, votes: str) -> None:
    arguments = ("ask", "--json", "--votes", votes, "--seed", "1", "--no-log", "What is 2 + 2?")
    remote, local = served.run(*arguments, servers=2), served.run_alone(*arguments)
    assert (remote.code, remote.err) == (0, "")
    assert without_times(remote.object) == without_times(local.object)
    first, *more = served.asked()
    assert first["n_cmpl"] == int(votes.removeprefix("auto:")[0]) and bool(more) == votes.startswith("auto")
    assert 0 in [len(server.completions()) for server in served.servers]


def test_endpoint_vote_without_probabilities_breaks_ties_by_order(served: Served) -> None:
    served.servers[0].has_logprobs = False
    for seed, winner in ((0, "4"), (1, "5")):
        done = served.run("ask", "--json", "--votes", "2", "--seed", str(seed), "What is 2 + 2?")
        assert done.object["final_answer"] == winner


@pytest.mark.parametrize("options", [(), ("--votes", "3"), ("--votes", "auto:2..5"), ("--parallel", "2")])
def test_endpoint_batch_writes_the_local_result(served: Served, options: tuple[str, ...]) -> None:
    questions = served.questions(12)
    arguments: tuple[str | Path, ...] = (questions, "--seed", "7", "-q", *options)
    remote = served.run("batch", *arguments, "-o", "remote.jsonl", servers=2)
    local = served.run_alone("batch", *arguments, "-o", "local.jsonl")
    assert (remote.code, remote.err, local.code) == (0, "", 0)
    assert Path("remote.jsonl").read_bytes() == Path("local.jsonl").read_bytes()
    assert all(server.completions() for server in served.servers)
    record = Path("remote.jsonl.meta.json").read_text()
    assert json.loads(record)["notes"]["servers"] == [
        {"kind": "llama-server", "build": BUILD, "model": "tiny.gguf (1000 bytes)"}
    ]
    assert "127.0.0.1" not in record and "/srv" not in record


def test_endpoint_batch_streams_rows_in_any_order(served: Served) -> None:
    done = served.run("batch", served.questions(12), "--seed", "7", "-q", "-o", "-", servers=2)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 12


def test_endpoint_batch_reads_a_bounded_number_of_rows_ahead(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "READ_AHEAD", 30)
    [server, _] = served.servers
    slow = server.arm(hang_after=0)

    def release_when_all_others_wait() -> None:
        server.wait_for(lambda: sum(asked.is_answered for asked in server.completions()) == 29)
        assert not slow.released.wait(0.1) and len(server.completions()) == 30
        slow.released.set()

    command = (served.questions(ROWS), "--seed", "7", "-q", "-o", "-")
    done = run_batch(served, command, release_when_all_others_wait, servers=1)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows) and len(rows) == ROWS


def test_endpoint_eval_scores_as_locally(served: Served) -> None:
    source = served.home / "sums.jsonl"
    source.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": "4"}) + "\n" for n in range(12)))
    arguments = (source, "--json", "--seed", "3")
    remote, local = served.run("eval", *arguments, servers=2), served.run_alone("eval", *arguments)
    assert (remote.code, local.code) == (0, 0), remote.err
    assert remote.object["accuracy"] == local.object["accuracy"]
    assert len(served.asked()) == 12


# Several servers that come and go.


def run_batch(served: Served, command: tuple[str | Path, ...], act: Callable[[], None], servers: int = 2) -> Finished:
    """Run a batch on servers, and do something meanwhile."""
    with ThreadPoolExecutor() as meanwhile:
        acting = meanwhile.submit(act)
        done = served.run("batch", *command, servers=servers)
        acting.result(TIMEOUT_S)
    return done


def assert_all_answered(output: Path) -> None:
    """Check that a result has every row once, with its seed and the reply to it."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["seed"], row["error"]) for row in rows] == [(n + 1, n + 7, None) for n in range(ROWS)]
    assert [row["text"] for row in rows] == [SEEDS[(n + 7) % 3] for n in range(ROWS)]


def test_endpoint_batch_survives_a_killed_server(served: Served) -> None:
    first, second = served.servers
    questions = served.questions(ROWS)

    def kill_and_restart() -> None:
        stuck = first.arm(hang_after=0, times=None, let_through=40)
        assert stuck.is_hanging.wait(TIMEOUT_S)
        first.kill()
        held = second.arm(hang_after=0, times=None, let_through=10)
        assert held.is_hanging.wait(TIMEOUT_S)
        stuck.disarm()
        asked = len(first.completions())
        first.start()
        first.wait_for(lambda: len(first.completions()) > asked)
        held.disarm()

    done = run_batch(served, (questions, "--seed", "7", "-o", "out.jsonl"), kill_and_restart)
    assert done.code == 0, done.err
    assert_all_answered(Path("out.jsonl"))


def test_endpoint_batch_without_servers_stops_and_resumes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = served.questions(ROWS)

    def kill_both() -> None:
        stuck = [server.arm(hang_after=0, times=None, let_through=40) for server in served.servers]
        assert all(each.is_hanging.wait(TIMEOUT_S) for each in stuck)
        for server, each in zip(served.servers, stuck, strict=True):
            server.kill()
            each.disarm()

    command = (questions, "--seed", "7", "-o", "out.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(remote_engine, "Patience", lambda: HASTY)
        done = run_batch(served, command, kill_both)
    assert_error(done, 1, "no server answers", *(server.url for server in served.servers), "run the same command again")
    finished = [json.loads(line) for line in Path("out.jsonl.partial").read_text().splitlines()]
    assert len(finished) >= 60 and not any(row["error"] for row in finished)
    before = len(served.asked())
    for server in served.servers:
        server.start()
    assert served.run("batch", *command, "-q", servers=2).code == 0
    assert len(served.asked()) - before == ROWS - len(finished)
    assert_all_answered(Path("out.jsonl"))


def interrupted_batch(served: Served, monkeypatch: pytest.MonkeyPatch) -> tuple[str | Path, ...]:
    """The command of a batch whose server was lost in the middle, and has started again."""
    [server, _] = served.servers
    with monkeypatch.context() as hasty:
        hasty.setattr(remote_engine, "Patience", lambda: HASTY)
        server.arm(times=None, let_through=40, status=500)
        server.arm(path="/v1/models", times=None, let_through=1, reset_after=0)
        command = (served.questions(ROWS), "--seed", "7", "-o", "out.jsonl")
        assert_error(served.run("batch", *command), 1, "no server answers")
    server.kill()
    server.disarm()
    server.start()
    return command


def test_endpoint_batch_resumes_on_servers_of_its_model_only(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    command = interrupted_batch(served, monkeypatch)
    finished = Path("out.jsonl.partial").read_bytes()
    first, second = served.servers
    second.models = ("other.gguf",)
    done = served.run("batch", *command, servers=2)
    problem = f"{second.url} serves other.gguf (1000 bytes) on llama-server, but earlier replies are from tiny.gguf"
    assert_error(done, 1, problem, "--restart")
    assert Path("out.jsonl.partial").read_bytes() == finished
    second.models = first.models
    assert served.run("batch", *command, "-q", servers=2).code == 0
    assert_all_answered(Path("out.jsonl"))


def test_endpoint_batch_of_an_older_record_resumes_on_its_kind(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    command = interrupted_batch(served, monkeypatch)
    path = Path("out.jsonl.meta.json")
    record = json.loads(path.read_text())
    record["notes"]["servers"] = [{"kind": "vLLM", "build": "1"}]
    path.write_text(json.dumps(record))
    assert_error(served.run("batch", *command), 1, "on llama-server, but earlier replies are from vLLM")
    record["notes"]["servers"] = [{"kind": "llama-server", "build": "older"}]
    path.write_text(json.dumps(record))
    assert served.run("batch", *command, "-q").code == 0


# Errors: an exit code, one line for the problem, one for the fix.


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ({"status": 500}, ("scripted",)),
        ({"status": 400}, ("scripted",)),
        ({"status": 401}, ("requires an API key", "CEREBRUM_API_KEY")),
        ({"status": 404}, ("scripted",)),
        ({"status": 307, "headers": {"Location": "http://192.0.2.1/"}}, ("redirects to http://192.0.2.1/",)),
        ({"reset_after": 0}, ("connection lost",)),
        ({"reset_after": 9}, ()),
        ({"is_truncated": True}, ()),
        ({"body": b"{}"}, ()),
        ({"path": "/v1/models", "status": 404}, ("check the URL",)),
        ({"path": "/v1/models", "body": b"<html>"}, ("damaged reply",)),
        ({"path": "/props", "body": b"{}"}, ("/props",)),
        ({"path": "/tokenize", "body": b'{"tokens":[1]}'}, ("vocabulary", "-m")),
        ({"edit": lambda _, chunk: {**chunk, "tokens_evaluated": 2}}, ("instead of", "-m")),
    ],
)
def test_endpoint_fault_is_one_problem_and_one_fix(
    served: Served, fault: dict[str, Any], parts: tuple[str, ...]
) -> None:
    served.servers[0].arm(times=None, **fault)
    assert_error(served.run("ask", "--no-log", "What is 2 + 2?"), 1, *parts)


def test_endpoint_prompt_too_long_exits_4(served: Served) -> None:
    served.servers[0].context_size = 60
    assert_error(served.run("ask", "x" * 100), 4)


def test_endpoint_prompt_too_long_is_an_error_row(served: Served) -> None:
    served.servers[0].context_size = 90
    questions = served.home / "in.txt"
    questions.write_text(f"{'x' * 200}\nShort?\n")
    done = served.run("batch", questions, "-q", "-o", "-")
    rows = {row["prompt"][0]: row for row in map(json.loads, done.out.splitlines())}
    assert done.code == 6
    assert (rows["x"]["error"]["type"], rows["S"]["error"]) == ("context_length_exceeded", None)


def test_endpoint_results_hold_no_address(served: Served) -> None:
    for server in served.servers:
        server.arm(times=1, status=400)
        server.arm(times=3, status=500, let_through=8)
    done = served.run("batch", served.questions(12), "-o", "out.jsonl", servers=2)
    assert done.code == 6
    errors = [
        row["error"]["message"] for row in map(json.loads, Path("out.jsonl").read_text().splitlines()) if row["error"]
    ]
    assert {error.partition(":")[0] for error in errors} >= {"server 1", "server 2"}
    assert "127.0.0.1" not in Path("out.jsonl").read_text() + Path("out.jsonl.meta.json").read_text()


def test_endpoint_result_names_a_server_of_the_configuration(served: Served) -> None:
    [server, _] = served.servers
    served.config(f'[endpoints.big]\nurl = "{server.url}"\n')
    server.arm(times=3, status=500)
    done = served.run_alone("batch", served.questions(1), "-o", "-", "--endpoint", "big", "-q")
    error = "3 servers failed on this request; the last, big: scripted: check the log of the server"
    assert json.loads(done.out)["error"]["message"] == error


def test_endpoint_without_a_server_is_an_error(served: Served) -> None:
    served.servers[0].kill()
    assert_error(served.run("ask", "hi"), 1, "no server answers", "Connection refused", "start one")


def test_endpoint_reply_of_a_lost_server_is_printed_so_far(served: Served) -> None:
    served.servers[0].arm(edit=lambda at, chunk: b"data: {\n\n" if "4" in str(chunk.get("content")) else chunk)
    done = served.run("ask", "--seed", "0", "What is 2 + 2?")
    assert done.out == "The answer is\n"
    assert_error(done, 1, "damaged reply", "ask again")


# Options.


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("ask", ("--ctx", "100")),
        ("ask", ("--threads", "2")),
        ("ask", ("--gpu-layers", "0")),
        ("ask", ("--drafts", "off")),
        ("ask", ("--drafts", "on")),
        ("ask", ("--no-cache",)),
        ("ask", ("--no-profile",)),
        ("batch", ("--batch-invariant",)),
        ("batch", ("--threads", "2")),
        ("chat", ("--ctx", "100")),
        ("chat", ("--no-cache",)),
    ],
)
def test_endpoint_refuses_local_options_on_the_command_line(
    served: Served, command: str, options: tuple[str, ...]
) -> None:
    subject = (served.questions(1), "-o", "out") if command == "batch" else ()
    assert_error(served.run(command, *subject, *options), 2, options[0], "--endpoint")
    assert all(server.asked == [] for server in served.servers)


def test_endpoint_ignores_local_options_set_elsewhere(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.config("ctx = 10\ngpu-layers = 3\n")
    for name in ("CTX", "THREADS", "CACHE_GB", "NO_CACHE", "NO_PROFILE", "DRAFTS", "GPU_LAYERS"):
        monkeypatch.setenv(f"CEREBRUM_{name}", "on" if name == "DRAFTS" else "1")
    done = served.run("ask", "--seed", "0", "What is 2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err


def test_endpoint_variable_names_several_servers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = served.servers
    served.config(f'[endpoints.big]\nurl = "{first.url}"\n')
    monkeypatch.setenv("CEREBRUM_ENDPOINT", f"big  {second.url}")
    done = served.run_alone("batch", served.questions(12), "-q", "-o", "out.jsonl")
    assert (done.code, len(served.asked())) == (0, 12), done.err
    assert all(server.completions() for server in served.servers)


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/v1", "{}/v1/"])
def test_endpoint_url_may_have_a_version_and_a_slash(served: Served, form: str) -> None:
    done = served.run_alone("ask", "--endpoint", form.format(served.servers[0].url), "--seed", "0", "2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("ftp://127.0.0.1:1", "not the URL of a server"),
        ("http://", "not the URL of a server"),
        ("http://127.0.0.1:99999", "http://127.0.0.1:99999"),
        ("http://127.0.0.1:1?key=1", "not the URL of a server"),
        ("http://[::1", "http://[::1"),
        ("localhost:8080", "unknown endpoint 'localhost:8080'"),
        ("big", "unknown endpoint 'big'"),
        ("", "unknown endpoint ''"),
    ],
)
def test_endpoint_url_is_checked(served: Served, url: str, part: str) -> None:
    assert_error(served.run_alone("ask", "--endpoint", url, "hi"), 2, part)


def test_endpoint_url_with_a_password_is_refused_unshown(served: Served) -> None:
    done = served.run_alone("ask", "--endpoint", "http://me:secret@127.0.0.1:1", "hi")
    assert_error(done, 2, "CEREBRUM_API_KEY")
    assert "secret" not in done.err


def test_endpoint_given_twice_is_refused(served: Served) -> None:
    url = served.servers[0].url
    assert_error(served.run("ask", "--endpoint", f"{url}/v1", "hi"), 2, f"{url} is given twice")


def test_endpoint_name_stands_for_a_table(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    [server, _] = served.servers
    server.key, server.models = "sesame", ("a.gguf", "b.gguf")
    served.config(f'[endpoints.big]\nurl = "{server.url}/v1"\nkey_env = "BIG_KEY"\nserved_model = "b.gguf"\n')
    assert_error(served.run_alone("ask", "--endpoint", "big", "hi"), 1, "BIG_KEY is not set")
    monkeypatch.setenv("BIG_KEY", "sesame")
    done = served.run_alone("ask", "--endpoint", "big", "--seed", "0", "2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err
    assert served.asked()[0]["model"] == "b.gguf"
    other = served.run_alone("ask", "--endpoint", "big", "--served-model-name", "a.gguf", "hi")
    assert (other.code, served.asked()[1]["model"]) == (0, "a.gguf")
    assert_error(served.run_alone("ask", "--endpoint", "small", "hi"), 2, "unknown endpoint 'small'", "big")


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ("[endpoints]\nbig = 1\n", "must contain only tables"),
        ("endpoints = 3\n", "must contain only tables"),
        ("[endpoints.big]\n", "url is missing"),
        ('[endpoints.big]\nurl = ""\n', "url"),
        ('[endpoints.big]\nurl = "http://x"\nkey = "sesame"\n', "unknown key `key`"),
        ('[endpoints.big]\nurl = "http://x"\nkey_env = 3\n', "key_env is 3"),
        ('[endpoints.big]\nurl = "x"\n', "not the URL of a server"),
    ],
)
def test_endpoint_table_is_checked(served: Served, table: str, part: str) -> None:
    served.config(table)
    done = served.run_alone("ask", "--endpoint", "big", "hi")
    assert_error(done, done.code, part)
    assert done.code in (1, 2) and "sesame" not in done.err


# Keys and proxies.


def test_endpoint_key_is_sent_to_the_server_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    [server, other] = served.servers
    server.key = "sesame"
    assert_error(served.run("ask", "hi"), 1, "requires an API key", "CEREBRUM_API_KEY")
    monkeypatch.setenv("CEREBRUM_API_KEY", "wrong-key")
    done = served.run("ask", "-v", "hi")
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


def test_endpoint_key_over_plain_http_needs_consent(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEREBRUM_API_KEY", "sesame")
    url = served.servers[0].url.replace("127.0.0.1", "0.0.0.0")  # reaches the same server, and is not loopback by name
    assert_error(served.run_alone("ask", "--endpoint", url, "hi"), 2, "unencrypted", "--allow-http-key")
    assert served.servers[0].asked == []
    done = served.run_alone("ask", "--endpoint", url, "--allow-http-key", "--seed", "0", "2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err
    assert {asked.key for asked in served.servers[0].asked} == {"Bearer sesame"}


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "tab\t"])
def test_endpoint_key_that_is_no_header_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("CEREBRUM_API_KEY", key)
    done = served.run("ask", "hi")
    assert_error(done, 2, "API key")
    assert key not in done.err


def test_endpoint_empty_grammar_is_refused(served: Served) -> None:
    assert_error(served.run("ask", "--grammar", "/dev/null", "hi"), 2, "/dev/null: the grammar is empty")
    assert served.asked() == []


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


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_endpoint_on_loopback_uses_no_proxy(served: Served, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    url = served.servers[0].url.replace("127.0.0.1", host)
    done = served.run_alone("ask", "--endpoint", url, "--seed", "0", "2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err


@pytest.mark.parametrize(
    ("name", "value", "url", "part"),
    [
        ("HTTP_PROXY", "::bad", "http://0.0.0.0:1", "HTTP_PROXY"),
        ("HTTP_PROXY", "foo://x", "http://0.0.0.0:1", "HTTP_PROXY"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "http://0.0.0.0:1", "ALL_PROXY"),
        ("SSL_CERT_FILE", "/nonexistent", "https://127.0.0.1:1", "SSL_CERT_FILE"),
        ("SSL_CERT_FILE", __file__, "https://127.0.0.1:1", "SSL_CERT_FILE"),
        ("HTTP_PROXY", "", "http://xn--zzzzz\u00e9.example", "check the URL"),
    ],
)
def test_endpoint_reports_a_wrong_environment(
    served: Served, monkeypatch: pytest.MonkeyPatch, name: str, value: str, url: str, part: str
) -> None:
    monkeypatch.setenv(name, value)
    assert_error(served.run_alone("ask", "--endpoint", url, "hi"), 1, url, part)
