"""Chats with the real small model at a real terminal."""

from __future__ import annotations

import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from command_line import COMMAND, CommandLine
from person import OpenTerminal, Person
from scripted_command import install

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

LOADED = re.compile(r"context \d+/2048")


@pytest.fixture(autouse=True)
def other_model(user: CommandLine, mistral_model: Path) -> None:
    """Install a second model, `other`."""
    install(user.home, mistral_model, "other")


@pytest.fixture
def open_small_chat(open_terminal: OpenTerminal) -> OpenTerminal:
    """A function that starts a chat with the small model."""
    return partial(open_terminal, COMMAND, "chat", "-m", "small", "-n", "4")


def turn(person: Person, question: str) -> None:
    """Ask, and wait for the end of the reply, when /tokens typed ahead runs."""
    person.type(f"{question}\r/tokens\r")
    person.wait_for("> /tokens")
    person.wait_for("/2048 (")


def test_toolbar_shows_session_model_format_context_and_speed(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_small_chat()
    person.wait_for("small | embedded | context ")
    person.type("How are you?\r")
    person.wait_for("how-are-you | small | embedded | context ")
    person.wait_for(" t/s")
    person.type("\x04")
    assert person.end() == 0


def test_chat_on_a_full_disk_says_once_that_it_is_not_saved(
    open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path
) -> None:
    sessions = tmp_path / "data" / "cerebrum" / "sessions"
    sessions.write_text("a file, since root may write to every directory")
    person = open_small_chat()
    person.wait_for("context ")
    turn(person, "How are you?")
    person.wait_for("how-are-you | not saved | small | ")
    turn(person, "And you?")
    person.type("/save mine\r")
    person.wait_for("Session named 'mine'; it is not saved")
    person.type("\x04")
    assert person.end() == 0
    assert " ".join(person.output.split()).count("this chat is not saved: ") == 1
    assert "error" not in person.output


def test_chat_continue_resumes_the_latest_session(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_small_chat()
    person.wait_for("context ")
    turn(person, "One?")
    turn(person, "Two?")
    person.type("/undo\r")
    person.wait_for("Undone: Two?")
    person.type("/retry 0.9\r")
    person.type("/params\r")
    person.wait_for("temperature           0")
    person.type("/exit\r")
    assert person.end() == 0
    again = open_small_chat("-c")
    again.wait_for("Continuing 'one'. Last exchange:")
    again.wait_for("> One?")
    turn(again, "Three?")
    again.type("\x04")
    assert again.end() == 0
    assert user.contents("one")[::2] == ["One?", "Three?"]


def test_chat_session_is_locked_against_a_second_process(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    first = open_small_chat("--session", "tea")
    first.wait_for("context ")
    turn(first, "One?")
    second = user.run("chat", "--session", "tea", stdin="Two?\n")
    assert second.code == 1
    assert second.err.splitlines()[0] == 'error: session "tea" is open in another process'
    assert user.run("ask", "-c", "Two?").code == 1
    other = open_small_chat("--session", "coffee")
    other.wait_for("context ")
    turn(other, "Black?")
    other.type("/load tea\r")
    other.wait_for('session "tea" is open in another process')
    first.type("\x04")
    assert first.end() == 0
    other.type("/load tea\r")
    other.wait_for("Now in session 'tea'")
    other.type("\x04")
    assert other.end() == 0


def test_chat_killed_leaves_its_session_unlocked_and_intact(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_small_chat("--session", "tea")
    person.wait_for("context ")
    turn(person, "One?")
    person.type("/set max_tokens\r")
    person.wait_for("max_tokens  default")
    person.type("Two?\r")
    person.wait_for("> Two?")
    time.sleep(0.3)
    person.kill(signal.SIGKILL)
    assert person.end() == 128 + signal.SIGKILL
    again = open_small_chat("-c")
    again.wait_for("Continuing 'tea'")
    turn(again, "Three?")
    again.type("\x04")
    assert again.end() == 0
    contents = user.contents("tea")
    assert contents[0] == "One?"
    assert contents[-2] == "Three?"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_chat_signal_at_the_prompt_saves_the_prompt_cache(
    open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    person = open_small_chat("--session", "tea")
    person.wait_for("context ")
    person.type(f"{'word ' * 60}\r")
    person.wait_for("tea | small")
    person.kill(number)
    assert person.end() == code
    assert not person.screen.cursor_hidden
    assert list((tmp_path / ".cache" / "cerebrum" / "states").glob("*.state"))


def test_chat_saves_the_prompt_cache_unless_no_cache(
    open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path
) -> None:
    question = "word " * 60
    states = tmp_path / ".cache" / "cerebrum" / "states"
    for cached in (False, True):
        person = open_small_chat("--session", f"cached-{cached}", *([] if cached else ["--set", "cache_gb=0"]))
        person.wait_for("context ")
        person.type(f"{question}\r")
        person.wait_for("truncated at 4 tokens")
        person.type("\x04")
        assert person.end() == 0
        assert len(list(states.glob("*.state"))) == cached
    again = open_small_chat("--session", "cached-True")
    again.wait_for("context ")
    turn(again, "And?")
    again.type("/stats\r")
    again.wait_for(" cached)")
    again.type("\x04")
    assert again.end() == 0
    assert user.run("sessions", "rm", "cached-True", "-y").code == 0
    assert not list(states.glob("*.state"))


def test_slash_model_switches_the_model_within_a_chat(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_small_chat()
    person.wait_for("context ")
    turn(person, "One?")
    person.type("/model nothing\r")
    person.wait_for("hint: ")
    person.type("/model other\r")
    person.wait_for("unknown prompt format")
    person.type("/set format cerebrum\r")
    person.wait_for("format  cerebrum")
    person.type("/model small\r")
    person.wait_for("small, prompt format: embedded")
    turn(person, "Two?")
    person.type("\x04")
    assert person.end() == 0


def test_slash_edit_changes_the_last_question_or_reply(
    open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path
) -> None:
    editor = tmp_path / "my editor"
    editor.write_text('#!/bin/sh\nsed -i "s/One/Two/; s/^/So: /" "$1"\n')
    editor.chmod(0o755)
    person = open_small_chat(EDITOR=f"'{editor}'")
    person.wait_for("context ")
    turn(person, "One?")
    turn(person, "/edit")
    person.type("/edit answer\r")
    person.wait_for("reply replaced")
    person.type("/copy 1\r")
    person.wait_for("code block")
    person.type("/export talk.md\r")
    person.wait_for("wrote talk.md")
    person.type("/export talk.md\r")
    person.wait_for("already exists")
    person.type("\x04")
    assert person.end() == 0
    question, reply = user.contents("one")
    assert question == "So: Two?"
    assert reply.startswith("So: ")
    assert reply in (tmp_path / "talk.md").read_text()


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_chat_works_in_narrow_and_resized_windows(open_small_chat: OpenTerminal, columns: int) -> None:
    person = open_small_chat(size=(60, 24))
    person.wait_for("context ")
    person.type("Who are you, and what can you tell me of yourself in many words?")
    person.resize(columns, 12)
    person.type("\r")
    person.wait_for("resumes it")
    person.type("/help\r")
    person.wait_for("Ctrl-D")
    person.type("\x04")
    assert person.end() == 0


def test_chat_on_a_dumb_terminal_prints_no_control_sequences(open_small_chat: OpenTerminal) -> None:
    person = open_small_chat(TERM="dumb")
    person.wait_for(">")
    person.type("One")
    person.wait_for("> One")
    person.type(b"\xff?\r")
    person.wait_for("truncated at 4 tokens")
    person.type("/copy\r")
    person.wait_for("no clipboard available")
    person.type("/exit\r")
    assert person.end() == 0
    assert "\x1b" not in person.output


def test_chat_for_a_screen_reader_uses_the_plain_prompt(open_small_chat: OpenTerminal) -> None:
    person = open_small_chat(ACCESSIBLE="1")
    person.wait_for(">")
    person.type("One?")
    person.wait_for("> One?")
    person.type("\x03")
    person.wait_for("Press Ctrl-C again")
    person.type("\x03")
    assert person.end() == 0


def test_chat_output_can_be_piped_from_a_terminal(
    open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path
) -> None:
    env = user.environment({"TERM": "xterm-256color"})
    person = Person(["sh", "-c", f"{COMMAND} chat -m small -n 4 | tee log"], env, tmp_path)
    person.wait_for(">")
    person.type("One?")
    person.wait_for("> One?")
    person.type("\r")
    person.wait_for("truncated at 4 tokens")
    person.type("\x04")
    assert person.end() == 0
    assert user.contents("one")[1] in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("line", "question"), [(b"What is \xff?", "What is \ufffd?"), (b'"""doc""" is what?', '"""doc""" is what?')]
)
def test_prompt_sends_a_line_that_is_not_utf_8_or_starts_with_a_fence(
    open_small_chat: OpenTerminal, user: CommandLine, line: bytes, question: str
) -> None:
    person = open_small_chat("--session", "tea")
    person.wait_for("context ")
    person.type(line + b"\r")
    person.wait_for("truncated at 4 tokens")
    person.type("\x04")
    assert person.end() == 0
    assert user.contents("tea")[0] == question


def test_prompt_history_failure_is_reported_once(open_small_chat: OpenTerminal, tmp_path: Path) -> None:
    (tmp_path / "data" / "cerebrum" / "history").mkdir()
    person = open_small_chat()
    person.wait_for("context ")
    turn(person, "One?")
    person.type("\x1b[A\x1b[A\r")  # Up, Up: the in-memory history still works
    person.wait_for("> One?")
    person.type("\x04")
    assert person.end() == 0
    assert person.output.count("prompt history is not saved") == 1
    assert "Traceback" not in person.output


def test_prompt_history_is_readable_only_by_its_user(open_small_chat: OpenTerminal, tmp_path: Path) -> None:
    history = tmp_path / "data" / "cerebrum" / "history"
    history.write_text("\n# now\n+before\n")
    history.chmod(0o644)
    person = open_small_chat()
    person.wait_for("context ")
    person.type("\x1b[A")
    person.wait_for("> before")
    person.type("\x03\x04")
    assert person.end() == 0
    assert history.stat().st_mode & 0o777 == 0o600


def test_toolbar_keeps_the_context_usage_in_a_narrow_window(open_small_chat: OpenTerminal) -> None:
    person = open_small_chat("--session", "a-name-of-some-length", size=(30, 24))
    person.wait_for("small | context ")
    person.type("One?\r")
    person.wait_for("small | context 37/2048 (2%)")
    person.type("\x04")
    assert person.end() == 0


def test_prompt_keeps_the_text_if_the_editor_fails(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_small_chat("--session", "tea", VISUAL="false")
    person.wait_for("context ")
    person.type("One?\x18\x05")
    person.wait_for("the editor false failed")
    turn(person, " Or two?")
    person.type("\x04")
    assert person.end() == 0
    assert user.contents("tea")[0] == "One? Or two?"


def test_prompt_history_is_searched_with_ctrl_r(open_small_chat: OpenTerminal) -> None:
    first = open_small_chat()
    first.wait_for("context ")
    turn(first, "What is a monad?")
    first.type("\x04")
    assert first.end() == 0
    second = open_small_chat()
    second.wait_for("context ")
    second.type("\x12mon")  # Ctrl-R
    second.wait_for("What is a monad?")
    second.type("\r\r")
    second.wait_for("what-is-a-monad-20")
    second.type("\x04")
    assert second.end() == 0


def test_prompt_ctrl_c_discards_the_line_and_exits_when_pressed_twice(
    open_small_chat: OpenTerminal, user: CommandLine
) -> None:
    person = open_small_chat()
    person.wait_for("context ")
    for _ in range(3):
        person.type("not sent")
        person.wait_for("> not sent")
        person.type("\x03")
    person.type("\x03")
    person.wait_for("Press Ctrl-C again")
    person.type("One?\r")
    person.wait_for("one | small")
    person.type("\x03")
    person.wait_for("Press Ctrl-C again")
    person.type("\x03")
    assert person.end() == 0
    assert user.contents("one")[0] == "One?"


def test_prompt_opens_the_editor(open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/one/two/" "$1"\n')
    editor.chmod(0o755)
    person = open_small_chat(VISUAL=str(editor))
    person.wait_for("context ")
    person.type("one or none?\x18\x05")  # Ctrl-X Ctrl-E
    person.wait_for("two or none?")
    turn(person, "")
    person.type("\x04")
    assert person.end() == 0
    assert user.contents("two-or-none")[0] == "two or none?"


def test_prompt_vi_keys(open_small_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_small_chat(CEREBRUM_VI="on")
    person.wait_for("context ")
    person.type("not sent\x1bccOne?")
    person.wait_for("> One?")
    turn(person, "")
    person.type("\x04")
    assert person.end() == 0
    assert user.contents("one")[0] == "One?"
