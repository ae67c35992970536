"""Run two commands in turn, or functions, and compare them run by run; keep the results as one table."""

from __future__ import annotations

import os
import platform
import pty
import statistics
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers" / "build" / "bin"
SCRIPT = str(Path(sys.executable).parent / "cerebrum")
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
LIMIT_S = 3600.0  # no process that is measured takes so long, even on a slow machine
HEAD = """# Results

Every figure was measured on the machine its row names, as the median of at least three runs made in turn with the
peer's, or of one or two where a row says `7B shape`, and the ratio as the median of the pairs'; counted tokens are
those of one run. `make bench` measures again and rewrites the rows it covers. Two pictures, beside llama-batched-bench:
[decode throughput against parallel sequences](throughput.png), and [time against prompt length](prompt_time.png).

| what | ours | peer | ratio | bar | met | date | machine | versions |
|---|---|---|---|---|---|---|---|---|
"""


class Run(NamedTuple):
    """One finished process: wall seconds, peak memory in MiB, and what it wrote on both streams."""

    seconds: float
    peak: float
    output: str
    errors: str


class Row(NamedTuple):
    """One line of the table; `bar` is the most the ratio may be, or the least if it begins with `>=`."""

    what: str
    ours: str
    peer: str
    ratio: float
    bar: str

    @property
    def met(self) -> bool:
        """Whether the ratio keeps the bar."""
        limit = float(self.bar.split()[-1])
        return self.ratio >= limit if self.bar.startswith(">=") else self.ratio <= limit


def run(command: Sequence[str], given: str | None = None, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end, alone, with what is given on standard input, or nothing; raise if it fails.

    What is given must fit into a pipe.
    """
    source = subprocess.DEVNULL if given is None else subprocess.PIPE
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stderr is not None
    with limited(process):
        if process.stdin is not None and given is not None:
            process.stdin.write(given.encode())
            process.stdin.close()
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    errors = process.stderr.read().decode()
    process.stdout.close()
    process.stderr.close()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors[-2000:]}")
    return Run(seconds, usage.ru_maxrss / 1024, output.decode(), errors)


def first_byte(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Return the seconds from starting a command to the first byte on its standard output; raise if it fails later."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
        )
        with limited(process), process:
            assert process.stdout is not None
            said = os.read(process.stdout.fileno(), 1)
            seconds = time.perf_counter() - start
            process.stdout.read()
        errors.seek(0)
        if process.returncode or not said:
            raise RuntimeError(f"{command} ended with {process.returncode}: {errors.read().decode()[-2000:]}")
    return seconds


@contextmanager
def limited(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process that takes far too long."""
    timer = threading.Timer(LIMIT_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def private(directory: Path) -> dict[str, str]:
    """Return an environment in which nobody has configured, measured or kept anything; what is kept goes to a folder.

    A model must be given as a path there.
    """
    usual = {name: value for name, value in os.environ.items() if not name.startswith("CEREBRUM_")}
    return usual | {f"XDG_{name.upper()}_HOME": str(directory / name) for name in ("config", "data", "cache")}


def alone(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return what a function of a module does in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


@contextmanager
def terminal(columns: int, rows: int) -> Iterator[str]:
    """Yield the path of a terminal whose other end takes all that comes, in a thread of this process."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (rows, columns))
    reader = threading.Thread(target=drain, args=(master,), daemon=True)
    reader.start()
    try:
        yield os.ttyname(slave)
    finally:
        os.close(slave)
        reader.join()
        os.close(master)


def drain(descriptor: int) -> None:
    """Read until nobody writes any more, which Linux tells with an error."""
    with suppress(OSError):
        while os.read(descriptor, 2**16):
            pass


def sit_at(device: str) -> None:
    """Make a terminal, or another device, this process's standard streams; a terminal is one of many colours."""
    descriptor = os.open(device, os.O_RDWR | os.O_NOCTTY)
    for standard in (0, 1, 2):
        os.dup2(descriptor, standard)  # rich asks them for the size
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "ACCESSIBLE"):
        os.environ.pop(name, None)
    os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")


def in_turn(ours: Callable[[], float], peer: Callable[[], float], runs: int) -> tuple[float, float, float]:
    """Measure both in turn after one warm-up each; return the two medians and the median of the pairwise ratios."""
    ours(), peer()
    return medians([(ours(), peer()) for _ in range(runs)])


def medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the medians of both sides, and of the pairs' ratios."""
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def machine() -> str:
    """Return the processor's name and how many of it this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {count} cores, {platform.system()}"


def record(rows: Iterable[Row]) -> None:
    """Put rows into RESULTS.md, in place of older ones of the same name or else behind all others, and show them."""
    lines, sections = results()
    versions = ", ".join(f"{name} {version(name)}" for name in ("cerebrum-cli", "llama-cpp-python", "huggingface-hub"))
    for row in rows:
        cells = (row.what, row.ours, row.peer, f"{row.ratio:.3f}", row.bar, "yes" if row.met else "**no**")
        lines[row.what] = f"| {' | '.join(cells)} | {date.today()} | {machine()} | {versions} |"
        print(f"{row.what}: {row.ours} against {row.peer}, ratio {row.ratio:.3f}, bar {row.bar}")
    write(lines, sections)


def record_section(heading: str, text: str) -> None:
    """Put a section below the table of RESULTS.md, in place of an older one or else behind all others."""
    lines, sections = results()
    sections[heading] = text.strip()
    write(lines, sections)


def results() -> tuple[dict[str, str], dict[str, str]]:
    """Return the lines of the table in RESULTS.md by what they are about, and the sections below it by heading."""
    if not RESULTS.exists():
        return {}, {}
    table, *rest = RESULTS.read_text().split("\n## ")
    rows = [line for line in table.splitlines() if line.startswith("| ") and "| what |" not in line]
    sections = (section.partition("\n") for section in rest)
    return {row.split("|")[1].strip(): row for row in rows}, {name: text.strip() for name, _, text in sections}


def write(lines: Mapping[str, str], sections: Mapping[str, str]) -> None:
    """Write RESULTS.md."""
    below = "".join(f"\n## {heading}\n\n{text}\n" for heading, text in sections.items())
    RESULTS.write_text(HEAD + "\n".join(lines.values()) + "\n" + below)
