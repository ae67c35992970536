"""Fast startup: a command imports only what it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CommandLine

from cerebrum_cli import __version__
from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.cli.command_line import assembled

pytestmark = pytest.mark.slow

HEAVY = {"llama_cpp.llama_cpp", "numpy", "huggingface_hub", "prompt_toolkit", "jinja2", "rich", "psutil", "sqlite3"}
HEAVY |= {"yaml", "pathspec", "pydantic"}
# What function calls need, besides a format's description of them.
TOOL_MODULES = {"formats.tool_syntax", "programs.functions", "programs.python_function", "replies.tool_loop"}
# What `ask` needs neither for a single answer, nor without servers.
OWN = {"batch.answering", "answers.final", "library.fit", "replies.tally", "results.results", "weights.plan"}
OWN |= {"cli.prompts", "servers"} | TOOL_MODULES
UNUSED_BY_ASK = {"numpy", "jinja2", "rich", "huggingface_hub", "prompt_toolkit", "httpx2", "asyncio", "mcp"}
UNUSED_BY_ASK |= {"llguidance", "jsonschema"} | {f"cerebrum_cli.{name}" for name in OWN}
UNUSED_BY_BATCH = {"ray", "llguidance", "jsonschema", "httpx2", "cerebrum_cli.servers.pool"}
# Runs command lines, then prints the imported modules to standard error.
SCRIPT = """
import json, sys
from cerebrum_cli.main import run
codes = [run(words) for words in json.loads(sys.argv[1])]
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(max(codes))
"""


def test_command_starts_in_the_c_locale(new_user: CommandLine) -> None:
    done = new_user.run_process("--version", env={"LC_ALL": "C"})  # before 3.13, not below a path that is not ASCII
    assert (done.code, done.out, done.err) == (0, f"cerebrum {__version__}\n", "")


def test_command_ends_after_the_threads_that_it_started() -> None:
    thread = "threading.Thread(target=lambda: time.sleep(2) or print('written'))"
    start = f"{thread}.start(); sys.argv[1:] = ['--version']"
    script = f"import sys, threading, time; from cerebrum_cli.__main__ import main; {start}; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["written"])


def test_windows_is_refused_before_anything_is_imported() -> None:
    absent = "for name in ('fcntl', 'termios', 'resource'): sys.modules[name] = None"
    script = f"import sys\nsys.platform = 'win32'\n{absent}\nfrom cerebrum_cli.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert [line[:32] for line in done.stderr.splitlines()] == [
        "error: native Windows is not sup",
        " hint: use WSL, the Windows Subs",
    ]


BINDINGS = {"llama_cpp.llama_cpp"}
UNUSED_BY_LISTS = {*BINDINGS, "numpy", "jinja2", "httpx2", "prompt_toolkit", "pydantic", "huggingface_hub"}


@pytest.mark.parametrize(
    ("lines", "present", "absent"),
    [
        pytest.param(["--help", "--version", "ask --help", "merge --help"], {"cerebrum_cli"}, HEAVY, id="help"),
        pytest.param(["list", "list --available", "pull MODEL", "show chatml"], set(), UNUSED_BY_LISTS, id="models"),
        pytest.param(["merge in.yaml -o out.gguf"], set(), {*BINDINGS, "prompt_toolkit", "sqlite3"}, id="merge"),
        pytest.param(["ask -m MODEL -p short hi"], {*BINDINGS, "tomllib"}, UNUSED_BY_ASK, id="ask"),
        pytest.param(["batch in.txt -o out.jsonl -m MODEL -n 2"], BINDINGS, UNUSED_BY_BATCH, id="batch"),
    ],
)
def test_command_imports_only_what_it_needs(
    new_user: CommandLine, chatml_model: Path, lines: list[str], present: set[str], absent: set[str]
) -> None:
    (new_user.home / "in.yaml").write_text(f"merge_method: passthrough\nmodels: [{{model: {chatml_model}}}]")
    (new_user.home / "in.txt").write_text("hi\n")
    (new_user.config / "prompts").mkdir()
    (new_user.config / "prompts" / "short.md").write_text('+++\nmax_tokens = 1\nformat = "cerebrum"\n+++\n')
    words = [[str(chatml_model) if word == "MODEL" else word for word in line.split()] for line in lines]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=new_user.environment(),
        cwd=new_user.home,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stderr.splitlines()[-1].split())
    assert present <= modules and not absent & modules


def test_startup_overview_has_the_same_help_as_the_whole_command_line() -> None:
    whole, outline = (
        group.get_help(group.context_class(group, info_name="cerebrum", help_option_names=["-h", "--help"]))
        for group in (assembled(COMMANDS, COMMANDS), assembled(COMMANDS, ()))
    )
    assert whole == outline
    assert all(f"  {command} " in outline for command in COMMANDS)
