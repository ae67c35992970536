"""Run all benchmarks one after the other, each in a process of its own, and say in the end which have failed.

Needs `make peers` and `cerebrum pull starter`; `make bench` sees to both, and to matplotlib.
Usage: python benchmarks/all.py [--data DIR] [--shape FILE] [--only NAME...]

DIR holds questions that some of them ask: where they are published is said of those that are not there. FILE is what
benchmarks/mistral_shape.py writes; unless it is given it is written into .peers/ once, if this machine has room for it.
What cannot be measured without a file is left out, with a line that says so.
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

from harness import PEER_PROGRAMS, RESULTS, ROOT

from cerebrum_cli.engine.machine import available_memory

MT_BENCH, GSM8K = "mt-bench-80.jsonl", "gsm8k-200.jsonl"
PUBLISHED = {
    MT_BENCH: "fastchat/llm_judge/data/mt_bench/question.jsonl in github.com/lm-sys/FastChat",
    GSM8K: "the first 200 lines of grade_school_math/data/test.jsonl in github.com/openai/grade-school-math",
}
SHAPE = PEER_PROGRAMS.parent.parent / "mistral-7b-shape.gguf"
SHAPE_DISK, SHAPE_MEMORY = 5 * 10**9, 10 * 10**9  # bytes of the file and some more, and of it laid out anew and asked


class Benchmark(NamedTuple):
    """A script of this folder: the file in DIR that it asks of, if there is one, and whether it measures FILE, too."""

    name: str
    questions: str | None = None
    measures_shape: bool = False


# A row each; what has a row is run by `make bench`.
BENCHMARKS = (
    Benchmark("ask"),
    Benchmark("start", measures_shape=True),
    Benchmark("interrupt", measures_shape=True),
    Benchmark("pull"),
    Benchmark("chat", MT_BENCH, measures_shape=True),
    Benchmark("rendering"),
    Benchmark("batch", GSM8K, measures_shape=True),
    Benchmark("votes", GSM8K, measures_shape=True),
    Benchmark("tune", measures_shape=True),
    Benchmark("merge", measures_shape=True),
    Benchmark("plots"),
)


def main() -> None:
    """Run what was chosen; the exit code is 1 where something has failed."""
    given = parsed()
    chosen = [each for each in BENCHMARKS if not given.only or each.name in given.only]
    for line in missing(chosen, given.data):
        print(line, flush=True)
    failed, shape = [], given.shape
    if not shape and any(each.measures_shape for each in chosen) and has_room():
        shape = SHAPE if SHAPE.exists() or written() else None
        failed += [] if shape else ["mistral_shape"]
    failed += [each.name for each in chosen if not ran(each.name, arguments(each, given.data, shape))]
    print(f"\n{len(chosen)} benchmarks have run; what they measured is in {RESULTS}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def parsed() -> argparse.Namespace:
    """Return what was asked for; the process ends where it cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=at, metavar="DIR", help=f"where {MT_BENCH} and {GSM8K} are")
    parser.add_argument("--shape", type=at, metavar="FILE", help="a model of Mistral-7B's shape")
    names = [each.name for each in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    given = parser.parse_args()
    if given.data and not given.data.is_dir():
        parser.error(f"--data: {given.data} is no folder")
    if given.shape and not given.shape.is_file():
        parser.error(f"--shape: {given.shape} is no file")
    if not PEER_PROGRAMS.is_dir():
        parser.error("`make peers` first")
    return given


def at(text: str) -> Path:
    """Return the path a text names; make's shell leaves a quoted ~ as it is."""
    return Path(text).expanduser().resolve()


def missing(chosen: Iterable[Benchmark], data: Path | None) -> Iterator[str]:
    """Yield what is to be said of questions that are not there."""
    for name in dict.fromkeys(each.questions for each in chosen if each.questions):
        if not asks(name, data):
            users = ", ".join(each.name for each in chosen if each.questions == name)
            yield f"left out of {users}: what asks the questions in DATA/{name}, which are {PUBLISHED[name]}"


def asks(name: str, data: Path | None) -> bool:
    """Tell whether there are questions of that name."""
    return data is not None and (data / name).is_file()


def arguments(benchmark: Benchmark, data: Path | None, shape: Path | None) -> list[str]:
    """Return what a benchmark is given, of what there is."""
    found = []
    if benchmark.questions and asks(benchmark.questions, data):
        found += ["--data", str(data)]
    if benchmark.measures_shape and shape:
        found += ["--shape", str(shape)]
    return found


def ran(name: str, given: Iterable[str]) -> bool:
    """Run a script of this folder to its end, and tell whether that was a good one."""
    print(f"\n== {name}", flush=True)
    began = time.monotonic()
    script = ROOT / "benchmarks" / f"{name}.py"
    code = subprocess.run([sys.executable, script, *given], stdin=subprocess.DEVNULL).returncode
    minutes = (time.monotonic() - began) / 60
    print(
        f"== {name}: " + (f"failed with exit code {code}" if code else "done") + f" after {minutes:.1f} min", flush=True
    )
    return code == 0


# The model of Mistral-7B's shape.


def has_room() -> bool:
    """Tell whether this machine has room for the model; say what it lacks."""
    memory, disk = available_memory(), shutil.disk_usage(SHAPE.parent).free
    if memory < SHAPE_MEMORY:
        lack = f"{SHAPE_MEMORY / 1e9:.0f} GB of memory, and {memory / 1e9:.1f} are free"
    elif not SHAPE.exists() and disk < SHAPE_DISK:
        lack = f"{SHAPE_DISK / 1e9:.0f} GB of disk, and {disk / 1e9:.1f} are free"
    else:
        return True
    print(f"left out: what measures a model of Mistral-7B's shape, unless SHAPE=FILE names it; it takes {lack}")
    return False


def written() -> bool:
    """Write the model; tell whether that went well."""
    unfinished = SHAPE.with_suffix(".unfinished")
    if not ran("mistral_shape", [str(unfinished)]):
        unfinished.unlink(missing_ok=True)
        return False
    unfinished.replace(SHAPE)
    return True


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
