"""Run the benchmarks of speed one after another, each in its own process, and report which ones failed.

Needs `make peers` and `cerebrum pull starter`; `make bench` does both.
Usage: python -m benchmarks.all [--data DIR] [--shape FILE] [--model FILE] [--only NAME...]

DIR has the question files mt-bench-80.jsonl (fastchat/llm_judge/data/mt_bench/question.jsonl of lm-sys/FastChat) and
gsm8k-200.jsonl (the first 200 lines of grade_school_math/data/test.jsonl of openai/grade-school-math). The FILE of
--shape is a model that benchmarks/mistral_shape.py has written, that of --model an instruction model, such as
Qwen2.5-Coder 1.5B. What needs an option that is not given is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import RESULTS, ROOT, require_peers

BENCHMARKS = {  # options of each; one that is named in NEEDED is left out without it
    "ask": (),
    "start": ("shape",),
    "chat": ("data", "model"),
    "batch": ("data", "shape"),
    "large_batch": (),
    "real": ("data", "model"),
    "scores": (),
    "pull": (),
}
NEEDED = {"batch": ("data",), "real": ("data", "model")}


def main() -> None:
    """Run the selected benchmarks; exit with code 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "shape", "model"):
        parser.add_argument(f"--{name}", type=existing_path, metavar="PATH")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    options = vars(parser.parse_args())
    require_peers()
    failed = []
    for name in options["only"] or BENCHMARKS:
        if missing := [f"--{option}" for option in NEEDED.get(name, ()) if not options[option]]:
            print(f"{name}: left out, needs {' and '.join(missing)}", flush=True)
            continue
        given = [(f"--{option}", options[option]) for option in BENCHMARKS[name] if options[option]]
        if not run_benchmark(name, [str(word) for pair in given for word in pair]):
            failed.append(name)
    print(f"\nresults are in {RESULTS}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def existing_path(text: str) -> Path:
    """Absolute path; expands a leading ~, which the shell of make leaves alone in quotes."""
    path = Path(text).expanduser().resolve()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return path


def run_benchmark(name: str, arguments: list[str]) -> bool:
    """Run a module of this package; return whether it succeeded."""
    print(f"\n== {name}", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, cwd=ROOT).returncode
    outcome = f"failed with exit code {code}" if code else "done"
    print(f"== {name}: {outcome} after {(time.monotonic() - start) / 60:.1f} min", flush=True)
    return code == 0


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
