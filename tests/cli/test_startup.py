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
UNUSED_BY_ASK = {"batch.answering", "answers.final", "library.fit", "replies.tally", "results.results", "weights.plan"}
UNUSED_BY_ASK |= {"cli.prompts", "servers"} | TOOL_MODULES
CONSTRAINTS = {"llguidance", "jsonschema"}  # needed for schemas and grammars
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


def imported_modules(cerebrum: CommandLine, *lines: tuple[str | Path, ...]) -> set[str]:
    """Modules that command lines import, and the packages of these."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([[str(word) for word in line] for line in lines])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=cerebrum.environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_startup_help_and_version_import_nothing_heavy(tmp_path: Path) -> None:
    lines = [("--help",), ("--version",), ("ask", "--help"), ("merge", "--help")]
    modules = imported_modules(CommandLine(tmp_path), *lines)
    assert "cerebrum_cli" in modules
    assert modules.isdisjoint(HEAVY)


def test_startup_list_does_not_import_huggingface_hub(tmp_path: Path) -> None:
    modules = imported_modules(CommandLine(tmp_path), ("list",), ("list", "--available"))
    assert modules.isdisjoint({"huggingface_hub", "httpx2", "llama_cpp.llama_cpp", "numpy"})


def test_startup_models_and_merges_do_not_import_llama_cpp(tmp_path: Path, chatml_model: Path) -> None:
    user = CommandLine(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {chatml_model}}}]")
    modules = imported_modules(user, ("pull", chatml_model), ("list", "--available"), ("show", "chatml"))
    assert modules.isdisjoint({"llama_cpp.llama_cpp", "numpy", "jinja2", "httpx2", "prompt_toolkit", "pydantic"})
    modules = imported_modules(user, ("merge", recipe, "-o", tmp_path / "merged.gguf"))
    assert modules.isdisjoint({"llama_cpp.llama_cpp", "prompt_toolkit", "sqlite3"})


def test_startup_ask_imports_only_the_bindings(tmp_path: Path, mistral_model: Path) -> None:
    user = CommandLine(tmp_path)
    (user.config / "prompts").mkdir()
    (user.config / "prompts" / "short.md").write_text('+++\nmax_tokens = 1\nformat = "cerebrum"\n+++\n')
    modules = imported_modules(user, ("ask", "-m", mistral_model, "-p", "short", "hi"))
    assert {"llama_cpp.llama_cpp", "tomllib"} <= modules
    heavy = {"numpy", "jinja2", "rich", "huggingface_hub", "prompt_toolkit", "httpx2", "asyncio", "llguidance", "mcp"}
    assert modules.isdisjoint(heavy | CONSTRAINTS | {f"cerebrum_cli.{name}" for name in UNUSED_BY_ASK})


def test_startup_batch_imports_neither_servers_nor_a_cluster(tmp_path: Path, chatml_model: Path) -> None:
    (tmp_path / "in.txt").write_text("hi\n")
    paths = (tmp_path / "in.txt", "-o", tmp_path / "out.jsonl", "-m", chatml_model, "-n", "2")
    modules = imported_modules(CommandLine(tmp_path), ("batch", *paths))
    assert "llama_cpp.llama_cpp" in modules
    assert modules.isdisjoint({"ray", "llguidance", "jsonschema", "httpx2", "cerebrum_cli.servers.pool"})


def test_startup_overview_has_the_same_help_as_the_whole_command_line() -> None:
    whole, outline = (
        group.get_help(group.context_class(group, info_name="cerebrum", help_option_names=["-h", "--help"]))
        for group in (assembled(COMMANDS, COMMANDS), assembled(COMMANDS, ()))
    )
    assert whole == outline
    assert all(f"  {command} " in outline for command in COMMANDS)
