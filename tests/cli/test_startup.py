"""Fast startup: a command imports only what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CommandLine
from typer.testing import CliRunner

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.main import assembled

pytestmark = pytest.mark.slow

HEAVY = (
    "llama_cpp",
    "numpy",
    "huggingface_hub",
    "prompt_toolkit",
    "jinja2",
    "rich",
    "psutil",
    "sqlite3",
    "yaml",
    "tomlkit",
    "pathspec",
)
# What `ask` needs neither without drafts, nor for a single answer, nor without servers.
UNUSED_BY_ASK = {
    "engine.drafter",
    "engine.scoring_plan",
    "batch.answering",
    "inference.voting",
    "tune.tune",
    "batch.journal",
    "merge.plan",
    "cli.prompts",
    "engine.remote",
}
# Runs the command line, then prints the imported modules to standard error.
SCRIPT = """
import sys
from cerebrum_cli.main import run
code = run(sys.argv[1:])
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""


def imported_modules(cerebrum: CommandLine, *arguments: str | Path) -> set[str]:
    """Modules that a command line imports."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=cerebrum.environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def imported_packages(cerebrum: CommandLine, *arguments: str | Path) -> set[str]:
    """Packages that a command line imports."""
    return {name.partition(".")[0] for name in imported_modules(cerebrum, *arguments)}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["ask", "--help"], ["pull", "--help"], ["merge", "--help"], ["doctor", "--help"]],
)
def test_startup_help_and_version_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    packages = imported_packages(CommandLine(tmp_path), *arguments)
    assert "cerebrum_cli" in packages
    assert packages.isdisjoint(HEAVY)


def test_startup_list_and_show_do_not_import_llama_cpp(tmp_path: Path, chatml_model: Path) -> None:
    user = CommandLine(tmp_path)
    engine = {"llama_cpp", "numpy", "jinja2", "httpx2", "prompt_toolkit", "pydantic"}
    assert imported_packages(user, "pull", chatml_model).isdisjoint(engine)
    assert imported_packages(user, "list").isdisjoint(engine)
    assert imported_packages(user, "list", "--available").isdisjoint(engine)
    assert imported_packages(user, "show", "chatml").isdisjoint(engine)


def test_startup_merge_of_a_stack_does_not_import_llama_cpp(tmp_path: Path, chatml_model: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {chatml_model}}}]")
    packages = imported_packages(CommandLine(tmp_path), "merge", recipe, "-o", tmp_path / "merged.gguf")
    assert packages.isdisjoint({"llama_cpp", "prompt_toolkit", "sqlite3"})


def test_startup_ask_imports_only_the_bindings(tmp_path: Path, chatml_model: Path, mistral_model: Path) -> None:
    arguments = ("-m", mistral_model, "--format", "cerebrum", "-n", "2", "hi")
    modules = imported_modules(CommandLine(tmp_path), "ask", *arguments)
    assert "llama_cpp" in modules
    assert modules.isdisjoint({"numpy", "jinja2", "rich", "huggingface_hub", "prompt_toolkit"})
    assert modules.isdisjoint({"httpx2", "asyncio"})
    assert modules.isdisjoint(f"cerebrum_cli.{name}" for name in UNUSED_BY_ASK)


def test_startup_reads_a_saved_prompt_without_an_editor_of_files(tmp_path: Path, chatml_model: Path) -> None:
    user = CommandLine(tmp_path)
    (user.config / "config.toml").write_text("[prompts.short]\nmax_tokens = 1\n")
    modules = imported_modules(user, "ask", "-m", chatml_model, "-p", "short", "hi")
    assert "tomllib" in modules
    assert modules.isdisjoint({"tomlkit", "cerebrum_cli.cli.prompts"})


def test_startup_batch_imports_neither_servers_nor_a_cluster(tmp_path: Path, chatml_model: Path) -> None:
    (tmp_path / "in.txt").write_text("hi\n")
    paths = (tmp_path / "in.txt", "-o", tmp_path / "out.jsonl", "-m", chatml_model, "-n", "2")
    modules = imported_modules(CommandLine(tmp_path), "batch", *paths)
    assert "llama_cpp" in modules
    assert modules.isdisjoint(
        {"ray", "httpx2", "cerebrum_cli.engine.remote.pool", "cerebrum_cli.engine.cluster.cluster_engine"}
    )


def test_startup_overview_has_the_same_help_as_the_whole_command_line() -> None:
    whole, outline = (CliRunner().invoke(app, ["--help"]) for app in (assembled(), assembled(overview=True)))
    assert whole.exit_code == outline.exit_code == 0
    assert whole.output == outline.output
    assert all(f"  {command.name} " in outline.output for command in COMMANDS)
