"""The benchmarks' own rules: what a pair is, which peer counts, what is timed; and the tools that build the peers."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import batch
import completion
import harness
import large_batch
import merge
import pytest
import start

from cerebrum_cli.engine.llama import devices
from cerebrum_cli.engine.memory import Device

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
WRITE_SLOWLY = "import sys, time; open(sys.argv[1], 'wb').write(b'x' * 1000); time.sleep(0.1)"


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# Pairs.


def test_benchmark_pairs_swap_their_order() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    medians = harness.alternate(lambda: measure("ours", 2.0), lambda: measure("peer", 4.0), runs=3)
    assert medians == (2.0, 4.0, 0.5)
    assert order == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]


def test_benchmark_server_counts_with_its_best_median() -> None:
    rounds = [{16: 9.0, 32: 8.0, 64: 1.0}, {16: 2.0, 32: 8.5, 64: 1.0}, {16: 3.0, 32: 7.5, 64: 99.0}]
    assert batch.best_slots(rounds) == 32


def test_benchmark_peak_memory_is_in_mebibytes() -> None:
    finished = harness.run([sys.executable, "-c", "x = b'x' * (100 * 2**20)"])
    assert 100 < finished.peak_mib < 10_000  # it counts this process too, from before the exec


def test_benchmark_run_reads_a_long_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "TIMEOUT_S", 20.0)
    finished = harness.run([sys.executable, "-c", "import sys; sys.stderr.write('x' * 200_000); print('done')"])
    assert (finished.output, len(finished.errors)) == ("done\n", 200_000)


def test_benchmark_machine_names_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerators", lambda: (Device("CUDA0", "H200", 2**37, 2**37),))
    monkeypatch.setattr(harness, "in_subprocess", lambda function: function())
    harness.machine.cache_clear()
    name = harness.machine()
    harness.machine.cache_clear()
    assert ", CUDA0 H200, " in name


def test_benchmark_large_batch_loses_and_repeats_no_row(tmp_path: Path) -> None:
    rate, memory, resume = large_batch.measure(tmp_path, 20_000)
    assert rate.label.startswith("batch of 20,000 rows")
    assert memory.peer == "100 bytes"
    assert resume.ratio > 0


ASK = """
case "$*" in
    *--dry-run*--raw*|*--raw*--dry-run*)
        while [ "$1" != --raw ]; do shift; done
        echo "{\\"prompt_tokens\\": $(echo "$2" | wc -w)}";;
    *--dry-run*) echo '{"prompt": "<s>Why?", "prompt_tokens": 3}';;
    *verbose=on*) echo "llama_context: n_ctx         = 512" >&2;;
    *--raw*--json*) echo '{"timings": {"ttft_s": 2.0}}';;
    *--json*) echo '{"prompt_tokens": 30, "cached_tokens": 20, "timings": {"ttft_s": 1.0}}';;
esac
"""


def test_benchmark_peer_gets_the_context_of_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "PEER_PROGRAMS", tmp_path)
    ask = [str(write_script(tmp_path / "ask", ASK))]
    peer = write_script(tmp_path / "llama-completion", "echo 'prompt eval time = 1.0 ms /  3 tokens' >&2")
    ours, own = completion.completion_peers(ask, "model.gguf", 16, dict(os.environ))
    assert own.command[0] == str(peer) and "-c" not in own.command
    assert ours.command == [*own.command, "-c", "512"]
    assert (ours.context, own.context) == ("-c 512, as ours", "its default context")
    assert own.command[own.command.index("-p") + 1] == "Why?"  # llama-completion adds <s> by itself
    write_script(peer, "echo 'prompt eval time = 1.0 ms /  4 tokens' >&2")
    with pytest.raises(RuntimeError, match="4 prompt tokens, not 3"):
        completion.completion_peers(ask, "model.gguf", 16, dict(os.environ))


def test_benchmark_second_question_is_timed_after_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "SCRIPT", str(write_script(tmp_path / "ask", ASK)))
    row = start.second_question_row("model.gguf", None, runs=3)
    assert (row.ours, row.peer, row.ratio) == ("1.00 s (20 tokens cached, 10 evaluated)", "2.00 s", 0.5)
    assert row.label.startswith("first token after load")


def test_benchmark_writing_counts_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x")
    flushed: list[int] = []

    def slow_fsync(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        time.sleep(0.1)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    finished = merge.time_writing([sys.executable, "-c", WRITE_SLOWLY, str(target)], source, target)
    assert len(flushed) == 1 and finished.seconds >= 0.2
    assert not target.exists()


# The tools.


@pytest.fixture
def older_python(tmp_path: Path) -> Path:
    """An interpreter that passes for Python 3.9."""
    older = "import sys; code = sys.argv[2]; sys.version_info = (3, 9, 1, 'final', 0); exec(code)"
    version = 'if [ "$1" = --version ]; then echo Python 3.9.1; exit; fi\n'
    return write_script(tmp_path / "older", version + f'exec "{sys.executable}" -c "{older}" "$@"')


def make_setup(directory: Path, python: Path | str) -> str:
    """Run `make setup` in a copy of the project's Makefile, which has to fail; return what it prints."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, directory)
    command = ["make", "-C", str(directory), "setup", f"PYTHON={python}"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode, finished.stdout
    return finished.stderr


def test_setup_refuses_an_older_python(tmp_path: Path, older_python: Path) -> None:
    printed = make_setup(tmp_path, older_python)
    assert f"Python 3.11 or newer is needed; {older_python} is Python 3.9.1\n" in printed
    assert "run: make setup PYTHON=python3.11\n" in printed
    assert not (tmp_path / ".venv").exists()


def test_setup_refuses_a_venv_of_an_older_python(tmp_path: Path, older_python: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    older_python.rename(tmp_path / ".venv" / "bin" / "python")
    printed = make_setup(tmp_path, sys.executable)
    assert "Python 3.11 or newer is needed; .venv/bin/python is Python 3.9.1\n" in printed
    assert "run: rm -r .venv && make setup PYTHON=python3.11\n" in printed


FAKE_PYTHON = """
case "$*" in
    *version*) echo 0.0.1;;
    *purelib*) case "$0" in */.peers/*) dirname "$0";; *) echo "$FAKE/packages";; esac;;
    *affinity*) echo 3;;
    *"pip download"*)
        echo download >> "$FAKE/log"
        for each; do case "$previous" in --dest) to=$each;; esac; previous=$each; done
        cp "$FAKE/llama_cpp_python-0.0.1.tar.gz" "$to";;
    *"venv "*)
        for each; do to=$each; done
        mkdir -p "$to/bin"; cp "$0" "$to/bin/python"; cp "$0" "$to/bin/pip";;
    *"install --quiet cmake"*) cp "$FAKE/cmake" "$(dirname "$0")/cmake";;
    *"install --quiet llm"*) [ ! -e "$FAKE/offline" ] || exit 1; echo llm >> "$FAKE/log";;
    *) exit 9;;
esac
"""
FAKE_CMAKE = """
echo "cmake $*" >> "$FAKE/log"
case "$*" in
    *--build*) [ ! -e "$FAKE/broken" ] || { echo "error: it is broken" >&2; exit 1; };;
    *) for each; do case "$previous" in -B) mkdir -p "$each/bin";; esac; previous=$each; done;;
esac
"""
TOOLS = ("sh", "dirname", "cat", "ls", "tr", "rm", "mkdir", "mv", "cp", "touch", "tar", "gzip", "tail")


class PeersProject:
    """A copy of benchmarks/peers.sh with fakes of what it runs: no cmake, and no nproc, as on a fresh machine."""

    def __init__(self, directory: Path) -> None:
        self.fake, self.tools = directory / "fake", directory / "tools"
        self.peers = directory / "project" / ".peers"
        self.script = directory / "project" / "benchmarks" / "peers.sh"
        self.script.parent.mkdir(parents=True)
        shutil.copy(ROOT / "benchmarks" / "peers.sh", self.script)
        self.python = write_script(self.fake / "python", FAKE_PYTHON)
        write_script(self.fake / "cmake", FAKE_CMAKE)
        self.library("ggml-base", "ggml-cpu")
        (self.fake / "packages" / "llama_cpp_python-0.0.1.dist-info").mkdir()
        sources = self.fake / "llama_cpp_python-0.0.1" / "vendor" / "llama.cpp"
        sources.mkdir(parents=True)
        (sources / "CMakeLists.txt").write_text("whole")
        archive = ["tar", "-czf", "llama_cpp_python-0.0.1.tar.gz", "llama_cpp_python-0.0.1"]
        subprocess.run(archive, cwd=self.fake, check=True)
        self.tools.mkdir()
        for tool in TOOLS:
            (self.tools / tool).symlink_to(str(shutil.which(tool)))

    def library(self, *names: str) -> None:
        """Add libraries to the installed llama-cpp-python."""
        folder = self.fake / "packages" / "llama_cpp" / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / f"lib{name}.so").touch()

    def build(self) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        environment = {"PATH": str(self.tools), "FAKE": str(self.fake)}
        command = [str(self.tools / "sh"), str(self.script), str(self.python)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def log(self) -> list[str]:
        """What the script has run so far; empties the log."""
        log = self.fake / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def project(tmp_path: Path) -> PeersProject:
    return PeersProject(tmp_path)


def test_peers_are_built_without_cmake_and_nproc(project: PeersProject) -> None:
    finished = project.build()
    assert finished.returncode == 0, finished.stderr
    download, configure, build, llm = project.log()
    assert (download, llm) == ("download", "llm")
    assert "-DGGML_CUDA=OFF" in configure and "-DGGML_METAL=OFF" in configure
    assert "--parallel 3 " in build
    assert project.build().returncode == 0 and project.log() == []


def test_peers_are_built_for_the_installed_devices(project: PeersProject) -> None:
    assert project.build().returncode == 0
    project.log()
    project.library("ggml-cuda")
    finished = project.build()
    assert finished.returncode == 0, finished.stderr
    configure, _, llm = project.log()
    assert "-DGGML_CUDA=ON" in configure and "-DGGML_VULKAN=OFF" in configure and llm == "llm"
    assert [path.name for path in (project.peers / "build").glob("*.built")] == ["0.0.1-cuda.built"]


def test_peers_are_unpacked_again_after_an_interruption(project: PeersProject) -> None:
    archive = project.fake / "llama_cpp_python-0.0.1.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert project.build().returncode
    archive.write_bytes(whole)
    finished = project.build()
    assert finished.returncode == 0, finished.stderr
    sources = project.peers / "llama_cpp_python-0.0.1" / "vendor" / "llama.cpp"
    assert (sources / "CMakeLists.txt").read_text() == "whole"


def test_peers_are_installed_again_after_a_failure(project: PeersProject) -> None:
    (project.fake / "offline").touch()
    assert project.build().returncode
    (project.fake / "offline").unlink()
    project.log()
    assert project.build().returncode == 0 and project.log() == ["llm"]


def test_peers_report_why_a_build_failed(project: PeersProject) -> None:
    (project.fake / "broken").touch()
    finished = project.build()
    assert finished.returncode == 1
    problem, hint = finished.stderr.splitlines()
    assert problem == "error: it is broken"
    assert hint == f"building llama.cpp's programs failed; the whole log: {project.peers / 'build.log'}"
    assert not list((project.peers / "build").glob("*.built"))


def test_peers_llm_runs_on_as_many_threads(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("class Llama:\n    def __init__(self, **given): self.given = given\n")
    (tmp_path / "llm.py").write_text(
        "import json, sys, llama_cpp\nprint(json.dumps([sys.argv[1:], llama_cpp.Llama(model_path='x').given]))\n"
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "llm_threads.py"), "2", "-m", "SmolLM2", "Hello"]
    output = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout
    options = {"n_threads": 2, "n_threads_batch": 2, "n_gpu_layers": -1, "model_path": "x"}
    assert json.loads(output) == [["-m", "SmolLM2", "Hello"], options]
