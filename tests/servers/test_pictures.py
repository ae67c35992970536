"""Pictures of questions: the bytes that a server of chat completions gets, sessions that have them, and refusals."""

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished
from remote_engines import set_patience
from scripted_backend import END
from scripted_command import app_for, run_here
from server_kinds import LlamaServer, OllamaServer

from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.messages import conversation_from_messages
from cerebrum_cli.core.pictures import Picture, still_named
from cerebrum_cli.main import run as run_command
from cerebrum_cli.pictures.picture_files import picture_at_url
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
    for name, data in {"photo.jpg": JPEG, "a.png": PNG, "b.dat": GIF, "c.webp": WEBP}.items():
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
    done = run("ask", "-f", "photo.jpg", "-f", "b.dat", "-f", "c.webp", "What is it?")
    assert (done.code, done.out) == (0, "A cat.\n"), done.err
    pictures, text = sent(server)
    assert pictures == [("data:image/jpeg", JPEG), ("data:image/gif", GIF), ("data:image/webp", WEBP)]
    assert text == "[picture photo.jpg]\n\n[picture b.dat]\n\n[picture c.webp]\n\nWhat is it?"
    assert "what-is-it" in run_here(SCRIPT, home, "sessions", "list").out


def test_pattern_adds_pictures_and_a_directory_skips_them(run: Run, server: OllamaServer, home: Path) -> None:
    (home / "in").mkdir()
    (home / "in/a.png").write_bytes(PNG)
    (home / "in/a.txt").write_text("A text.")
    assert run("ask", "-f", "in/*.png", "What?").code == 0
    assert sent(server) == ([("data:image/png", PNG)], "[picture in/a.png]\n\nWhat?")
    done = run("ask", "-f", "in", "What?")
    assert "1 file skipped: in/a.png (binary)" in done.err
    assert "A text." in server.asked[-1].body["messages"][-1]["content"]


def test_session_stores_the_path_and_sends_the_file_again(run: Run, server: OllamaServer, home: Path) -> None:
    shown = ["ask", "--session", "cat"]
    assert run(*shown, "-f", "a.png", "What is it?").code == 0
    assert run(*shown, "And its colour?").code == 0
    assert sent(server, message=0) == ([("data:image/png", PNG)], "[picture a.png]\n\nWhat is it?")
    assert "[picture a.png]" in run_here(SCRIPT, home, "sessions", "show", "cat").out
    [database] = home.rglob("*.db")
    with closing(Store(database)) as store:
        [summary] = store.summaries()
        [picture] = store.messages(summary.session)[0].message.pictures
    record = {"media_type": "image/png", "digest": sha256(PNG).hexdigest(), "path": str(home / "a.png")}
    assert picture.record == record
    assert PNG[20:] not in database.read_bytes()

    asked = len(server.asked)
    (home / "a.png").write_bytes(PNG + b"changed")
    changed = run(*shown, "And now?")
    (home / "a.png").unlink()
    gone = run(*shown, "And now?")
    hint = " hint: restore the file, undo that question, or start a new session"
    assert errors(changed) == [f"error: {home / 'a.png'} has changed since it was attached", hint]
    problem = f"error: a picture cannot be sent again: {home / 'a.png'}: No such file or directory"
    assert errors(gone) == [problem, hint]
    assert (changed.code, gone.code) == (2, 2)
    assert [one.path for one in server.asked[asked:]].count(server.completion_path) == 0
    (home / "a.png").write_bytes(PNG)
    assert run(*shown, "And now?").code == 0
    assert len(server.asked[-1].body["messages"]) == 5


def test_chat_sends_pictures_of_its_options_and_of_slash_file(server: OllamaServer, home: Path) -> None:
    script = b"What?\n/file a.png Which?\n/file b.dat\nHow many?\n/export chat.md\n"
    app = app_for(SCRIPT, home, Streams(StringIO(), StringIO(), BytesIO(script), False, False, False))
    assert run_command(["chat", "-f", "photo.jpg", "--endpoint", server.url], app) == 0
    bodies = [asked.body["messages"] for asked in server.asked if asked.path == server.completion_path]
    assert sent(server, 0, 0) == ([("data:image/jpeg", JPEG)], "[picture photo.jpg]\n\nWhat?")
    assert sent(server, 2) == ([("data:image/png", PNG)], "[picture a.png]\n\nWhich?")
    assert sent(server, 4) == ([("data:image/gif", GIF)], "[picture b.dat]\n\nHow many?")
    assert bodies[-1][1] == {"role": "assistant", "content": "A cat."}
    assert "[picture a.png]\n\nWhich?" in Path("chat.md").read_text()


@pytest.mark.parametrize("key", ["image_url", "input_image"])
def test_messages_have_pictures_as_data(run: Run, server: OllamaServer, home: Path, key: str) -> None:
    url = "data:image/jpg;base64," + b64encode(PNG).decode()
    part = {"type": key, "image_url": {"url": url} if key == "image_url" else url}
    content = [{"type": "text", "text": "What?"}, part]
    Path("m.json").write_text(json.dumps([{"role": "user", "content": content}]))
    assert run("ask", "--messages", "m.json").code == 0
    assert sent(server) == ([("data:image/png", PNG)], "What?")
    assert "[picture]" in run_here(SCRIPT, home, "sessions", "show", "what").out
    assert errors(run("ask", "-c", "And now?")) == [
        "error: a picture of this session came as data, which is not stored",
        " hint: start a new session",
    ]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://example.com/a.png", "m: message 1 has a picture at https://example.com/a.png"),
        ("/etc/passwd", "m: message 1 has a picture at /etc/passwd"),
        ("data:image/png;base64,&", "m: message 1 has a picture that is not base64: "),
        ("data:image/png;base64,QQ==", "m: message 1 has a picture that is not PNG, JPEG, GIF or WebP"),
        ("data:image/png;base64,", "m: message 1 has a picture that is not PNG, JPEG, GIF or WebP"),
    ],
)
def test_pictures_of_messages_must_be_data(url: str, problem: str) -> None:
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(UsageError) as caught:
        conversation_from_messages([{"role": "user", "content": parts}], "m", read_picture=picture_at_url)
    assert caught.value.message.startswith(problem)
    with pytest.raises(UsageError, match="message 2 has no text content"):
        conversation_from_messages(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": parts}],
            "m",
            read_picture=picture_at_url,
        )


def test_pictures_divide_a_text_and_may_be_a_whole_question() -> None:
    def asked(*parts: Any) -> Message:
        conversation = conversation_from_messages([{"role": "user", "content": [*parts]}], "x", read_picture=found)
        return conversation.messages[-1]

    def found(url: str, _: str) -> Picture:
        return Picture("image/png", url)

    part = {"type": "image_url", "image_url": {"url": "a"}}
    assert asked(part).pictures == (Picture("image/png", "a"),)
    message = asked(part, "A?", part, part, "B?", part)
    assert message.content == "A?\n\nB?" and len(message.pictures) == 4
    empty = {"type": "text", "text": ""}
    assert asked(empty, part, "A?", part, empty, part, "B?").content == "A?\n\nB?"


def test_edited_question_keeps_the_pictures_that_it_names() -> None:
    first, second = Picture("image/png", "1", "/a.png"), Picture("image/png", "2", "/b.png")
    data = Picture("image/png", "3")
    before = "[picture a.png]\n\n[picture b.png]\n\nWhat?"
    assert still_named((first, data, second), before, "[picture b.png]\n\nWho?") == (data, second)
    assert still_named((first, second), before, before) == (first, second)


def write_rows(*rows: dict[str, Any]) -> None:
    Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_batch_sends_pictures_of_rows_and_asks_again_for_changed_ones(run: Run, server: OllamaServer) -> None:
    os.mkfifo("pipe")
    Path("notes.jpg").write_text("No picture.")
    damaged = ("nowhere.png", "pipe", "notes.jpg", ".", "a\0b", 5)
    rows = [{"prompt": f"Row {name}?", "pictures": [name]} for name in damaged]
    rows = [{"prompt": "One?", "pictures": "a.png"}, {"prompt": "Two?", "pictures": ["b.dat", "c.webp"]}, *rows]
    write_rows(*rows)
    batch = ("batch", "in.jsonl", "-o", "out.jsonl", "--parallel", "1")
    done = run(*batch)
    assert done.code == 6, done.err
    assert sent(server, request=0) == ([("data:image/png", PNG)], "One?")
    assert sent(server, request=1) == ([("data:image/gif", GIF), ("data:image/webp", WEBP)], "Two?")
    answers = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [answer["text"] for answer in answers] == ["A cat."] * 2 + [None] * 6
    assert [answer["error"] and answer["error"]["type"] for answer in answers] == [
        *(None, None, *["invalid_picture"] * 6)
    ]
    messages = [answer["error"]["message"].partition(";")[0] for answer in answers[2:6]]
    assert messages == [
        "nowhere.png: No such file or directory",
        "pipe is not a regular file",
        "notes.jpg is not a PNG, JPEG, GIF or WebP picture",
        ". is not a regular file",
    ]

    asked = len(server.asked)
    Path("a.png").write_bytes(PNG + b"changed")
    run(*batch)
    again = [one.body for one in server.asked[asked:] if one.path == server.completion_path]
    assert len(again) == 1 and sent(server) == ([("data:image/png", PNG + b"changed")], "One?")


def test_model_on_this_machine_refuses_pictures(home: Path, chatml_model: Path) -> None:
    for options in ((), ("--dry-run",), ("--raw",)):
        done = run_here(SCRIPT, home, "ask", "-m", chatml_model, "-f", "a.png", "What?", *options)
        assert (done.code, done.out) == (2, "")
        assert errors(done) == [
            "error: models on this machine see no pictures",
            " hint: add --endpoint URL of a server whose model sees them, or recognize their text first (OCR)",
        ]


def test_server_by_token_ids_refuses_pictures(home: Path, chatml_model: Path) -> None:
    with LlamaServer(lambda held, seed: END, context_size=5000) as server:
        done = run_here(SCRIPT, home, "ask", "-m", chatml_model, "--endpoint", server.url, "-f", "a.png", "What?")
    assert errors(done)[0] == "error: a server that gets token ids takes no pictures"


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


def test_pictures_that_are_too_large_together_are_refused(run: Run, server: OllamaServer) -> None:
    for name in ("a.png", "photo.jpg", "b.dat"):
        os.truncate(name, 18_000_000)
    done = run("ask", "-f", "a.png", "-f", "photo.jpg", "-f", "b.dat", "What is this?")
    assert done.code == 2 and "error: the pictures are larger than 50 MB together" in done.err
    assert not any(asked.path == server.completion_path for asked in server.asked)
