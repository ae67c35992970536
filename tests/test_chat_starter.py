"""The starter model talks at a real terminal, as it does for somebody who tries the program for an hour."""

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

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

Sit = Callable[..., Person]


@pytest.fixture(scope="session")
def starter(pytestconfig: pytest.Config) -> Path:
    """Return the path of the starter model, pulled once for all runs of the suite on this machine."""
    assert pytestconfig.cache
    home = Path(pytestconfig.cache.mkdir("starter"))
    user = CommandLine(home)
    pulled = user.run("pull", "starter", "--quiet")
    assert pulled.code == 0, pulled.err
    return Path(user.run("show", "starter", "--json").object["path"])


@pytest.fixture
def user(tmp_path: Path, starter: Path) -> CommandLine:
    """Return a user who has the starter, and all cores for it."""
    command = CommandLine(tmp_path)
    assert command.run("pull", starter, "--name", "starter").code == 0
    return command


@pytest.fixture
def sit(user: CommandLine, tmp_path: Path) -> Iterator[Sit]:
    """Return how to sit down before a chat and wait until it is ready."""
    people: list[Person] = []

    def open_chat(*arguments: str, columns: int = 80, rows: int = 24) -> Person:
        threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        env = user.environment({"TERM": "xterm-256color", "CEREBRUM_THREADS": threads})
        people.append(Person([COMMAND, "chat", *arguments], env, tmp_path, columns, rows))
        people[-1].wait_for("/8192 (")
        return people[-1]

    yield open_chat
    for person in people:
        person.close()


def shown(user: CommandLine, name: str) -> list[dict[str, Any]]:
    """Return the messages of a session with all that is kept of them."""
    messages: list[dict[str, Any]] = user.run("sessions", "show", name, "--json").object["messages"]
    return messages


def turn(person: Person, question: str) -> None:
    """Ask, and wait for the end of the reply: what is typed meanwhile is obeyed then."""
    person.type(f"{question}\r/stats\r")
    person.wait_for("> /stats")
    person.wait_for("| load ")


def test_a_talk_is_read_once_taken_back_and_tried_again(sit: Sit, user: CommandLine) -> None:
    person = sit("-n", "40")
    turn(person, "What is the capital of France?")
    turn(person, "And of Italy?")
    turn(person, "/retry 0.9")
    person.type("/undo\r")
    person.wait_for("Undone: And of Italy?")
    turn(person, "And of Spain?")
    person.type("\x04")
    assert person.end() == 0
    first, _, second, last = shown(user, "what-is-the-capital-of")
    assert (first["content"], second["content"]) == ("What is the capital of France?", "And of Spain?")
    timings = last["timings"]
    assert timings["cached_tokens"] > 30
    assert timings["prompt_tokens"] - timings["cached_tokens"] < 30
    assert any(row["messages"] == 4 for row in user.run("sessions", "list", "--json").object)


def test_forty_pasted_lines_are_one_question(sit: Sit, user: CommandLine) -> None:
    person = sit("-n", "5", "--session", "paste")
    lines = [f"line {number} of forty" for number in range(40)]
    person.type("\x1b[200~" + "\r".join(lines) + "\x1b[201~")
    person.wait_for("line 39 of forty")
    turn(person, "")
    person.type("\x04")
    assert person.end() == 0
    assert shown(user, "paste")[0]["content"].splitlines() == lines


def test_ctrl_c_in_an_answer_and_in_a_long_prompt(sit: Sit, user: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "my long notes.txt").write_text("The cat sleeps on the sofa in the afternoon. " * 400)
    person = sit("--session", "stops", "--no-markdown")
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
    story, cut, question, answer = shown(user, "stops")
    assert (story["content"], question["content"]) == (
        "Tell me a very long story.",
        "What is two and two?",
    )
    assert cut["finish_reason"] == "cancelled"
    assert cut["content"]
    assert (answer["finish_reason"] in ("length", "stop"), bool(answer["content"])) == (True, True)


def test_a_chat_killed_in_an_answer_goes_on(sit: Sit, user: CommandLine) -> None:
    person = sit("--session", "killed", "--no-markdown", "-n", "12")
    turn(person, "Name a colour.")
    person.type("/set max_tokens\r")
    person.type("Tell me a very long story.\r")
    person.wait_for_lines(4)
    person.kill(signal.SIGKILL)
    assert person.end() == 128 + signal.SIGKILL
    before = shown(user, "killed")
    assert [each["content"] for each in before[::2]] == ["Name a colour.", "Tell me a very long story."]
    again = sit("-c", "-n", "12")
    again.wait_for("Continuing 'killed'. Last exchange:")
    turn(again, "Name an animal.")
    again.type("\x04")
    assert again.end() == 0
    assert [each["content"] for each in shown(user, "killed")][:2] == [each["content"] for each in before[:2]]


def test_a_window_changes_in_the_middle_of_an_answer(sit: Sit, user: CommandLine) -> None:
    person = sit("--session", "sizes", "-n", "200", columns=100, rows=30)
    person.type("Write a short list of five fruits, each with a sentence.\r")
    person.wait_for("1")
    person.resize(120, 40)
    person.type("/stats\r")
    person.wait_for("| load ")
    person.type("\x04")
    assert person.end() == 0
    assert not person.screen.cursor_hidden
    words = re.findall(r"\w+", shown(user, "sizes")[1]["content"])
    assert set(words) <= set(re.findall(r"\w+", " ".join(person.screen.lines)))


def test_a_script_of_twenty_lines_is_talked_through_while_another_chat_runs(sit: Sit, user: CommandLine) -> None:
    person = sit("--session", "other", "-n", "20")
    script = "".join(f"What is {number} plus {number}?\n" for number in range(20))
    done = user.run("chat", "-n", "6", "--session", "script", stdin=script)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert [line for line in done.out.splitlines() if line.startswith("> ")] == [
        f"> {line}" for line in script.splitlines()
    ]
    assert len(shown(user, "script")) == 40
    turn(person, "And what is one plus one?")
    person.type("\x04")
    assert person.end() == 0
    assert len(shown(user, "other")) == 2
