"""Chats with the real small model at a real terminal."""

import signal
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
from command_line import COMMAND, CommandLine
from person import OpenTerminal, Person

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture
def open_small_chat(open_terminal: OpenTerminal, user: CommandLine) -> OpenTerminal:
    """A function that starts a chat with the small model, and waits for its prompt, if that has a toolbar."""

    def start(*arguments: str, shows: str = "context ", **options: Any) -> Person:
        person = open_terminal(COMMAND, "chat", "-m", "small", "--temperature", "0", "-n", "4", *arguments, **options)
        person.wait_for(shows)
        return person

    return start


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
    person.wait_for(" t/s | not saved | session how-are-you")
    person.type("/save mine\r", shows="Session named 'mine'; it is not saved")
    person.leave()
    assert sessions.is_file()


def test_chat_signal_at_the_prompt_saves_the_prompt_cache(open_small_chat: OpenTerminal, tmp_path: Path) -> None:
    person = open_small_chat("--session", "tea")
    person.type(f"{'word ' * 60}\r", shows="| session tea")
    person.kill(signal.SIGHUP)
    assert person.end() == 129
    assert not person.screen.cursor_hidden
    assert list((tmp_path / ".cache" / "cerebrum" / "states").glob("*.state"))


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
    person.type("\r\r", shows="| session what-is-a-monad")
    person.leave()
    assert history.stat().st_mode & 0o777 == 0o600
