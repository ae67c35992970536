"""`--endpoint` in processes and terminals of their own: Ctrl-C, kill -9, chats, and the real vocabulary."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_files import stored_lines
from command_line import CommandLine, assert_error
from llama_engines import open_engine
from person import OpenTerminal, Person
from remote_engines import served_engine
from scripted_command import SCRIPTED, batch_backend, run_here, start_scripted
from server_kinds import LlamaServer, VllmServer
from vocabularies import MARKS, marks_in
from waiting import TIMEOUT_S, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SCRIPT: dict[str, Any] = {"rows": {}, "seeds": ["once upon a time there was a fox"]}
CHAT: dict[str, Any] = {
    "rows": {"One?": "First.", "Two?": "Zwölf 🙂.", "Three?": "Third of all the many numbers."},
    "seeds": ["Other."],
}
LOCAL = ("threads", "gpu_layers", "speculative", "cache_gb")
ROWS = 40
AT = 12  # objects of a stream, of which the first are of the prompt's progress


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[LlamaServer]:
    """A server of a scripted model."""
    script = getattr(request, "param", SCRIPT)
    with LlamaServer(batch_backend(dict(script), 4).model, context_size=100_000) as server:
        yield server


@pytest.fixture
def arguments(server: LlamaServer, chatml_model: Path) -> list[str]:
    """The options that ask for this server."""
    return ["-m", str(chatml_model), "--endpoint", server.url, "--seed", "0"]


def test_endpoint_interrupted_ask_saves_what_arrived(
    new_user: CommandLine, server: LlamaServer, arguments: list[str], chatml_model: Path
) -> None:
    server.models = (chatml_model.name,)
    stuck = server.arm(hang_after=AT)
    process = start_scripted(SCRIPT, new_user.home, "ask", *arguments, "Tell me")
    assert process.stdout
    first = process.stdout.read(4)
    assert stuck.is_hanging.wait(TIMEOUT_S)
    process.send_signal(signal.SIGTERM)
    rest, err = process.communicate(timeout=TIMEOUT_S)
    printed = (first + rest).decode()
    assert (process.returncode, err) == (143, b"")
    assert printed.endswith("\n") and SCRIPT["seeds"][0].startswith(printed.strip())
    server.wait_for(lambda: server.completions()[0].is_left)
    [question, reply] = new_user.messages("tell-me")
    assert (question["content"], reply["finish_reason"]) == ("Tell me", "cancelled")
    assert reply["params"]["served_model"] == "chatml.gguf (1000 bytes)"
    assert reply["content"].strip() == printed.strip()


def test_endpoint_interrupted_while_connecting(
    new_user: CommandLine, server: LlamaServer, arguments: list[str]
) -> None:
    armed = server.arm(times=None, path="/v1/models", hang_after=0)
    process = start_scripted(SCRIPT, new_user.home, "ask", *arguments, "Tell me")
    server.wait_for(lambda: armed.struck)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (130, b"")
    assert "Traceback" not in err.decode()


@pytest.fixture
def batch(new_user: CommandLine, arguments: list[str]) -> list[str]:
    """The arguments of a batch."""
    (new_user.home / "in.txt").write_text("".join(f"Question {number}\n" for number in range(ROWS)))
    return ["in.txt", "-o", "out", *arguments]


def partial(user: CommandLine) -> list[dict[str, Any]]:
    """The finished rows of an unfinished batch."""
    return [json.loads(line) for line in stored_lines(user.home / "out.partial")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_endpoint_ended_batch_asks_for_nothing_finished_again(
    new_user: CommandLine,
    server: LlamaServer,
    batch: list[str],
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = 1 if number == signal.SIGKILL else 10
    stuck = server.arm(hang_after=0, times=None, let_through=answered)
    process = start_scripted(SCRIPT, new_user.home, "batch", *batch)
    assert stuck.is_hanging.wait(TIMEOUT_S)
    wait_until(lambda: len(partial(new_user)) >= answered)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT_S)
    finished = partial(new_user)
    assert process.returncode == code
    if number != signal.SIGKILL:
        saved = f"{len(finished)} of {ROWS} rows done, saved in out.partial"
        assert err.decode().splitlines()[-1] == f" hint: {saved}; run it again to resume"
    server.wait_for(lambda: all(asked.is_left or asked.is_answered for asked in server.asked))
    stuck.disarm()
    before = len(server.completions())
    monkeypatch.chdir(new_user.home)
    with VllmServer(server.model, context_size=100_000) as other:
        done = run_here(
            dict(SCRIPT), new_user.home, "batch", *(other.url if each == server.url else each for each in batch)
        )
        assert_error(done, 1, "serves tiny.gguf on vLLM instead of tiny.gguf (1000 bytes) on llama-server")
    assert partial(new_user) == finished
    assert run_here(dict(SCRIPT), new_user.home, "batch", *batch, "-q").code == 0
    again = [bytes(asked.prompt).decode() for asked in server.completions()[before:]]
    assert len(again) == ROWS - len(finished)
    assert not any(f"{row['prompt']}<" in prompt for row in finished for prompt in again)
    rows = [json.loads(line) for line in (new_user.home / "out").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(1, ROWS + 1)) and not any(row["error"] for row in rows)


@pytest.fixture
def chat(open_terminal: OpenTerminal, arguments: list[str]) -> Person:
    """A chat on the server, in a terminal."""
    person = open_terminal(sys.executable, SCRIPTED, json.dumps(CHAT), "chat", *arguments, "--no-markdown")
    person.wait_for(">")
    return person


def say(person: Person, text: str, answer: str) -> None:
    person.type(f"{text}\r")
    person.wait_for(answer)
    person.wait_for(">")


@pytest.mark.parametrize("server", [CHAT], indirect=True)
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


@pytest.mark.parametrize("server", [CHAT], indirect=True)
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
    assert CHAT["rows"]["Three?"].startswith(partial)
    assert (question, answer) == ("Two?", "Zwölf 🙂.")


@pytest.fixture(scope="module")
def real_server(chatml_model: Path) -> Iterator[LlamaServer]:
    """A server of the tiny ChatML model."""
    with open_engine(chatml_model, context_size=512) as engine, served_engine(engine) as server:
        server.n_vocab = engine.vocabulary.size
        server.models = (chatml_model.name,)
        yield server


def test_endpoint_special_tokens_typed_by_the_user_stay_text(user: CommandLine, real_server: LlamaServer) -> None:
    typed = "".join(MARKS)
    done = user.run("ask", "-m", "small", "--endpoint", real_server.url, "-n", "2", "--no-log", typed)
    assert done.code == 0, done.err
    preview = user.run("ask", "-m", "small", "--dry-run", "--json", typed).object
    prompt = real_server.completions()[-1].prompt
    assert prompt == tuple(preview["token_ids"])
    assert marks_in(prompt) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_endpoint_ask_equals_the_local_model(user: CommandLine, real_server: LlamaServer) -> None:
    arguments = ("ask", "-m", "small", "--json", "--no-log", "-n", "30", "Where is the fox? 🙂")
    local = user.run(*arguments)
    remote = user.run(*arguments, "--endpoint", real_server.url)
    assert (remote.code, remote.err) == (local.code, local.err)
    same = ("text", "prompt_tokens", "completion_tokens", "finish_reason")
    assert [remote.object[key] for key in same] == [local.object[key] for key in same]


def test_endpoint_chat_sets_and_shows_no_local_settings(user: CommandLine, real_server: LlamaServer) -> None:
    typed = "/set ctx 100\n/set nonsense 1\n/set temperature 0.5\nQ\n/set\n"
    done = user.run("chat", "-m", "small", "--endpoint", real_server.url, stdin=typed)
    assert "ctx cannot be set: the model runs on a server\n hint: set it where the server is started\n" in done.err
    shown = dict(line.split()[:2] for line in done.err.splitlines() if line.startswith(("temperature ", "ctx ")))
    assert shown == {"temperature": "0.5", "ctx": "512"}
    assert not [name for name in (*LOCAL, "lora") if f"\n{name} " in done.err]
