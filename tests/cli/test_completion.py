"""Completion in shells (models, formats, sessions, saved prompts) and of slash commands in a chat."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cases import rows
from command_line import COMMAND, CommandLine, fixed_reply_grammar
from person import OpenTerminal
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from cerebrum_cli.library.registry import Registry, RegistryEntry
from cerebrum_cli.terminal.repl.prompt import SlashCompleter
from cerebrum_cli.terminal.repl.repl import Repl
from cerebrum_cli.terminal.repl.slash_commands import SLASH_COMMANDS


def complete(user: CommandLine, line: str) -> list[str]:
    """Words that bash would offer for the last word of a line."""
    words = line.split(" ")
    env = {"_CEREBRUM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return user.run(env=env).out.split()


@pytest.mark.slow
def test_shell_completes_values(user: CommandLine, tmp_path: Path) -> None:
    assert user.run("ask", "--grammar", fixed_reply_grammar("Yes.", tmp_path), "Why is it so?").code == 0
    (user.config / "prompts").mkdir()
    (user.config / "prompts" / "sum.md").write_text("x\n")
    for line in ("ask -m ", "ask --model sm", "show ", "rm s", "batch in.txt -m "):
        assert complete(user, f"cerebrum {line}") == ["small"], line
    for line in ("chat --session ", "sessions show wh", "sessions rm "):
        assert complete(user, f"cerebrum {line}") == ["why-is-it-so"], line
    for line in ("ask -p s", "chat --saved-prompt s", "prompts show s", "prompts edit s"):
        assert complete(user, f"cerebrum {line}") == ["sum"], line
    for line in ("ask -f fix", "batch ", "merge fix"):  # files, which the shell completes
        assert complete(user, f"cerebrum {line}") == [], line
    assert complete(user, "cerebrum pull cerebrum-7") == ["cerebrum-7b"]
    assert complete(user, "cerebrum ask --format c") == ["cerebrum", "collective-cognition", "chatml"]
    assert complete(user, "cerebrum ask --set cache_type=q") == ["cache_type=q8_0", "cache_type=q4_0"]
    assert complete(user, "cerebrum batch in.txt --think o") == ["on", "off"]
    assert complete(user, "cerebrum sess") == ["sessions"]
    assert "--max-tokens" in complete(user, "cerebrum ask --ma")
    env = {"_CEREBRUM_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    found = user.run(env={**env, "_TYPER_COMPLETE_ARGS": "cerebrum ask --max-t"}).out
    assert found.startswith("--max-tokens\tMaximum tokens to generate")
    [registry] = user.home.rglob("registry.json")
    registry.write_text("{")
    assert complete(user, "cerebrum ask -m ") == []


def test_completion_keeps_apostrophes_in_zsh(user: CommandLine) -> None:
    env = {"_CEREBRUM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "cerebrum ask --sche"}
    assert r"file, JSON or '\''name, age int'\''" in user.run(env=env).out


@pytest.mark.parametrize("variables", [{}, {"COMP_WORDS": "cerebrum a", "COMP_CWORD": "x"}])
def test_completion_without_a_place_has_no_words(user: CommandLine, variables: dict[str, str]) -> None:
    done = user.run(env={"_CEREBRUM_COMPLETE": "complete_bash", **variables})
    assert (done.code, done.out, done.err) == (1, "", "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_bash_completes_after_colons(user: CommandLine, open_terminal: OpenTerminal, chatml_model: Path) -> None:
    if not (program := shutil.which("bash")):
        pytest.skip("needs bash")
    [registry], stat = user.home.rglob("registry.json"), chatml_model.stat()
    for name in ("tiny:Q4_0", "tiny:Q8_0", "tiny:Q8_1"):
        entry = RegistryEntry(name, chatml_model, stat.st_size, "0" * 64, stat.st_mtime_ns, "hub")
        Registry(registry.parent).add(entry)
    script = user.run(env={"_CEREBRUM_COMPLETE": "source_bash"}).out
    (user.home / ".rc").write_text(f"PS1='shell% '\n{script}")
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    shell = open_terminal(program, "--rcfile", ".rc", size=(100, 40), INPUTRC="/dev/null", PATH=path)
    shell.wait_for("shell%")
    for line, completed in (
        ("show ti", "show tiny:Q"),
        ("ask -m ti", "ask -m tiny:Q"),
        ("ask -m tiny:Q4_0 --format coll", "ask -m tiny:Q4_0 --format collective-cognition"),
    ):
        shell.type(f"cerebrum {line}\t")
        shell.wait_for(f"cerebrum {completed}")
        shell.type("\x15\n")
        shell.wait_for("shell%")


MODELS = [SimpleNamespace(reference=name) for name in ("cerebrum-7b:Q4_K_M", "cerebrum-8x7b", "starter")]
CHAT = SimpleNamespace(
    installation=SimpleNamespace(
        library=SimpleNamespace(models=lambda: MODELS), prompts=SimpleNamespace(names=lambda: ["sum", "list"])
    ),
    tree=SimpleNamespace(
        history=SimpleNamespace(store=SimpleNamespace(names=lambda: ["tea with milk", "tea", "coffee"]))
    ),
    loaded=SimpleNamespace(is_remote=False),
)


def completed(text: str) -> list[str]:
    """Lines that Tab would complete a line to."""
    document = Document(text, len(text))
    completer = SlashCompleter(cast(Repl, SimpleNamespace(chat=CHAT)))
    completions = completer.get_completions(document, CompleteEvent(completion_requested=True))
    return [text[: len(text) + each.start_position] + each.text for each in completions]


@pytest.mark.parametrize(
    ("text", "lines"), [*rows("completions"), ("/", [f"/{slash.name}" for slash in SLASH_COMMANDS])]
)
def test_completion_of_commands_and_arguments(text: str, lines: list[str]) -> None:
    assert completed(text) == lines


@pytest.mark.parametrize("command", ["/file", "/export"])
def test_completion_of_file_names_with_spaces(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my notes.txt").write_text("")
    (tmp_path / "my folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completed(f"{command} my") == [f"{command} my folder/", f"{command} my notes.txt"]
    assert completed(f"{command} {tmp_path}/my n") == [f"{command} {tmp_path}/my notes.txt"]
