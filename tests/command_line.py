"""The installed `cerebrum`, run as a user runs it: a process of its own, in a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("cerebrum"))
OF_THE_USER = ("CEREBRUM_", "XDG_", "HF_")
OF_THE_TERMINAL = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "ACCESSIBLE")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
        """The one JSON object on standard output."""
        [line] = self.out.splitlines()
        return json.loads(line)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """`cerebrum` for a user whose directories all lie in `home`."""

    home: Path

    @property
    def config(self) -> Path:
        """The directory of config.toml."""
        directory = self.home / "config" / "cerebrum"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the user's environment. Threads of a tiny model only wait for each other, so there is one."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(OF_THE_USER) and name not in OF_THE_TERMINAL
        }
        return {
            **inherited,
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "CEREBRUM_THREADS": "1",
            **(more or {}),
        }

    def run(
        self, *arguments: str | Path, stdin: str | bytes | None = None, env: Mapping[str, str] | None = None
    ) -> Finished:
        """Run one command line to its end; without `stdin` nothing is piped in."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
        done = subprocess.run(
            [COMMAND, *map(str, arguments)],
            capture_output=True,
            env=self.environment(env),
            cwd=self.home,
            timeout=60,
            **given,
        )
        return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command whose output is read while it runs."""
        return subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(env),
            cwd=self.home,
        )


def saying(text: str, directory: Path) -> Path:
    """Return a grammar after which any model says just this text."""
    path = directory / "saying.gbnf"
    path.write_text(f"root ::= {json.dumps(text)}\n", encoding="utf-8")
    return path


def talking(directory: Path) -> Path:
    """Return a grammar after which any model talks to the end of its context."""
    path = directory / "talking.gbnf"
    path.write_text("root ::= [a-z ] root\n", encoding="utf-8")
    return path
