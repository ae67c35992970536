"""Measure two commands or functions in alternation, compare them pairwise, and record the results in RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import date
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

Environment = Mapping[str, str]
P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

ROOT = Path(__file__).resolve().parent.parent
PEER_PROGRAMS = ROOT / ".peers" / "build" / "bin"
SCRIPT = str(Path(sys.executable).parent / "cerebrum")
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has bytecode, too: the warm-up writes it
TIMEOUT_S = 3600.0  # far longer than any measured process takes, even on a slow machine
KERNELS = {"AVX512": "AVX-512", "AVX2": "AVX2", "AVX": "AVX", "SVE": "SVE", "NEON": "NEON"}


class Run(NamedTuple):
    """A finished process: wall time and CPU time in seconds, peak memory in MiB, standard output and standard error.

    `first_byte_s` is the time to the first byte on its standard output, or to the end without one.
    """

    seconds: float
    peak_mib: float
    output: str
    errors: str
    first_byte_s: float
    cpu_s: float


class Row(NamedTuple):
    """A row of the table; `target` limits the ratio and begins with `<=` or `>=`."""

    label: str
    ours: str
    peer: str
    ratio: float
    target: str

    @property
    def met(self) -> bool:
        """Whether the ratio is within the target."""
        limit = float(self.target.split()[-1])
        return self.ratio >= limit if self.target.startswith(">=") else self.ratio <= limit


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark's options, with --dry-run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="do not write to RESULTS.md")
    return parser


def run(command: Sequence[str], stdin_text: str | None = None, environment: Environment | None = None) -> Run:
    """Run a command to completion; RuntimeError if it fails. `stdin_text` must fit into the pipe's buffer."""
    source = subprocess.DEVNULL if stdin_text is None else subprocess.PIPE
    with tempfile.TemporaryFile() as log:  # not a pipe, which a long log would fill while the output is read
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=log, env=environment)
        assert process.stdout is not None
        with time_limit(process), process.stdout:
            if process.stdin is not None and stdin_text is not None:
                process.stdin.write(stdin_text.encode())
                process.stdin.close()
            output = process.stdout.read(1)
            first_byte_s = time.perf_counter() - start
            output += process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        errors = log.read().decode()
    if process.returncode:
        raise RuntimeError(f"{command} failed with exit code {process.returncode}: {errors[-2000:]}")
    peak_mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # macOS reports bytes, Linux KiB
    text = output.decode(errors="replace")  # random weights write any bytes
    return Run(seconds, peak_mib, text, errors, first_byte_s, usage.ru_utime + usage.ru_stime)


def require_peers() -> None:
    """Exit with a message unless `make peers` has built all of llama.cpp's programs.

    On Linux they then run with the library of this process, which may be another build, such as
    that of `scripts/build.sh avx2 --target .venv/avx2`.
    """
    if not any(PEER_PROGRAMS.parent.glob("*.programs")):
        sys.exit("the peers are not built\nrun `make peers` first")
    package = find_spec("llama_cpp")
    assert package and package.submodule_search_locations
    os.environ["LD_LIBRARY_PATH"] = str(Path(package.submodule_search_locations[0]) / "lib")


def time_to_first_byte(command: Sequence[str], environment: Environment | None = None) -> float:
    """Seconds from starting a command to the first byte on its standard output; RuntimeError without one."""
    finished = run(command, environment=environment)
    if not finished.output:
        raise RuntimeError(f"{command} wrote nothing: {finished.errors[-2000:]}")
    return finished.first_byte_s


@contextmanager
def time_limit(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process that runs longer than TIMEOUT_S."""
    timer = threading.Timer(TIMEOUT_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def isolated_environment(directory: Path) -> dict[str, str]:
    """Environment without the user's configuration, data and caches, which are redirected to a directory.

    Models must be given as paths, because no model is registered there.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CEREBRUM_")}
    return inherited | {f"XDG_{name.upper()}_HOME": str(directory / name) for name in ("config", "data", "cache")}


def in_subprocess(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call a module-level function in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def alternate(ours: Callable[[], float], peer: Callable[[], float], runs: int) -> tuple[float, float, float]:
    """Measure pairs after one warm-up each; return both medians and the median of the pairwise ratios."""
    ours(), peer()
    return medians([pair(ours, peer, number) for number in range(runs)])


def pair(ours: Callable[[], T], peer: Callable[[], U], number: int) -> tuple[T, U]:
    """Measure both, ours first in pairs with an even number: what a run leaves behind then burdens both alike."""
    if number % 2:
        second = peer()
        return ours(), second
    return ours(), peer()


def peak_private_mib(command: Sequence[str], environment: Environment | None = None) -> float:
    """Peak of a process's memory that no file backs, in MiB; on Linux."""
    peak = 0
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    with time_limit(process):
        while process.poll() is None:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]))
            time.sleep(0.002)
    if process.returncode:
        raise RuntimeError(f"{command} failed with exit code {process.returncode}")
    return peak / 2**10


def medians(pairs: Iterable[tuple[float, float]]) -> tuple[float, float, float]:
    """Medians of both sides, and of the pairwise ratios."""
    pairs = list(pairs)
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


@cache
def kernels() -> str:
    """The widest vector instructions that llama.cpp is built for here, such as "AVX-512"."""
    features = in_subprocess(cpu_features)
    return next((shown for name, shown in KERNELS.items() if name in features), "no vector instructions")


def cpu_features() -> Sequence[str]:
    """Instruction sets that llama.cpp uses; to be called in a subprocess."""
    from cerebrum_cli.engine.capacity import installed_build

    return installed_build().cpu_features


@cache
def machine() -> str:
    """Name of the processor, and of the GPUs that llama.cpp uses."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return ", ".join([name, *in_subprocess(gpus)])


def gpus() -> list[str]:
    """Names of the GPUs that llama.cpp uses; to be called in a subprocess, because asking takes memory of each."""
    from cerebrum_cli.engine.llama.bindings import accelerators

    return [f"{device.name} {device.description}" for device in accelerators()]


def record(heading: str, rows: Iterable[Row], dry_run: bool = False) -> None:
    """Print rows, and write them to the table below a heading of RESULTS.md.

    Each replaces the row with its label or is appended. A dry run only prints them.
    """
    for row in rows:
        met = "yes" if row.met else "no"
        print(f"{row.label}: {row.ours} against {row.peer}, ratio {row.ratio:.3f}, target {row.target}, met: {met}")
        if not dry_run:
            cells = (row.label, row.ours, row.peer, f"{row.ratio:.3f}", row.target, f"{date.today()}, {machine()}")
            RESULTS.write_text(with_row(RESULTS.read_text(), heading, cells))


def with_row(page: str, heading: str, cells: Sequence[str]) -> str:
    """A page with a row in the first table below a heading. Raises ValueError without such a table."""
    lines = page.splitlines()
    start = lines.index("|---|---|---|---|---|---|", lines.index(f"## {heading}")) + 1
    end = next((at for at in range(start, len(lines)) if not lines[at].startswith("|")), len(lines))
    table = [line for line in lines[start:end] if not line.startswith(f"| {cells[0]} |")]
    lines[start:end] = [*table, f"| {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"
