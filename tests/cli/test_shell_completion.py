"""Shell completion of values: models, prompt formats, sessions and files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import COMMAND, CommandLine, fixed_reply_grammar
from person import OpenTerminal

from cerebrum_cli.models.registry import Registry, RegistryEntry

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture(autouse=True)
def session(user: CommandLine, tmp_path: Path) -> None:
    """Create a session."""
    assert user.run("ask", "--grammar", fixed_reply_grammar("Yes.", tmp_path), "Why is it so?").code == 0


def complete(user: CommandLine, line: str) -> list[str]:
    """Words that bash would offer for the last word of a line."""
    words = line.split(" ")
    env = {"_CEREBRUM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return user.run(env=env).out.split()


def test_shell_completes_values(user: CommandLine) -> None:
    for line in ("ask -m ", "ask --model sm", "show ", "rm s", "tune sm", "batch in.txt -m "):
        assert complete(user, f"cerebrum {line}") == ["small"], line
    assert complete(user, "cerebrum pull cerebrum-7") == ["cerebrum-7b"]
    assert complete(user, "cerebrum ask --format c") == ["cerebrum", "collective-cognition"]
    for line in ("chat --session ", "sessions show wh", "sessions rm "):
        assert complete(user, f"cerebrum {line}") == ["why-is-it-so"], line
    assert complete(user, "cerebrum ask --set cache_type_k=q") == ["cache_type_k=q8_0", "cache_type_k=q4_0"]
    assert complete(user, "cerebrum batch in.txt --think o") == ["on", "off"]
    assert complete(user, "cerebrum sess") == ["sessions"]
    assert "--max-tokens" in complete(user, "cerebrum ask --ma")


def test_shell_shows_the_help_of_options_without_defaults(user: CommandLine) -> None:
    env = {"_CEREBRUM_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    found = user.run(env={**env, "_TYPER_COMPLETE_ARGS": "cerebrum ask --max-t"}).out
    assert found == "--max-tokens\tMaximum tokens to generate\n"


def test_shell_leaves_files_to_the_shell(user: CommandLine) -> None:
    for line in ("ask -f fix", "batch ", "merge fix"):
        assert complete(user, f"cerebrum {line}") == []


def test_shell_completion_of_an_unreadable_registry_is_empty(user: CommandLine) -> None:
    [registry] = user.home.rglob("registry.json")
    registry.write_text("{")
    assert complete(user, "cerebrum ask -m ") == []


@pytest.mark.parametrize(
    ("command", "setup"),
    [
        (("bash", "--rcfile", ".zshrc"), "PS1='shell% '"),
        (("bash", "--rcfile", ".zshrc"), "PS1='shell% '; COMP_WORDBREAKS=' '"),
        (("bash", "--rcfile", ".zshrc"), "PS1='shell% '; COMP_WORDBREAKS=' :'"),
        (("zsh", "--no-globalrcs"), "PS1='shell%% '; autoload -Uz compinit; compinit -u"),
        (("fish", "--no-config", "-C", ". ./.zshrc"), "function fish_prompt; echo -n 'shell% '; end"),
    ],
)
def test_shells_complete_after_colons_and_equal_signs(
    user: CommandLine, open_terminal: OpenTerminal, chatml_model: Path, command: tuple[str, ...], setup: str
) -> None:
    if not (program := shutil.which(command[0])):
        pytest.skip(f"needs {command[0]}")
    [registry], stat = user.home.rglob("registry.json"), chatml_model.stat()
    for name in ("tiny:Q4_0", "tiny:Q8_0", "tiny:Q8_1"):
        entry = RegistryEntry(name, chatml_model, stat.st_size, "0" * 64, stat.st_mtime_ns, "hub")
        Registry(registry.parent).add(entry)
    script = user.run(env={"_CEREBRUM_COMPLETE": f"source_{command[0]}"}).out
    (user.home / ".zshrc").write_text(f"export PATH={Path(COMMAND).parent}:$PATH\n{setup}\n{script}\n")
    home = str(user.home)
    shell = open_terminal(program, *command[1:], size=(100, 40), INPUTRC="/dev/null", ZDOTDIR=home)
    shell.wait_for("shell%")
    for line, completed in (
        ("show tiny:Q4", "show tiny:Q4_0"),
        ("show tin", "show tiny:Q"),
        ("ask -m tiny:", "ask -m tiny:Q"),
        ("ask --model=tiny:Q4", "ask --model=tiny:Q4_0"),
        ("ask --model=sm", "ask --model=small"),
        ("ask -m tiny:Q4_0 --format coll", "ask -m tiny:Q4_0 --format collective-cognition"),
    ):
        shell.type(f"cerebrum {line}\t")
        shell.wait_for(f"cerebrum {completed}")
        shell.type("\x15\n")
        shell.wait_for("shell%")
