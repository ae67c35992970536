"""Chats with the starter model at a real terminal."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, CommandLine
from person import Person

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

OpenChat = Callable[..., Person]


@pytest.fixture(scope="session")
def starter(pytestconfig: pytest.Config) -> Path:
    """Path of the starter model, downloaded once for all runs of the suite."""
    assert pytestconfig.cache
    home = Path(pytestconfig.cache.mkdir("starter"))
    user = CommandLine(home)
    pulled = user.run("pull", "starter", "--quiet")
    assert pulled.code == 0, pulled.err
    return Path(user.run("show", "starter", "--json").object["path"])


@pytest.fixture
def user(tmp_path: Path, starter: Path) -> CommandLine:
    """A user with the starter installed."""
    command = CommandLine(tmp_path)
    assert command.run("pull", starter, "--name", "starter").code == 0
    return command


@pytest.fixture
def open_chat(user: CommandLine, tmp_path: Path) -> Iterator[OpenChat]:
    """A function that starts a chat on all cores and waits until the model is loaded."""
    people: list[Person] = []

    def start(*arguments: str, columns: int = 80, rows: int = 24) -> Person:
        threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        env = user.environment({"TERM": "xterm-256color", "CEREBRUM_THREADS": threads})
        people.append(Person([COMMAND, "chat", *arguments], env, tmp_path, columns, rows))
        people[-1].wait_for("/8192 (")
        return people[-1]

    yield start
    for person in people:
        person.close()


def messages(user: CommandLine, name: str) -> list[dict[str, Any]]:
    """Messages of a session with their metadata."""
    rows: list[dict[str, Any]] = user.run("sessions", "show", name, "--json").object["messages"]
    return rows


def turn(person: Person, question: str) -> None:
    """Ask, and wait for the end of the reply, when /stats typed ahead runs."""
    person.type(f"{question}\r/stats\r")
    person.wait_for("> /stats")
    person.wait_for("| load ")


def test_starter_chat_reuses_tokens_after_undo_and_retry(open_chat: OpenChat, user: CommandLine) -> None:
    person = open_chat("-n", "40")
    turn(person, "What is the capital of France?")
    turn(person, "And of Italy?")
    turn(person, "/retry 0.9")
    person.type("/undo\r")
    person.wait_for("Undone: And of Italy?")
    turn(person, "And of Spain?")
    person.type("\x04")
    assert person.end() == 0
    first, _, second, last = messages(user, "what-is-the-capital-of")
    assert (first["content"], second["content"]) == ("What is the capital of France?", "And of Spain?")
    timings = last["timings"]
    assert timings["cached_tokens"] > 30
    assert timings["prompt_tokens"] - timings["cached_tokens"] < 30
    assert any(row["messages"] == 4 for row in user.run("sessions", "list", "--json").object)


def test_starter_chat_takes_forty_pasted_lines_as_one_question(open_chat: OpenChat, user: CommandLine) -> None:
    person = open_chat("-n", "5", "--session", "paste")
    lines = [f"line {number} of forty" for number in range(40)]
    person.type("\x1b[200~" + "\r".join(lines) + "\x1b[201~")
    person.wait_for("line 39 of forty")
    turn(person, "")
    person.type("\x04")
    assert person.end() == 0
    assert messages(user, "paste")[0]["content"].splitlines() == lines


def test_starter_chat_ctrl_c_stops_decode_and_prefill(open_chat: OpenChat, user: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "my long notes.txt").write_text("The cat sleeps on the sofa in the afternoon. " * 400)
    person = open_chat("--session", "stops", "--no-markdown")
    person.type("Tell me a very long story.\r")
    person.wait_for_lines(4)
    person.type("\x03")
    person.wait_for("reply interrupted")
    person.type("/continue\r")
    person.wait_for("> /continue")
    person.type("\x03")
    person.wait_for("interrupted")
    person.type("/file my l\t")
    person.wait_for("> /file my long notes.txt")
    person.type("\rWhere does the cat sleep?\r")
    person.wait_for("prompt: ")
    person.type("\x03")
    person.wait_for("reply interrupted")
    person.type("/undo\r")
    person.wait_for("Undone: ")
    person.type("/set max_tokens 8\r")
    turn(person, "What is two and two?")
    person.type("\x04")
    assert person.end() == 0
    story, cut, question, answer = messages(user, "stops")
    assert (story["content"], question["content"]) == (
        "Tell me a very long story.",
        "What is two and two?",
    )
    assert cut["finish_reason"] == "cancelled"
    assert cut["content"]
    assert (answer["finish_reason"] in ("length", "stop"), bool(answer["content"])) == (True, True)


def test_starter_chat_killed_during_a_reply_can_be_continued(open_chat: OpenChat, user: CommandLine) -> None:
    person = open_chat("--session", "killed", "--no-markdown", "-n", "12")
    turn(person, "Name a color.")
    person.type("/set max_tokens\r")
    person.type("Tell me a very long story.\r")
    person.wait_for_lines(4)
    person.kill(signal.SIGKILL)
    assert person.end() == 128 + signal.SIGKILL
    before = messages(user, "killed")
    assert [each["content"] for each in before[::2]] == ["Name a color.", "Tell me a very long story."]
    again = open_chat("-c", "-n", "12")
    again.wait_for("Continuing 'killed'. Last exchange:")
    turn(again, "Name an animal.")
    again.type("\x04")
    assert again.end() == 0
    assert [each["content"] for each in messages(user, "killed")][:2] == [each["content"] for each in before[:2]]


def test_starter_chat_window_is_resized_during_a_reply(open_chat: OpenChat, user: CommandLine) -> None:
    person = open_chat("--session", "sizes", "-n", "200", columns=100, rows=30)
    person.type("Write a short list of five fruits, each with a sentence.\r")
    person.wait_for("1")
    person.resize(120, 40)
    person.type("/stats\r")
    person.wait_for("| load ")
    person.type("\x04")
    assert person.end() == 0
    assert not person.screen.cursor_hidden
    words = re.findall(r"\w+", messages(user, "sizes")[1]["content"])
    assert set(words) <= set(re.findall(r"\w+", " ".join(person.screen.lines)))


def test_starter_chat_script_runs_beside_another_chat(open_chat: OpenChat, user: CommandLine) -> None:
    person = open_chat("--session", "other", "-n", "20")
    script = "".join(f"What is {number} plus {number}?\n" for number in range(20))
    done = user.run("chat", "-n", "6", "--session", "script", stdin=script)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert [line for line in done.out.splitlines() if line.startswith("> ")] == [
        f"> {line}" for line in script.splitlines()
    ]
    assert len(messages(user, "script")) == 40
    turn(person, "And what is one plus one?")
    person.type("\x04")
    assert person.end() == 0
    assert len(messages(user, "other")) == 2
