"""`--endpoint`: compared with models on this machine; servers that come and go; options, names, keys, certificates.

Then chats in terminals, and a real vocabulary.
"""

import json
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, assert_error
from llama_engines import open_engine
from loopback import Loopback, LoopbackHandler
from person import OpenTerminal, Person
from remote_engines import served_engine, set_patience
from scripted_command import SCRIPTED, backend_for
from served import SEEDS, Served
from server_kinds import BUILD, LlamaServer, VllmServer
from vocabularies import MARKS, marks_in
from waiting import TIMEOUT_S

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"  # with its key, self-signed
ROWS = 100
WEIGHTS = "tiny.gguf (1000 bytes)"
BIG = """[endpoints.big]
url = "{url}"
"""


def rows_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output).read_text().splitlines()]


@pytest.mark.parametrize("votes", ["5", "auto:2..7"])
def test_endpoint_vote_has_the_local_tally_in_one_request(served: Served, votes: str) -> None:
    arguments = ("ask", "--json", "--votes", votes, "--seed", "1", "--no-log", "What is 2 + 2?")
    remote, local = served.run(*arguments, servers=2), served.run_alone(*arguments)
    assert (remote.code, remote.err) == (0, f"note: the server answers with {WEIGHTS}\n")
    assert remote.object["model"] == WEIGHTS
    generated, same = dict(remote.object), dict(local.object)
    for key in ("timings", "file", "cached_tokens", "model"):
        del generated[key], same[key]
    assert generated == same
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
    rows, local_rows, origins = rows_of("remote.jsonl"), rows_of("local.jsonl"), set()
    for row in local_rows:
        del row["key"]
    for row in rows:
        del row["key"]
        origin = row.pop("server")
        asked = served.servers[int(origin[-1]) - 1].completions()
        assert any(f"{row['prompt']}<" in bytes(each.prompt).decode() for each in asked)
        origins.add((origin, row.pop("served_model")))
    assert origins == {("server 1", WEIGHTS), ("server 2", WEIGHTS)}
    assert [list(row.items()) for row in rows] == [list(row.items()) for row in local_rows]
    record = Path("remote.jsonl.meta.json").read_text()
    assert json.loads(record)["notes"]["servers"] == [{"kind": "llama-server", "build": BUILD, "model": WEIGHTS}]
    assert "127.0.0.1" not in record and "/srv" not in record


# Several servers that come and go.


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
    with VllmServer(first.model, context_size=100_000) as other:
        done = served.run_alone("batch", *command, "--endpoint", other.url)
        assert_error(done, 1, "serves tiny.gguf on vLLM instead of tiny.gguf (1000 bytes) on llama-server")
    assert Path("out.jsonl.partial").read_bytes() == finished
    second.models = first.models
    assert served.run("batch", *command, "-q", servers=2).code == 0
    assert len(served.asked()) - asked == ROWS - 2 * 5  # those that were let through
    rows = [(row["id"], row["seed"], row["error"], row["text"]) for row in rows_of("out.jsonl")]
    assert rows == [(n + 1, n + 7, None, SEEDS[(n + 7) % 3]) for n in range(ROWS)]


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
    served.config(BIG.format(url=first.url))
    for server in served.servers:
        server.arm(times=1, status=400, message="the prompt exceeds the available context size")
        server.arm(times=3, status=500, let_through=8)
    endpoints = ("--endpoint", "big", "--endpoint", second.url)
    done = served.run_alone("batch", served.questions(12), "-o", "out.jsonl", *endpoints)
    assert done.code == 6
    failed = [row for row in rows_of("out.jsonl") if row["error"]]
    assert {row["error"]["message"].partition(":")[0] for row in failed} >= {"big", "server 2"}
    assert {row["server"] for row in failed} == {"big", "server 2"}
    assert "127.0.0.1" not in Path("out.jsonl").read_text() + Path("out.jsonl.meta.json").read_text()


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


# Options.


def test_endpoint_variable_names_several_servers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = served.servers
    served.config(BIG.format(url=first.url))
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


def test_endpoint_key_that_is_no_header_or_not_encrypted_is_not_sent(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = served.servers[0].url
    open_url = url.replace("127.0.0.1", "0.0.0.0")  # reaches the same server, and is not loopback by name
    for key, endpoint in ("two\nlines", url), ("schlüssel", url), ("tab\t", url), ("sesame", open_url):
        monkeypatch.setenv("CEREBRUM_API_KEY", key)
        done = served.run_alone("ask", "--endpoint", endpoint, "hi")
        assert_error(done, 2, "API key")
        assert key not in done.err
    assert served.servers[0].asked == []


def test_endpoint_name_stands_for_a_table(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    [server, _] = served.servers
    server.key, server.models = "sesame", ("a.gguf", "b.gguf")
    served.config(BIG.format(url=f"{server.url}/v1") + 'key_env = "BIG_KEY"\nserved_model = "b.gguf"\n')
    monkeypatch.setenv("BIG_KEY", "sesame")
    done = served.run_alone("ask", "--endpoint", "big", "--seed", "0", "2 + 2?")
    assert (done.code, done.out) == (0, "The answer is 4.\n"), done.err
    assert served.asked()[0]["model"] == "b.gguf"
    other = served.run_alone("ask", "--endpoint", "big", "--set", "served_model_name=a.gguf", "hi")
    assert (other.code, served.asked()[1]["model"]) == (0, "a.gguf")


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


# In terminals, and with a real vocabulary.

ANSWERS = {"One?": "First.", "Two?": "Zwölf 🙂.", "Three?": "Third of all the many numbers."}
SCRIPT: dict[str, Any] = {"rows": ANSWERS, "seeds": ["once upon a time there was a fox"]}
AT = 12  # objects of a stream, of which the first are of the prompt's progress


@pytest.fixture
def server() -> Iterator[LlamaServer]:
    """A server of a scripted model."""
    with LlamaServer(backend_for(SCRIPT, 4).model, context_size=100_000) as server:
        yield server


@pytest.fixture
def chat(open_terminal: OpenTerminal, server: LlamaServer, chatml_model: Path) -> Person:
    """A chat on the server, in a terminal."""
    command = ("chat", "-m", chatml_model, "--endpoint", server.url, "--seed", "0", "--no-markdown")
    person = open_terminal(sys.executable, SCRIPTED, json.dumps(SCRIPT), *command)
    person.wait_for(">")
    return person


def say(person: Person, text: str, answer: str) -> None:
    person.type(f"{text}\r")
    person.wait_for(answer)
    person.wait_for(">")


@pytest.mark.slow
def test_endpoint_chat_extends_what_was_generated_and_survives_a_lost_server(chat: Person, server: LlamaServer) -> None:
    say(chat, "One?", "First.")
    say(chat, "Two?", "Zwölf 🙂.")
    say(chat, "Three?", "Third of all")
    say(chat, "/undo", ">")
    say(chat, "/retry", "Zwölf 🙂.")
    server.arm(reset_after=AT)
    say(chat, "Three?", "error")
    say(chat, "Three?", "Third of all")
    chat.type("/exit\r")
    assert chat.end() == 0
    one, two, three, again, *_ = (bytes(asked.prompt).decode() for asked in server.completions())
    assert two.startswith(f"{one}First.") and three.startswith(f"{two}Zwölf 🙂.")
    assert again == two
    assert "Traceback" not in chat.output


@pytest.mark.slow
def test_endpoint_chat_interrupted_reply_is_saved(chat: Person, server: LlamaServer, new_user: CommandLine) -> None:
    say(chat, "One?", "First.")
    stuck = server.arm(hang_after=AT)
    chat.type("Three?\r", shows="Thi")
    assert stuck.is_hanging.wait(TIMEOUT_S)
    chat.type("\x03", shows="interrupted")
    server.wait_for(lambda: server.completions()[1].is_left)
    say(chat, "Two?", "Zwölf 🙂.")
    chat.type("/exit\r")
    assert chat.end() == 0
    *_, partial, question, answer = new_user.contents("one")
    assert ANSWERS["Three?"].startswith(partial)
    assert (question, answer) == ("Two?", "Zwölf 🙂.")


@pytest.fixture(scope="module")
def real_server(chatml_model: Path) -> Iterator[LlamaServer]:
    """A server of the tiny ChatML model."""
    with open_engine(chatml_model, context_size=512) as engine, served_engine(engine) as server:
        server.n_vocab = engine.vocabulary.size
        server.models = (chatml_model.name,)
        yield server


@pytest.mark.slow
def test_endpoint_ask_equals_the_local_model(user: CommandLine, real_server: LlamaServer) -> None:
    """With special tokens, that the user has typed, and that stay text."""
    question = ("ask", "-m", "small", "--json", "--no-log", "-n", "30", "Where is the fox? 🙂" + "".join(MARKS))
    local, preview = user.run(*question), user.run(*question, "--dry-run").object
    remote = user.run(*question, "--endpoint", real_server.url)
    assert (remote.code, remote.err) == (local.code, local.err)
    same = ("text", "prompt_tokens", "completion_tokens", "finish_reason")
    assert [remote.object[key] for key in same] == [local.object[key] for key in same]
    prompt = real_server.completions()[-1].prompt
    assert prompt == tuple(preview["token_ids"])
    assert marks_in(prompt) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
