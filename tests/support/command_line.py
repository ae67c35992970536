"""Run the installed `cerebrum` in a child process with its own home directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("cerebrum"))
USER_PREFIXES = ("CEREBRUM_", "XDG_", "HF_")
TERMINAL_VARIABLES = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "ACCESSIBLE")


@dataclass(frozen=True, slots=True)
class Finished:
    """The exit code and output of a finished command."""

    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
        """The only JSON object on standard output."""
        [line] = self.out.splitlines()
        return json.loads(line)


def assert_error(done: Finished, code: int, *parts: str) -> None:
    """Check an exit code, and that standard error ends with a problem and a fix of one line each."""
    assert done.code == code, done.err
    problem, hint = done.err.splitlines()[-2:]
    assert problem.startswith("error: ") and hint.startswith(" hint: "), done.err
    assert all(part in problem + hint for part in parts), done.err
    assert "Traceback" not in done.err


@dataclass(frozen=True, slots=True)
class CommandLine:
    """`cerebrum` with all directories of the user in `home`."""

    home: Path

    @property
    def config(self) -> Path:
        """The directory of config.toml."""
        directory = self.home / "config" / "cerebrum"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the child process, with one thread: more only slow a tiny model down."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(USER_PREFIXES) and name not in TERMINAL_VARIABLES
        }
        return {
            **inherited,
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "CEREBRUM_THREADS": "1",
            **(extra or {}),
        }

    def run(
        self,
        *arguments: str | Path,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> Finished:
        """Run a command in a directory, or in `home`, and wait for it; without `stdin` nothing is piped in."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
        done = subprocess.run(
            [COMMAND, *map(str, arguments)],
            capture_output=True,
            env=self.environment(env),
            cwd=directory or self.home,
            timeout=60,
            **options,
        )
        return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())

    def messages(self, session: str) -> list[dict[str, Any]]:
        """Messages of a saved session; empty if there is none."""
        shown = self.run("sessions", "show", session, "--json")
        return list(shown.object["messages"]) if shown.code == 0 else []

    def contents(self, session: str) -> list[str]:
        """Texts of a saved session."""
        return [each["content"] for each in self.messages(session)]

    def start(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command, to read its output while it runs."""
        return subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(env),
            cwd=self.home,
        )


def fixed_reply_grammar(text: str, directory: Path) -> Path:
    """Write a grammar that makes any model reply with this text."""
    path = directory / "fixed.gbnf"
    path.write_text(f"root ::= {json.dumps(text)}\n", encoding="utf-8")
    return path


def endless_reply_grammar(directory: Path) -> Path:
    """Write a grammar that makes any model generate to the end of its context."""
    path = directory / "endless.gbnf"
    path.write_text("root ::= [a-z ] root\n", encoding="utf-8")
    return path


def start_python(code: str, *arguments: object, home: Path | None = None) -> subprocess.Popen[str]:
    """Run Python code in a child process of a user; it can import the helpers of the tests."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests", "benchmarks"))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**(CommandLine(home).environment() if home else os.environ), "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
