"""How long Ctrl-C takes: from the signal to the end of the stream, in the prompt and in the answer.

Needs `cerebrum pull starter`. Usage: python benchmarks/interrupt.py [--shape FILE]

FILE is what benchmarks/mistral_shape.py writes: it is interrupted, too.
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
ALLOWED_MS = {"starter": 100, "7B": 200}
WAIT = float(os.environ.get("WAIT", "1"))  # seconds between loading and the signal


def main() -> None:
    """Measure each model, record how long the stream went on, and print how long the process took to leave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", metavar="FILE", help="a model of Mistral-7B's shape")
    given = parser.parse_args()
    for model in ("starter", *filter(None, [given.shape])):
        rows = []
        for phase, prompt in (("prefill", PROMPT), ("decode", "Tell me a long story about apples.")):
            both = [interrupted(model, prompt, WAIT) for _ in range(RUNS)]
            streams, processes = ([seconds * 1e3 for seconds in side] for side in zip(*both, strict=True))
            median, allowed = statistics.median(streams), ALLOWED_MS.get(model, ALLOWED_MS["7B"])
            what = f"Ctrl-C during {phase}, {'starter' if model == 'starter' else '7B shape'}, to the end of the stream"
            rows.append(Row(what, f"{median:.0f} ms", f"{allowed} ms allowed", median / allowed, "<= 1"))
            print(f"{what}: max {max(streams):.0f} ms; process gone after {statistics.median(processes):.0f} ms")
        record(rows)


def interrupted(model: str, prompt: str, wait: float) -> tuple[float, float]:
    """Return the seconds from SIGINT to the end of the stream, when --json prints, and to the process's exit."""
    with tempfile.TemporaryDirectory() as directory:
        question = Path(directory) / "prompt.txt"
        question.write_text(prompt)
        command = [
            SCRIPT,
            "ask",
            "-m",
            model,
            "--raw",
            "-f",
            str(question),
            "--seed",
            "1",
            "--temperature",
            "1",
            "--json",
            "-v",
        ]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stderr is not None
        for line in process.stderr:  # -v: llama.cpp's own log says when the context is made
            if b"sched_reserve: reserve took" in line:
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()
        time.sleep(wait)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        reply = json.loads(process.stdout.readline())
        ended = time.perf_counter() - start
        code = process.wait()
        if code != 130 or reply["finish_reason"] != "cancelled":
            raise RuntimeError(f"it ended with {code}, {reply['finish_reason']}, before it could be interrupted")
        return ended, time.perf_counter() - start


if __name__ == "__main__":
    main()
