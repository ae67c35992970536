"""Shell completion of values: models, prompt formats, sessions and files."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine, fixed_reply_grammar

pytestmark = pytest.mark.slow


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
    assert complete(user, "cerebrum sess") == ["sessions"]
    assert "--max-tokens" in complete(user, "cerebrum ask --ma")


def test_shell_leaves_files_to_the_shell(user: CommandLine) -> None:
    for line in ("ask -f fix", "batch ", "merge fix"):
        assert complete(user, f"cerebrum {line}") == []


def test_shell_completion_of_an_unreadable_registry_is_empty(user: CommandLine) -> None:
    [registry] = user.home.rglob("registry.json")
    registry.write_text("{")
    assert complete(user, "cerebrum ask -m ") == []
