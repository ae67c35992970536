"""A fast start: what a command does not need is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CommandLine
from typer.testing import CliRunner

from cerebrum_cli.commands import COMMANDS
from cerebrum_cli.main import assembled

HEAVY = (
    "llama_cpp",
    "numpy",
    "huggingface_hub",
    "prompt_toolkit",
    "jinja2",
    "rich",
    "psutil",
    "gguf",
    "sqlite3",
    "yaml",
)
# Runs the command line and then tells on standard error which packages it has loaded.
SCRIPT = """
import sys
from cerebrum_cli.main import run
code = run(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


def loaded(cerebrum: CommandLine, *arguments: str | Path) -> set[str]:
    """Return the packages a command line loads."""
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


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["ask", "--help"], ["pull", "--help"], ["merge", "--help"], ["doctor", "--help"]],
)
def test_help_and_version_load_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    packages = loaded(CommandLine(tmp_path), *arguments)
    assert "cerebrum_cli" in packages
    assert packages.isdisjoint(HEAVY)


def test_list_and_show_read_files_without_llama_cpp(tmp_path: Path, chatml_model: Path) -> None:
    user = CommandLine(tmp_path)
    engine = {"llama_cpp", "numpy", "jinja2", "httpx2", "prompt_toolkit", "gguf", "pydantic"}
    assert loaded(user, "pull", chatml_model).isdisjoint(engine)
    assert loaded(user, "list").isdisjoint(engine)
    assert loaded(user, "list", "--available").isdisjoint(engine)
    assert loaded(user, "show", "chatml").isdisjoint(engine)


def test_layers_are_stacked_without_llama_cpp(tmp_path: Path, chatml_model: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {chatml_model}}}]")
    packages = loaded(CommandLine(tmp_path), "merge", recipe, "-o", tmp_path / "merged.gguf")
    assert packages.isdisjoint({"llama_cpp", "prompt_toolkit", "sqlite3"})


def test_an_answer_loads_the_bindings_alone(tmp_path: Path, chatml_model: Path, mistral_model: Path) -> None:
    asked = ("-m", mistral_model, "--format", "cerebrum", "-n", "2", "hi")
    packages = loaded(CommandLine(tmp_path), "ask", *asked)
    assert "llama_cpp" in packages
    assert packages.isdisjoint({"numpy", "jinja2", "rich", "huggingface_hub", "prompt_toolkit", "gguf"})


def test_the_help_of_all_commands_is_the_same_whether_their_options_are_read_or_not() -> None:
    whole, outline = (CliRunner().invoke(app, ["--help"]) for app in (assembled(), assembled(overview=True)))
    assert whole.exit_code == outline.exit_code == 0
    assert whole.output == outline.output
    assert all(f"  {command.name} " in outline.output for command in COMMANDS)
