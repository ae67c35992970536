"""A command that a signal ends: its exit code, what it says, what survives, and that nothing else of it is left."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mcp_stand_in
import psutil
import pytest
from command_line import COMMAND, CommandLine, Finished
from merges import stack
from person import OpenTerminal
from row_files import stored_lines
from scripted_command import backend_for, run_here, start_scripted
from server_kinds import LlamaServer, OllamaServer
from waiting import TIMEOUT_S, user_seconds, wait_for_end, wait_until

from cerebrum_cli.replies import checking

pytestmark = pytest.mark.slow

INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL
INTERRUPTED = "error: interrupted\n hint: "
MCP = shlex.join([sys.executable, mcp_stand_in.__file__])
ROWS = 12
WORDS = " ".join(f"word{number}" for number in range(400))
SUM = "The answer is 4."
CALLS = {
    "Wait?": '{"name": "silent", "arguments": {"text": "started"}}',
    "Oslo?": '{"name": "weather", "arguments": {"city": "Oslo"}}',
    "Dry in Oslo.": "No coat in Oslo.",
    "Sum?": SUM,
    f"{SUM}<|im_end|>\n<|im_start|>user\n{checking.QUESTION}": "```python\nwhile True: pass\n```",
    "Talk!": WORDS,
}


class Scene:
    """Commands on a scripted model or on servers of it, in slow processes or quickly in this one."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.script: dict[str, Any] = {"rows": CALLS, "seeds": ["a reply of some length", "yes", SUM]}
        self.llama = LlamaServer(backend_for(self.script, 4).model, context_size=100_000)
        self.ollama = OllamaServer(backend_for(self.script, 4).model, context_size=100_000)
        self.ollama.openings = {"yes": -0.2, "no": -2.0}
        self.model = model
        self.processes: list[subprocess.Popen[bytes]] = []

    def words(self, line: str) -> list[str]:
        names = {"MODEL": str(self.model), "LLAMA": self.llama.url, "OLLAMA": self.ollama.url}
        return [names.get(word, word.replace("MCP", MCP)) for word in shlex.split(line)]

    def start(self, line: str, pause: float = 0.02, around: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        self.script["pause"] = pause  # of the servers, too
        self.processes.append(start_scripted(self.script, self.home, *self.words(line), around=tuple(around)))
        return self.processes[-1]

    def run(self, line: str) -> Finished:
        """Run a command in this process."""
        self.script |= {"pause": 0.0, "backends": []}
        return run_here(self.script, self.home, *self.words(line))

    def asked(self, line: str) -> int:
        """Run a command in this process to its end, and return how many replies it asked for."""
        before = len(self.llama.completions()) + len(self.ollama.completions())
        done = self.run(line)
        assert done.code == 0, done.err
        asked = len(self.llama.completions()) + len(self.ollama.completions()) - before
        return asked + sum(len(backend.params) for backend in self.script.pop("backends"))

    @property
    def partial(self) -> list[str]:
        """Lines of the finished rows."""
        return stored_lines(self.home / "out.partial")

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.home.glob("*out*"))


@pytest.fixture
def scene(tmp_path: Path, chatml_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.chdir(tmp_path)
    scene = Scene(tmp_path, chatml_model)
    questions = [f"question {number}" for number in range(ROWS)]
    Path("in.txt").write_text("".join(f"{question}\n" for question in questions))
    exam = [{"question": question, "answer": "4"} for question in questions]
    Path("exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    with scene.llama, scene.ollama:
        yield scene
    for process in scene.processes:
        process.kill()
        process.communicate()


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> Finished:
    """End a command by a signal, and return what it has printed; none of the processes that it started may stay."""
    started = children(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == (-KILL if number == KILL else 128 + number), err
    assert b"Traceback" not in err
    wait_for_end(started)
    return Finished(process.returncode, out.decode(), err.decode())


def with_signals(commands: Mapping[str, str]) -> list[Any]:
    """Each command with Ctrl-C and SIGKILL, the first with all signals."""
    first, *_ = commands
    signals = {what: (INT, TERM, HUP, KILL) if what == first else (INT, KILL) for what in commands}
    return [pytest.param(what, each, id=f"{what}-{each.name}") for what in commands for each in signals[what]]


# Commands that answer rows.

BATCH = "batch in.txt --parallel 3 --seed 1 -m MODEL -o "
ON_ROWS = {
    "batch": BATCH,
    "batch on a server": "batch in.txt --seed 1 -m MODEL --endpoint LLAMA -o ",
    "evaluation": "eval exam.jsonl --samples 2 --parallel 4 --temperature 0.7 -m MODEL -o ",
    "decisions": "decide 'Is it {text}?' in.txt --parallel 3 --endpoint OLLAMA -o ",
}


@pytest.mark.parametrize(("what", "number"), with_signals(ON_ROWS))
def test_finished_rows_survive_and_are_not_asked_again(scene: Scene, what: str, number: signal.Signals) -> None:
    line, saved = ON_ROWS[what], list[str]()
    for _ in range(2):
        stuck = [each.arm(let_through=4, hang_after=0, times=None) for each in (scene.llama, scene.ollama)]
        process = scene.start(f"{line} out")
        least = len(saved) + 2
        wait_until(lambda least=least: len(scene.partial) >= least)  # type: ignore[misc]
        ended = end(process, number)
        for each in stuck:
            each.disarm()
        wait_until(lambda: not scene.llama.connections + scene.ollama.connections)
        assert set(saved) < set(scene.partial) and not Path("out").exists()
        saved = scene.partial
    assert (ended.out, len(saved) < ROWS) == ("", True)
    unit = "questions" if what == "evaluation" else "rows"
    hint = f"{len(saved)} of {ROWS} {unit} done, saved in out.partial; run it again to resume\n"
    assert ended.err.endswith("" if number == KILL else INTERRUPTED + hint)
    if what == "evaluation":
        assert "the run is not complete" in scene.run("runs show out").out
    asked, all_asked = scene.asked(f"{line} out"), scene.asked(f"{line} whole")
    assert asked == all_asked // ROWS * (ROWS - len(saved))
    result = Path("out").read_bytes()
    assert result == Path("whole").read_bytes() and set(saved) <= set(result.decode().splitlines())
    assert scene.files == ["out", "out.meta.json"]


def test_interrupted_restart_resumes_without_restart(scene: Scene) -> None:
    scene.asked(f"{BATCH} out")
    before = Path("out").read_bytes()
    process = scene.start(f"{BATCH} out --restart")
    wait_until(lambda: len(scene.partial) >= 1)
    assert "run it again without --restart to resume" in end(process, INT).err
    assert Path("out").read_bytes() == before  # until the new one is complete
    done = len(scene.partial)
    assert scene.asked(f"{BATCH} out") == ROWS - done


def test_interrupted_stream_has_complete_lines(scene: Scene) -> None:
    process = scene.start(f"{BATCH} -")
    assert process.stdout
    first = process.stdout.readline().decode()
    ended = end(process, INT)
    lines = [first, *ended.out.splitlines()]
    ids = [json.loads(line)["id"] for line in lines]
    assert (ids[0], ids) == (1, sorted(ids)) and len(lines) < ROWS
    assert ended.err.startswith(f"{len(lines)} of {ROWS} done, ") and len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(("shell", "number"), [('nohup "$@" &', HUP), ('"$@" &', INT)], ids=["nohup", "background"])
def test_batch_survives_a_signal_its_parent_ignores(scene: Scene, shell: str, number: signal.Signals) -> None:
    around = ("sh", "-c", f"{shell} echo $! > pid; wait $!", "sh")
    process = scene.start(f"{BATCH} out", pause=0.01, around=around)
    wait_until(lambda: len(scene.partial) >= 2)
    for _ in range(2):
        os.kill(int(Path("pid").read_text()), number)
    assert process.wait(TIMEOUT_S) == 0
    scene.asked(f"{BATCH} whole")
    assert Path("out").read_bytes() == Path("whole").read_bytes()


# Commands that answer a question.

LONG = "word " * 200 + "Talk!"
ANSWERS = {
    "ask": f"ask --session talk --stats -m MODEL '{LONG}'",
    "ask on a server": "ask --session talk --stats -m MODEL --endpoint LLAMA Talk!",
    "object": "ask --session talk --json -m MODEL --endpoint LLAMA Talk!",
    "chat of lines": "chat --session talk -q -m MODEL",
}


@pytest.mark.parametrize(("what", "number"), with_signals(ANSWERS))
def test_answer_so_far_is_printed_and_saved(scene: Scene, what: str, number: signal.Signals) -> None:
    Path("lines").write_text("Talk!\nAnd then?\n")
    is_chat, is_remote = what == "chat of lines", "LLAMA" in ANSWERS[what]
    stuck = scene.llama.arm(hang_after=12)  # objects of a stream, of which the first are of the prompt's progress
    around = ("sh", "-c", 'exec "$@" < lines', "sh") if is_chat else ()
    process = scene.start(ANSWERS[what], pause=0 if is_remote else 0.02, around=around)
    assert process.stdout
    printed = "" if what == "object" else process.stdout.read(1).decode()
    assert not is_remote or stuck.is_hanging.wait(TIMEOUT_S)
    ended = end(process, number)
    messages = CommandLine(scene.home).messages("talk")
    if number == KILL:
        assert [message["content"] for message in messages] == ["Talk!"] * is_chat
        return
    text = json.loads(ended.out)["text"] if what == "object" else printed + ended.out
    [question, reply] = messages
    assert (question["content"], reply["finish_reason"]) == (LONG if what == "ask" else "Talk!", "cancelled")
    assert text.endswith("\n") != (what == "object")
    assert reply["content"].strip() == text.strip() and WORDS.startswith(text.strip())
    assert ("finish reason cancelled" in ended.err) == ("--stats" in ANSWERS[what])
    if is_remote:
        scene.llama.wait_for(lambda: scene.llama.completions()[0].is_left)
        assert reply["params"]["served_model"] == "tiny.gguf (1000 bytes)"
    elif what == "ask":
        assert list((scene.home / "cache" / "cerebrum" / "states").glob("*.state"))


@pytest.mark.parametrize("redirection", ["", "2>&-"])
def test_closed_pipe_saves_the_answer_so_far(scene: Scene, redirection: str) -> None:
    process = scene.start(ANSWERS["ask"], around=("sh", "-c", f'"$@" {redirection}', "sh"))
    assert process.stdout and process.stderr
    begin = process.stdout.read(4).decode()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(TIMEOUT_S)) == (b"", 0)
    question, reply = CommandLine(scene.home).messages("talk")
    assert (question["content"], reply["finish_reason"]) == (LONG, "cancelled")
    assert reply["content"].startswith(begin.rstrip())


# Commands that start other processes.

PROCESSES = {
    "server of functions": "ask -m MODEL --mcp MCP -y Wait?",
    "server of functions that starts": "ask -m MODEL --mcp 'MCP slow 60' -y Oslo?",
    "server of functions that ignores signals": "ask -m MODEL --mcp 'MCP stubborn' -y Wait?",
    "child of a server of functions": "ask -m MODEL --mcp 'MCP child' -y Wait?",
    "program of a vote": "ask -m MODEL --votes 2 --check python --json Sum?",
}


@pytest.mark.parametrize(("what", "number"), with_signals(PROCESSES))
def test_other_processes_end_with_a_command(scene: Scene, what: str, number: signal.Signals) -> None:
    """What runs is far from its end: a program has five seconds, and a call a minute."""
    process = scene.start(PROCESSES[what], pause=0)
    if "Wait?" in PROCESSES[what]:
        wait_until(Path("started").exists)
    elif what == "program of a vote":
        wait_until(lambda: any(user_seconds(child) > 0.3 for child in children(process)))
    else:
        wait_until(lambda: any("slow" in child.cmdline() for child in children(process)))
    wait_until(lambda: len(children(process)) >= 2)  # the guard, too
    assert end(process, number).out == ""


FUNCTIONS = """
import pathlib, time
def weather(city: str) -> str:
    \"\"\"Forecast for a city.\"\"\"
    if not pathlib.Path("{home}/started").exists():
        pathlib.Path("{home}/started").touch()
        time.sleep(60)
    return f"Dry in {{city}}."
"""


@pytest.mark.parametrize("number", [INT, KILL])
def test_function_of_a_row_ends_and_its_row_is_answered_later(scene: Scene, number: signal.Signals) -> None:
    Path("functions.py").write_text(FUNCTIONS.format(home=scene.home))
    Path("in.txt").write_text("Sum?\nOslo?\n")
    line = "batch in.txt -m MODEL --tool functions.py -y -o out"
    process = scene.start(line, pause=0)
    wait_until(Path("started").exists)
    ended = end(process, number)
    assert ("hint: 1 of 2 rows done" in ended.err) == (number == INT)
    scene.asked(line)
    answers = [json.loads(row) for row in Path("out").read_text().splitlines()]
    assert [(answer["text"], len(answer["calls"])) for answer in answers] == [(SUM, 0), ("No coat in Oslo.", 1)]


# Commands that write a file.

# A signal while the main thread has just acquired one of Python's own locks: the exception raised there must not leave
# the lock acquired, which would block other threads forever. If the main thread acquires none, the signal comes later.
INTERRUPT_IN_LOCK = """
import os, signal, threading
from cerebrum_cli.__main__ import main
from cerebrum_cli.weights import execute

enter, write, armed, sent = threading.Condition.__enter__, execute.write_all, [], []

def press():
    sent.append(True)
    os.kill(os.getpid(), signal.SIGINT)

def enter_and_press(self):
    result = enter(self)
    if armed and not sent and threading.current_thread() is threading.main_thread():
        press()
    return result

def write_and_press(descriptor, data):
    write(descriptor, data)
    size = os.fstat(descriptor).st_size
    armed[:] = [True] * (size > 5_000_000)
    if size > 10_000_000 and not sent:
        press()

threading.Condition.__enter__, execute.write_all = enter_and_press, write_and_press
main()
"""
NOTHING_WRITTEN = f"{INTERRUPTED}nothing was written\n"
MERGE = ("merge", "recipe.yaml", "-o", "out.gguf", "-y", "--type", "Q3_K_S")


@pytest.fixture
def merger(scene: Scene, seven: Path) -> CommandLine:
    """A user with a recipe for a merge that takes seconds: each of many layers is written in another type."""
    Path("recipe.yaml").write_text(stack(*[(str(seven), 0, 32)] * 6))
    return CommandLine(scene.home)


def wait_until_merging() -> None:
    wait_until(lambda: any(part.stat().st_size > 1_000_000 for part in Path().glob(".out.gguf.*.part")))


@pytest.mark.parametrize("number", [INT, TERM, HUP, KILL], ids=lambda number: number.name)
def test_ended_merge_writes_no_file(scene: Scene, merger: CommandLine, seven: Path, number: signal.Signals) -> None:
    """The partial file of a killed one is removed by the next."""
    Path("out.gguf").write_bytes(b"an existing file")
    scene.processes.append(process := merger.start(*MERGE))
    wait_until_merging()
    said = [line for line in end(process, number).err.splitlines() if not line.startswith("merge: ")]
    assert said == ([] if number == KILL else NOTHING_WRITTEN.splitlines())
    assert Path("out.gguf").read_bytes() == b"an existing file" and merger.run("list", "--json").object == []
    assert len(scene.files) == 1 + (number == KILL)
    Path("recipe.yaml").write_text(stack((str(seven), 0, 2)))
    Path("out.gguf").unlink()
    done = merger.run(*MERGE)
    assert (done.code, scene.files) == (0, ["out.gguf"]), done.err
    [row] = merger.run("list", "--json").object
    assert (row["name"], row["path"], row["error"]) == ("out", str(scene.home / "out.gguf"), None)


def test_interrupt_inside_a_lock_does_not_hang(scene: Scene, merger: CommandLine) -> None:
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPT_IN_LOCK, *MERGE, "-q"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=merger.environment(),
        timeout=TIMEOUT_S,
        text=True,
    )
    assert (process.returncode, process.stdout, process.stderr, scene.files) == (130, "", NOTHING_WRITTEN, [])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ctrl_c_stops_the_progress_bar_of_a_merge(
    scene: Scene, merger: CommandLine, open_terminal: OpenTerminal
) -> None:
    person = open_terminal(COMMAND, *MERGE)
    person.wait_for("merge ")
    wait_until_merging()
    person.type("\x03")
    assert person.end() == 130
    assert person.screen.lines[-2:] == NOTHING_WRITTEN.splitlines()
    assert not person.screen.cursor_hidden and "Traceback" not in person.output and scene.files == []


# Commands that have not begun their work.


def test_command_is_interrupted_while_it_connects(scene: Scene) -> None:
    armed = scene.llama.arm(times=None, path="/v1/models", hang_after=0)
    process = scene.start(ANSWERS["ask on a server"])
    scene.llama.wait_for(lambda: armed.struck)
    assert end(process, INT).out == ""


@pytest.mark.parametrize(("flags", "again"), [([], "to resume"), (["--restart"], "with --restart")])
def test_template_that_is_interrupted_is_not_an_error_of_a_row(
    scene: Scene, endless_template: Path, flags: list[str], again: str
) -> None:
    words: list[str | Path] = ["batch", "in.txt", "-o", "out", "--set", "verbose=on", "-m", endless_template, *flags]
    process = CommandLine(scene.home).start(*words)
    scene.processes.append(process)
    assert process.stderr
    assert any(b"load_tensors: " in line for line in process.stderr)
    used = user_seconds(psutil.Process(process.pid))
    wait_until(lambda: user_seconds(psutil.Process(process.pid)) > used + 0.4)
    assert f"0 of {ROWS} rows done; run it again {again}\n" in end(process, INT).err
    assert scene.files == []


def test_interrupt_of_the_first_imports_exits_quietly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "cerebrum_cli", "ask", "hello"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=CommandLine(tmp_path).environment(),
    )
    assert process.stderr
    assert any(line.endswith(b" cerebrum_cli\n") for line in process.stderr)
    for _ in range(25):
        process.stderr.readline()
    ended = end(process, INT)
    assert [line for line in ended.err.splitlines() if not line.startswith("import time:")] == []
