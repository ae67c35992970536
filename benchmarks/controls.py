"""Measure what the loop check costs: PASSES passes over the tokens of RESULTS.md against a decode step of the starter.

RESULTS.md has a table of similar lines, which the check searches more than other text. Needs `cerebrum pull starter`.
Usage: python benchmarks/controls.py [--dry-run]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from answering import model_path
from harness import RESULTS, ROOT, SCRIPT, Environment, Row, isolated_environment, record, run
from nano.measure import loaded_engine

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.engine.control import LoopCheck

NANO = str(ROOT / "cerebrum_cli" / "nano.gguf")
PASSES, TOKENS = 5, 128


def main() -> None:
    """Measure it, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="do not write to RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        record([loop_row(isolated_environment(Path(name)))], options.dry_run)


def loop_row(environment: Environment) -> Row:
    """Time the loop check and a decode step."""
    with loaded_engine(Path(NANO)) as engine:
        tokens = engine.vocabulary.tokenize((Text(RESULTS.read_text(encoding="utf-8")),))
    seconds = median(time_check(tokens) for _ in range(PASSES)) / len(tokens)
    command = [SCRIPT, "ask", "-m", str(model_path("starter")), "-n", str(TOKENS), "--no-log", "--json"]
    command += ["--set", "loop_check=off"]
    rates = [json.loads(run([*command, "I am"], environment=environment).output)["timings"] for _ in range(PASSES)]
    step = 1 / median(timings["tokens_per_second"] for timings in rates)
    cells = f"{seconds * 1e6:.2f} us", f"{step * 1e3:.2f} ms"
    return Row("loop check of a token / decode step of the starter", *cells, seconds / step, "<= 0.005")


def time_check(tokens: Sequence[int]) -> float:
    """Seconds that the loop check takes for a reply."""
    check = LoopCheck()
    start = time.perf_counter()
    for token in tokens:
        check.feed(token, "")
        if check.intervene():
            raise RuntimeError("a false alarm")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
