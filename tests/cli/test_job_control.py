"""Ctrl-Z and `fg` in a shell with job control, and what is typed or pasted while a reply is written."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from person import SHELL, OpenTerminal, Person

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

WORDS = " ".join(f"word{number}" for number in range(120)) + "\nThe end."


@pytest.fixture
def shell(open_shell: OpenTerminal, chatml_model: Path) -> Person:
    """A user at the prompt of an interactive shell; ./chat and ./ask answer with WORDS."""
    return open_shell(chatml_model, {"rows": {}, "seeds": [WORDS], "pause": 0.004})


def test_chat_continues_after_ctrl_z_without_echo(shell: Person) -> None:
    shell.type("./chat\n")
    shell.wait_for("/help")
    shell.type("One?\r")
    shell.wait_for("word5")
    shell.type("\x1a")
    shell.wait_for("Stopped")
    assert shell.has_echo
    shell.type("fg\n")
    shell.wait_for("The end.")
    shell.type("Two?\r")
    shell.wait_for("word5")
    assert not shell.has_echo
    shell.type("typed ahead")
    shell.wait_for("> typed ahead")  # at the next prompt, and not within the reply
    assert shell.output.count("typed ahead") == 1
    shell.type("\x15/exit\r")
    shell.wait_for(SHELL.strip())
    assert shell.has_echo


@pytest.mark.parametrize(
    ("name", "moment"),
    [("./chat", "word60"), ("./chat", "The end."), ("./ask hi", "word1")],
)
def test_terminal_is_sane_after_any_stop_resize_and_signal(shell: Person, name: str, moment: str) -> None:
    shell.type(f"{name}\n")
    if name == "./chat":
        shell.wait_for("/help")
        shell.type("One?\r")
    shell.wait_for(moment)
    for columns in (40, 100):
        shell.resize(columns, 24)
        if moment != "The end.":
            shell.type("\x1a")
            shell.wait_for("Stopped")
            assert shell.has_echo
            shell.type("fg\n")
            shell.wait_for("word")
    if moment == "The end.":
        shell.type("/exit\r")
    else:
        shell.type("\x1a")
        shell.wait_for("Stopped")
        shell.type("kill -TERM %1; fg\n")
    shell.wait_for(SHELL.strip())
    shell.type("echo unusual: $(stty -a | grep -c -e ' -icanon' -e ' -echo ' -e ' -isig')\n")
    shell.wait_for("unusual: 0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
def test_ask_turns_echo_off_and_restores_it(shell: Person, number: signal.Signals) -> None:
    shell.type("./ask hi\n")
    shell.wait_for("word5")
    assert not shell.has_echo
    shell.type("\x1a")
    shell.wait_for("Stopped")
    assert shell.has_echo
    shell.type("fg\n")
    shell.wait_for("word40")
    assert not shell.has_echo
    shell.type({signal.SIGINT: "\x03", signal.SIGQUIT: "\x1c"}.get(number, "\x1akill -TERM %1; fg\n"))
    shell.wait_for(SHELL.strip())
    shell.type("echo code $?\n")
    shell.wait_for(f"code {128 + number}")
    assert shell.has_echo


def test_ask_leaves_typed_text_to_the_shell(shell: Person) -> None:
    shell.type("./ask hi\n")
    shell.wait_for("word5")
    shell.type("echo I was $((40 + 2))\n")
    shell.wait_for("I was 42")
    assert "The end." in shell.screen.lines
    assert "echo" not in shell.output


def test_ask_in_the_background_leaves_the_terminal_alone(shell: Person) -> None:
    shell.type("./ask hi > answer & wait; echo done\n")
    shell.wait_for("done")
    assert shell.has_echo


def test_paste_during_a_reply_is_one_draft_at_the_next_prompt(shell: Person) -> None:
    shell.type("./chat\n")
    shell.wait_for("/help")
    shell.type("One?\r")
    shell.wait_for("word5")
    assert shell.output.rindex("\x1b[?2004h") > shell.output.rindex("\x1b[?2004l")
    shell.type("\x1b[200~first\tline\r/exit\rlast line\x1b[201~")
    shell.wait_for("... last line")
    assert {"> first   line", "... /exit"} <= set(shell.screen.lines)
    shell.type("\x03")
    shell.type("/exit\r")
    shell.wait_for(SHELL.strip())
    assert shell.output.rindex("\x1b[?2004l") > shell.output.rindex("\x1b[?2004h")
