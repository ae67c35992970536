"""A user of two servers of a scripted model, and of the same model on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from command_line import CommandLine, Finished
from remote_engines import serving
from scripted_command import backend_for, run_here
from server_kinds import LlamaServer

SEEDS = ("The answer is 4.", "Perhaps 5. The answer is 5.", "Four. The answer is 4.")
REPLIES: dict[str, Any] = {"seeds": SEEDS, "rows": {}}
SLOTS = 8


class Served:
    def __init__(self, home: Path, model: Path, servers: list[LlamaServer]) -> None:
        self.home = home
        self.model = model
        self.servers = servers

    def run(self, command: str, *arguments: str | Path, servers: int = 1, piped: bytes | None = None) -> Finished:
        urls = [part for server in self.servers[:servers] for part in ("--endpoint", server.url)]
        return self.run_alone(command, *arguments, *urls, piped=piped)

    def run_alone(self, command: str, *arguments: str | Path, piped: bytes | None = None) -> Finished:
        return run_here(dict(REPLIES), self.home, command, "-m", self.model, *arguments, piped=piped)

    def asked(self) -> list[dict[str, Any]]:
        return [asked.body for server in self.servers for asked in server.completions()]

    def config(self, text: str) -> None:
        (CommandLine(self.home).config / "config.toml").write_text(text, encoding="utf-8")

    def questions(self, count: int) -> Path:
        path = self.home / "questions.txt"
        path.write_text("".join(f"Question {number}: what is {number} + 1?\n" for number in range(count)))
        return path


@contextmanager
def serving_user(home: Path, model: Path) -> Iterator[Served]:
    model_of = backend_for(dict(REPLIES), SLOTS).model
    with serving(model_of, 2, slots=SLOTS, context_size=100_000) as servers:
        yield Served(home, model, servers)
