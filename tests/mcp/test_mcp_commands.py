"""Functions of MCP servers in commands: what is asked, shown, stored and refused."""

import json
import shlex
import signal
import sys
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import mcp_stand_in
import psutil
import pytest
from command_line import CommandLine, Finished, assert_error
from person import OpenTerminal
from scripted_command import SCRIPTED, app_for, run_here, start_scripted
from waiting import TIMEOUT_S, wait_for_end, wait_until

from cerebrum_cli.main import run
from cerebrum_cli.terminal.streams import Streams

pytestmark = pytest.mark.slow

COMMAND = shlex.join([sys.executable, mcp_stand_in.__file__])


def call(name: str, text: str = "") -> str:
    return json.dumps({"name": name, "arguments": {"text": text} if text else {}})


ROWS = {
    **{f"{word}?": call("echo", f"heard {word}") for word in "abcd"},
    **{f"heard {word}": f"It is {word}." for word in "abcd"},
    "How often?": call("counted"),
    "Crash?": call("crash"),
    "next call": call("counted"),
    "Wait?": call("silent", "started"),
    "": "Done.",
}


class Asker:
    def __init__(self, home: Path, model: Path) -> None:
        self.home, self.model = home, model
        self.rows = dict(ROWS)

    def configure(self, **table: Any) -> None:
        directory = self.home / "config" / "cerebrum"
        directory.mkdir(parents=True, exist_ok=True)
        words = {"command": sys.executable, "args": [mcp_stand_in.__file__], **table}
        lines = [f"{key} = {json.dumps(value)}" for key, value in words.items()]
        (directory / "config.toml").write_text("\n".join(["[mcp.stand]", *lines]))

    @property
    def script(self) -> dict[str, Any]:
        return {"rows": self.rows, "backends": []}

    def run(self, command: str, *arguments: str | Path) -> Finished:
        return run_here(self.script, self.home, command, *arguments, "-m", self.model)

    def write(self, *rows: dict[str, str]) -> Path:
        path = self.home / "in.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    def batch(self, *arguments: str | Path) -> Finished:
        rows = [{"prompt": f"{word}?"} for word in "abcd"]
        return self.run("batch", self.write(*rows), "-o", self.home / "out.jsonl", "--parallel", "4", *arguments)


@pytest.fixture
def asker(tmp_path: Path, chatml_model: Path) -> Asker:
    return Asker(tmp_path, chatml_model)


def test_ask_starts_servers_of_commands_and_of_the_configuration(asker: Asker) -> None:
    asker.configure()
    for options in (("--mcp", COMMAND), ("--tool", "stand"), ("--tool", "stand.echo", "--tool", "stand.counted")):
        done = asker.run("ask", *options, "-y", "--json", "a?")
        assert (done.object["text"], done.code) == ("It is a.", 0), done.err
        assert done.object["calls"] == [{"name": "echo", "arguments": {"text": "heard a"}, "result": "heard a"}]
        assert "echo(text='heard a')\n-> heard a\n" in done.err
    assert asker.run("ask", "--tool", "stand.counted", "-y", "a?").out == f"{call('echo', 'heard a')}\n"


def test_functions_of_servers_need_a_terminal_or_agreement(asker: Asker) -> None:
    done = asker.run("ask", "--mcp", COMMAND, "a?")
    assert_error(done, 2, "no terminal to confirm calls of echo", "add -y to run functions without asking")
    assert_error(asker.batch("--mcp", COMMAND), 2, "this command cannot ask before calls of echo")


def test_servers_need_the_sdk(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mcp_server", "mcp_connection", "server_process"):
        monkeypatch.delitem(sys.modules, f"cerebrum_cli.mcp.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)  # an import of it raises ModuleNotFoundError
    done = asker.run("ask", "--mcp", COMMAND, "a?")
    assert_error(done, 2, "MCP servers need mcp: ", "pip install", "cerebrum-cli[mcp]")


def test_problem_of_a_server_is_one_line_without_controls(asker: Asker, open_terminal: OpenTerminal) -> None:
    assert_error(asker.run("ask", "--mcp", f"{COMMAND} exits", "a?"), 2, "ended: exit code 3: ValueError: ", "no luck")
    person = open_terminal(sys.executable, SCRIPTED, "{}", "ask", "-m", asker.model, "--mcp", f"{COMMAND} exits", "a?")
    person.wait_for("hint: run it yourself to see why:")
    assert "no luck" in person.output and "\x1b[2J" not in person.output


def test_descriptions_are_neither_control_sequences_nor_special_tokens(
    new_user: CommandLine, chatml_model: Path, open_terminal: OpenTerminal
) -> None:
    words = ("ask", "-m", chatml_model, "--mcp", f"{COMMAND} escapes", "-y", "--dry-run", "a?")
    prompt = new_user.run(*words).out
    assert prompt.count("<|im_end|>") == 3 and "\ufffd" in prompt  # two of messages, and one in the description
    person = open_terminal(sys.executable, "-m", "cerebrum_cli", *words)
    person.wait_for("tokens")
    assert "\x1b[2J" not in person.output and "\x1b]0;" not in person.output


def test_chat_adds_a_server_and_goes_on_after_its_crash(asker: Asker) -> None:
    asker.configure()
    typed = b"/tools stand.counted\n/tools stand.crash\nHow often?\n/tools stand\nCrash?\n/tools off\na?\n"
    out, err = StringIO(), StringIO()
    app = app_for(asker.script, asker.home, Streams(out, err, BytesIO(typed), False, False, False))
    assert run(["chat", "-m", str(asker.model), "-y"], app) == 0
    lines = [line for line in err.getvalue().splitlines() if line]
    assert {"counted()", "-> 1", "error: two tools are named counted"} <= {*lines}
    assert "counted, crash" in lines
    [crashed] = [line for line in lines if line.startswith("-> the call failed: ") and "ended: exit code 3" in line]
    assert lines.index(crashed) < lines.index("-> 1", lines.index(crashed))  # counted begins again
    assert out.getvalue().splitlines()[-1] == ROWS["a?"]


def test_batch_gives_each_row_its_own_results(asker: Asker) -> None:
    done = asker.batch("--mcp", COMMAND, "-y")
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in (asker.home / "out.jsonl").read_text().splitlines()]
    assert [answer["text"] for answer in answers] == [f"It is {word}." for word in "abcd"]
    assert [answer["calls"][0]["result"] for answer in answers] == [f"heard {word}" for word in "abcd"]


def test_batch_resumes_with_the_same_functions_only(asker: Asker) -> None:
    asker.configure()
    assert asker.batch("--tool", "stand", "-y").code == 0
    written = (asker.home / "out.jsonl").read_bytes()
    assert asker.batch("--tool", "stand", "-y").code == 0
    assert (asker.home / "out.jsonl").read_bytes() == written
    for arguments in (["release", "2"], ["twins"]):
        asker.configure(args=[mcp_stand_in.__file__, *arguments])
        assert_error(asker.batch("--tool", "stand", "-y"), 1, "was made with other settings: set of functions")
    assert_error(asker.batch("--tool", "stand.echo", "-y"), 1, "was made with other settings: set of functions")


def test_terminal_asks_before_a_call(asker: Asker, open_terminal: OpenTerminal) -> None:
    chat = ("chat", "-m", asker.model, "--mcp", COMMAND)
    person = open_terminal(sys.executable, SCRIPTED, json.dumps({"rows": asker.rows}), *chat, size=(1000, 24))
    person.wait_for(">")
    person.type("a?\r", shows="echo(text='heard a')? [y/N]")
    person.type("n\r", shows="-> the user refused this call")
    person.wait_for("Done.")
    person.type("b?\r", shows="echo(text='heard b')? [y/N]")
    person.type("y\r", shows="-> heard b")
    person.wait_for("It is b.")
    person.leave()


def children(command: int) -> list[psutil.Process]:
    return psutil.Process(command).children(recursive=True)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_server_stays_after_a_signal_in_a_call(asker: Asker, signum: int, code: int) -> None:
    process = start_scripted(
        {"rows": asker.rows}, asker.home, "ask", "-m", str(asker.model), "--mcp", COMMAND, "-y", "Wait?"
    )
    wait_until((asker.home / "started").exists)
    started = children(process.pid)
    assert len(started) >= 2
    process.send_signal(signum)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (code, b"")
    wait_for_end(started)


def test_ctrl_c_interrupts_a_server_that_starts(asker: Asker) -> None:
    words = ("ask", "-m", str(asker.model), "--mcp", f"{COMMAND} slow 60", "-y", "a?")
    process = start_scripted({"rows": asker.rows}, asker.home, *words)
    wait_until(lambda: any("slow" in child.cmdline() for child in children(process.pid)))
    started = children(process.pid)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130
    wait_for_end(started)
