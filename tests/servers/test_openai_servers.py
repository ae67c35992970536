"""Servers of chat completions: the commands, what they are sent and what they refuse."""

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished, assert_error
from model_servers import Refused
from remote_engines import set_patience
from scripted_command import backend_for, run_here
from server_kinds import LlamaServer, OllamaServer

MODEL = "gemma3:4b"
SCRIPT: dict[str, Any] = {"rows": {}, "seeds": ["<think>\n2 and 2\n</think>\n\nThe answer is 4."]}
Ask = Callable[..., Finished]


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer(backend_for(SCRIPT, 1).model, context_size=100_000) as server:
        server.models = (MODEL,)
        yield server


@pytest.fixture
def ask(server: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run a command on the server, with seed 0."""
    set_patience(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def run(command: str, *arguments: str | Path, piped: bytes | None = None) -> Finished:
        options = ("--endpoint", server.url, "--seed", "0")
        return run_here(SCRIPT, tmp_path, command, *options, *arguments, piped=piped)

    return run


def test_llama_server_gets_messages_for_a_model_that_is_not_installed(server: OllamaServer, ask: Ask) -> None:
    server.owner = "llamacpp"
    for named in (), ("-m", MODEL):  # also behind a gateway that passes only /v1
        done = ask("ask", "What is 2 + 2?", *named, "--json")
        assert (done.code, done.object["text"], done.object["format"]) == (0, "The answer is 4.", "server")
    assert "for exact prompts, pull its model" in done.err
    assert_error(ask("ask", "2 + 2?", "-m", "cerebrum-7b"), 1, "does not serve the model 'cerebrum-7b'", MODEL)


def test_served_model_counts_are_unknown_without_usage(server: OllamaServer, ask: Ask) -> None:
    server.has_usage, server.finish_reason = False, "length"
    found = ask("ask", "2 + 2?", "--json", "-n", "9999").object
    counts = found["prompt_tokens"], found["completion_tokens"], found["finish_reason"]
    assert counts == (None, 6, "length")  # parts of five characters, apart for reasoning and answer
    assert "| prompt of unknown tokens | generated 6 tokens" in ask("ask", "2 + 2?", "--stats").err


@pytest.mark.parametrize(
    ("field", "set_it"), [("seed", ("--seed", "7")), ("reasoning_effort", ("--think", "off"))], ids=["seed", "effort"]
)
def test_served_model_of_a_strict_server_is_sent_only_what_the_user_has_set(
    tmp_path: Path, field: str, set_it: tuple[str, ...]
) -> None:
    class Strict(OllamaServer):
        owner = "mistralai"

        def complete(self, body: Mapping[str, Any]) -> Generator[Any, None, None]:
            if field in body:
                raise Refused(422, f"extra fields not permitted: {field}")
            yield from super().complete({"seed": 0, **body})

    (tmp_path / "questions.txt").write_text("1 + 3?\n2 + 3?\n")
    batch = ("batch", tmp_path / "questions.txt", "-o", "-")
    with Strict(backend_for(dict(SCRIPT), 1).model, context_size=5000) as server:
        server.models = (MODEL,)
        to = ("--endpoint", server.url)
        for command in (("ask", "1 + 3?", "--final"), ("ask", "1 + 3?", "--votes", "3", "--final"), batch):
            assert run_here(SCRIPT, tmp_path, *command, *to).code == 0, command
            assert field not in server.completions()[-1].body
        done = run_here(SCRIPT, tmp_path, "ask", "1 + 3?", *set_it, *to)
        assert_error(done, 1, f"extra fields not permitted: {field}")


NOTHING_LISTED = {"path": "/v1/models", "body": b'{"object":"list","data":null}'}
TOO_LONG = {"status": 400, "message": "the maximum context length is 2048 tokens"}


@pytest.mark.parametrize(
    ("fault", "code", "part"), [(NOTHING_LISTED, 1, "has no model"), (TOO_LONG, 4, "shorten the prompt")]
)
def test_served_model_that_refuses_is_an_error_and_not_asked_again(
    server: OllamaServer, ask: Ask, fault: dict[str, Any], code: int, part: str
) -> None:
    server.arm(times=None, **fault)
    for options in ((), ("--votes", "2")):
        assert_error(ask("ask", "2 + 2?", *options), code, part)
    assert len(server.completions()) == (0 if fault is NOTHING_LISTED else 3)


@pytest.mark.parametrize("options", [(), ("--votes", "2")])
def test_served_model_that_dropped_messages_is_noticed(
    server: OllamaServer, ask: Ask, options: tuple[str, ...]
) -> None:
    def shorten(_: int, reply: Any) -> Any:
        if isinstance(reply, dict) and "usage" in reply:
            reply["usage"]["prompt_tokens"] = 20
        return reply

    server.arm(edit=shorten, times=None)
    Path("notes.txt").write_text("The cat sleeps. " * 20)
    for file in (), ("-f", "notes.txt"):
        done = ask("ask", "2 + 2?", *file, *options)
        assert done.code == 0, done.err
        assert done.err.count("read 20 tokens of a prompt") == bool(file), done.err


def test_served_model_needs_servers_of_one_kind_that_answer(server: OllamaServer, ask: Ask) -> None:
    with OllamaServer(server.model, context_size=5000) as other:
        other.models = server.models
        Path("questions.txt").write_text("".join(f"{number} + 3?\n" for number in range(9)))
        done = ask("batch", "questions.txt", "-o", "out.jsonl", "--endpoint", other.url)
        assert (done.code, done.err.count("builds the prompt itself")) == (0, 1), done.err
        assert server.completions() and other.completions()
    with LlamaServer(server.model) as other:
        assert_error(ask("ask", "2 + 2?", "--endpoint", other.url), 1, "instead of", "servers of one model")
    server.kill()
    assert_error(ask("ask", "2 + 2?"), 7, "Connection refused", "start the server there")


def test_question_goes_to_the_first_server_that_answers(
    server: OllamaServer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_patience(monkeypatch, JOIN_S=0.1)
    with OllamaServer(server.model, context_size=5000) as other:
        other.models = server.models
        question = ("ask", "2 + 3?", "-m", MODEL, "--final", "--endpoint", other.url)
        silent = server.arm(path="/v1/models", hang_after=0, times=None)
        assert ask(*question).out == "4\n"
        silent.released.set()
        server.kill()
        assert (ask(*question).code, ask(*question).out) == (0, "4\n")
        other.kill()
        assert_error(ask(*question), 7, f"{server.url}: Connection refused", f"{other.url}: Connection refused")


def test_refusal_of_a_server_is_shown_in_its_words(ask: Ask, server: OllamaServer) -> None:
    server.arm(status=400, message="this model\nhas no eyes \x1b[2J", times=None)
    done = ask("ask", "What?")
    assert_error(done, 1, "this model has no eyes")
    assert "\x1b" not in done.err
