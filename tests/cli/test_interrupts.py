"""Signals: in an interruptible block, at startup, and from a shell with job control (Ctrl-Z and `fg`)."""

import importlib
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from person import SHELL, OpenTerminal, Person
from tiny_models import CHATML_TEMPLATE, write_chatml

from cerebrum_cli.core.errors import CerebrumError, Interrupted, UsageError
from cerebrum_cli.terminal import interrupts
from cerebrum_cli.terminal.progress import interruptible

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_interruptible_with_a_second_signal_at_any_line_of_its_handler(line: int) -> None:
    lines = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_name != "interrupt":
            return None
        if event == "line":
            lines.append(frame.f_lineno)
            if len(lines) == line:
                os.kill(os.getpid(), signal.SIGINT)
        return trace

    before = sys.gettrace()
    with pytest.raises(Interrupted), interruptible("nothing is left"):
        sys.settrace(trace)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        finally:
            sys.settrace(before)


@pytest.mark.parametrize(("is_signalled", "expected"), [(True, Interrupted), (False, UsageError)])
def test_interruptible_notices_a_signal_that_a_library_swallows(
    is_signalled: bool, expected: type[CerebrumError]
) -> None:
    with pytest.raises(expected), interruptible("run it again"):
        try:
            if is_signalled:
                signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise UsageError("no such file") from error
        raise UsageError("no such file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruptible_exits_on_the_third_signal(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr(interrupts, "exit_process", exits.append)
    exits_after = []
    with pytest.raises(Interrupted) as caught, interruptible("nothing is left"):
        try:
            signal.raise_signal(number)
        finally:
            for _ in range(2):
                signal.raise_signal(number)
                exits_after.append(list(exits))
    assert exits_after == [[], [128 + number]]
    assert (caught.value.exit_code, caught.value.hint) == (128 + number, "nothing is left")


def test_interruptible_lets_an_import_finish_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(1000): pass\nis_complete = True\n"
    (tmp_path / "interrupted_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Interrupted), interruptible("nothing is left"):
        module = importlib.import_module("interrupted_module")
        assert module.is_complete
        time.sleep(10)


# In a shell.

WORDS = " ".join(f"word{number}" for number in range(80)) + "\nThe end."


@pytest.fixture
def shell(open_shell: OpenTerminal, chatml_model: Path) -> Person:
    """A user at the prompt of an interactive shell; ./chat and ./ask answer with WORDS."""
    return open_shell(chatml_model, {"rows": {}, "seeds": [WORDS], "pause": 0.004})


@pytest.mark.slow
def test_chat_sends_what_was_typed_before_it_and_continues_after_ctrl_z_without_echo(shell: Person) -> None:
    shell.type("./chat\rOne?\r", shows="word5")
    for columns in (40, 100):
        shell.resize(columns, 24)
        shell.type("\x1a", shows="Stopped")
        assert shell.has_echo
        shell.type("fg\n", shows="word")
    shell.wait_for("The end.")
    shell.type("Two?\r", shows="word5")
    assert not shell.has_echo
    shell.type("typed ahead")
    shell.wait_for("> typed ahead")  # at the next prompt, and not within the reply
    assert shell.output.count("typed ahead") == 1
    shell.type("\x15/exit\r", shows=SHELL.strip())
    shell.type("./chat\r\x04", shows=SHELL.strip())
    shell.type("echo unusual: $(stty -a | grep -c -e ' -icanon' -e ' -echo ' -e ' -isig')\n", shows="unusual: 0")


@pytest.mark.slow
def test_ask_turns_echo_off_and_restores_it(shell: Person) -> None:
    for keys, code in (("\x1akill -TERM %1; fg\n", 143), ("\x03", 130), ("\x1c", 131)):
        shell.type("./ask hi\n", shows="word5")
        assert not shell.has_echo
        shell.type("\x1a", shows="Stopped")
        assert shell.has_echo
        shell.type("fg\n", shows="word")
        assert not shell.has_echo
        shell.type(keys, shows=SHELL.strip())
        shell.type("echo code $?\n", shows=f"code {code}")
        assert shell.has_echo


@pytest.mark.slow
def test_ask_leaves_typed_text_to_the_shell(shell: Person) -> None:
    shell.type("./ask hi\n", shows="word5")
    shell.type("echo I was $((40 + 2))\n", shows="I was 42")
    assert "The end." in shell.screen.lines
    assert "echo" not in shell.output
    shell.type("./ask hi > answer & wait; echo done\n", shows="done")  # in the background
    assert shell.has_echo


@pytest.mark.slow
def test_ask_tells_how_to_continue_after_its_pipe_is_closed(shell: Person) -> None:
    shell.type("./ask hi | head -c 30\n", shows="the pipe was closed; the answer so far is saved")
    shell.type("./ask --no-log hi | head -c 30; echo ended\n", shows="ended")
    assert shell.output.count("answer so far is saved") == 1


@pytest.mark.slow
def test_paste_during_a_reply_is_one_draft_at_the_next_prompt(shell: Person) -> None:
    shell.type("./chat\n", shows="/help")
    shell.type("One?\r", shows="word5")
    assert shell.output.rindex("\x1b[?2004h") > shell.output.rindex("\x1b[?2004l")
    shell.type("\x1b[200~first\tline\r/exit\rlast line\x1b[201~", shows="... last line")
    assert {"> first   line", "... /exit"} <= set(shell.screen.lines)
    shell.type("\x03")
    shell.type("/exit\r", shows=SHELL.strip())
    assert shell.output.rindex("\x1b[?2004l") > shell.output.rindex("\x1b[?2004h")


# While a model reasons.

ANSWER_HINT = "Ctrl-C: answer now"
REASONING = "<think>\n" + " ".join(f"word{n}" for n in range(100))  # shown as an answer where the reasoning is ended


@pytest.fixture
def thinking_shell(open_shell: OpenTerminal, tmp_path: Path) -> Person:
    """A user at the prompt of an interactive shell; ./chat and ./ask answer with REASONING."""
    model = write_chatml(tmp_path / "thinker.gguf", chat_template=CHATML_TEMPLATE + "{# <think> #}")
    return open_shell(model, {"rows": {}, "seeds": [REASONING + " The end."], "pause": 0.004})


@pytest.mark.slow
def test_ctrl_c_in_a_chat_ends_the_reasoning_then_the_reply(thinking_shell: Person) -> None:
    shell = thinking_shell
    shell.type("./chat\n", shows="/help")
    shell.type("One?\r")
    shell.wait_for_output(ANSWER_HINT)
    shell.type("\x03", shows="reasoning ended; Ctrl-C again stops the answer")
    shell.type("typed ahead")
    shell.wait_for("The end.")
    shell.wait_for("> typed ahead")
    assert shell.output.count("; /think shows it") == 1
    shell.type("\x15/think\r", shows="word0 word1")
    shell.type("Two?\r", shows=ANSWER_HINT)
    shell.type("\x03", shows="word")
    shell.type("\x03", shows="reply interrupted")
    shell.type("/exit\r", shows=SHELL.strip())


@pytest.mark.slow
def test_ctrl_c_in_ask_ends_the_reasoning_then_the_answer(thinking_shell: Person) -> None:
    shell = thinking_shell
    shell.type("./ask hi\n", shows=ANSWER_HINT)
    shell.type("\x1a", shows="Stopped")
    shell.type("fg\n", shows="reasoning")
    shell.type("\x03", shows="The end.")
    shell.type("echo code $?\n", shows="code 0")
    shell.type("./ask hi\n", shows=ANSWER_HINT)
    shell.type("\x03", shows="reasoning ended")
    shell.type("\x03", shows="answer so far is saved")
    shell.type("echo code $?\n", shows="code 130")


@pytest.mark.slow
def test_ctrl_c_in_ask_into_a_file_interrupts(thinking_shell: Person) -> None:
    shell = thinking_shell
    shell.type("./ask hi > answer\n", shows="reasoning: ")
    shell.type("\x03", shows="answer so far is saved")
    shell.type("echo code $?\n", shows="code 130")
    assert ANSWER_HINT not in shell.output
