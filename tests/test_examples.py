"""Examples of the README and of pages run as printed, except those that need the network, a terminal or your files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import COMMAND, ROOT, CommandLine
from scripted_command import install

PAGES = (
    "README.md",
    "docs/getting-started.md",
    "docs/how-to/ask-about-files.md",
    "docs/how-to/save-prompts.md",
    "docs/how-to/batch.md",
    "docs/how-to/vote.md",
    "docs/how-to/long-replies.md",
)
ELSEWHERE = re.compile(r"^(make|source)\b|cerebrum (pull|doctor)|slow\.py|-p commit|prompts edit")
SUCCESS = (0, 4, 5, 6)  # a prompt may not fit in the context of a tiny model, and it may give no answer


def commands(page: str) -> list[str]:
    """Lines of the shell blocks of a page that can be run here; those that write a file come first."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for line in "".join(blocks).splitlines() if not ELSEWHERE.search(line)]
    lines = [line.replace("-m qwen3.5-4b", "-m thinker") for line in lines]
    return sorted(lines, key=lambda line: not line.startswith("printf"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_examples_run_as_printed(page: str, command: CommandLine, thinker: Path, tmp_path: Path) -> None:
    install(command.home, thinker, "thinker")
    checkout = tmp_path / "checkout"
    patterns = ("README.md", "Makefile", "docs/explanation/*.md", "cerebrum_cli/*/__init__.py")
    for file in (file for pattern in patterns for file in ROOT.glob(pattern)):
        copy = checkout / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    (checkout / "questions.txt").write_text("What is 1 + 1?\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "jq").write_text("#!/bin/sh\ncat\n")
    (programs / "jq").chmod(0o755)
    path = f"{programs}:{Path(COMMAND).parent}:/usr/bin:/bin"
    env = command.environment({"CEREBRUM_MAX_TOKENS": "8", "CEREBRUM_YES": "1", "PATH": path})
    failures = []
    for line in commands(page):
        done = subprocess.run(
            ["bash", "-c", line], cwd=checkout, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120
        )
        if done.returncode not in SUCCESS or b"Traceback" in done.stderr:
            failures.append((line, done.returncode, done.stderr.decode()[-500:]))
    assert failures == []
