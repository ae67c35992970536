"""Styles, blank lines, labels and hints, at real terminals, and in pipes with FORCE_COLOR."""

import base64
import json
import re
import shutil
import sys
from pathlib import Path
from shlex import join

import pytest
from command_line import COMMAND, CommandLine
from person import OpenTerminal
from scripted_command import SCRIPTED, run_here
from tiny_models import write_chatml

from cerebrum_cli.core.text import strip_controls

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:[39]\d|38;5;\d+)m")
SCRIPT = {"rows": {"Nothing?": "\n", "tea?": "Tea."}, "seeds": ["Yes."]}


@pytest.mark.slow
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


@pytest.mark.slow
def test_ask_has_a_session_and_wrong_commands_the_right_hint(
    open_terminal: OpenTerminal, chatml_model: Path, user: CommandLine, tmp_path: Path
) -> None:
    ask = join([sys.executable, SCRIPTED, json.dumps(SCRIPT), "ask", "-m", str(chatml_model), "--session", "tea"])
    base = write_chatml(tmp_path / "base.gguf", chat_template=None)
    wrong = [("Why is it so?",), ("ask", "--max_tokens", "5", "tea?"), ("ask", "-5+3="), ("show", str(base))]
    commands = [join([COMMAND, *words]) for words in wrong]
    person = open_terminal("sh", "-c", "; ".join([f"{ask} --json tea?", "export NO_COLOR=1", *commands]))
    person.end()
    lines = person.screen.lines
    assert "format              unknown; choose one with --format, or use ask --raw" in lines
    assert "ask                 context 2048" in lines
    assert '"text": "Tea."' in person.output and '"session": "tea"' in person.output
    first = lines.index("error: no such command 'Why is it so?'")
    assert lines[first : first + 6] == [
        "error: no such command 'Why is it so?'",
        ' hint: did you mean cerebrum ask "..."?',
        "error: no such option: --max_tokens",
        " hint: did you mean --max-tokens?",
        "error: no such option: -5",
        " hint: see cerebrum ask --help",
    ]
    assert not COLOR.search(person.output)
    assert user.contents("tea") == ["tea?", "Tea."]


REPLY = "# Title\n\nSome **bold** text and `code`.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n1. one\n2. two"


@pytest.mark.parametrize(
    ("env", "has_styles", "has_colors"),
    [
        ({"FORCE_COLOR": ""}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, False),
        ({"FORCE_COLOR": "1", "ACCESSIBLE": "1"}, False, False),
    ],
)
def test_pipes_have_styles_only_with_force_color(
    env: dict[str, str],
    has_styles: bool,
    has_colors: bool,
    tmp_path: Path,
    chatml_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    script = {"reply": REPLY, "pause": 0.002}
    done = run_here(script, tmp_path, "ask", "-m", chatml_model, "-n", "100", "Go")
    failed = run_here(script, tmp_path, "ask", "-m", chatml_model, "-n", "many", "Go")
    assert "\x1b[1;4mTitle" in done.out if has_styles else done.out == f"{REPLY}\n"
    assert not re.search(r"\x1b\[[^m]*[^m\d;]", done.out), "nothing is erased"
    assert strip_controls(done.out).count("Title") == strip_controls(done.out).count("2. two") == 1
    assert bool(COLOR.search(done.out)) == bool(COLOR.search(failed.err)) == has_colors


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_copy_inside_tmux_reaches_the_clipboard(
    open_terminal: OpenTerminal, chatml_model: Path, tmp_path: Path
) -> None:
    chat = [sys.executable, SCRIPTED, json.dumps(SCRIPT), "chat", "-m", str(chatml_model)]
    tmux = ("tmux", "-S", tmp_path / "tmux", "-f", "/dev/null", "new-session")
    person = open_terminal(*tmux, join(chat), SSH_TTY="/dev/pts/0")
    person.wait_for("context ")
    person.type("tea?\r", shows="Tea.")
    person.type("/copy\r", shows="copied the reply via tmux, to its buffer and")
    person.wait_for_output(base64.b64encode(b"Tea.").decode())
    person.leave()


@pytest.mark.slow
def test_settings_are_listed_with_ranges_and_defaults_on_a_narrow_terminal(open_terminal: OpenTerminal) -> None:
    person = open_terminal(COMMAND, "ask", "--set", "help", size=(80, 200))
    person.wait_for("llama.cpp's log")
    lines = [line.rstrip() for line in person.screen.lines]
    place = lines.index(f"{'min_p':19}Drop tokens below P times the likeliest")
    assert lines[place + 1] == f"{' ' * 19}a number from 0 to 1; default: 0.05"
