"""A user of `cerebrum` before the Hub of the tests: a home, a Hugging Face cache in it, and no other network."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line import CommandLine, Finished
from hub_server import DATASETS, HubServer, Request

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.pull import DownloadOptions, Puller
from cerebrum_cli.weights.building import BUILDER

CATALOGUED = "bartowski/Cerebrum-1.0-7b-GGUF"  # where the catalogue's cerebrum-7b comes from
READER, OTHER = "hf_reader", "hf_other"  # the tokens the Hub knows

OFFLINE: tuple[tuple[tuple[str, ...], dict[str, str]], ...] = (
    (("--offline",), {}),
    ((), {"HF_HUB_OFFLINE": "1"}),
)  # options and variables that disable the network
NOTES = "note: Cerebrum-1.0-7b: "  # of the catalogue, before a download
HUGGING_FACE = (
    "import json, sys; from huggingface_hub import *; print(json.dumps([eval(each) for each in sys.argv[1:]]))"
)


def named(quantization: str) -> str:
    return f"Cerebrum-1.0-7b-{quantization}.gguf"


@dataclass(frozen=True, slots=True)
class HubUser:
    """A user whose directories all lie in `command.home`, and the Hub that is the only one."""

    hub: HubServer
    command: CommandLine

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        return {**self.hub.environment(self.command.home / "hf"), **more}

    def run(self, *arguments: str | Path, **more: str) -> Finished:
        return self.command.run(*arguments, env=self.environment(more))

    def run_process(self, *arguments: str | Path, **more: str) -> Finished:
        """Run `cerebrum` in a process that has not read the environment yet."""
        return self.command.run_process(*arguments, env=self.environment(more))

    def pull(self, *arguments: str | Path, **more: str) -> Finished:
        """Run `cerebrum pull`, which must bring a model, and tell so on standard error alone."""
        done = self.run("pull", *arguments, **more)
        assert (done.code, done.out) == (0, ""), done.err
        return done

    def installed(self, name: str, repository: str) -> str:
        """What `pull` prints of the only file of a repository, which is checked; nothing else is left of it."""
        path = self.path(name, repository)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == self.digest(name, repository)
        assert self.blobs(repository) == {self.digest(name, repository): path.stat().st_size}
        return f"installed {repository}:Q4_K_M: {path}\n"

    def start(self, *arguments: str | Path, **more: str) -> subprocess.Popen[bytes]:
        return self.command.start(*arguments, env=self.environment(more))

    def ask(self, *arguments: str | Path, **more: str) -> str:
        done = self.run("ask", "-q", "-n", "4", *arguments, "Why?", **more)
        assert (done.code, done.err) == (0, ""), done.err
        return done.out

    def listed(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.run("list", "--json").object
        return rows

    def hugging_face(self, *expressions: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", HUGGING_FACE, *expressions],
            env=self.command.environment(self.environment({})),
            capture_output=True,
            timeout=60,
            check=True,
        )
        found: list[Any] = json.loads(done.stdout)
        return found

    @property
    def token(self) -> Path:
        """The file of the user's token, which is not there yet."""
        path = self.command.home / "hf" / "token"
        path.parent.mkdir(exist_ok=True)
        return path

    @property
    def cache(self) -> Path:
        return self.command.home / "hf" / "hub"

    def folder(self, repo_id: str = CATALOGUED) -> Path:
        kind = "" if repo_id.startswith(DATASETS) else "models/"
        return self.cache / f"{kind}{repo_id}".replace("/", "--")

    def path(self, file: str, repo_id: str = CATALOGUED) -> Path:
        return self.folder(repo_id) / "snapshots" / self.commit(repo_id) / file

    def commit(self, repo_id: str = CATALOGUED) -> str:
        return self.hub.repositories[repo_id].branches["main"].hash

    def digest(self, file: str, repo_id: str = CATALOGUED) -> str:
        return self.hub.repositories[repo_id].branches["main"].files[file].digest

    def blobs(self, repo_id: str = CATALOGUED) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (self.folder(repo_id) / "blobs").glob("*")}

    def downloads(self) -> list[Request]:
        """Return the requests for files themselves; those for a header end somewhere."""
        return [each for each in self.hub.log.requests("cdn") if each.range is None or each.range.endswith("-")]


@dataclass(slots=True)
class RecordedProgress:
    stages: list[tuple[str, int, int]] = field(default_factory=list)
    notices: list[NoticeEvent] = field(default_factory=list)

    def update(self, stage: str, done: int, total: int) -> None:
        self.stages.append((stage, done, total))

    def notice(self, event: NoticeEvent) -> None:
        self.notices.append(event)


def puller(library: Library, progress: RecordedProgress | None = None, *, offline: bool = False) -> Puller:
    """What pulls into a library and is refused what needs a decision."""
    return Puller(
        library=library,
        progress=progress or RecordedProgress(),
        confirm=lambda *_: False,
        options=DownloadOptions(offline),
        builder=BUILDER,
    )


def cleaned(done: Finished) -> str:
    """Standard error without the notes of the model."""
    return "".join(line for line in done.err.splitlines(keepends=True) if not line.startswith(NOTES))
