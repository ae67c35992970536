"""Ctrl-C, SIGTERM and SIGHUP at every stage of a chat: replies are saved, and the terminal is restored."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from command_line import COMMAND, CommandLine
from person import OpenTerminal, Person
from scripted_command import SCRIPTED, install
from waiting import wait_for_end, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

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


def assert_ends(person: Person, code: int, tmp_path: Path) -> None:
    """Assert that a chat exits with a code, and leaves nothing behind in the terminal or on disk."""
    assert person.end() == code
    assert person.has_echo_at_end
    assert not person.screen.cursor_hidden
    assert "Traceback" not in person.output
    assert "Press ENTER" not in person.output
    assert list((tmp_path / "tmp").iterdir()) == []


def test_chat_signal_saves_the_reply_and_exits_ignoring_further_ones(
    open_chat: OpenTerminal, new_user: CommandLine, tmp_path: Path
) -> None:
    person = open_chat(WORDS, "--no-markdown", pause=0.02)
    person.type("Talk!\r", shows="word5 ")
    for _ in range(3):
        person.kill(signal.SIGHUP)
        time.sleep(0.002)
    assert_ends(person, 129, tmp_path)
    assert new_user.messages("talk")[-1]["finish_reason"] == "cancelled"


def test_chat_ignores_further_signals_at_the_prompt(open_chat: OpenTerminal, tmp_path: Path) -> None:
    person = open_chat()
    person.wait_for("context ")
    person.type("not sent", shows="> not sent")
    for _ in range(3):
        person.kill(signal.SIGHUP)
        time.sleep(0.01)
    assert_ends(person, 129, tmp_path)


def test_chat_signal_ends_the_editor(open_chat: OpenTerminal, tmp_path: Path) -> None:
    person = open_chat()
    person.type("One?\r", shows="Yes.")
    person.type("/edit\r")
    editor = wait_for_editor(tmp_path)
    person.kill(signal.SIGTERM)
    person.kill(signal.SIGTERM)
    assert_ends(person, 143, tmp_path)
    wait_for_end([editor])


def test_chat_signal_cancels_loading(open_chat: OpenTerminal, tmp_path: Path) -> None:
    person = open_chat(load=60)
    person.type("One?\r", shows=" 50%")
    person.kill(signal.SIGTERM)
    assert_ends(person, 143, tmp_path)


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


def test_chat_signals_end_a_slash_command(open_chat: OpenTerminal, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    person = open_chat()
    person.type("/file fifo\r", shows="> /file fifo")
    time.sleep(0.3)
    person.type("\x03", shows="interrupted: /file did not finish")
    person.type("/file fifo\r", shows="> /file fifo")
    time.sleep(0.3)
    person.kill(signal.SIGTERM)
    assert_ends(person, 143, tmp_path)


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


def test_chat_ctrl_c_ends_a_script_and_saves_the_reply(
    new_user: CommandLine, tmp_path: Path, chatml_model: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("Talk!\nAnd then?\n")
    argv = [sys.executable, SCRIPTED, json.dumps({"reply": WORDS, "pause": 0.02}), "chat", "-m", str(chatml_model)]
    with script.open() as stdin:
        talk = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, env=new_user.environment(), cwd=tmp_path)
    assert talk.stdout
    with talk, talk.stdout:
        written = b""
        while b"word2" not in written:
            written += os.read(talk.stdout.fileno(), 4096)
        talk.send_signal(signal.SIGINT)
        written += talk.stdout.read()
        assert talk.wait(30) == 130
    assert b"And then?" not in written
    question, reply = new_user.messages("talk")
    assert question["content"] == "Talk!"
    assert reply["finish_reason"] == "cancelled"


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
