"""A chat with the real small model at a real terminal: what a person does in an hour of it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import COMMAND, CommandLine
from person import Person

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

Sit = Callable[..., Person]
LOADED = re.compile(r"context \d+/2048")


@pytest.fixture
def user(tmp_path: Path, chatml_model: Path, mistral_model: Path) -> CommandLine:
    """Return a user with two small models, `small` and `other`."""
    command = CommandLine(tmp_path)
    assert command.run("pull", chatml_model, "--name", "small").code == 0
    assert command.run("pull", mistral_model, "--name", "other").code == 0
    return command


@pytest.fixture
def sit(user: CommandLine, tmp_path: Path) -> Iterator[Sit]:
    """Return how to sit down before a chat, and wait for its prompt."""
    people: list[Person] = []

    def open_chat(*arguments: str, columns: int = 80, rows: int = 24, **more: str) -> Person:
        env = user.environment({"TERM": "xterm-256color", **more})
        argv = [COMMAND, "chat", "-m", "small", "-n", "4", *arguments]
        people.append(Person(argv, env, tmp_path, columns, rows))
        return people[-1]

    yield open_chat
    for person in people:
        person.close()


def replies(user: CommandLine, name: str) -> list[str]:
    return [each["content"] for each in user.run("sessions", "show", name, "--json").object["messages"]]


def turn(person: Person, question: str) -> None:
    """Ask, and wait for the end of the reply: what is typed meanwhile is obeyed then."""
    person.types(f"{question}\r/tokens\r")
    person.sees("> /tokens")
    person.sees("/2048 (")


def test_the_toolbar_shows_session_model_format_context_and_speed(sit: Sit, user: CommandLine) -> None:
    person = sit()
    person.sees("small | embedded | context ")
    person.types("How are you?\r")
    person.sees("how-are-you | small | embedded | context ")
    person.sees("tokens/s")
    person.types("\x04")
    assert person.end() == 0


def test_a_talk_goes_on_where_it_was_left(sit: Sit, user: CommandLine) -> None:
    person = sit()
    person.sees("context ")
    turn(person, "One?")
    turn(person, "Two?")
    person.types("/undo\r")
    person.sees("taken back: Two?")
    person.types("/retry 0.9\r")
    person.types("/params\r")
    person.sees("temperature     0")
    person.types("/exit\r")
    assert person.end() == 0
    again = sit("-c")
    again.sees("one goes on; this was said last:")
    again.sees("> One?")
    turn(again, "Three?")
    again.types("\x04")
    assert again.end() == 0
    assert replies(user, "one")[::2] == ["One?", "Three?"]


def test_a_second_chat_on_one_session_is_told_so_and_on_another_is_not(sit: Sit, user: CommandLine) -> None:
    first = sit("--session", "tea")
    first.sees("context ")
    turn(first, "One?")
    second = user.run("chat", "--session", "tea", stdin="Two?\n")
    assert second.code == 1
    assert second.err.splitlines()[0] == 'error: session "tea" is open in another process'
    assert user.run("ask", "-c", "Two?").code == 1
    other = sit("--session", "coffee")
    other.sees("context ")
    turn(other, "Black?")
    other.types("/load tea\r")
    other.sees('session "tea" is open in another process')
    first.types("\x04")
    assert first.end() == 0
    other.types("/load tea\r")
    other.sees("this is tea now")
    other.types("\x04")
    assert other.end() == 0


def test_a_killed_chat_leaves_its_session_free_and_whole(sit: Sit, user: CommandLine) -> None:
    person = sit("--session", "tea")
    person.sees("context ")
    turn(person, "One?")
    person.types("/set max_tokens\r")
    person.sees("max_tokens  as usual")
    person.types("Two?\r")
    person.sees("> Two?")
    time.sleep(0.3)
    person.kill(signal.SIGKILL)
    assert person.end() == 128 + signal.SIGKILL
    again = sit("-c")
    again.sees("tea goes on")
    turn(again, "Three?")
    again.types("\x04")
    assert again.end() == 0
    said = replies(user, "tea")
    assert said[0] == "One?"
    assert said[-2] == "Three?"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_at_the_prompt_saves_and_leaves(
    sit: Sit, user: CommandLine, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    person = sit("--session", "tea")
    person.sees("context ")
    person.types(f"{'word ' * 60}\r")
    person.sees("tea | small")
    person.kill(number)
    assert person.end() == code
    assert not person.screen.cursor_hidden
    assert list((tmp_path / ".cache" / "cerebrum" / "states").glob("*.state"))


def test_what_was_read_is_kept_unless_it_is_not_to_be(sit: Sit, user: CommandLine, tmp_path: Path) -> None:
    question = "word " * 60
    states = tmp_path / ".cache" / "cerebrum" / "states"
    for cached in (False, True):
        person = sit("--session", f"cached-{cached}", *([] if cached else ["--no-cache"]))
        person.sees("context ")
        person.types(f"{question}\r")
        person.sees("cut at 4 tokens")
        person.types("\x04")
        assert person.end() == 0
        assert len(list(states.glob("*.state"))) == cached
    again = sit("--session", "cached-True")
    again.sees("context ")
    turn(again, "And?")
    again.types("/stats\r")
    again.sees(" cached)")
    again.types("\x04")
    assert again.end() == 0
    assert user.run("sessions", "rm", "cached-True", "-y").code == 0
    assert not list(states.glob("*.state"))


def test_another_model_goes_on_without_leaving(sit: Sit, user: CommandLine) -> None:
    person = sit()
    person.sees("context ")
    turn(person, "One?")
    person.types("/model nothing\r")
    person.sees("try: ")
    person.types("/model other\r")
    person.sees("unknown prompt format")
    person.types("/set format cerebrum\r")
    person.sees("format  cerebrum")
    person.types("/model small\r")
    person.sees("this is small, asked in the format embedded")
    turn(person, "Two?")
    person.types("\x04")
    assert person.end() == 0


def test_the_last_question_and_the_last_reply_are_edited(sit: Sit, user: CommandLine, tmp_path: Path) -> None:
    editor = tmp_path / "my editor"
    editor.write_text('#!/bin/sh\nsed -i "s/One/Two/; s/^/So: /" "$1"\n')
    editor.chmod(0o755)
    person = sit(EDITOR=f"'{editor}'")
    person.sees("context ")
    turn(person, "One?")
    turn(person, "/edit")
    person.types("/edit answer\r")
    person.sees("the reply is yours now")
    person.types("/copy 1\r")
    person.sees("code block")
    person.types("/export talk.md\r")
    person.sees("talk.md is written")
    person.types("/export talk.md\r")
    person.sees("already exists")
    person.types("\x04")
    assert person.end() == 0
    question, reply = replies(user, "one")
    assert question == "So: Two?"
    assert reply.startswith("So: ")
    assert reply in (tmp_path / "talk.md").read_text()


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_a_window_may_be_narrow_and_change(sit: Sit, columns: int) -> None:
    person = sit(columns=60)
    person.sees("context ")
    person.types("Who are you, and what can you tell me of yourself in many words?")
    person.resizes(columns, 12)
    person.types("\r")
    person.sees("goes on with")
    person.types("/help\r")
    person.sees("Ctrl-D")
    person.types("\x04")
    assert person.end() == 0


def test_a_dumb_terminal_gets_no_control_codes(sit: Sit) -> None:
    person = sit(TERM="dumb")
    person.sees(">")
    person.types("One")
    person.sees("> One")
    person.types(b"\xff?\r")
    person.sees("cut at 4 tokens")
    person.types("/copy\r")
    person.sees("there is no clipboard here")
    person.types("/exit\r")
    assert person.end() == 0
    assert "\x1b" not in person.written


def test_a_screen_reader_gets_what_is_typed(sit: Sit) -> None:
    person = sit(ACCESSIBLE="1")
    person.sees(">")
    person.types("One?")
    person.sees("> One?")
    person.types("\x03")
    person.sees("Ctrl-C again leaves")
    person.types("\x03")
    assert person.end() == 0


def test_a_chat_may_be_led_at_a_terminal_and_written_down(sit: Sit, user: CommandLine, tmp_path: Path) -> None:
    env = user.environment({"TERM": "xterm-256color"})
    person = Person(["sh", "-c", f"{COMMAND} chat -m small -n 4 | tee log"], env, tmp_path)
    person.sees(">")
    person.types("One?")
    person.sees("> One?")
    person.types("\r")
    person.sees("cut at 4 tokens")
    person.types("\x04")
    assert person.end() == 0
    assert replies(user, "one")[1] in (tmp_path / "log").read_text()


def test_a_line_that_is_no_utf_8_is_asked_all_the_same(sit: Sit, user: CommandLine) -> None:
    person = sit("--session", "tea")
    person.sees("context ")
    person.types(b"What is \xff?\r")
    person.sees("cut at 4 tokens")
    person.types("\x04")
    assert person.end() == 0
    assert replies(user, "tea")[0] == "What is \ufffd?"


def test_a_history_that_cannot_be_kept_is_told_of_once(sit: Sit, tmp_path: Path) -> None:
    (tmp_path / "data" / "cerebrum" / "history").mkdir()
    person = sit()
    person.sees("context ")
    turn(person, "One?")
    person.types("\x1b[A\x1b[A\r")  # Up, Up: what was asked in this chat is there
    person.sees("> One?")
    person.types("\x04")
    assert person.end() == 0
    assert person.written.count("will not be found by Up") == 1
    assert "Traceback" not in person.written


def test_what_was_asked_is_for_its_user_alone(sit: Sit, tmp_path: Path) -> None:
    history = tmp_path / "data" / "cerebrum" / "history"
    history.write_text("\n# now\n+before\n")
    history.chmod(0o644)
    person = sit()
    person.sees("context ")
    person.types("\x1b[A")
    person.sees("> before")
    person.types("\x03\x04")
    assert person.end() == 0
    assert history.stat().st_mode & 0o777 == 0o600


def test_a_narrow_toolbar_keeps_the_gauge(sit: Sit) -> None:
    person = sit("--session", "a-name-of-some-length", columns=30)
    person.sees("small | context ")
    person.types("One?\r")
    person.sees("small | context 37/2048 (2%)")
    person.types("\x04")
    assert person.end() == 0


def test_a_line_that_only_begins_with_a_fence_is_asked_with_enter(sit: Sit, user: CommandLine) -> None:
    person = sit("--session", "tea")
    person.sees("context ")
    person.types('"""doc""" is what?\r')
    person.sees("cut at 4 tokens")
    person.types("\x04")
    assert person.end() == 0
    assert replies(user, "tea")[0] == '"""doc""" is what?'


def test_an_editor_that_fails_loses_nothing(sit: Sit, user: CommandLine) -> None:
    person = sit("--session", "tea", VISUAL="false")
    person.sees("context ")
    person.types("One?\x18\x05")
    person.sees("the editor false failed")
    turn(person, " Or two?")
    person.types("\x04")
    assert person.end() == 0
    assert replies(user, "tea")[0] == "One? Or two?"


def test_what_was_asked_before_is_found_again(sit: Sit) -> None:
    first = sit()
    first.sees("context ")
    turn(first, "What is a monad?")
    first.types("\x04")
    assert first.end() == 0
    second = sit()
    second.sees("context ")
    second.types("\x12mon")  # Ctrl-R
    second.sees("What is a monad?")
    second.types("\r\r")
    second.sees("what-is-a-monad-2")
    second.types("\x04")
    assert second.end() == 0


def test_ctrl_c_takes_back_what_was_written_and_leaves_only_an_empty_prompt(sit: Sit, user: CommandLine) -> None:
    person = sit()
    person.sees("context ")
    for _ in range(3):
        person.types("never asked")
        person.sees("> never asked")
        person.types("\x03")
    person.types("\x03")
    person.sees("Ctrl-C again leaves")
    person.types("One?\r")
    person.sees("one | small")
    person.types("\x03")
    person.sees("Ctrl-C again leaves")
    person.types("\x03")
    assert person.end() == 0
    assert replies(user, "one")[0] == "One?"


def test_a_question_is_written_in_the_editor(sit: Sit, user: CommandLine, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/one/two/" "$1"\n')
    editor.chmod(0o755)
    person = sit(VISUAL=str(editor))
    person.sees("context ")
    person.types("one or none?\x18\x05")  # Ctrl-X Ctrl-E
    person.sees("two or none?")
    turn(person, "")
    person.types("\x04")
    assert person.end() == 0
    assert replies(user, "two-or-none")[0] == "two or none?"


def test_vi_keys_are_there_for_who_asks_for_them(sit: Sit, user: CommandLine) -> None:
    person = sit("--vi")
    person.sees("context ")
    person.types("never asked\x1bccOne?")
    person.sees("> One?")
    turn(person, "")
    person.types("\x04")
    assert person.end() == 0
    assert replies(user, "one")[0] == "One?"
