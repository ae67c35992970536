"""`cerebrum doctor`: independent checks with hints, and the self-test."""

import _ctypes
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import COMMAND, PYTHON, CommandLine, Finished, start_python
from hub_server import HubServer
from person import OpenTerminal
from scripted_command import app_for

from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.doctor.checks import ANSWER, CHECKS, QUESTION
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.capacity import Build, installed_build
from cerebrum_cli.engine.llama.bindings import accelerators
from cerebrum_cli.engine.machine import CPU_FLAGS, Memory, likely_accelerator, processor_flags
from cerebrum_cli.engine.memory import Device
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.installed import NANO
from cerebrum_cli.main import run
from cerebrum_cli.terminal.streams import Streams

UNREACHABLE = "http://127.0.0.1:1"  # nothing listens there
TOKEN = "hf_ThisIsASecret"
CPU = Build("0.3.36", "0.25.3", ("CPU",), ("AVX2", "OPENMP"), False, ())
GPU = Device("CUDA0", "NVIDIA H200", 140_000_000_000, 150_000_000_000)
WITH_GPU = replace(CPU, backends=("CUDA", "CPU"), offloads=True, devices=(GPU,))


def doctor(home: Path, *arguments: str, **variables: str) -> Finished:
    """Run the command with an unreachable Hub; `variables` override the environment."""
    home.mkdir(exist_ok=True)
    environment = {"HF_ENDPOINT": UNREACHABLE, "NO_PROXY": "*", "HF_HUB_OFFLINE": "0", **variables}
    return CommandLine(home).run("doctor", *arguments, env=environment)


def by_name(done: Finished) -> dict[str, dict[str, str]]:
    return {result["name"]: result for result in done.object}


def statuses(done: Finished) -> dict[str, str]:
    """Status of each check that is not ok."""
    return {name: result["status"] for name, result in by_name(done).items() if result["status"] != "ok"}


def failures(done: Finished) -> list[str]:
    return [name for name, status in statuses(done).items() if status == "failure"]


def scripted(
    home: Path, *arguments: str, build: Callable[[], Build] = lambda: CPU, cpu: str = ANSWER, gpu: str = ANSWER
) -> Finished:
    """Run `doctor` on a scripted model with these replies on the CPU and with all layers offloaded."""
    out, err = StringIO(), StringIO()
    app = app_for({"reply": cpu}, home, Streams(out, err, None, False, False, False))
    on_cpu, on_gpu = app.open_file, app_for({"reply": gpu}, home, app.streams).open_file
    app.open_file = lambda options, *more: (on_cpu if options.gpu_layers == "0" else on_gpu)(options, *more)
    app.build = build
    app.library.cache = Cache(home / "hub")
    code = run(["doctor", "--offline", *arguments], app)
    return Finished(code, out.getvalue(), err.getvalue())


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "cerebrum" / "sessions" / "sessions.db"
    store = Store(path)
    session = store.create("talk", "chat")
    store.add_message(session, Message("user", "Why is the sky blue? " * 1000))
    store.close()
    return path


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
def test_doctor_only_warns_a_new_user_and_writes_the_list_of_devices(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": UNREACHABLE, "NO_PROXY": "*", "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run(  # in a home in which no file has been written
        [COMMAND, "doctor", "--json"],
        env=CommandLine(tmp_path).environment(environment),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    done = Finished(ran.returncode, ran.stdout, ran.stderr)
    results = by_name(done)
    assert list(results) == list(CHECKS)
    assert {tuple(result) for result in results.values()} == {("name", "status", "detail", "hint")}
    assert (done.code, done.err, statuses(done)) == (0, "", {"models": "warning", "network": "warning"})
    assert results["sessions"]["detail"] == "none yet"
    assert (results["gpu"]["detail"][:4] == "none") is (not accelerators())
    assert all(bool(result["hint"]) == (result["status"] != "ok") for result in results.values())
    assert "llama-cpp-python 0." in results["versions"]["detail"]
    assert f"{QUESTION} {ANSWER}" in results["self_test"]["detail"]
    assert "cerebrum pull starter" in results["models"]["hint"]
    assert "127.0.0.1:1: connection refused" in results["network"]["detail"]
    assert "no token" in results["network"]["detail"]
    paths = [path for name in ("config", "data", ".cache") for path in (tmp_path / name).rglob("*")]
    assert {path.relative_to(tmp_path).as_posix() for path in paths if path.is_file()} == {"data/cerebrum/devices.json"}


def test_doctor_prints_plain_lines_and_quiet_hides_ok(tmp_path: Path) -> None:
    lines = scripted(tmp_path).out.splitlines()
    assert "ok       sessions   none yet" in lines
    warning = next(at for at, line in enumerate(lines) if line.startswith("warning  models "))
    assert lines[warning + 1].startswith(" " * 20 + "hint: ")
    quiet = scripted(tmp_path, "-q")
    assert (quiet.code, quiet.err, {line[:7] for line in quiet.out.splitlines()}) == (0, "", {"warning", " " * 7})


def test_doctor_reports_models_sessions_and_the_token(tmp_path: Path, chatml_model: Path, sessions: Path) -> None:
    CommandLine(tmp_path).run("pull", chatml_model)
    before = content(sessions.parent)
    done = doctor(tmp_path, "--json", HF_TOKEN=TOKEN)
    results = by_name(done)
    assert results["models"]["detail"].endswith(" in the catalog; 1 installed; default: chatml")
    assert results["sessions"]["detail"].startswith("1 session, 1 message, undamaged; ")
    assert results["network"]["detail"].startswith("token in HF_TOKEN; ")
    assert TOKEN not in done.out
    assert content(sessions.parent) == before


def test_doctor_never_prints_a_token_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    done = doctor(tmp_path, "--json", "--offline", HF_TOKEN_PATH=str(path))
    assert TOKEN not in done.out + done.err
    assert by_name(done)["network"]["detail"] == f"skipped: --offline; token in {path}"


@pytest.mark.slow
def test_network_check_sends_no_token_and_respects_offline(tmp_path: Path) -> None:
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "hf")
        done = doctor(tmp_path, "--json", HF_TOKEN=TOKEN, **environment)
        [request] = hub.log.requests()
        skipped = doctor(tmp_path, "--json", "--offline", **environment)
        offline = doctor(tmp_path, "--json", **environment | {"HF_HUB_OFFLINE": "1"})
        assert len(hub.log.requests()) == 1
    assert (request.method, request.token) == ("HEAD", None)
    network = [by_name(finished)["network"] for finished in (done, skipped, offline)]
    assert [result["status"] for result in network] == ["ok"] * 3
    details = [f"{hub.url} is reachable", "skipped: --offline", "skipped: HF_HUB_OFFLINE is set"]
    assert [result["detail"].partition("; ")[0] for result in network] == details


def test_sessions_check_changes_nothing(tmp_path: Path, sessions: Path) -> None:
    store = Store(sessions)
    store.create("another", "chat")
    before = content(sessions.parent)
    assert by_name(scripted(tmp_path, "--json"))["sessions"]["detail"].startswith("2 sessions, 1 message")
    assert content(sessions.parent).keys() == before.keys()
    store.close()
    sessions.write_bytes(b"\xff" * 3000)
    done = scripted(tmp_path, "--json")
    assert (done.code, failures(done), content(sessions.parent)["sessions.db"]) == (1, ["sessions"], b"\xff" * 3000)
    assert "is damaged: " in by_name(done)["sessions"]["detail"] and ".recover" in by_name(done)["sessions"]["hint"]


@pytest.mark.parametrize(
    ("statement", "detail"),
    [
        ("PRAGMA user_version = 99", "written by another version of cerebrum"),
        ("PRAGMA user_version = 0", "is damaged: it belongs to another program"),
        ("DROP TABLE sessions", "is damaged: no such table: sessions"),
        ("UPDATE messages SET parent = 77", "is damaged: a row of messages refers to a missing row of messages"),
    ],
)
def test_sessions_check_fails_for_an_unusable_database(
    tmp_path: Path, sessions: Path, statement: str, detail: str
) -> None:
    database = sqlite3.connect(sessions)
    database.execute(statement)
    database.commit()
    database.close()
    done = scripted(tmp_path, "--json")
    assert (done.code, statuses(done)["sessions"]) == (1, "failure") and detail in by_name(done)["sessions"]["detail"]


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("data/cerebrum/models/registry.json", "{", {"models"}),
        ("config/cerebrum/config.toml", "threads = [", {"models"}),
        ("config/cerebrum/config.toml", "treads = 2", {"models"}),
        ("config/cerebrum/models.toml", "[models.mine]\nsize = 1", {"models"}),
        ("data/cerebrum", "not a directory", {"disk", "models"}),
    ],
)
def test_doctor_runs_all_checks_despite_an_invalid_file(tmp_path: Path, file: str, text: str, names: set[str]) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    done = scripted(tmp_path, "--json")
    assert (done.code, {*failures(done)}, path.read_text()) == (1, names, text)
    assert all(by_name(done)[name]["hint"] for name in names)


def test_models_check_warns_about_a_missing_file(tmp_path: Path, chatml_model: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(chatml_model.read_bytes())
    CommandLine(tmp_path).run("pull", file)
    file.unlink()
    done = doctor(tmp_path, "--json", "--offline")
    assert (done.code, statuses(done)["models"]) == (0, "warning")
    result = by_name(done)["models"]
    assert str(file) in result["detail"] and "cerebrum rm mine" in result["hint"]


@pytest.mark.slow
@pytest.mark.parametrize("has_file", [False] if sys.platform != "linux" else [False, True])
def test_doctor_fails_if_llama_cpp_is_not_loadable(tmp_path: Path, has_file: bool) -> None:
    if has_file:
        (tmp_path / "libllama.so").write_bytes(Path(_ctypes.__file__).read_bytes())
    environment = {"LLAMA_CPP_LIB_PATH": str(tmp_path)}
    done = CommandLine(tmp_path).run_process("doctor", "--json", "--offline", env=environment)
    assert (done.code, done.err, failures(done)) == (1, "", ["versions", "gpu", "self_test"])
    assert not has_file or "cannot load llama.cpp's library" in by_name(done)["versions"]["detail"]
    assert "pip install" in by_name(done)["versions"]["hint"]
    assert by_name(done)["self_test"]["detail"] == "skipped: llama.cpp cannot be loaded"


@pytest.mark.parametrize(
    ("build", "cpu", "gpu", "failing"),
    [
        (CPU, ANSWER, "", []),
        (CPU, "That makes 42. The answer is 42.", "", ["self_test"]),
        (WITH_GPU, ANSWER, "That makes 42. The answer is 42.", []),
        (WITH_GPU, ANSWER, "The answer is 7.", ["self_test"]),
    ],
)
def test_self_test_compares_the_text_on_the_cpu_and_the_answer_on_a_gpu(
    tmp_path: Path, build: Build, cpu: str, gpu: str, failing: list[str]
) -> None:
    done = scripted(tmp_path, "--json", build=lambda: build, cpu=cpu, gpu=gpu)
    assert (done.code, failures(done)) == (int(bool(failing)), failing)
    result = by_name(done)["self_test"]
    assert ("answers" in result["detail"] and bool(result["hint"])) is bool(failing)
    assert ("on the GPU" in result["detail"]) is (build is WITH_GPU and not failing)


@pytest.mark.slow
def test_llama_cpp_of_another_cpu_is_reported_before_it_runs(tmp_path: Path) -> None:
    features = [name for name in installed_build().cpu_features if name in CPU_FLAGS]
    code = (
        "import sys; from cerebrum_cli.engine import machine\n"
        f"machine.processor_flags = lambda: frozenset({[CPU_FLAGS[name] for name in features[:-1]]})\n"
        "from cerebrum_cli.__main__ import main; main()"
    )
    for arguments in (("doctor", "--offline", "--quiet"), ("ask", "--no-log", "-m", NANO, "What is 1 plus 1?")):
        child = start_python(code, *arguments, home=tmp_path)
        printed = "".join(child.communicate(timeout=60))
        assert child.returncode == 1 and "rebuild it on this machine: " in printed
        assert printed.count(f"llama.cpp was built for another CPU: this one lacks {features[-1]}") == 1


GB = 10**9
DISK = "cerebrum_cli.doctor.checks.disk_usage"
MEMORY = "cerebrum_cli.doctor.checks.memory"
ACCELERATOR = "cerebrum_cli.doctor.checks.likely_accelerator"
FLAGS = "cerebrum_cli.engine.machine.processor_flags"


@pytest.mark.parametrize(
    ("build", "patched", "name", "status", "text"),
    [
        (WITH_GPU, {}, "gpu", "ok", "CUDA0 NVIDIA H200: 140.00 GB of 150.00 GB free"),
        (replace(WITH_GPU, devices=()), {}, "gpu", "warning", "was built for GPUs and finds none"),
        (CPU, {ACCELERATOR: "cuda"}, "gpu", "warning", f'CMAKE_ARGS="-DGGML_CUDA=on" {PYTHON} -m pip install'),
        (CPU, {ACCELERATOR: "metal"}, "gpu", "warning", "make setup ACCEL=metal"),
        (CPU, {ACCELERATOR: None}, "gpu", "ok", "none: everything runs on the CPU"),
        (CPU, {FLAGS: None}, "versions", "ok", "backends CPU; CPU: AVX2, OPENMP"),
        (CPU, {FLAGS: frozenset({"avx2"})}, "versions", "ok", "CPU: AVX2, OPENMP"),
        (CPU, {FLAGS: frozenset({"avx2", "fma"})}, "versions", "warning", "llama.cpp does not use this CPU's FMA"),
        (CPU, {MEMORY: Memory(8 * GB, 16 * GB)}, "memory", "ok", "8.00 GB of 16.00 GB free"),
        (CPU, {MEMORY: Memory(GB, 2 * GB)}, "memory", "warning", "less than 2.00 GB of memory is free"),
        (CPU, {DISK: SimpleNamespace(free=9 * GB)}, "disk", "ok", "9.00 GB free for models in "),
        (CPU, {DISK: SimpleNamespace(free=4 * GB)}, "disk", "warning", "less than 5.00 GB free"),
    ],
)
def test_check_of_what_was_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: Build,
    patched: dict[str, Any],
    name: str,
    status: str,
    text: str,
) -> None:
    for function, result in patched.items():
        monkeypatch.setattr(function, lambda *_, result=result: result)
    found = by_name(scripted(tmp_path, "--json", build=lambda: build))[name]
    assert (found["status"], bool(found["hint"])) == (status, status != "ok")
    assert text in f"{found['detail']} {found['hint']}"


def test_processor_flags_reads_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", cpuinfo)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert processor_flags() == frozenset({"fpu", "avx2", "fma"})
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert processor_flags() == frozenset({"fp", "asimd"})
    cpuinfo.write_text("")
    assert processor_flags() is None


@pytest.mark.parametrize(
    ("system", "device", "accelerator"),
    [
        ("Linux", "dri/card0", None),
        ("Linux", "dri/renderD128", "vulkan"),
        ("Linux", "nvidia0", "cuda"),
        ("Darwin", "none", "metal"),
    ],
)
def test_likely_accelerator_finds_gpu_device_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, device: str, accelerator: str | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    (tmp_path / "dev" / "dri").mkdir(parents=True)
    (tmp_path / "dev" / device).touch()
    assert likely_accelerator(tmp_path) == accelerator


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_doctor_wraps_and_colors_at_a_terminal(open_terminal: OpenTerminal) -> None:
    person = open_terminal(COMMAND, "doctor", "--offline", size=(60, 24), TERM="xterm-256color", HF_HOME="/h")
    assert person.end() == 0
    assert "\nwarning  models" in "\n".join(person.screen.lines) and "\x1b[38;5;98mwarning" in person.output
