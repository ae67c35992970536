"""Run `cerebrum` with its own home directory, in this process or in a child process."""

import contextlib
import importlib
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.engine.llama.first_load import file_key
from cerebrum_cli.main import run

ROOT = Path(__file__).parents[3]
COMMAND = str(Path(sys.executable).with_name("cerebrum"))
PYTHON = shlex.quote(sys.executable)  # a word of a shell: the path may have spaces
USER_PREFIXES = ("CEREBRUM_", "XDG_", "HF_")
HYPERLINK_VARIABLES = ("TERM_PROGRAM", "TMUX", "STY", "VTE_VERSION", "WT_SESSION", "KITTY_WINDOW_ID")
TERMINAL_VARIABLES = (
    *("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "ACCESSIBLE"),
    *HYPERLINK_VARIABLES,
)
SOUND_MODELS = [ROOT / "cerebrum_cli" / "data" / "nano.gguf"]  # no home loads them in a child process first


@dataclass(frozen=True, slots=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
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
        directory = self.home / "config" / "cerebrum"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a command, with one thread: more only slow a tiny model down."""
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
        """Run a command in this process, in a directory or in `home`; without `stdin` nothing is piped in.

        It finds the environment, working directory and standard streams that a child process would have.
        """
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self.vouch_for_models()
        with (
            TemporaryFile() as out,
            TemporaryFile() as err,
            piped(data) as source,
            environment_of(self.environment(env)),
            contextlib.chdir(directory or self.home),
        ):
            with standard_streams(source, out.fileno(), err.fileno()):
                code = run([str(argument) for argument in arguments])
            return Finished(code, written(out), written(err))

    def vouch_for_models(self) -> None:
        """Note in a new home that the models of the suite have been loaded before."""
        remembered = self.home / "data" / "cerebrum" / "loaded_files.json"
        if not remembered.exists():
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text(json.dumps([file_key(path) for path in SOUND_MODELS]))

    def run_process(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, redirected: str = "", **options: Any
    ) -> Finished:
        """Run a command in a process, whose streams a shell may redirect."""
        self.vouch_for_models()
        shell = ("sh", "-c", f'"$@" {redirected}', "sh") if redirected else ()
        done = subprocess.run(
            [*shell, COMMAND, *map(str, arguments)],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            env=self.environment(env),
            cwd=self.home,
            timeout=60,
        )
        return Finished(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())

    def messages(self, session: str) -> list[dict[str, Any]]:
        """The texts of a session's messages, and how they were generated; none if there is no such session."""
        messages = []
        with self.sessions() as store:
            found = store.find(session)
            for stored in store.messages(found) if found else []:
                texts = {key: getattr(stored.message, key) for key in ("role", "content", "reasoning")}
                messages.append({**texts, **asdict(stored.metadata)})
        return messages

    def params(self, session: str) -> JsonObject:
        """The parameters that a session records."""
        with self.sessions() as store:
            found = store.find(session)
            assert found
            return found.params

    def sessions(self) -> contextlib.closing[Store]:
        path = self.home / "data" / "cerebrum" / "sessions" / "sessions.db"
        return contextlib.closing(Store(path if path.exists() else None))

    def contents(self, session: str) -> list[str]:
        return [each["content"] for each in self.messages(session)]

    def start(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        self.vouch_for_models()
        return subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(env),
            cwd=self.home,
        )


@contextlib.contextmanager
def environment_of(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    try:
        set_environment(variables)
        yield
    finally:
        set_environment(before)


def set_environment(variables: Mapping[str, str]) -> None:
    """Replace the environment, for huggingface_hub too, which reads it when it is imported."""
    os.environ.clear()
    os.environ.update(variables)
    if hub := sys.modules.get("huggingface_hub"):
        hub.close_session()
        importlib.reload(hub.constants)


@contextlib.contextmanager
def piped(data: bytes | None) -> Iterator[int]:
    """Descriptor of a pipe with this data, or of the null device."""
    if data is None:
        with open(os.devnull, "rb") as source:
            yield source.fileno()
        return
    read_end, write_end = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(write_end, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        writer.join()


@contextlib.contextmanager
def standard_streams(*descriptors: int) -> Iterator[None]:
    """Replace the three standard streams, for native code and child processes too."""
    streams, originals = (sys.stdin, sys.stdout, sys.stderr), [os.dup(number) for number in range(3)]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, original in enumerate(originals):
            os.dup2(original, number)
            os.close(original)
        if library := sys.modules.get("cerebrum_cli.engine.llama.bindings"):
            library.log.forward = None


def written(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()


def fixed_reply_grammar(text: str, directory: Path) -> Path:
    path = directory / "fixed.gbnf"
    path.write_text(f"root ::= {json.dumps(text)}\n", encoding="utf-8")
    return path


def start_python(
    code: str, *arguments: object, home: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Run Python code in a child process of a user; it can import the helpers of the tests."""
    support = Path(__file__).parents[1]
    folders = map(str, (ROOT, support, *(folder for folder in support.iterdir() if folder.is_dir())))
    paths = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", str(ROOT))])  # or another build of llama.cpp
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**(CommandLine(home).environment() if home else os.environ), "PYTHONPATH": paths, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
