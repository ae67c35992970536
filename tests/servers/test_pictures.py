"""Pictures of questions: the bytes that a server of chat completions gets, and refusals."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from command_line import Finished
from remote_engines import set_patience
from scripted_backend import END
from scripted_command import app_for, run_here
from server_kinds import LlamaServer, OllamaServer

from cerebrum_cli.core.conversation import conversation_from_messages
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.main import run as run_command
from cerebrum_cli.terminal.streams import Streams

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256))
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(255, -1, -1))
GIF = b"GIF89a" + bytes(20)
WEBP = b"RIFF\x1a\0\0\0WEBPVP8 " + bytes(20)
SCRIPT = {"rows": {}, "seeds": ["A cat."]}
ENDLESS = 10**8  # bytes of a prompt: base64 is long
Run = Callable[..., Finished]


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    replies = b"A cat."

    def model(held: tuple[int, ...], seed: int) -> int:
        said = bytes(held[-8:]).rpartition(b"assistant\n"[-2:])[2]
        return replies[len(said)] if len(said) < len(replies) else END

    with OllamaServer(model, context_size=ENDLESS) as server:
        server.models = ("eyes",)
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_patience(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name, data in {"photo.jpg": JPEG, "a.png": PNG, "b.gif": GIF, "c.webp": WEBP}.items():
        Path(name).write_bytes(data)
    return tmp_path


@pytest.fixture
def run(server: OllamaServer, home: Path) -> Run:
    def run(command: str, *arguments: str | Path) -> Finished:
        return run_here(SCRIPT, home, command, *arguments, "--endpoint", server.url)

    return run


def sent(server: OllamaServer, message: int = -1, request: int = -1) -> tuple[list[tuple[str, bytes]], str]:
    """The pictures of a message that the server got, as types and bytes, and its text."""
    bodies = [asked.body for asked in server.asked if asked.path == server.completion_path]
    *pictures, text = bodies[request]["messages"][message]["content"]
    assert text["type"] == "text"
    found = []
    for part in pictures:
        head, _, data = part["image_url"]["url"].partition(";base64,")
        assert part == {"type": "image_url", "image_url": {"url": f"{head};base64,{data}"}}
        found.append((head, b64decode(data, validate=True)))
    return found, text["text"]


def errors(done: Finished) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith(("error: ", " hint: "))]


def test_ask_sends_the_bytes_of_pictures_by_their_type(run: Run, server: OllamaServer, home: Path) -> None:
    done = run("ask", "--session", "cat", "-f", "photo.jpg", "-f", "b.gif", "-f", "c.webp", "What is it?")
    assert (done.code, done.out) == (0, "A cat.\n"), done.err
    pictures, text = sent(server)
    assert pictures == [("data:image/jpeg", JPEG), ("data:image/gif", GIF), ("data:image/webp", WEBP)]
    assert text == "[picture photo.jpg]\n\n[picture b.gif]\n\n[picture c.webp]\n\nWhat is it?"
    assert run("ask", "--session", "cat", "And its colour?").code == 0
    assert sent(server, message=0) == (pictures, text)
    assert "[picture c.webp]" in run_here(SCRIPT, home, "sessions", "show", "cat").out


def test_pattern_adds_pictures_and_a_directory_skips_them(run: Run, server: OllamaServer, home: Path) -> None:
    (home / "in").mkdir()
    (home / "in/a.png").write_bytes(PNG)
    (home / "in/a.txt").write_text("A text.")
    assert run("ask", "-f", "in/*.png", "What?").code == 0
    assert sent(server) == ([("data:image/png", PNG)], "[picture in/a.png]\n\nWhat?")
    done = run("ask", "-f", "in", "What?")
    assert "1 file skipped: in/a.png (binary)" in done.err
    assert "A text." in server.asked[-1].body["messages"][-1]["content"]


def test_chat_sends_pictures_of_its_options_and_of_slash_file(server: OllamaServer, home: Path) -> None:
    script = b"What?\n/file a.png Which?\n/file b.gif\nHow many?\n/export chat.md\n"
    app = app_for(SCRIPT, home, Streams(StringIO(), StringIO(), BytesIO(script), False, False, False))
    assert run_command(["chat", "-f", "photo.jpg", "--endpoint", server.url], app) == 0
    bodies = [asked.body["messages"] for asked in server.asked if asked.path == server.completion_path]
    assert sent(server, 0, 0) == ([("data:image/jpeg", JPEG)], "[picture photo.jpg]\n\nWhat?")
    assert sent(server, 2) == ([("data:image/png", PNG)], "[picture a.png]\n\nWhich?")
    assert sent(server, 4) == ([("data:image/gif", GIF)], "[picture b.gif]\n\nHow many?")
    assert bodies[-1][1] == {"role": "assistant", "content": "A cat."}
    assert "[picture a.png]\n\nWhich?" in Path("chat.md").read_text()


def test_messages_have_pictures_as_data(run: Run, server: OllamaServer, home: Path) -> None:
    url = "data:image/png;base64," + b64encode(PNG).decode()
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    Path("m.json").write_text(json.dumps(messages))
    assert run("ask", "--messages", "m.json").code == 0
    assert sent(server) == ([("data:image/png", PNG)], "What?")
    shown = run_here(SCRIPT, home, "sessions", "show", "what", "--json").object
    assert {"type": "image_url", "image_url": {"url": url}} in shown["messages"][0]["content"]
    Path("in.jsonl").write_text(json.dumps({"messages": messages}))
    assert run("batch", "in.jsonl", "-o", "-").code == 0
    assert sent(server) == ([("data:image/png", PNG)], "What?")


@pytest.mark.parametrize(("role", "url"), [("user", "https://example.com/a.png"), ("assistant", "data:image/png,")])
def test_picture_of_a_message_that_is_not_data_of_a_question_is_refused(role: str, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(UsageError, match=r"^m: message 2 has the part \{'type': 'image_url'"):
        conversation_from_messages([{"role": "user", "content": "a"}, {"role": role, "content": [part]}], "m")


def test_model_on_this_machine_refuses_pictures(home: Path, chatml_model: Path) -> None:
    for options in ((), ("--dry-run",), ("--raw",)):
        done = run_here(SCRIPT, home, "ask", "-m", chatml_model, "-f", "a.png", "What?", *options)
        assert (done.code, done.out) == (2, "")
        assert errors(done) == [
            "error: this model gets tokens, and cannot see pictures",
            " hint: add --endpoint URL of a server of chat completions, such as Ollama, whose model sees them",
        ]


def test_server_by_token_ids_refuses_pictures(home: Path, chatml_model: Path) -> None:
    with LlamaServer(lambda held, seed: END, context_size=5000) as server:
        done = run_here(SCRIPT, home, "ask", "-m", chatml_model, "--endpoint", server.url, "-f", "a.png", "What?")
    assert errors(done)[0] == "error: this model gets tokens, and cannot see pictures"


def test_refusal_of_a_server_is_shown_in_its_words(run: Run, server: OllamaServer) -> None:
    server.arm(path=server.completion_path, status=400, message="this model\nhas no eyes \x1b[2J", times=None)
    done = run("ask", "-f", "a.png", "What?")
    assert done.code == 1
    [problem, _] = errors(done)
    assert "this model has no eyes" in problem and "\x1b" not in done.err


def test_question_of_a_saved_prompt_keeps_its_pictures(run: Run, server: OllamaServer, home: Path) -> None:
    prompts = home / "config/cerebrum/prompts"
    prompts.mkdir(parents=True)
    (prompts / "look.md").write_text("Look: {input}")
    assert run("ask", "-p", "look", "-f", "a.png", "What?").code == 0
    assert sent(server) == ([("data:image/png", PNG)], "Look: [picture a.png]\n\nWhat?")
