"""Ctrl-C, SIGTERM, SIGHUP and Ctrl-Z at a terminal: replies are saved, and the terminal is restored."""

import fcntl
import importlib
import os
import signal
import sqlite3
import sys
import termios
import time
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from command_line import COMMAND, CommandLine
from person import SHELL, OpenTerminal, Person
from scripted_command import install
from tiny_models import CHATML_TEMPLATE, write_chatml
from waiting import wait_for_end, wait_until

from cerebrum_cli.core.errors import CerebrumError, Interrupted, UsageError
from cerebrum_cli.terminal import interrupts
from cerebrum_cli.terminal.progress import interruptible

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


# In a chat.

WORDS = " ".join(f"word{number}" for number in range(400))


@pytest.fixture(autouse=True)
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write temporary files to `tmp`, and edit with a program that runs until it is killed."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    editor = tmp_path / "editor"
    monkeypatch.setenv("VISUAL", str(editor))
    editor.write_text("#!/bin/sh\nstty -a > modes\necho $$ > editing\nexec sleep 60\n")
    editor.chmod(0o755)


def wait_for_editor(tmp_path: Path) -> int:
    """Wait for the editor and return its process id."""
    started = tmp_path / "editing"
    wait_until(lambda: started.exists() and started.read_text().endswith("\n"))
    return int(started.read_text())


def wait_for_reader(fifo: Path) -> None:
    """Wait until a process has read what is written into a pipe, and let it wait for more."""
    begun: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):
            begun.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(begun)

    wait_until(is_read)
    [pipe] = begun
    os.write(pipe, b"text")
    wait_until(lambda: fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) == bytes(4))


def assert_ends(person: Person, code: int, tmp_path: Path) -> None:
    """Assert that a chat exits with a code, and leaves nothing behind in the terminal or on disk."""
    assert person.end() == code
    assert person.has_echo_at_end
    assert not person.screen.cursor_hidden
    assert "Traceback" not in person.output
    assert "Press ENTER" not in person.output
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("reply", "script", "typed", "number", "times"),
    [
        pytest.param(WORDS, {"pause": 0.02}, {"Talk!": "word5 "}, HUP, 3, id="reply"),
        pytest.param("Yes.", {}, {}, HUP, 3, id="prompt"),
        pytest.param("Yes.", {"load": 60}, {"One?": " 50%"}, TERM, 1, id="loading"),
        pytest.param("Yes.", {}, {"One?": "Yes.", "/edit": None}, TERM, 2, id="editor"),
        pytest.param("Yes.", {}, {"/file fifo": "> /file fifo"}, TERM, 3, id="slash command"),
    ],
)
def test_first_signal_ends_a_chat(
    open_chat: OpenTerminal,
    new_user: CommandLine,
    reply: str,
    script: dict[str, Any],
    typed: dict[str, str | None],
    number: signal.Signals,
    times: int,
) -> None:
    """Whatever it does; further ones are ignored, while it saves."""
    home = new_user.home
    os.mkfifo(home / "fifo")
    person = open_chat(reply, "--no-markdown", **script)
    for line, shown in typed.items():
        person.type(f"{line}\r", shows=shown)
    editors = [wait_for_editor(home)] if "/edit" in typed else []
    if "/file fifo" in typed:
        wait_for_reader(home / "fifo")
    elif not typed:
        person.type("not sent", shows="> not sent")
    for _ in range(times):
        person.kill(number)
        time.sleep(0.01)  # or they were one
    assert_ends(person, 128 + number, home)
    wait_for_end(editors)
    assert reply == "Yes." or new_user.messages("talk")[-1]["finish_reason"] == "cancelled"


def test_chat_saves_the_reply_when_its_terminal_closes(open_chat: OpenTerminal, new_user: CommandLine) -> None:
    person = open_chat(WORDS, "--no-markdown", pause=0.02, shell=("bash", "-c", '"$0" "$@"; true'))
    person.type("Talk!\r", shows="word5 ")
    person.hang_up()
    wait_until(lambda: new_user.messages("talk")[-1]["finish_reason"] == "cancelled")
    assert new_user.messages("talk")[-1]["content"].startswith("word0 word1 word2 word3 word4 word5")


def test_chat_exits_when_its_terminal_closes_at_the_prompt(open_chat: OpenTerminal, tmp_path: Path) -> None:
    person = open_chat(shell=("bash", "-c", 'trap : HUP; "$0" "$@" 2> err; echo $? > code'))
    person.wait_for("context ")
    person.hang_up()
    code = tmp_path / "code"
    wait_until(lambda: code.exists() and code.read_text().endswith("\n"))
    assert code.read_text() in ("0\n", "129\n")
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_chat_second_ctrl_c_restores_the_terminal_and_exits(open_chat: OpenTerminal, tmp_path: Path) -> None:
    person = open_chat(WORDS, "--no-markdown", stuck=20)
    person.type("Talk!\r", shows="word1 ")
    assert not person.has_echo
    person.type("\x03")
    time.sleep(0.3)
    person.type("\x03")
    assert_ends(person, 130, tmp_path)


def test_chat_ctrl_c_while_saving_a_question_keeps_it(
    open_chat: OpenTerminal, new_user: CommandLine, tmp_path: Path
) -> None:
    person = open_chat(load=1.5)
    person.type("One?", shows="> One?")
    path = tmp_path / "data" / "cerebrum" / "sessions" / "sessions.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")  # the chat waits
        person.type("\r")
        for _ in range(3):
            time.sleep(0.3)
            person.kill(signal.SIGINT)
    person.wait_for("interrupted: before the reply began; /retry asks again")
    person.type("/retry\r", shows="Yes.")  # the model was loaded meanwhile
    person.leave()
    assert new_user.contents("one") == ["One?", "Yes."]


def test_chat_ctrl_c_ends_a_slash_command(open_chat: OpenTerminal, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    person = open_chat()
    person.type("/file fifo\r")
    wait_for_reader(tmp_path / "fifo")
    person.type("\x03", shows="interrupted: /file did not finish")
    person.leave()


def test_editor_gets_the_initial_terminal_modes_and_ctrl_c(open_chat: OpenTerminal, tmp_path: Path) -> None:
    person = open_chat()
    person.type("more\x18\x05")  # Ctrl-X Ctrl-E
    wait_for_editor(tmp_path)
    modes = (tmp_path / "modes").read_text().split()
    assert {"echo", "icanon", "icrnl", "isig"} <= {mode.strip(";") for mode in modes}
    person.type("\x03", shows="interrupted: no changes")
    person.type("\x15/stats\r", shows="context ")
    person.type("\x04")  # Ctrl-D
    assert_ends(person, 0, tmp_path)


def test_starter_chat_ctrl_c_stops_decode_and_prefill(
    open_terminal: OpenTerminal, new_user: CommandLine, starter: Path, tmp_path: Path
) -> None:
    (tmp_path / "my long notes.txt").write_text("The cat sleeps on the sofa in the afternoon. " * 400)
    install(new_user.home, starter, "starter")
    arguments = ("--session", "stops", "--temperature", "0", "--no-markdown", "--set", "loop_check=off")
    person = open_terminal(COMMAND, "chat", *arguments)
    person.wait_for("/8192 (")
    person.type("Tell me a very long story.\r")
    person.wait_for_lines(2)
    person.type("\x03", shows="reply interrupted")
    person.type("/continue\r", shows="> /continue")
    person.type("\x03", shows="interrupted")
    person.type("/file my l\t", shows="> /file my long notes.txt")
    person.type("\rWhere does the cat sleep?\r", shows="reading ")
    person.type("\x03", shows="interrupted: before the reply began; /retry asks again")
    person.type("/undo\r", shows="Undone: ")
    person.type("/set max_tokens 8\r")
    person.type("What is two and two?\r/stats\r", shows="| load ")
    person.leave()
    story, cut, question, answer = new_user.messages("stops")
    assert (story["content"], question["content"]) == ("Tell me a very long story.", "What is two and two?")
    assert cut["finish_reason"] == "cancelled"
    assert cut["content"]
    assert (answer["finish_reason"] in ("length", "stop"), bool(answer["content"])) == (True, True)
    assert answer["timings"]["cached_tokens"] > 10


# In a shell.


@pytest.fixture
def shell(open_shell: OpenTerminal, chatml_model: Path) -> Person:
    """A user at the prompt of an interactive shell; ./chat and ./ask answer with 80 words."""
    return open_shell(chatml_model, {"rows": {}, "seeds": [f"{WORDS[:550]}\nThe end."], "pause": 0.004})


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


def test_ask_leaves_typed_text_to_the_shell(shell: Person) -> None:
    shell.type("./ask hi\n", shows="word5")
    shell.type("echo I was $((40 + 2))\n", shows="I was 42")
    assert "The end." in shell.screen.lines
    assert "echo" not in shell.output
    shell.type("./ask hi > answer & wait; echo done\n", shows="done")  # in the background
    assert shell.has_echo


def test_ask_tells_how_to_continue_after_its_pipe_is_closed(shell: Person) -> None:
    shell.type("./ask hi | head -c 30\n", shows="the pipe was closed; the answer so far is saved")
    shell.type("./ask --no-log hi | head -c 30; echo ended\n", shows="ended")
    assert shell.output.count("answer so far is saved") == 1


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


def test_ctrl_c_in_ask_into_a_file_interrupts(thinking_shell: Person) -> None:
    shell = thinking_shell
    shell.type("./ask hi > answer\n", shows="reasoning: ")
    shell.type("\x03", shows="answer so far is saved")
    shell.type("echo code $?\n", shows="code 130")
    assert ANSWER_HINT not in shell.output


# In this process.


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
