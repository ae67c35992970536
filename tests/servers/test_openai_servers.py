"""Servers of chat completions: the commands, with reasoning, schemas and pictures, and what they refuse."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished, assert_error
from model_servers import Refused
from remote_engines import set_patience
from scripted_command import backend_for, run_here
from server_kinds import LlamaServer, OllamaServer

from cerebrum_cli.core.conversation import conversation_from_messages
from cerebrum_cli.core.errors import UsageError

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


def test_question_goes_to_the_first_server_that_answers(server: OllamaServer, ask: Ask) -> None:
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


# Pictures.

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256))
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(255, -1, -1))
GIF = b"GIF89a" + bytes(20)
WEBP = b"RIFF\x1a\0\0\0WEBPVP8 " + bytes(20)
PHOTO, A_PNG, B_GIF = ("data:image/jpeg", JPEG), ("data:image/png", PNG), ("data:image/gif", GIF)
BLIND = "this model gets tokens, and cannot see pictures"


@pytest.fixture
def eyes(ask: Ask) -> Ask:
    """The command, beside files with pictures."""
    for name, data in {"photo.jpg": JPEG, "a.png": PNG, "b.gif": GIF, "c.webp": WEBP}.items():
        Path(name).write_bytes(data)
    return ask


def sent(server: OllamaServer, message: int = -1, request: int = -1) -> tuple[list[tuple[str, bytes]], str]:
    """The pictures of a message that the server got, as types and bytes, and its text."""
    *pictures, text = server.completions()[request].body["messages"][message]["content"]
    assert text["type"] == "text"
    found = []
    for part in pictures:
        head, _, data = part["image_url"]["url"].partition(";base64,")
        assert part == {"type": "image_url", "image_url": {"url": f"{head};base64,{data}"}}
        found.append((head, b64decode(data, validate=True)))
    return found, text["text"]


def test_ask_sends_the_bytes_of_pictures_by_their_type(eyes: Ask, server: OllamaServer) -> None:
    done = eyes("ask", "--session", "cat", "-f", "photo.jpg", "-f", "b.gif", "-f", "c.webp", "What is it?")
    assert done.code == 0, done.err
    pictures, text = sent(server)
    assert pictures == [PHOTO, B_GIF, ("data:image/webp", WEBP)]
    assert text == "[picture photo.jpg]\n\n[picture b.gif]\n\n[picture c.webp]\n\nWhat is it?"
    assert eyes("ask", "--session", "cat", "And its colour?").code == 0
    assert sent(server, message=0) == (pictures, text)
    assert "[picture c.webp]" in run_here(SCRIPT, Path.cwd(), "sessions", "show", "cat").out


def test_pattern_adds_pictures_and_a_directory_skips_them(eyes: Ask, server: OllamaServer) -> None:
    Path("in").mkdir()
    Path("in/a.png").write_bytes(PNG)
    Path("in/a.txt").write_text("A text.")
    assert eyes("ask", "-f", "in/*.png", "What?").code == 0
    assert sent(server) == ([A_PNG], "[picture in/a.png]\n\nWhat?")
    assert "1 file skipped: in/a.png (binary)" in eyes("ask", "-f", "in", "What?").err
    assert "A text." in server.completions()[-1].body["messages"][-1]["content"]


def test_chat_sends_pictures_of_its_options_and_of_slash_file(eyes: Ask, server: OllamaServer) -> None:
    typed = b"What?\n/file a.png Which?\n/file b.gif\nHow many?\n/export chat.md\n"
    assert eyes("chat", "-f", "photo.jpg", piped=typed).code == 0
    assert sent(server, 0, 0) == ([PHOTO], "[picture photo.jpg]\n\nWhat?")
    assert sent(server, 2) == ([A_PNG], "[picture a.png]\n\nWhich?")
    assert sent(server, 4) == ([B_GIF], "[picture b.gif]\n\nHow many?")
    assert server.completions()[-1].body["messages"][1]["role"] == "assistant"
    assert "[picture a.png]\n\nWhich?" in Path("chat.md").read_text()


def test_messages_have_pictures_as_data(eyes: Ask, server: OllamaServer) -> None:
    url = "data:image/png;base64," + b64encode(PNG).decode()
    picture = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, picture]}]
    Path("m.json").write_text(json.dumps(messages))
    Path("in.jsonl").write_text(json.dumps({"messages": messages}))
    for command in ("ask", "--messages", "m.json"), ("batch", "in.jsonl", "-o", "-"):
        assert eyes(*command).code == 0
        assert sent(server) == ([A_PNG], "What?")
    shown = run_here(SCRIPT, Path.cwd(), "sessions", "show", "what", "--json").object
    assert picture in shown["messages"][0]["content"]


@pytest.mark.parametrize(("role", "url"), [("user", "https://example.com/a.png"), ("assistant", "data:image/png,")])
def test_picture_of_a_message_that_is_not_data_of_a_question_is_refused(role: str, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(UsageError, match=r"^m: message 2 has the part \{'type': 'image_url'"):
        conversation_from_messages([{"role": "user", "content": "a"}, {"role": role, "content": [part]}], "m")


def test_models_that_get_tokens_refuse_pictures(eyes: Ask, chatml_model: Path, server: OllamaServer) -> None:
    question = ("ask", "-m", chatml_model, "-f", "a.png", "What?")
    for options in ((), ("--dry-run",), ("--raw",)):
        done = run_here(SCRIPT, Path.cwd(), *question, *options)
        assert_error(done, 2, BLIND, "add --endpoint URL of a server of chat completions")
        assert done.out == ""
    with LlamaServer(server.model, context_size=5000) as blind:
        assert_error(run_here(SCRIPT, Path.cwd(), *question, "--endpoint", blind.url), 2, BLIND)


def test_refusal_of_a_server_is_shown_in_its_words(eyes: Ask, server: OllamaServer) -> None:
    server.arm(status=400, message="this model\nhas no eyes \x1b[2J", times=None)
    done = eyes("ask", "-f", "a.png", "What?")
    assert_error(done, 1, "this model has no eyes")
    assert "\x1b" not in done.err


def test_question_of_a_saved_prompt_keeps_its_pictures(eyes: Ask, server: OllamaServer) -> None:
    prompts = Path("config/cerebrum/prompts")
    prompts.mkdir(parents=True)
    (prompts / "look.md").write_text("Look: {input}")
    assert eyes("ask", "-p", "look", "-f", "a.png", "What?").code == 0
    assert sent(server) == ([A_PNG], "Look: [picture a.png]\n\nWhat?")
