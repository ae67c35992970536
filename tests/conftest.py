"""Fixtures of several test modules: tiny real models, users, terminals, chats and stores."""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import SOUND_MODELS, TERMINAL_VARIABLES, CommandLine
from gguf_files import rewritten
from guard import built_guard
from hub_server import HubServer
from hub_user import OTHER, READER, HubUser
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from llama_engines import MODELS
from mcp_user import McpUser
from merges import FOUR_LAYERS, SIX_LAYERS, Home, part_paths
from person import SHELL, OpenTerminal, Person
from remote_engines import set_patience
from scripted_command import SCRIPTED, install
from served import Served, serving_user
from tiny_models import write_chatml, write_mistral, write_quantized, write_recurrent, write_sliding_window
from vocabularies import open_vocabulary
from waiting import NewChildren, wait_for_end

from benchmarks.quantized import F32, quantize
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import parse_toml
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.eval.bubblewrap import Bubblewrap, find_bubblewrap
from cerebrum_cli.library import catalogue_file, hub_requests

settings.register_profile("test", derandomize=True, deadline=None, max_examples=30)  # the same cases everywhere
settings.register_profile("fuzz", deadline=None, max_examples=3000)  # by --hypothesis-profile in `make fuzz`
settings.load_profile("test")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would its children
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
for variable in TERMINAL_VARIABLES:
    os.environ.pop(variable, None)
os.environ["TERM"] = "xterm-256color"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why tests were skipped: a line for each reason."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session", autouse=True)
def same_and_quick() -> Iterator[None]:
    """Each process has the same cases of Hypothesis, and its commands parse the catalog once and measure few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        if settings.get_current_profile_name() == "test":  # without constants of the modules imported so far
            patch.setattr(providers, "_get_local_constants", Constants, raising=False)
        patch.setattr(catalogue_file, "parse_toml", cache(parse_toml))
        patch.setattr(machine, "READ_BYTES", 2**20)
        yield


def sound(model: Path) -> Path:
    """A model of the suite that no command loads in a child process first."""
    SOUND_MODELS.append(model)
    return model


def model_fixture(name: str, write: Callable[[Path], Path]) -> Any:
    """A fixture with the file of a tiny model, which is written once."""

    @pytest.fixture(scope="session", name=f"{name}_model")
    def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return sound(write(tmp_path_factory.mktemp("models") / f"{name}.gguf"))

    return model


mistral_model = model_fixture("mistral", write_mistral)
chatml_model = model_fixture("chatml", write_chatml)  # a Llama with a small byte-level vocabulary and ChatML's tokens
recurrent_model = model_fixture("recurrent", write_recurrent)  # a Mamba, which cannot forget the last tokens alone
sliding_window_model = model_fixture("sliding_window", write_sliding_window)  # a Gemma 2: a layer sees only 32 tokens


@pytest.fixture(scope="session")
def thinker() -> Path:
    """A trained model that does small sums and reasons inside `<think>`, with a template like Qwen3.5's."""
    return sound(Path(__file__).parent / "data" / "thinker.gguf")


@pytest.fixture(scope="session", params=MODELS)
def precise_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("precise") / "f32.gguf"
    quantize(request.getfixturevalue(request.param), target, F32)
    return target


@pytest.fixture(params=MODELS)
def tiny_model(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def mistral(mistral_model: Path) -> Iterator[LlamaBackend]:
    with open_vocabulary(mistral_model) as backend:
        yield backend


@pytest.fixture(scope="session")
def chatml(chatml_model: Path) -> Iterator[LlamaBackend]:
    with open_vocabulary(chatml_model) as backend:
        yield backend


@pytest.fixture(scope="session")
def starter(pytestconfig: pytest.Config) -> Path:
    """The starter model, downloaded once for all runs of the suite."""
    assert pytestconfig.cache
    owner = CommandLine(Path(pytestconfig.cache.mkdir("starter")))
    pulled = owner.run("pull", "starter", "--quiet")
    assert pulled.code == 0, pulled.err
    return sound(Path(owner.run("show", "starter", "--json").object["path"]))


@pytest.fixture(scope="session")
def guard_library() -> Iterator[Path | None]:
    with built_guard() as library:
        yield library


@pytest.fixture(scope="session")
def bubblewrap() -> Bubblewrap:
    try:
        return find_bubblewrap()
    except UsageError as error:
        pytest.skip(f"needs bubblewrap: {error.message}")


@pytest.fixture
def without_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(scope="session")
def parts(chatml_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny ChatML model in three files, as llama.cpp splits them."""
    first = rewritten(chatml_model, tmp_path_factory.mktemp("parts") / "tiny-Q8_0.gguf", tensors=8)
    return {path.name: path for path in part_paths(first)}


@pytest.fixture
def new_children() -> NewChildren:
    """A function that lists the processes that this test has started; those of earlier tests may still run."""
    before = psutil.Process().children(recursive=True)
    return lambda: [child for child in psutil.Process().children(recursive=True) if child not in before]


@pytest.fixture
def new_user(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    """A user whose home is apart from the files of the test."""
    home = tmp_path / "home"
    home.mkdir()
    return CommandLine(home)


@pytest.fixture
def user(new_user: CommandLine, chatml_model: Path) -> CommandLine:
    install(new_user.home, chatml_model, "small")
    return new_user


@pytest.fixture
def hub_user(new_user: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubUser]:
    """A user with an empty Hub, whose commands in this process do not wait before a retry."""
    monkeypatch.setattr(hub_requests, "sleep", lambda _: None)
    with HubServer(tokens=(READER, OTHER)) as server:
        yield HubUser(server, new_user)


@pytest.fixture
def mcp_user(new_children: NewChildren, tmp_path: Path, chatml_model: Path) -> Iterator[McpUser]:
    """A user all of whose servers end with the command."""
    user = McpUser(tmp_path, chatml_model)
    yield user
    started = new_children()
    user.app.on_exit.close()
    wait_for_end(started)


@pytest.fixture(scope="session")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the layers and types of Mistral 7B."""
    return write_quantized(tmp_path_factory.mktemp("models") / "seven.gguf")


@pytest.fixture(scope="session")
def six_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("models") / "small.gguf", shape=SIX_LAYERS, encoding="F16")


@pytest.fixture(scope="session")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("models") / "tiny.gguf", shape=FOUR_LAYERS)


@pytest.fixture
def home(tmp_path: Path, four_layers: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home directory with a model and a recipe, which is the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path, four_layers)


@pytest.fixture
def open_terminal(new_user: CommandLine) -> Iterator[OpenTerminal]:
    opened: list[Person] = []

    def start(*argv: str | Path, size: tuple[int, int] = (80, 24), **env: str) -> Person:
        new_user.vouch_for_models()
        opened.append(Person([str(part) for part in argv], new_user.environment(env), new_user.home, *size))
        return opened[-1]

    yield start
    for person in opened:
        person.close()


@pytest.fixture
def open_scripted(open_terminal: OpenTerminal, chatml_model: Path) -> OpenTerminal:
    """A function that runs a command with a scripted model at a terminal."""

    def start(script: Mapping[str, Any], command: str, *arguments: str | Path, **terminal: Any) -> Person:
        shell = terminal.pop("shell", ())
        argv = (sys.executable, SCRIPTED, json.dumps(script), command, "-m", chatml_model, *arguments)
        return open_terminal(*shell, *argv, **terminal)

    return start


@pytest.fixture
def open_chat(open_scripted: OpenTerminal) -> OpenTerminal:
    def start(reply: str = "Yes.", *arguments: str, shell: tuple[str, ...] = (), **script: Any) -> Person:
        person = open_scripted({"reply": reply, **script}, "chat", *arguments, shell=shell)
        person.wait_for(">")
        return person

    return start


@pytest.fixture
def open_shell(open_terminal: OpenTerminal, tmp_path: Path) -> OpenTerminal:
    """A function that opens an interactive shell, with ./chat and ./ask on a scripted model."""
    if not (bash := shutil.which("bash")):
        pytest.skip("needs bash")

    def start(model: Path, script: Mapping[str, Any]) -> Person:
        for name in ("chat", "ask"):
            argv = [sys.executable, SCRIPTED, json.dumps(script), name, "-m", str(model), "--no-markdown"]
            (tmp_path / name).write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
            (tmp_path / name).chmod(0o755)
        person = open_terminal(bash, "--norc", "--noediting", "-i", size=(100, 24), PS1=SHELL, INPUTRC="/dev/null")
        person.wait_for(SHELL.strip())
        return person

    return start


@pytest.fixture
def served(tmp_path: Path, chatml_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Two servers of a scripted model, and a user with little patience in the working directory."""
    set_patience(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with serving_user(tmp_path, chatml_model) as served:
        yield served


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path / "sessions.db")) as store:
        yield store


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def endless_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose chat template never ends; the user of `tmp_path` has loaded it before, so it is not tried."""
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    model = write_chatml(tmp_path / "endless.gguf", chat_template=loops)
    monkeypatch.setattr("command_line.SOUND_MODELS", [model])
    CommandLine(tmp_path).vouch_for_models()
    return model
