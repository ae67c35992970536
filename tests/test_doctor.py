"""`cerebrum doctor`: each thing it looks at is well or not, whatever becomes of the others, and it says what to do."""

from __future__ import annotations

import math
import sqlite3
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pexpect
import pytest
from command_line import COMMAND, CommandLine, Finished
from hub_server import HubServer
from screen import Screen
from scripted_command import runtime_for

from cerebrum_cli.application.doctor.assessment import (
    Place,
    judged_build,
    judged_devices,
    judged_disk,
    judged_memory,
    judged_states,
    judged_threads,
)
from cerebrum_cli.application.doctor.check_result import CheckResult, check_result
from cerebrum_cli.application.doctor.checks import CHECKS, in_time, place
from cerebrum_cli.application.doctor.selftest import ANSWER, NANO, QUESTION
from cerebrum_cli.catalogue.cache import Cache
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.build import Build, read_features
from cerebrum_cli.engine.machine import Processors, likely_accelerator, processor_flags
from cerebrum_cli.engine.plan import Device
from cerebrum_cli.main import run
from cerebrum_cli.sessions.store import Store
from cerebrum_cli.terminal.doctor_report import Screen as Seen
from cerebrum_cli.terminal.doctor_report import finding_text, judged_screen
from cerebrum_cli.terminal.streams import Streams

NOBODY = "http://127.0.0.1:1"  # where nothing listens
TOKEN = "hf_ThisIsASecretOfTheUser"
CPU = Build("0.3.36", "0.25.3", ("CPU",), {"CPU": {"AVX2": "1", "OPENMP": "1"}}, False, ())
GPU = Device("CUDA0", "NVIDIA H200", 140_000_000_000, 150_000_000_000)
WITH_GPU = replace(CPU, backends=("CUDA", "CPU"), offloads=True, devices=(GPU,))


def doctor(home: Path, *arguments: str, **more: str) -> Finished:
    """Run the installed command for a user whose Hub is silent, unless `more` says otherwise."""
    home.mkdir(exist_ok=True)
    environment = {"HF_ENDPOINT": NOBODY, "NO_PROXY": "*", "HF_HUB_OFFLINE": "0", **more}
    return CommandLine(home).run("doctor", *arguments, env=environment)


def by_name(done: Finished) -> dict[str, dict[str, str]]:
    """Return the findings of `--json` by their names."""
    return {finding["name"]: finding for finding in done.object}


def statuses(done: Finished) -> dict[str, str]:
    """Return what is not well."""
    return {name: finding["status"] for name, finding in by_name(done).items() if finding["status"] != "ok"}


def scripted(
    home: Path, *arguments: str, build: Callable[[], Build] = lambda: CPU, cpu: str = ANSWER, gpu: str = ANSWER
) -> Finished:
    """Run `doctor` on a scripted model, which says one thing on the CPU and one where all is offloaded."""
    out, err = StringIO(), StringIO()
    runtime = runtime_for({"reply": cpu}, home, Streams(out, err, None, False, False, False))
    on_cpu, on_gpu = runtime.open_backend, runtime_for({"reply": gpu}, home, runtime.streams).open_backend
    runtime.open_backend = lambda options: (on_cpu if options.gpu_layers == "0" else on_gpu)(options)
    runtime.build = build
    runtime.library.given_cache = Cache(home / "hub")
    code = run(["doctor", "--offline", *arguments], runtime)
    return Finished(code, out.getvalue(), err.getvalue())


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """Return the database of the user in `tmp_path`, who has said something."""
    path = tmp_path / "data" / "cerebrum" / "sessions" / "sessions.db"
    store = Store(path)
    session = store.create("talk", "chat")
    store.add_message(session, Message("user", "Why is the sky blue? " * 1000))
    store.close()
    return path


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_user_is_told_what_is_not_there_yet_and_nothing_has_failed(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json")
    assert (done.code, done.err) == (0, "")
    findings = by_name(done)
    assert list(findings) == [name for name in CHECKS if name in findings]
    assert set(CHECKS) - {"self_test_gpu"} <= set(findings)
    assert {tuple(finding) for finding in findings.values()} == {("name", "status", "detail", "hint")}
    assert {"models", "token", "network", "hugging_face_cache"} <= statuses(done).keys()
    assert set(statuses(done).values()) == {"warning"}
    assert all(bool(finding["hint"]) == (finding["status"] != "ok") for finding in findings.values())
    assert "llama-cpp-python 0." in findings["llama_cpp"]["detail"]
    assert findings["self_test"]["status"] == "ok"
    assert f"{QUESTION} {ANSWER}" in findings["self_test"]["detail"]
    assert "cerebrum pull starter" in findings["models"]["hint"]
    assert "127.0.0.1:1: connection refused" in findings["network"]["detail"]
    assert findings["sessions"]["detail"] == "none yet"


def test_to_look_makes_no_folder_but_that_for_what_the_model_saw(tmp_path: Path) -> None:
    doctor(tmp_path, "--offline")
    made = [path for folder in ("config", "data", ".cache") for path in (tmp_path / folder).rglob("*")]
    assert {path.relative_to(tmp_path).as_posix() for path in made if path.is_file()} == {"data/cerebrum/devices.json"}


def test_lines_in_a_pipe_are_clean_and_quiet_leaves_out_what_is_well(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    lines = done.out.splitlines()
    assert lines[0].startswith("ok       cerebrum            cerebrum ")
    assert "warning  models              no model is installed" in lines
    assert lines[lines.index("warning  models              no model is installed") + 1].startswith(" " * 29 + "try: ")
    assert "\x1b" not in done.out
    quiet = doctor(tmp_path, "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert {line[:7] for line in quiet.out.splitlines()} == {"warning", " " * 7}


def test_a_user_with_a_model_sessions_and_a_token_is_told_of_them(
    tmp_path: Path, chatml_model: Path, sessions: Path
) -> None:
    CommandLine(tmp_path).run("pull", chatml_model)
    before = content(sessions.parent)
    done = doctor(tmp_path, "--json", HF_TOKEN=TOKEN)
    findings = by_name(done)
    assert findings["models"]["detail"] == "1 here; chatml is asked where none is named"
    assert findings["sessions"]["detail"].startswith("1, of 1 messages, whole; ")
    assert findings["token"] == asdict(check_result("token", "found in HF_TOKEN"))
    assert TOKEN not in done.out
    assert content(sessions.parent) == before


def test_a_token_in_a_file_is_not_shown_either(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    done = doctor(tmp_path, "--json", "--offline", HF_TOKEN_PATH=str(path))
    assert by_name(done)["token"]["detail"] == f"found in {path}"
    path.write_text(f"{TOKEN} {TOKEN}\n")
    spoilt = doctor(tmp_path, "--json", "--offline", HF_TOKEN_PATH=str(path))
    assert (spoilt.code, statuses(spoilt)["token"]) == (1, "failure")
    assert TOKEN not in done.out + spoilt.out + doctor(tmp_path, "--offline", HF_TOKEN_PATH=str(path)).out


def test_a_hub_that_answers_is_reached_and_not_told_the_token(tmp_path: Path) -> None:
    with HubServer() as hub:
        done = doctor(tmp_path, "--json", HF_TOKEN=TOKEN, **hub.environment(tmp_path / "hf"))
        [request] = hub.log.requests()
        assert (request.method, request.token) == ("HEAD", None)
    assert by_name(done)["network"] == asdict(check_result("network", f"{hub.url} answers"))


def test_who_wants_no_network_is_left_alone(tmp_path: Path) -> None:
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "hf")
        asked = doctor(tmp_path, "--json", "--offline", **environment)
        forbidden = doctor(tmp_path, "--json", **environment | {"HF_HUB_OFFLINE": "1"})
        assert not hub.log.requests()
    assert by_name(asked)["network"]["status"] == "ok"
    assert by_name(forbidden)["network"]["detail"] == "HF_HUB_OFFLINE is set"


@pytest.mark.parametrize("start", [0, 4096 + 8])
def test_a_damaged_session_database_is_a_failure_and_stays_as_it_is(tmp_path: Path, sessions: Path, start: int) -> None:
    whole = sessions.read_bytes()
    sessions.write_bytes(whole[:start] + b"\xff" * 3000 + whole[start + 3000 :])
    before = content(sessions.parent)
    done = doctor(tmp_path, "--offline", "--json")
    assert (done.code, done.err) == (1, "")
    assert [name for name, status in statuses(done).items() if status == "failure"] == ["sessions"]
    assert "is damaged: " in by_name(done)["sessions"]["detail"]
    assert ".recover" in by_name(done)["sessions"]["hint"]
    assert content(sessions.parent) == before


def test_a_database_in_use_is_checked_with_what_its_log_holds(tmp_path: Path, sessions: Path) -> None:
    store = Store(sessions)
    store.create("another", "chat")
    before = content(sessions.parent)
    assert "sessions.db-wal" in before
    done = doctor(tmp_path, "--offline", "--json")
    assert by_name(done)["sessions"]["detail"].startswith("2, of 1 messages")
    assert content(sessions.parent).keys() == before.keys()
    store.close()


@pytest.mark.parametrize(
    ("statement", "detail"),
    [
        ("PRAGMA user_version = 99", "written by a newer cerebrum"),
        ("PRAGMA user_version = 0", "is damaged: it belongs to another program"),
        ("DROP TABLE sessions", "is damaged: no such table: sessions"),
        ("UPDATE messages SET parent = 77", "is damaged: a row of messages refers to a missing row of messages"),
    ],
)
def test_a_database_that_cannot_be_gone_on_with_is_a_failure(
    tmp_path: Path, sessions: Path, statement: str, detail: str
) -> None:
    database = sqlite3.connect(sessions)
    database.execute(statement)
    database.commit()
    database.close()
    done = scripted(tmp_path, "--json")
    assert (done.code, statuses(done)["sessions"]) == (1, "failure")
    assert detail in by_name(done)["sessions"]["detail"]


def test_a_folder_in_the_database_s_place_is_a_failure_and_an_empty_file_is_none(
    tmp_path: Path, sessions: Path
) -> None:
    sessions.write_bytes(b"")
    assert by_name(scripted(tmp_path, "--json"))["sessions"]["status"] == "ok"
    sessions.unlink()
    sessions.mkdir()
    assert "can be read and written" in by_name(scripted(tmp_path, "--json"))["sessions"]["hint"]


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("data/cerebrum/models/registry.json", "{", {"models"}),
        ("config/cerebrum/config.toml", "threads = [", {"config"}),
        ("config/cerebrum/config.toml", "treads = 2", {"config"}),
        ("config/cerebrum/models.toml", "[models.mine]\nsize = 1", {"catalogue"}),
        ("data/cerebrum", "no folder", {"disk", "models"}),
    ],
)
def test_a_file_that_cannot_be_used_fails_and_the_rest_is_looked_at(
    tmp_path: Path, file: str, text: str, names: set[str]
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    done = scripted(tmp_path, "--json")
    assert done.code == 1
    assert {name for name, status in statuses(done).items() if status == "failure"} == names
    assert all(by_name(done)[name]["hint"] for name in names)
    assert path.read_text() == text


def test_an_address_that_is_none_fails_where_it_matters_and_the_model_is_asked(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", HF_ENDPOINT="nonsense")
    assert done.code == 1
    assert "HF_ENDPOINT='nonsense'" in by_name(done)["network"]["detail"]
    assert by_name(done)["self_test"]["status"] == "ok"


def test_a_model_whose_file_is_gone_is_a_warning(tmp_path: Path, chatml_model: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(chatml_model.read_bytes())
    CommandLine(tmp_path).run("pull", file)
    file.unlink()
    done = doctor(tmp_path, "--json", "--offline")
    assert (done.code, statuses(done)["models"]) == (0, "warning")
    assert str(file) in by_name(done)["models"]["detail"]
    assert "cerebrum rm mine" in by_name(done)["models"]["hint"]


def test_the_model_that_would_be_asked_is_the_one_that_is_looked_for(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", "--offline", CEREBRUM_MODEL=str(NANO))
    assert by_name(done)["models"] == asdict(check_result("models", "nano is asked where none is named"))
    unpulled = doctor(tmp_path, "--json", "--offline", CEREBRUM_MODEL="cerebrum-7b")
    assert (unpulled.code, by_name(unpulled)["models"]["hint"]) == (0, "cerebrum pull cerebrum-7b")


def test_a_llama_cpp_that_cannot_be_loaded_fails_without_a_traceback(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", "--offline", LLAMA_CPP_LIB_PATH=str(tmp_path / "none"))
    assert (done.code, done.err) == (1, "")
    failed = [name for name, status in statuses(done).items() if status == "failure"]
    assert failed == ["llama_cpp", "self_test"]
    assert "self_test_gpu" not in by_name(done)
    assert all("pip install" in by_name(done)[name]["hint"] for name in failed)


@pytest.mark.skipif(sys.platform != "linux", reason="libraries have other names elsewhere")
def test_a_library_that_is_not_the_one_its_bindings_are_for_is_no_traceback(tmp_path: Path) -> None:
    import _ctypes

    (tmp_path / "libllama.so").write_bytes(Path(_ctypes.__file__).read_bytes())
    done = doctor(tmp_path, "--json", "--offline", LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert (done.code, done.err) == (1, "")
    assert "cannot be loaded" in by_name(done)["llama_cpp"]["detail"]


def test_a_model_that_says_something_else_fails(tmp_path: Path) -> None:
    done = scripted(tmp_path, "--json", cpu="It is 41. The answer is 41.")
    assert done.code == 1
    finding = by_name(done)["self_test"]
    assert finding["status"] == "failure"
    assert "It is 41. The answer is 41." in finding["detail"]
    assert scripted(tmp_path, cpu=ANSWER).code == 0


def test_where_there_is_a_gpu_it_must_come_to_the_same_answer(tmp_path: Path) -> None:
    build = lambda: WITH_GPU  # noqa: E731
    same = scripted(tmp_path, "--json", build=build, gpu="That makes 42. The answer is 42.")
    assert (same.code, by_name(same)["self_test_gpu"]["status"]) == (0, "ok")
    other = scripted(tmp_path, "--json", build=build, gpu="The answer is 7.")
    assert (other.code, by_name(other)["self_test_gpu"]["status"]) == (1, "failure")
    assert "--gpu-layers 0" in by_name(other)["self_test_gpu"]["hint"]
    assert by_name(other)["self_test"]["status"] == "ok"
    assert "self_test_gpu" not in by_name(scripted(tmp_path, "--json"))


def test_a_build_for_another_processor_is_found_before_it_ends_the_process(tmp_path: Path) -> None:
    foreign = replace(CPU, features={"CPU": {"SME": "1", "AMX_INT8": "1"}})  # no processor has both
    done = scripted(tmp_path, "--json", build=lambda: foreign)
    if processor_flags() is None:
        pytest.skip("this system does not tell what its processor can")
    assert done.code == 1
    assert statuses(done)["llama_cpp"] == statuses(done)["self_test"] == "failure"
    assert by_name(done)["self_test"]["detail"].startswith("not run: ")


def test_an_engine_that_fails_and_a_bug_are_told_apart(tmp_path: Path) -> None:
    def fails(error: Exception) -> Callable[[], Build]:
        def build() -> Build:
            raise error

        return build

    assert scripted(tmp_path, build=fails(EngineError("no", "hint"))).code == 1
    with pytest.raises(ZeroDivisionError):
        scripted(tmp_path, build=fails(ZeroDivisionError()))


def test_more_threads_than_there_are_processors_is_a_warning_and_none_is_a_usage_error(tmp_path: Path) -> None:
    done = scripted(tmp_path, "--json", "--threads", "1024")
    assert (done.code, statuses(done)["threads"]) == (0, "warning")
    assert scripted(tmp_path, "--threads", "0").code == 2


HERE = Processors(logical=16, cores=8, allowed=16, quota=math.inf)


@pytest.mark.parametrize(
    ("here", "asked", "status", "detail"),
    [
        (HERE, None, "ok", "8 used; 16 processors in 8 cores, affinity 16, cgroup no limit"),
        (HERE, 16, "ok", "16 used; 16 processors in 8 cores, affinity 16, cgroup no limit"),
        (HERE, 17, "warning", "17 are asked for and 16 can run at once"),
        (replace(HERE, allowed=4), None, "ok", "4 used; 16 processors in 8 cores, affinity 4"),
        (replace(HERE, quota=1.5), None, "ok", "2 used; 16 processors in 8 cores, affinity 16, cgroup 1.5"),
        (replace(HERE, quota=1.5), 3, "warning", "3 are asked for and 2 can run at once"),
    ],
)
def test_threads_are_judged_by_affinity_and_cgroup(
    here: Processors, asked: int | None, status: str, detail: str
) -> None:
    finding = judged_threads(here, asked)
    assert finding.status == status
    assert detail in finding.detail


@pytest.mark.parametrize(
    ("build", "likely", "status", "detail", "hint"),
    [
        (WITH_GPU, "cuda", "ok", "CUDA0 NVIDIA H200: 140.00 GB of 150.00 GB free", ""),
        (replace(WITH_GPU, devices=()), "cuda", "warning", "llama.cpp, with CUDA, CPU, finds no GPU", "nvidia-smi"),
        (CPU, "cuda", "warning", "there seems to be a GPU", 'CMAKE_ARGS="-DGGML_CUDA=on" pip install'),
        (CPU, "metal", "warning", "there seems to be a GPU", "make setup ACCEL=metal"),
        (CPU, "vulkan", "warning", "there seems to be a GPU", "-DGGML_VULKAN=on"),
        (CPU, None, "warning", "no GPU: everything runs on the CPU", "cerebrum list --available"),
    ],
)
def test_a_gpu_is_judged_by_what_the_build_knows_and_the_machine_seems_to_have(
    build: Build, likely: str | None, status: str, detail: str, hint: str
) -> None:
    finding = judged_devices(build, likely)
    assert finding.status == status
    assert detail in finding.detail
    assert hint in finding.hint


@pytest.mark.parametrize(
    ("flags", "status", "detail"),
    [
        (None, "ok", "backends CPU; no offload; CPU: AVX2, OPENMP"),
        (frozenset({"avx2"}), "ok", "CPU: AVX2, OPENMP"),
        (frozenset({"sse2"}), "failure", "this one has no AVX2"),
        (frozenset({"avx2", "fma"}), "warning", "it leaves FMA of this processor alone"),
    ],
)
def test_a_build_is_judged_by_the_processor(flags: frozenset[str] | None, status: str, detail: str) -> None:
    finding = judged_build(CPU, flags)
    assert finding.status == status
    assert detail in finding.detail


def test_this_llama_cpp_is_built_for_this_processor(tmp_path: Path) -> None:
    assert by_name(doctor(tmp_path, "--json", "--offline"))["llama_cpp"]["status"] != "failure"


def test_what_llama_cpp_says_of_itself_is_read_backend_by_backend() -> None:
    text = "CUDA : ARCHS = 890,900 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | AVX512 = 0 | REPACK = 1 | "
    features = read_features(text)
    assert features == {
        "CUDA": {"ARCHS": "890,900", "USE_GRAPHS": "1"},
        "CPU": {"SSE3": "1", "AVX512": "0", "REPACK": "1"},
    }
    assert replace(CPU, features=features).cpu_features == ("SSE3", "REPACK")
    assert read_features("") == {}


def test_the_processor_s_flags_are_read_where_the_system_tells_them(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert processor_flags(x86) == frozenset({"fpu", "avx2", "fma"})
    assert processor_flags(arm) == frozenset({"fp", "asimd"})
    assert processor_flags(tmp_path / "none") is None


def test_signs_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    (tmp_path / "dev" / "dri").mkdir(parents=True)
    (tmp_path / "dev" / "dri" / "card0").touch()
    assert likely_accelerator(tmp_path) is None
    (tmp_path / "dev" / "dri" / "renderD128").touch()
    assert likely_accelerator(tmp_path) == "vulkan"
    (tmp_path / "dev" / "nvidia0").touch()
    assert likely_accelerator(tmp_path) == "cuda"
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert likely_accelerator(tmp_path / "elsewhere") == "metal"


def test_memory_and_disk_are_judged_in_bytes() -> None:
    assert judged_memory(8 * 10**9, 16 * 10**9, 16 * 10**9) == CheckResult("memory", "ok", "8.00 GB of 16.00 GB free")
    little = judged_memory(10**9, 2 * 10**9, 16 * 10**9)
    assert little.status == "warning"
    assert "a cgroup allows 2.00 GB of the machine's 16.00 GB" in little.detail
    models = Place("models", Path("/m"), True, disk=1, free=9 * 10**9)
    states, data = replace(models, use="kept states"), replace(models, use="data", disk=2, free=6 * 10**9)
    assert (
        judged_disk([models, states, data]).detail == "9.00 GB free for models and kept states; 6.00 GB free for data"
    )
    assert judged_disk([models, states, data]).status == "ok"
    assert judged_disk([replace(models, free=4 * 10**9), data]).status == "warning"
    assert judged_disk([replace(models, writable=False), data]).status == "ok"
    assert judged_disk([models, replace(data, writable=False)]).status == "failure"
    assert judged_states(states, 0, 0, 4e9).detail == "no files, 0 kB of at most 4.00 GB"
    assert judged_states(states, 2, 10**9, 4e9).status == "ok"
    assert judged_states(states, 2, 10**9, 0).detail == "nothing is kept: cache_gb is 0; 1.00 GB lie there"
    assert judged_states(replace(states, writable=False), 0, 0, 4e9).status == "warning"


def test_a_folder_that_is_not_there_is_judged_by_the_one_it_will_be_made_in(tmp_path: Path) -> None:
    assert place("data", tmp_path / "a" / "b").writable
    (tmp_path / "a").touch()
    assert not place("data", tmp_path / "a" / "b").writable
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


SEEN = Seen(True, 80, "UTF-8", "xterm-256color", None, False, False)


@pytest.mark.parametrize(
    ("screen", "status", "detail"),
    [
        (SEEN, "ok", "xterm-256color, 80 columns, 256 colors, UTF-8"),
        (replace(SEEN, colorterm="truecolor"), "ok", "xterm-256color, 80 columns, 24-bit color, UTF-8"),
        (replace(SEEN, no_color=True), "ok", "xterm-256color, 80 columns, no colors (NO_COLOR), UTF-8"),
        (replace(SEEN, accessible=True), "ok", "UTF-8, for a screen reader (ACCESSIBLE)"),
        (replace(SEEN, term="dumb"), "warning", "dumb, 80 columns, no colors"),
        (replace(SEEN, term=None), "warning", "TERM is not set, 80 columns"),
        (replace(SEEN, encoding="ANSI_X3.4-1968"), "warning", "ANSI_X3.4-1968; it may show other letters"),
        (replace(SEEN, is_terminal=False, encoding="ISO-8859-1", term=None), "ok", "none: standard output is a pipe"),
    ],
)
def test_a_terminal_is_judged_by_what_it_can_show(screen: Seen, status: str, detail: str) -> None:
    finding = judged_screen(screen)
    assert finding.status == status
    assert detail in finding.detail


def test_a_finding_is_wrapped_beside_its_name_or_where_that_is_too_narrow_below_it() -> None:
    finding = CheckResult(
        "token", "warning", "none, so private and gated models are unavailable", "log in: hf auth login"
    )
    assert finding_text(finding, None) == (
        "warning  token               none, so private and gated models are unavailable\n"
        "                             try: log in: hf auth login\n"
    )
    assert finding_text(finding, 60) == (
        "warning  token               none, so no private and no\n"
        "                             gated models\n"
        "                             try: log in: hf auth login\n"
    )
    assert finding_text(finding, 25) == (
        "warning  token\n  none, so no private and\n  no gated models\n  try: log in: hf auth\n       login\n"
    )
    long = CheckResult("disk", "ok", "/a/path/that/is/longer/than/the/terminal/is/wide")
    assert finding_text(long, 25) == f"ok       disk\n  {long.detail}\n"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("columns", "more", "coloured"), [(80, {}, True), (40, {}, True), (80, {"NO_COLOR": "1"}, False)]
)
def test_a_terminal_shows_lines_that_fit_and_colours_where_they_are_wanted(
    tmp_path: Path, columns: int, more: Mapping[str, str], coloured: bool
) -> None:
    environment = CommandLine(tmp_path).environment({"TERM": "xterm-256color", "HF_HOME": "/h", **more})
    pty: Any = pexpect.spawn(COMMAND, ["doctor", "--offline"], env=environment, dimensions=(24, columns), timeout=60)
    pty.expect(pexpect.EOF)
    pty.close()
    assert pty.exitstatus == 0
    screen = Screen(columns, 24)
    screen.feed(pty.before)
    assert any(line.startswith("warning  token") for line in screen.lines)
    assert any(f"{columns} columns" in line for line in screen.lines)
    assert (b"\x1b[33mwarning" in pty.before) == coloured
    assert coloured or b"\x1b[" not in pty.before


def test_what_takes_too_long_is_left_to_itself() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError):
        in_time(never.wait, 0.05)
    never.set()
    assert in_time(lambda: 7, 5) == 7
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 // 0, 5)


def test_the_packaged_model_is_where_it_is_looked_for() -> None:
    assert NANO.is_file()
