"""Ctrl-T at a terminal, with which the user ends the reasoning that streams."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from person import SHELL, OpenTerminal, Person
from tiny_models import CHATML_TEMPLATE, write_chatml

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

HINT = "Ctrl-T: answer now"
REASONING = "<think>\n" + " ".join(f"word{n}" for n in range(100))  # shown as an answer where the reasoning is ended


@pytest.fixture
def shell(open_shell: OpenTerminal, tmp_path: Path) -> Person:
    """A user at the prompt of an interactive shell; ./chat and ./ask answer with REASONING, ./script asks, too."""
    model = write_chatml(tmp_path / "thinker.gguf", chat_template=CHATML_TEMPLATE + "{# <think> #}")
    script = {"rows": {}, "seeds": [REASONING + " The end."], "pause": 0.004}
    return open_shell(model, script, script="./ask hi\necho finished")


def require_restored_keys(shell: Person) -> None:
    shell.wait_for(SHELL.strip())
    shell.type("echo keys: $(stty -a | grep -c -e 'quit = ^.;' -e ' -noflsh')\n")
    shell.wait_for("keys: 2")


def test_chat_answers_now_and_keeps_what_is_typed_ahead(shell: Person) -> None:
    shell.type("./chat\n")
    shell.wait_for("/help")
    shell.type("One?\r")
    shell.wait_for_output(HINT)
    shell.type("typed ")
    shell.type("\x14")
    shell.wait_for("word")
    shell.type("ahead")
    shell.wait_for("> typed ahead")
    assert shell.output.count("; /think shows it") == 1
    shell.type("\x15/think\r")
    shell.wait_for("word0 word1")
    shell.type("/think 20\r")
    shell.wait_for("think 20")
    shell.type("Two?\r")
    shell.wait_for("The end.")
    shell.type("/think some\r")
    shell.wait_for("error: invalid /think: 'some'")
    shell.type("/exit\r")
    require_restored_keys(shell)


def test_ask_answers_now_after_a_stop_and_ignores_further_keys(shell: Person) -> None:
    shell.type("./ask hi\n")
    shell.wait_for_output(HINT)
    shell.type("\x1a")
    shell.wait_for("Stopped")
    shell.type("stty -a | grep -o 'quit = [^;]*'; fg\n")
    shell.wait_for("quit = ^\\")
    shell.wait_for("reasoning")
    shell.type("\x14\x14\x14")
    shell.wait_for("word")
    shell.wait_for("The end.")
    shell.type("\x15echo code $?\n")
    shell.wait_for("code 0")
    require_restored_keys(shell)


def test_ask_quits_by_the_default_key(shell: Person) -> None:
    shell.type("./ask hi\n")
    shell.wait_for_output(HINT)
    shell.type("\x14")  # until the reasoning has ended
    shell.wait_for("word40")
    shell.type("\x1c")
    shell.wait_for(SHELL.strip())
    shell.type("echo code $?\n")
    shell.wait_for(f"code {128 + signal.SIGQUIT}")
    assert shell.has_echo


def test_ask_in_a_script_leaves_the_key_alone(shell: Person) -> None:
    shell.type("./script\n")
    shell.wait_for_output("reasoning: ")
    shell.type("\x14")
    shell.wait_for("finished")
    assert HINT not in shell.output
