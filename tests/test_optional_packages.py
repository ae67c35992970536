"""Each optional package can be deleted: all else works, its commands are gone, and its options say so."""

import json
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import ROOT, CommandLine

pytestmark = pytest.mark.slow

QUESTION, ANSWER = "What is 12 plus 30?", "12 plus 30 makes 42. The answer is 42."


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the package in a folder, without one of its folders, and a user of it."""

    folder: Path
    user: CommandLine

    @classmethod
    def without(cls, package: str, folder: Path) -> "Copy":
        shutil.copytree(ROOT / "cerebrum_cli", folder / "cerebrum_cli")
        shutil.copy(ROOT / "models.toml", folder / "cerebrum_cli")
        shutil.rmtree(folder / "cerebrum_cli" / package)
        return cls(folder, CommandLine(folder))

    def run(self, *words: str, stdin: str = "", **env: str) -> str:
        """Standard output of a command, which succeeds and prints no error, warning or notice."""
        done = subprocess.run(
            [sys.executable, "-m", "cerebrum_cli", *words],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.user.environment({"PYTHONPATH": str(self.folder), **env}),
            cwd=self.folder,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def completions(self, line: str) -> Collection[str]:
        """What a shell offers for the last word of a line."""
        position = str(len(line.split(" ")) - 1)
        return self.run(_CEREBRUM_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=position).split()


@pytest.mark.parametrize(
    ("package", "commands"),
    [
        ("eval", ("eval", "runs")),
        ("lm_eval", ("lm-eval",)),
        ("weights", ("merge",)),
        ("cluster", ()),
        ("doctor", ("doctor",)),
        ("decide", ("decide",)),
        ("mcp", ()),
    ],
)
def test_optional_package_can_be_deleted(package: str, commands: tuple[str, ...], tmp_path: Path) -> None:
    copy = Copy.without(package, tmp_path)
    section = copy.run("--help").partition("Commands:\n")[2].partition("\n\n")[0]
    listed = {line.split()[0] for line in section.splitlines()}
    assert {"ask", "chat", "batch", "pull"} <= listed and listed.isdisjoint(commands)
    completed = copy.completions("cerebrum ")
    assert "ask" in completed and listed == set(completed)
    assert copy.run("ask", "-m", "nano", "-q", QUESTION) == f"{ANSWER}\n"
    assert ANSWER in copy.run("chat", "-m", "nano", "-q", stdin=f"{QUESTION}\n")
    (tmp_path / "in.txt").write_text(f"{QUESTION}\n")
    copy.run("batch", "in.txt", "-o", "out.jsonl", "-m", "nano", "-q")
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == ANSWER
    for option, missing, value in (("--mcp", "mcp", "server"), ("--ray", "cluster", "local")):
        if package == missing:
            with pytest.raises(AssertionError, match=f"{option} needs the package `{missing}`"):
                copy.run("batch", "in.txt", "-o", "other.jsonl", "-m", "nano", option, value)
    if package == "decide":
        return
    decide = "decide", "Is it {text}?", "in.txt", "-m", "nano", "-q"
    assert json.loads(copy.run(*decide, "-o", "-"))["answer"] in ("yes", "no")
    if package == "eval":
        with pytest.raises(AssertionError, match="--label needs the package `eval`"):
            copy.run(*decide, "--label", "text")
