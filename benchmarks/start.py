"""How long `cerebrum ask` takes from the start of its process to its first token: phase by phase, and beside peers.

Needs `make peers` and `cerebrum pull starter`. Usage: python benchmarks/start.py [--shape FILE] [--runs N] [--dry]

Everything is asked as by somebody who has configured nothing and kept nothing. Runs are processes of their own, in turn
with the peer's, after one warm-up each; the model's file is in the page cache. A first token is there with the first
byte on standard output, a pipe.

phases   A question to the starter, traced: benchmarks/traced.py tells how. The section "Cold start" of RESULTS.md.
imports  Of that, what passes before llama.cpp begins to load the model, against an interpreter that does nothing.
token    The same question untraced, against llama-completion, which is given the prompt as it is, without a template.
second   With FILE, which benchmarks/mistral_shape.py writes: one question is asked, which keeps on disk what all others
         begin with, and then another one; its peer is a text of as many tokens as that one has to itself, with no
         format and nothing kept. Once with the format's own system prompt, and once with one of some 600 tokens. Three
         pairs unless --runs says otherwise, and no warm-up but a look at how many tokens were kept.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import traced
from answering import THREADS, model_path
from harness import (
    PEER_PROGRAMS,
    ROOT,
    SCRIPT,
    Row,
    alternate,
    isolated_environment,
    machine,
    medians,
    record,
    record_section,
    run,
    time_to_first_byte,
)

QUESTION = "What is the capital of France?"
FIRST, SECOND = "How many legs do seven spiders have?", "How many wheels do nine cars have?"
SYSTEM = (ROOT / "cerebrum_cli" / "probe.txt").read_text(encoding="utf-8")[:2000]
RUNS, SHAPE_RUNS = 7, 3

Environment = Mapping[str, str]


def main() -> None:
    """Measure all there is to measure, and record it unless this is a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--runs", type=int, help=f"[default: {RUNS}, with FILE {SHAPE_RUNS}]")
    parser.add_argument("--dry-run", action="store_true", help="do not touch the results")
    given = parser.parse_args()
    if not PEER_PROGRAMS.is_dir():
        parser.error("run `make peers` first")
    runs, model = given.runs or RUNS, str(model_path("starter"))
    with tempfile.TemporaryDirectory() as name:
        ask = [*asking(model), "--threads", str(THREADS), "--no-log", QUESTION]
        record([cold_start(ask, isolated_environment(Path(name)), runs, given.dry_run)], given.dry_run)
        record([first_token(model, ask, isolated_environment(Path(name)), runs)], given.dry_run)
    if given.shape:
        for system in (None, SYSTEM):
            record([second_question(given.shape, system, given.runs or SHAPE_RUNS)], given.dry_run)


def asking(model: str) -> list[str]:
    """Return how one token is asked for."""
    return [SCRIPT, "ask", "-m", model, "-n", "1"]


# Phase by phase.


def cold_start(ask: Sequence[str], environment: Environment, runs: int, dry: bool) -> Row:
    """Trace a question, and write of its phases; compare what comes before loading with an interpreter's start."""
    found: list[dict[str, float]] = []

    def ours() -> float:
        found.append(passed(ask, environment))
        return found[-1][traced.PLANNED]

    mine, other, ratio = alternate(ours, lambda: run([sys.executable, "-c", "pass"]).seconds, runs)
    prompt = prompt_of(ask, environment)["prompt_tokens"]
    text = section(durations(found[1:]), prompt, runs)
    print(text)
    if not dry:
        record_section("Cold start", text)
    what = "imports and command line, before the model begins to load / python -c pass"
    return Row(what, f"{mine * 1e3:.0f} ms", f"{other * 1e3:.1f} ms", ratio, "<= 25")


def passed(ask: Sequence[str], environment: Environment) -> dict[str, float]:
    """Trace a question: return the seconds after which its phases ended, in that order."""
    here = {**environment, "PYTHONPATH": str(ROOT / "benchmarks")}
    began = time.perf_counter()
    finished = run([sys.executable, "-c", "import traced; traced.main()", str(began), *ask[1:]], environment=here)
    found: dict[str, float] = json.loads(finished.errors.splitlines()[-1])
    if (end := [name for name in found if name == traced.SHOWN]) != list(found)[-1:]:
        raise RuntimeError(f"the trace does not end with the first token: {end}, {found}")
    return found


def durations(traces: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the milliseconds of each phase, one for each trace."""
    names = list(traces[0])
    if any(list(each) != names for each in traces):
        raise RuntimeError(f"not all went the same way: {[list(each) for each in traces]}")
    return {
        name: [(each[name] - (each[before] if before else 0.0)) * 1e3 for each in traces]
        for before, name in zip([None, *names], names, strict=False)
    }


def section(phases: Mapping[str, Sequence[float]], prompt: int, runs: int) -> str:
    """Write of phases: a sentence and a table."""
    total = statistics.median(map(sum, zip(*phases.values(), strict=True)))
    middle = {name: statistics.median(each) for name, each in phases.items()}
    lines = [f"| {name} | {spent:.1f} | {spent / total:.0%} |" for name, spent in middle.items()]
    return "\n".join(
        [
            "`cerebrum ask` from the start of its process to the first token on standard output: the starter, its file",
            f"in the page cache, {THREADS} threads, a prompt of {prompt} tokens; medians of {runs} runs of",
            f"`benchmarks/start.py` on {date.today()}, {machine()}. While the engine loads, another",
            "thread imports the modules that the answer needs.",
            "",
            "| phase | ms | share |",
            "|---|---|---|",
            *lines,
            f"| total | {total:.1f} | |",
        ]
    )


# Beside llama-completion.


def first_token(model: str, ask: Sequence[str], environment: Environment, runs: int) -> Row:
    """Compare the first token with llama-completion's, which reads the same prompt."""
    asked = prompt_of(ask, environment)
    peer = [str(PEER_PROGRAMS / "llama-completion"), "--no-warmup", "-m", model, "-p", asked["prompt"], "-n", "1"]
    peer += ["--temp", "0", "-t", str(THREADS), "-no-cnv", "--no-display-prompt"]
    read = re.search(r"prompt eval time =.*/ *(\d+) tokens", run(peer).errors)
    if read is None or int(read[1]) != asked["prompt_tokens"]:
        raise RuntimeError(f"llama-completion reads {read and read[1]} tokens, and not {asked['prompt_tokens']}")
    mine, other, ratio = alternate(lambda: time_to_first_byte(ask, environment), lambda: time_to_first_byte(peer), runs)
    what = "first token from exec, starter: cerebrum ask / llama-completion"
    return Row(what, f"{mine * 1e3:.0f} ms", f"{other * 1e3:.0f} ms", ratio, "<= 1.6")


def prompt_of(ask: Iterable[str], environment: Environment) -> dict[str, Any]:
    """Return what `--dry-run` says of a question."""
    found: dict[str, Any] = json.loads(run([*ask, "--dry-run", "--json"], environment=environment).output)
    return found


# What was read is kept.


def second_question(model: str, system: str | None, runs: int) -> Row:
    """Compare the first token of a second question with loading the same model and evaluating its own tokens alone.

    Loading takes 5 to 9 s from one process to the next, so both sides of a pair have that of the second question.
    """
    with tempfile.TemporaryDirectory() as name:
        environment = isolated_environment(Path(name))
        ask = [*asking(model), "--no-profile"]
        led = [*ask, "--format", "cerebrum", *(["-s", system] if system else [])]
        run([*led, FIRST], environment=environment)
        second = [*led, SECOND, "--no-log"]
        seen = json.loads(run([*second, "--json"], environment=environment).output)
        own = seen["prompt_tokens"] - seen["cached_tokens"]
        if not seen["cached_tokens"]:
            raise RuntimeError(f"nothing was kept of the first question: {seen['timings']}")
        alone = [*ask, "--raw", text_of(own, ask, environment), "--no-cache", "--no-log"]
        pairs = []
        for _ in range(runs):
            ours, own_tokens = (timings(command, environment) for command in (second, alone))
            pairs.append((ours["load_s"] + ours["ttft_s"], ours["load_s"] + own_tokens["ttft_s"]))
    mine, other, ratio = medians(pairs)
    prompt = f"a system prompt of {seen['cached_tokens']} tokens" if system else "the same system prompt"
    what = f"second question with {prompt}, 7B shape: first token / load + prefill of its own tokens"
    kept = f"{seen['cached_tokens']} tokens cached, {own} evaluated"
    return Row(what, f"{mine:.2f} s ({kept})", f"{other:.2f} s", ratio, "<= 1.1")


def timings(command: Sequence[str], environment: Environment) -> dict[str, float]:
    """Return what `--json` says of how long it took."""
    found: dict[str, float] = json.loads(run([*command, "--json"], environment=environment).output)["timings"]
    return found


def text_of(tokens: int, ask: Sequence[str], environment: Environment) -> str:
    """Return a text that is so many tokens without a format."""
    words = tokens
    for _ in range(4):
        text = " ".join(["the"] * words)
        found = prompt_of([*ask, "--raw", text], environment)["prompt_tokens"]
        if found == tokens:
            return text
        words += tokens - found
    raise RuntimeError(f"there is no text of {tokens} tokens")


if __name__ == "__main__":
    main()
