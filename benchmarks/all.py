"""Run the benchmarks one after another, each in its own process, and report which ones failed.

Needs `make peers` and `cerebrum pull starter`; `make bench` does both and installs matplotlib.
Usage: python benchmarks/all.py [--data DIR] [--shape FILE] [--only NAME...]

DIR is a directory with the question files that some benchmarks need; the source of each missing file is printed.
FILE is a model that benchmarks/mistral_shape.py has written; without it, the model is written into .peers/ once if the
machine has enough memory and disk space. Measurements whose file is missing are skipped with a message.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from harness import PEER_PROGRAMS, RESULTS, ROOT, require_peers

from cerebrum_cli.engine.machine import available_memory

MT_BENCH, GSM8K = "mt-bench-80.jsonl", "gsm8k-200.jsonl"
PUBLISHED = {
    MT_BENCH: "fastchat/llm_judge/data/mt_bench/question.jsonl in github.com/lm-sys/FastChat",
    GSM8K: "the first 200 lines of grade_school_math/data/test.jsonl in github.com/openai/grade-school-math",
}
SHAPE = PEER_PROGRAMS.parent.parent / "mistral-7b-shape.gguf"
SHAPE_DISK, SHAPE_MEMORY = 5 * 10**9, 10 * 10**9  # bytes for the file, and for running it with repacked weights


class Benchmark(NamedTuple):
    """A script in this directory, the question file it needs, and whether it also measures a 7B shape."""

    name: str
    questions: str | None = None
    measures_shape: bool = False


# Run by `make bench`, in this order.
BENCHMARKS = (
    Benchmark("ask"),
    Benchmark("start", measures_shape=True),
    Benchmark("interrupt", measures_shape=True),
    Benchmark("pull"),
    Benchmark("chat", MT_BENCH, measures_shape=True),
    Benchmark("rendering"),
    Benchmark("batch", GSM8K, measures_shape=True),
    Benchmark("large_batch"),
    Benchmark("endpoints", GSM8K),
    Benchmark("votes", GSM8K, measures_shape=True),
    Benchmark("controls"),
    Benchmark("drafts", GSM8K, measures_shape=True),
    Benchmark("scores"),
    Benchmark("lm_eval_parity", GSM8K),
    Benchmark("tune", measures_shape=True),
    Benchmark("merge", measures_shape=True),
    Benchmark("plots"),
)


def main() -> None:
    """Run the selected benchmarks; exit with code 1 if any failed."""
    options = parse_arguments()
    selected = [benchmark for benchmark in BENCHMARKS if not options.only or benchmark.name in options.only]
    for line in missing_questions(selected, options.data):
        print(line, flush=True)
    failed, shape = [], options.shape
    if not shape and any(benchmark.measures_shape for benchmark in selected) and fits_machine():
        shape = SHAPE if SHAPE.exists() or write_shape() else None
        failed += [] if shape else ["mistral_shape"]
    failed += [
        benchmark.name
        for benchmark in selected
        if not run_benchmark(benchmark.name, arguments_of(benchmark, options.data, shape))
    ]
    print(f"\nran {len(selected)} benchmarks; results are in {RESULTS}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def parse_arguments() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=path_argument, metavar="DIR", help=f"directory with {MT_BENCH} and {GSM8K}")
    parser.add_argument("--shape", type=path_argument, metavar="FILE", help="a model of Mistral-7B's shape")
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    options = parser.parse_args()
    if options.data and not options.data.is_dir():
        parser.error(f"--data: {options.data} is not a directory")
    if options.shape and not options.shape.is_file():
        parser.error(f"--shape: {options.shape} is not a file")
    require_peers()
    return options


def path_argument(text: str) -> Path:
    """Absolute path; expands a leading ~, which the shell of make leaves alone in quotes."""
    return Path(text).expanduser().resolve()


def missing_questions(benchmarks: Iterable[Benchmark], data: Path | None) -> Iterator[str]:
    """Yield a message for each question file that is missing."""
    for name in dict.fromkeys(benchmark.questions for benchmark in benchmarks if benchmark.questions):
        if not has_questions(name, data):
            skipping = ", ".join(benchmark.name for benchmark in benchmarks if benchmark.questions == name)
            yield f"{skipping}: skipping what needs DATA/{name}; source: {PUBLISHED[name]}"


def has_questions(name: str, data: Path | None) -> bool:
    """Whether the question file exists."""
    return data is not None and (data / name).is_file()


def arguments_of(benchmark: Benchmark, data: Path | None, shape: Path | None) -> list[str]:
    """Command-line arguments of a benchmark, for the files that exist."""
    arguments = []
    if benchmark.questions and has_questions(benchmark.questions, data):
        arguments += ["--data", str(data)]
    if benchmark.measures_shape and shape:
        arguments += ["--shape", str(shape)]
    return arguments


def run_benchmark(name: str, arguments: Iterable[str]) -> bool:
    """Run a script of this directory; return whether it succeeded."""
    print(f"\n== {name}", flush=True)
    start = time.monotonic()
    script = ROOT / "benchmarks" / f"{name}.py"
    code = subprocess.run([sys.executable, script, *arguments], stdin=subprocess.DEVNULL).returncode
    minutes = (time.monotonic() - start) / 60
    print(
        f"== {name}: " + (f"failed with exit code {code}" if code else "done") + f" after {minutes:.1f} min", flush=True
    )
    return code == 0


def fits_machine() -> bool:
    """Whether there is enough memory and disk space for the 7B shape; print what is missing."""
    memory, disk = available_memory(), shutil.disk_usage(SHAPE.parent).free
    if memory < SHAPE_MEMORY:
        reason = f"{SHAPE_MEMORY / 1e9:.0f} GB of memory, {memory / 1e9:.1f} GB are free"
    elif not SHAPE.exists() and disk < SHAPE_DISK:
        reason = f"{SHAPE_DISK / 1e9:.0f} GB of disk space, {disk / 1e9:.1f} GB are free"
    else:
        return True
    print(f"skipping measurements of the 7B shape: writing and running it needs {reason}; set SHAPE=FILE to use a file")
    return False


def write_shape() -> bool:
    """Write the 7B shape; return whether that succeeded."""
    unfinished = SHAPE.with_suffix(".unfinished")
    if not run_benchmark("mistral_shape", [str(unfinished)]):
        unfinished.unlink(missing_ok=True)
        return False
    unfinished.replace(SHAPE)
    return True


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
