"""Time Ctrl-C during prefill and during decode, from the signal to the end of the stream.

Needs `cerebrum pull starter`. Usage: python benchmarks/interrupt.py [--shape FILE]

FILE is a model that benchmarks/mistral_shape.py has written; it is measured in addition to the starter model.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from harness import SCRIPT, Row, record

PROMPT = "one two three four five six seven eight nine ten " * 300
RUNS = 5
LIMIT_MS = {"starter": 100, "7B": 200}
WAIT_S = float(os.environ.get("WAIT", "1"))  # between loading and the signal


def main() -> None:
    """Measure each model, record the time until the stream ended, and print the time until the process exited."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", metavar="FILE", help="a model of Mistral-7B's shape")
    options = parser.parse_args()
    for model in ("starter", *filter(None, [options.shape])):
        rows = []
        for phase, prompt in (("prefill", PROMPT), ("decode", "Tell me a long story about apples.")):
            runs = [interrupt(model, prompt, WAIT_S) for _ in range(RUNS)]
            streams, processes = ([seconds * 1e3 for seconds in column] for column in zip(*runs, strict=True))
            median, limit = statistics.median(streams), LIMIT_MS.get(model, LIMIT_MS["7B"])
            label = (
                f"Ctrl-C during {phase}, {'starter' if model == 'starter' else '7B shape'}, to the end of the stream"
            )
            rows.append(Row(label, f"{median:.0f} ms", f"{limit} ms allowed", median / limit, "<= 1"))
            print(f"{label}: max {max(streams):.0f} ms; process exited after {statistics.median(processes):.0f} ms")
        record(rows)


def interrupt(model: str, prompt: str, wait_s: float) -> tuple[float, float]:
    """Seconds from SIGINT to the end of the stream, when --json prints, and to the exit of the process."""
    with tempfile.TemporaryDirectory() as directory:
        prompt_file = Path(directory) / "prompt.txt"
        prompt_file.write_text(prompt)
        command = [
            SCRIPT,
            "ask",
            "-m",
            model,
            "--raw",
            "-f",
            str(prompt_file),
            "--seed",
            "1",
            "--temperature",
            "1",
            "--json",
            "--set",
            "verbose=on",
        ]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stderr is not None
        for line in process.stderr:  # verbose: llama.cpp logs the creation of the context
            if b"sched_reserve: reserve took" in line:
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()
        time.sleep(wait_s)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        reply = json.loads(process.stdout.readline())
        ended = time.perf_counter() - start
        code = process.wait()
        if code != 130 or reply["finish_reason"] != "cancelled":
            raise RuntimeError(f"not interrupted: exit code {code}, finish reason {reply['finish_reason']}")
        return ended, time.perf_counter() - start


if __name__ == "__main__":
    main()
