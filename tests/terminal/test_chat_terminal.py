"""Chats with the real small model at a real terminal."""

import signal
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
from command_line import COMMAND, CommandLine
from person import OpenTerminal, Person
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture
def open_small_chat(open_terminal: OpenTerminal, user: CommandLine) -> OpenTerminal:
    """A function that starts a chat with the small model, and waits for its prompt, if that has a toolbar."""

    def start(*arguments: str, shows: str = "context ", **options: Any) -> Person:
        person = open_terminal(COMMAND, "chat", "-m", "small", "--temperature", "0", "-n", "4", *arguments, **options)
        person.wait_for(shows)
        return person

    return start


def write_editor(path: Path, commands: str) -> Path:
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return path


def turn(person: Person, question: str) -> None:
    """Ask, and wait for the end of the reply, when /stats typed ahead runs."""
    person.type(f"{question}\r/stats\r", shows="> /stats")
    person.wait_for("/2048 (")


def test_chat_without_a_session_database_needs_no_log(open_small_chat: OpenTerminal, tmp_path: Path) -> None:
    sessions = tmp_path / "data" / "cerebrum" / "sessions"
    sessions.write_text("a file, since root may write to every directory")
    assert open_small_chat(shows="or use --no-log").end() == 1
    person = open_small_chat("--no-log", shows="this chat is not saved: no_log is on")
    turn(person, "How are you?")
    person.wait_for("session how-are-you | not saved | context ")
    person.type("/save mine\r", shows="Session named 'mine'; it is not saved")
    person.leave()
    assert sessions.is_file()


def test_chat_killed_leaves_its_session_unlocked_and_intact(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_small_chat("--session", "tea")
    turn(person, "One?")
    person.type("Two?\r", shows="> Two?")
    wait_until(lambda: user.contents("tea")[2:3] == ["Two?"])
    person.kill(signal.SIGKILL)
    assert person.end() == 128 + signal.SIGKILL
    again = open_small_chat("-c")
    again.wait_for("Continuing 'tea'. Last exchange:")
    again.wait_for("> Two?")
    turn(again, "Three?")
    again.leave()
    assert user.contents("tea")[::2][0] == "One?"
    assert user.contents("tea")[-2] == "Three?"


def test_chat_signal_at_the_prompt_saves_the_prompt_cache(open_small_chat: OpenTerminal, tmp_path: Path) -> None:
    person = open_small_chat("--session", "tea")
    person.type(f"{'word ' * 60}\r", shows="session tea | context ")
    person.kill(signal.SIGHUP)
    assert person.end() == 129
    assert not person.screen.cursor_hidden
    assert list((tmp_path / ".cache" / "cerebrum" / "states").glob("*.state"))


def test_chat_works_in_narrow_and_resized_windows(open_small_chat: OpenTerminal) -> None:
    person = open_small_chat(size=(60, 24))
    person.type("Who are you, and what can you tell me of yourself in many words?")
    person.resize(20, 12)
    person.type("\r", shows="resumes it")
    person.resize(200, 12)
    person.type("/help\r", shows="Ctrl-D")
    person.leave()


@pytest.mark.parametrize("variable", ["TERM", "ACCESSIBLE"])
def test_chat_on_a_dumb_terminal_or_for_a_screen_reader_has_a_plain_prompt(
    open_small_chat: OpenTerminal, variable: str
) -> None:
    person = open_small_chat(**{variable: "dumb"}, shows=">")
    person.type("One", shows="> One")
    if variable == "TERM":
        person.type(b"\xff?\r", shows="truncated at 4 tokens")
        person.type("/copy\r", shows="no clipboard available")
    person.type("\x03", shows="Press Ctrl-C again")
    person.type("\x03")
    assert person.end() == 0
    assert "\x1b" not in person.output


def test_chat_output_can_be_piped_from_a_terminal(
    open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path
) -> None:
    env = user.environment({"TERM": "xterm-256color"})
    person = Person(["sh", "-c", f"{quote(COMMAND)} chat -m small -n 4 --seed 1 | tee log"], env, tmp_path)
    person.wait_for(">")
    person.type("One?", shows="> One?")
    person.type("\r", shows="truncated at 4 tokens")
    person.leave()
    assert user.contents("one")[1] in (tmp_path / "log").read_text()


def test_prompt_has_a_toolbar_and_exits_when_ctrl_c_is_pressed_twice(
    open_small_chat: OpenTerminal, user: CommandLine
) -> None:
    person = open_small_chat()
    person.wait_for(" | model small | format ")
    for _ in range(3):
        person.type("not sent", shows="> not sent")
        person.type("\x03")
    person.type("\x03", shows="Press Ctrl-C again")
    person.type("One?\r", shows="session one | context ")
    person.wait_for(" t/s")
    person.type("\x03", shows="Press Ctrl-C again")
    person.type("\x03")
    assert person.end() == 0
    assert user.contents("one")[0] == "One?"


def test_prompt_vi_keys(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_small_chat(CEREBRUM_VI="on")
    person.wait_for("context ")
    person.type("not sent\x1bccOne?", shows="> One?")
    turn(person, "")
    person.leave()
    assert user.contents("one")[0] == "One?"


def test_prompt_history_is_private_and_searched_with_ctrl_r(open_small_chat: OpenTerminal, tmp_path: Path) -> None:
    history = tmp_path / "data" / "cerebrum" / "history"
    history.write_text("\n# now\n+What is a monad?\n\n# now\n+before\n")
    history.chmod(0o644)
    person = open_small_chat()
    person.type("\x1b[A", shows="> before")
    person.type("\x03\x12mon", shows="What is a monad?")  # Ctrl-C, Ctrl-R
    person.type("\r\r", shows="what-is-a-monad | ")
    person.leave()
    assert history.stat().st_mode & 0o777 == 0o600


def test_editor_changes_the_prompt_a_question_and_a_reply_and_may_fail(
    open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path
) -> None:
    fails_once = "[ -e failed ] || { touch failed; exit 1; }"
    editor = write_editor(tmp_path / "my editor", f'{fails_once}\nsed -i "s/one/two/; s/^/So: /" "$1"')
    person = open_small_chat(EDITOR=f"'{editor}'")
    person.type("one or none?\x18\x05", shows="error: the editor")  # Ctrl-X Ctrl-E
    person.type("\x18\x05\r", shows="So: two or none?")  # with Enter typed ahead
    turn(person, "")
    turn(person, "/edit")
    assert "> So: So: two or ntwo?" in person.screen.lines
    person.type("/edit answer\r", shows="reply replaced")
    person.type("/copy 1\r", shows="code block")
    person.type("/export talk.md\r", shows="wrote talk.md")
    person.type("/export talk.md\r", shows="already exists")
    person.leave()
    question, reply = user.contents("so-two-or-none")
    assert question == "So: So: two or ntwo?"
    assert reply.startswith("So: ")
    assert reply in (tmp_path / "talk.md").read_text()
    assert "Exception" not in person.output
