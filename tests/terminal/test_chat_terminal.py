"""A chat at a real terminal: what is typed, what then stands on the screen, and what was asked."""

import base64
import os
import re
import shutil
import signal
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
from cases import rows
from command_line import COMMAND, CommandLine
from person import OpenTerminal, Person, keys
from tiny_models import write_chatml

from cerebrum_cli.terminal.repl.slash_commands import SLASH_COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SCRIPT = {"rows": {"Count": "One two three.", "Nothing?": "\n"}, "seeds": ["Yes."]}


@pytest.fixture
def files(tmp_path: Path, user: CommandLine) -> None:
    for name in ("cats.txt", "my dogs.txt", "notes"):
        (tmp_path / name).write_text(f"This is {name}.\n")
    (tmp_path / "docs").mkdir()
    (user.config / "prompts").mkdir()
    (user.config / "prompts" / "tea.md").write_text("Tea: {input}")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("scene", rows("chat_scenes"), ids=lambda scene: scene["what"])
def test_chat_shows_and_asks_what_is_typed(open_chat: OpenTerminal, user: CommandLine, scene: dict[str, Any]) -> None:
    person = open_chat("", "--session", "talk", **SCRIPT)
    person.play(scene["typed"])
    person.leave()
    with user.sessions() as store:
        assert {name: user.contents(name)[::2] for name in store.names()} == scene["asked"]


@pytest.mark.usefixtures("files")
def test_chat_begins_with_files_and_with_piped_text(open_chat: OpenTerminal, user: CommandLine) -> None:
    person = open_chat("", "-f", "cats.txt", "--session", "files", **SCRIPT)
    person.wait_for("| with cats.txt")
    person.type("Who sleeps?\r", shows="Yes.")
    person.leave()
    assert user.contents("files")[0] == "cats.txt:\n```txt\nThis is cats.txt.\n```\n\nWho sleeps?"
    pipe = ("sh", "-c", 'printf "+a\\n-b\\n" | "$@"', "sh")
    person = open_chat("", "Review @notes, @a", "--session", "diff", shell=pipe, **SCRIPT)
    person.wait_for("Yes.")
    person.type("Sure?\r", shows="Yes.")
    person.leave()
    assert user.contents("diff")[::2] == ["notes:\n```\nThis is notes.\n```\n\nReview @notes, @a\n\n+a\n-b", "Sure?"]


def test_edited_reply_is_continued(open_chat: OpenTerminal, user: CommandLine, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/One/Two/" "$1"\n')
    editor.chmod(0o755)
    person = open_chat("", "-n", "3", shell=("env", f"EDITOR={editor}"), **SCRIPT)
    person.type("Count\r", shows="resumes it")
    person.type("/continue\r", shows="resumes it")
    assert "One tw" in person.screen.lines
    person.type("/edit answer\r", shows="/continue continues it")
    person.type("/set max_tokens 20\r/continue\r", shows="Two two three.")
    person.type("/continue Six \r", shows="Six two three.")
    person.leave()
    assert user.contents("count") == ["Count", "Six two three."]


def test_bare_exit_leaves_the_chat_with_its_echo(open_chat: OpenTerminal) -> None:
    person = open_chat(**SCRIPT)
    person.type(":q\r", shows="Exit the chat? [Y/n]")
    person.type("\r")
    assert person.end() == 0
    assert person.has_echo_at_end


def test_help_fits_a_screen_and_explains_every_command(open_chat: OpenTerminal) -> None:
    person = open_chat()
    person.type("/help\r", shows="Ctrl-Z")
    lines = person.screen.lines
    rows = lines[lines.index("> /help") : lines.index("Ctrl-Z             suspend (resume with fg)")]
    assert len(rows) < 24 - 2  # with the last one, the prompt and the toolbar
    help = " ".join(" ".join(rows).split())
    assert not [slash.usage for slash in SLASH_COMMANDS if slash.usage not in help]
    person.type("/help /retry\r", shows="answer again")
    person.leave()


def test_long_questions_wrap_and_are_shortened_once_they_are_sent(open_chat: OpenTerminal) -> None:
    person = open_chat("", **SCRIPT)
    digits = "0123456789" * 12
    long = digits * 20
    for columns, typed, shown in ((80, f"{digits}\n1", f"{digits}... 1"), (40, long, f"{long[:200]} ...")):
        person.resize(columns, 24)
        person.type(f"{typed}\r", shows="Yes.")
        assert "".join(person.screen.lines).rpartition("> 0")[2].partition("Yes.")[0] == shown[1:]
    person.type(keys("<Paste>" + "\n".join(f"line {number}" for number in range(60)) + "</Paste>"), shows="line 59")
    person.type("\r", shows="Yes.")
    first, last = (f"... line {n}" for n in (1, 2, 3)), (f"... line {n}" for n in range(56, 60))
    shown_lines = [line for line in person.screen.lines if "line" in line]
    assert shown_lines == ["> line 0", *first, "... (52 more lines)", *last]
    person.leave()


PAGER = """PAGER=sh -c "sed 's/^/| /'; read line < /dev/tty\""""


def test_history_is_shown_in_a_pager_without_control_sequences(open_chat: OpenTerminal) -> None:
    person = open_chat("**two**\n\x1b]0;title\x07", shell=("env", PAGER))
    person.type("One?\r", shows="two")
    person.type("/history\r", shows="one")
    assert not [line for line in person.screen.lines if line.startswith("|")]
    person.resize(80, 8)
    person.type("/history\r", shows="| Assistant")
    person.wait_for("| two")
    person.type("\r/set bell\r", shows="bell  off")
    assert "title" not in person.output
    person.resize(20, 20)
    person.type("word " * 25 + "\r", shows="asks again")  # in seven rows
    person.type("/history\r", shows="| Assistant")
    person.type("\r/save tea\r", shows="is saved")
    person.leave()


def test_chat_has_styles_labels_and_blank_lines(open_chat: OpenTerminal, tmp_path: Path) -> None:
    model = write_chatml(tmp_path / "peppermint-tea.gguf", general={"size_label": "0.5B", "file_type": 15})
    person = open_chat("", "-m", str(model), **SCRIPT)
    person.wait_for("peppermint-tea | context ")
    assert person.screen.lines[0] == "peppermint-tea · 0.5B · Q4_K_M; /help lists commands and keys"
    person.type("/stats\r", shows="context 50/100000 (0%)")
    person.type("/model\r", shows="peppermint-tea · 0.5B · Q4_K_M, prompt format: embedded")
    person.type("/info\r", shows="error: /info is /stats here")
    person.type("tmp is full\r", shows="Yes.")
    person.wait_for(" t/s | session tmp-is-full")
    lines = person.screen.lines
    assert re.match(r"peppermint-tea \| context 1\d+/100000 \(0%\) \| \d+ t/s \| session", lines[-1])
    question = lines.index("> tmp is full")
    assert lines[question + 1 : question + 5] == ["", "Yes.", "", ">"]
    person.type("Nothing?\r/copy\r", shows="error: nothing to copy: the reply is empty")
    cells = {row[0].data: row[0] for row in person.screen.styled_cells if row}
    assert cells[">"].bold and not cells["Y"].bold
    assert {(cell.bold, cell.fg) for cell in person.screen.styled_cells[question]} == {(True, "5f5fff")}
    assert cells["e"].fg == "af5f5f"
    assert "\x1b[38;5;243mnote: the model's answer is blank" in person.output
    person.resize(40, 24)
    person.wait_for("peppermint-t… | context ")
    assert "session" not in person.screen.lines[-1]
    person.leave()


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_copy_inside_tmux_reaches_the_clipboard(open_scripted: OpenTerminal) -> None:
    tmux = ("tmux", "-S", "socket", "-f", os.devnull, "new-session")
    person = open_scripted(SCRIPT, "chat", shell=tmux, SSH_TTY="/dev/pts/0")
    person.wait_for("context ")
    person.type("tea?\r", shows="Yes.")
    person.type("/copy\r", shows="copied the reply via tmux, to its buffer and")
    person.wait_for_output(base64.b64encode(b"Yes.").decode())
    person.leave()


def test_ctrl_z_at_the_prompt_suspends_the_chat(open_shell: OpenTerminal, chatml_model: Path) -> None:
    shell = open_shell(chatml_model, SCRIPT)
    shell.type("./chat\n")
    shell.wait_for("context ")
    shell.type("half a ")
    shell.type(keys("<Ctrl-Z>"), shows="Stopped")
    shell.type("fg\n", shows="half a")
    shell.type("question?\r", shows="Yes.")
    shell.type("/exit\r", shows="shell%")


# The real small model.


@pytest.fixture
def open_small_chat(open_terminal: OpenTerminal, user: CommandLine) -> OpenTerminal:
    """A function that starts a chat with the small model, and waits for its prompt."""

    def start(*arguments: str, shows: str = "context ", **variables: str) -> Person:
        chat = ("chat", "-m", "small", "--temperature", "0", "-n", "4", *arguments)
        person = open_terminal(COMMAND, *chat, **variables)
        person.wait_for(shows)
        return person

    return start


def test_chat_without_a_session_database_needs_no_log(open_small_chat: OpenTerminal, tmp_path: Path) -> None:
    sessions = tmp_path / "data" / "cerebrum" / "sessions"
    sessions.write_text("a file, since root may write to every directory")
    assert open_small_chat(shows="or use --no-log").end() == 1
    person = open_small_chat("--no-log", shows="this chat is not saved: no_log is on")
    person.type("How are you?\r", shows=" t/s | not saved | session how-are-you")
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


@pytest.mark.parametrize("plain", [{"TERM": "dumb"}, {"ACCESSIBLE": "1"}], ids=["dumb", "for a screen reader"])
def test_plain_prompt_takes_a_paste(open_small_chat: OpenTerminal, user: CommandLine, plain: dict[str, str]) -> None:
    person = open_small_chat("--session", "tea", shows=">", **plain)
    person.type("def f():\n    return 1\nWhat is it?\n", shows="truncated at 4 tokens")
    person.type("x" * 3000)
    person.wait_until(lambda: person.output.count("x") >= 3000, "3000 times x")
    person.type("y" * 2000 + "\nthe rest\n", shows="nothing was sent")
    person.type("\x1b[IShort?\n", shows="truncated at 4 tokens")
    person.type(b"\xff?\n", shows="truncated at 4 tokens")
    if "TERM" in plain:
        person.type("/copy\n", shows="no clipboard available")
    person.type(keys("<Ctrl-C>"), shows="Press Ctrl-C again")
    person.type(keys("<Ctrl-C>"))
    assert person.end() == 0
    assert "\x1b" not in person.output
    assert user.contents("tea")[::2][:2] == ["def f():\n    return 1\nWhat is it?", "Short?"]


def test_chat_output_can_be_piped(open_terminal: OpenTerminal, user: CommandLine, tmp_path: Path) -> None:
    person = open_terminal("sh", "-c", f"{quote(COMMAND)} chat -m small -n 4 --seed 1 | tee log")
    person.wait_for(">")
    person.type("One?", shows="> One?")
    person.type("\r", shows="truncated at 4 tokens")
    person.leave()
    assert user.contents("one")[1] in (tmp_path / "log").read_text()


def test_prompt_history_is_private(open_small_chat: OpenTerminal, user: CommandLine, tmp_path: Path) -> None:
    history = tmp_path / "data" / "cerebrum" / "history"
    history.write_text("\n# now\n+What is a monad?\n\n# now\n+before\n")
    history.chmod(0o644)
    person = open_small_chat(CEREBRUM_VI="on")
    person.type(keys("<Up>"), shows="> before")
    person.type(keys("<Ctrl-C><Ctrl-R>mon"), shows="What is a monad?")
    person.type(keys("<Enter><Enter>"), shows="| session what-is-a-monad")
    person.type(keys("not sent<Escape>ccOne?"), shows="> One?")
    person.type("\r", shows="truncated at 4 tokens")
    person.leave()
    assert user.contents("what-is-a-monad")[2] == "One?"
    assert history.stat().st_mode & 0o777 == 0o600
