"""Chats with the starter model at a real terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from command_line import COMMAND, CommandLine
from person import OpenTerminal, Person
from scripted_command import install

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture(autouse=True)
def installed_starter(new_user: CommandLine, starter: Path) -> None:
    """Install the starter."""
    install(new_user.home, starter, "starter")


@pytest.fixture
def open_starter_chat(open_terminal: OpenTerminal) -> OpenTerminal:
    """A function that starts a chat on all cores and waits until the model is loaded."""
    threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def start(*arguments: str, size: tuple[int, int] = (80, 24)) -> Person:
        person = open_terminal(COMMAND, "chat", *arguments, size=size, CEREBRUM_THREADS=threads)
        person.wait_for("/8192 (")
        return person

    return start


def turn(person: Person, question: str) -> None:
    """Ask, and wait for the end of the reply, when /stats typed ahead runs."""
    person.type(f"{question}\r/stats\r")
    person.wait_for("> /stats")
    person.wait_for("| load ")


def test_starter_chat_reuses_tokens_after_undo_and_retry(
    open_starter_chat: OpenTerminal, new_user: CommandLine
) -> None:
    person = open_starter_chat("-n", "40")
    turn(person, "What is the capital of France?")
    turn(person, "And of Italy?")
    turn(person, "/retry 0.9")
    person.type("/undo\r")
    person.wait_for("Undone: And of Italy?")
    turn(person, "And of Spain?")
    person.type("\x04")
    assert person.end() == 0
    first, _, second, last = new_user.messages("what-is-the-capital-of")
    assert (first["content"], second["content"]) == ("What is the capital of France?", "And of Spain?")
    timings = last["timings"]
    assert timings["cached_tokens"] > 30
    assert timings["prompt_tokens"] - timings["cached_tokens"] < 30
    assert any(row["messages"] == 4 for row in new_user.run("sessions", "list", "--json").object)


def test_starter_chat_takes_forty_pasted_lines_as_one_question(
    open_starter_chat: OpenTerminal, new_user: CommandLine
) -> None:
    person = open_starter_chat("-n", "5", "--session", "paste")
    lines = [f"line {number} of forty" for number in range(40)]
    person.type("\x1b[200~" + "\r".join(lines) + "\x1b[201~")
    person.wait_for("line 39 of forty")
    turn(person, "")
    person.type("\x04")
    assert person.end() == 0
    assert new_user.messages("paste")[0]["content"].splitlines() == lines


def test_starter_chat_ctrl_c_stops_decode_and_prefill(
    open_starter_chat: OpenTerminal, new_user: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "my long notes.txt").write_text("The cat sleeps on the sofa in the afternoon. " * 400)
    person = open_starter_chat("--session", "stops", "--no-markdown", "--set", "loop_check=off")
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
    story, cut, question, answer = new_user.messages("stops")
    assert (story["content"], question["content"]) == (
        "Tell me a very long story.",
        "What is two and two?",
    )
    assert cut["finish_reason"] == "cancelled"
    assert cut["content"]
    assert (answer["finish_reason"] in ("length", "stop"), bool(answer["content"])) == (True, True)


def test_starter_chat_window_is_resized_during_a_reply(open_starter_chat: OpenTerminal, new_user: CommandLine) -> None:
    person = open_starter_chat("--session", "sizes", "-n", "200", size=(100, 30))
    person.type("Write a short list of five fruits, each with a sentence.\r")
    person.wait_for("1")
    person.resize(120, 40)
    person.type("/stats\r")
    person.wait_for("| load ")
    person.type("\x04")
    assert person.end() == 0
    assert not person.screen.cursor_hidden
    words = re.findall(r"\w+", new_user.messages("sizes")[1]["content"])
    assert set(words) <= set(re.findall(r"\w+", " ".join(person.screen.lines)))


def test_starter_chat_script_runs_beside_another_chat(open_starter_chat: OpenTerminal, new_user: CommandLine) -> None:
    person = open_starter_chat("--session", "other", "-n", "20")
    script = "".join(f"What is {number} plus {number}?\n" for number in range(20))
    done = new_user.run("chat", "-n", "6", "--session", "script", stdin=script)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert [line for line in done.out.splitlines() if line.startswith("> ")] == [
        f"> {line}" for line in script.splitlines()
    ]
    assert len(new_user.messages("script")) == 40
    turn(person, "And what is one plus one?")
    person.type("\x04")
    assert person.end() == 0
    assert len(new_user.messages("other")) == 2
