"""Run the commands of a user in a process that notes what leaves the machine, and which files it creates (Linux)."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from threading import Timer

import psutil
from command_line import CommandLine, Finished, start_python

SOURCE = Path(__file__).with_name("guard.c")
SYSTEM = ("/dev/", "/proc/")
TIMEOUT_S = 120.0  # of a command
RUNNER = """
import json, sys
from pathlib import Path
from command_line import CommandLine

for line in sys.stdin:
    home, arguments, env, directory = json.loads(line)
    done = CommandLine(Path(home)).run(*arguments, env=env, directory=Path(directory))
    print(json.dumps([done.code, done.out, done.err]), flush=True)
"""


@contextmanager
def built_guard() -> Iterator[Path | None]:
    """The library that takes notes; None where it cannot be built or loaded."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="guard", dir="/tmp") as directory:  # LD_PRELOAD splits at spaces
        library = Path(directory) / "guard.so"
        built = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], capture_output=True
        )
        yield library if built.returncode == 0 else None


def own_addresses() -> list[str]:
    addresses = [address.address for interface in psutil.net_if_addrs().values() for address in interface]
    return [address.partition("%")[0] for address in addresses]


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host.removeprefix("::ffff:")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Guard:
    """Notes of what programs do that have its environment; without a library, only of temporary files that are left.

    They may connect to loopback and to `hosts`. They may create bytecode, files in `directories`, and temporary files
    that they remove.
    """

    library: Path | None
    directory: Path
    directories: Sequence[Path] = ()
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.temporary.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> Path:
        return self.directory / "notes"

    @property
    def temporary(self) -> Path:
        return self.directory / "tmp"

    @property
    def environment(self) -> dict[str, str]:
        preloaded = {"LD_PRELOAD": str(self.library)} if self.library else {}
        return {**preloaded, "GUARD_LOG": str(self.log), "TMPDIR": str(self.temporary)}

    def violations(self) -> list[str]:
        """What was noted other than what is allowed, and temporary files that are left; forgets and removes them."""
        notes = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        left = [f"leave {path.name}" for path in self.temporary.iterdir()]
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()
        return [*dict.fromkeys(note for note in notes if not self._permits(*note.split(" ", 1))), *left]

    def _permits(self, what: str, value: str) -> bool:
        if what != "create":
            return is_loopback(value) or value.removeprefix("::ffff:") in self.hosts
        path = os.path.normpath(value)
        return (
            path.startswith(SYSTEM)
            or "__pycache__" in Path(path).parts
            or any(
                Path(path).is_relative_to(folder) or folder.is_relative_to(path)  # above it, a directory that exists
                for folder in (self.temporary, *self.directories)
            )
        )


@dataclass(frozen=True, slots=True)
class GuardedProcess:
    """Runs commands one after the other, which saves the start of a process for each."""

    guard: Guard
    process: subprocess.Popen[str]

    def run(self, command: CommandLine, arguments: Sequence[str], env: Mapping[str, str], directory: Path) -> Finished:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.write(json.dumps([str(command.home), arguments, dict(env), str(directory)]) + "\n")
        self.process.stdin.flush()
        late = Timer(TIMEOUT_S, self.process.kill)
        late.start()
        answer = self.process.stdout.readline()
        late.cancel()
        assert answer, (arguments, self.process.stderr.read())
        return Finished(*json.loads(answer))


@contextmanager
def guarded_process(guard: Guard) -> Iterator[GuardedProcess]:
    with start_python(RUNNER, env=guard.environment) as process:
        yield GuardedProcess(guard, process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 0
