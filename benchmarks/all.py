"""Run the benchmarks one after another, each in its own process, and report which ones failed.

Needs `make peers` and `cerebrum pull starter`; `make bench` does both and installs matplotlib.
Usage: python benchmarks/all.py [--data DIR] [--shape FILE] [--model FILE] [--llama-cpp SOURCE --python PYTHON]
           [--only NAME...]

DIR is a directory with the question files that some benchmarks need; the source of each missing file is printed.
The FILE of --shape is a model that benchmarks/mistral_shape.py has written, that of --model an instruction model, such
as Qwen2.5-Coder 1.5B. SOURCE and PYTHON are explained in benchmarks/conversion.py. Measurements whose file is missing
are skipped with a message.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from harness import RESULTS, ROOT, require_peers

MT_BENCH, GSM8K, HUMAN_EVAL = "mt-bench-80.jsonl", "gsm8k-200.jsonl", "humaneval.jsonl"
PUBLISHED = {
    MT_BENCH: "fastchat/llm_judge/data/mt_bench/question.jsonl in github.com/lm-sys/FastChat",
    GSM8K: "the first 200 lines of grade_school_math/data/test.jsonl in github.com/openai/grade-school-math",
    HUMAN_EVAL: "data/HumanEval.jsonl.gz in github.com/openai/human-eval",
}


class Benchmark(NamedTuple):
    """A script in this directory, the question files it needs, and whether it also measures a 7B shape.

    One that `needs_model` measures an instruction model only, one that `needs_converter` compares with llama.cpp's.
    """

    name: str
    questions: tuple[str, ...] = ()
    measures_shape: bool = False
    needs_model: bool = False
    needs_converter: bool = False


# Run by `make bench`, in this order.
BENCHMARKS = (
    Benchmark("ask"),
    Benchmark("start", measures_shape=True),
    Benchmark("interrupt", measures_shape=True),
    Benchmark("pull"),
    Benchmark("chat", (MT_BENCH,), measures_shape=True),
    Benchmark("rendering"),
    Benchmark("batch", (GSM8K,), measures_shape=True),
    Benchmark("large_batch"),
    Benchmark("outages"),
    Benchmark("stored_rows"),
    Benchmark("endpoints", (GSM8K,)),
    Benchmark("votes", (GSM8K,), measures_shape=True),
    Benchmark("evaluation", (GSM8K,)),
    Benchmark("drafts", (MT_BENCH,), needs_model=True),
    Benchmark("scores"),
    Benchmark("forecast", needs_model=True),
    Benchmark("layouts", needs_model=True),
    Benchmark("sampling", needs_model=True),
    Benchmark("real", (GSM8K,), needs_model=True),
    Benchmark("same_text", (MT_BENCH, GSM8K, HUMAN_EVAL), needs_model=True),
    Benchmark("reasoning_limits", (GSM8K,), needs_model=True),
    Benchmark("comparison_level"),
    Benchmark("merge", measures_shape=True),
    Benchmark("conversion", needs_converter=True),
    Benchmark("plots"),
)


def main() -> None:
    """Run the selected benchmarks; exit with code 1 if any failed."""
    options = parse_arguments()
    selected = [benchmark for benchmark in BENCHMARKS if not options.only or benchmark.name in options.only]
    if not (options.model and all(has_questions(name, options.data) for name in PUBLISHED)):
        names = ", ".join(benchmark.name for benchmark in BENCHMARKS if benchmark.needs_model)
        print(f"{names}: skipping what needs --model and --data", flush=True)
        selected = [benchmark for benchmark in selected if not benchmark.needs_model]
    for line in missing_questions(selected, options.data):
        print(line, flush=True)
    failed = [
        benchmark.name for benchmark in selected if not run_benchmark(benchmark.name, arguments_of(benchmark, options))
    ]
    print(f"\nran {len(selected)} benchmarks; results are in {RESULTS}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def parse_arguments() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=path_argument, metavar="DIR", help=f"directory with {', '.join(PUBLISHED)}")
    parser.add_argument("--shape", type=path_argument, metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--model", type=path_argument, metavar="FILE", help="an instruction model")
    parser.add_argument("--llama-cpp", type=path_argument, metavar="SOURCE", help="source of llama.cpp")
    parser.add_argument("--python", type=Path, metavar="PYTHON", help="a Python with torch, transformers, mergekit")
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    options = parser.parse_args()
    if options.data and not options.data.is_dir():
        parser.error(f"--data: {options.data} is not a directory")
    for name in ("shape", "model"):
        path = getattr(options, name)
        if path and not path.is_file():
            parser.error(f"--{name}: {path} is not a file")
    require_peers()
    return options


def path_argument(text: str) -> Path:
    """Absolute path; expands a leading ~, which the shell of make leaves alone in quotes."""
    return Path(text).expanduser().resolve()


def missing_questions(benchmarks: Iterable[Benchmark], data: Path | None) -> Iterator[str]:
    """Yield a message for each question file that is missing."""
    for name in PUBLISHED:
        skipping = ", ".join(benchmark.name for benchmark in benchmarks if name in benchmark.questions)
        if skipping and not has_questions(name, data):
            yield f"{skipping}: skipping what needs DATA/{name}; source: {PUBLISHED[name]}"


def has_questions(name: str, data: Path | None) -> bool:
    """Whether the question file exists."""
    return data is not None and (data / name).is_file()


def arguments_of(benchmark: Benchmark, options: argparse.Namespace) -> list[str]:
    """Command-line arguments of a benchmark, for the files that exist."""
    arguments = []
    if benchmark.questions and all(has_questions(name, options.data) for name in benchmark.questions):
        arguments += ["--data", str(options.data)]
    if benchmark.measures_shape and options.shape:
        arguments += ["--shape", str(options.shape)]
    if benchmark.needs_model:
        arguments += ["--model", str(options.model)]
    if benchmark.needs_converter and options.llama_cpp and options.python:
        arguments += ["--llama-cpp", str(options.llama_cpp), "--python", str(options.python)]
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


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
