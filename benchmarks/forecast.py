"""Compare forecasts of speed with what is measured: of each model, from the replies of each other one.

Needs `cerebrum pull starter`.
Usage: python benchmarks/forecast.py --model FILE... [--runs N] [--threads N] [--dry-run]

A FILE is a model in GGUF. It and the starter reply in turns, N times each, to a prompt of about 200 tokens. Each has a
directory of its own, where its replies are recorded; from that record, the other models are forecast. The fastest
reply of each model is what was measured, since other programs can only slow replies down. Loading is not included.
"""

from __future__ import annotations

import json
import tempfile
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from answering import THREADS, model_path
from harness import SCRIPT, argument_parser, isolated_environment, kernels, machine, record_section, run

from cerebrum_cli.engine.capacity import PROMPT_TOKENS, Capacity
from cerebrum_cli.engine.machine import load_speed
from cerebrum_cli.gguf.header import read_header

PROMPT = """Once upon a time there was a miller who lived with his three sons in a small house beside a wide river. The
eldest was strong, the second was clever, and the youngest was kind, but none of them had ever left the valley. One
evening, when the first snow had fallen, an old woman knocked at the door and asked for a place beside the fire. The
miller gave her bread and milk, and in the morning she said: you have been good to me, so I will tell you a secret. In
the mountains behind the forest there is a well whose water never freezes. Whoever drinks from it understands what the
birds are saying, and whoever understands the birds will never be lost. Then she was gone, and there were no footprints
in the snow. The three brothers talked about it all day. At last the eldest took his coat and his axe, and went to look
for the well. He walked for three days, until he came to a bridge that was guarded by"""
TOKENS = 33
HEADING = "Forecasts of speed"
HEAD = """The forecast of each model from the replies of another one alone, of the fastest of its own {runs} replies.
{machine}, {kernels}, threads: {threads}; first token of a prompt of {tokens} tokens, without loading.

| Model | Forecast from | Tokens per second | First token |
|---|---|---|---|
"""


class Measured(NamedTuple):
    """Tokens generated per second, and seconds to the first token after a prompt."""

    rate: float
    first_token_s: float


def main() -> None:
    """Measure all models, and record the table unless this is a dry run."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", nargs="+", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()
    models = [model_path("starter"), *options.model]
    with tempfile.TemporaryDirectory() as name:
        homes = {model: Path(name, str(index)) for index, model in enumerate(models)}
        replies: dict[Path, list[Measured]] = {model: [] for model in homes}
        for _ in range(options.runs):
            for model, home in homes.items():
                replies[model].append(reply(model, home, options.threads))
        lines = [row(model, other, homes[other], replies[model]) for model, other in permutations(homes, 2)]
    head = HEAD.format(
        runs=options.runs, machine=machine(), kernels=kernels(), threads=options.threads, tokens=PROMPT_TOKENS
    )
    text = head + "\n".join(lines)
    print(text)
    if not options.dry_run:
        record_section(HEADING, text)


def reply(model: Path, home: Path, threads: int) -> Measured:
    """Generate a reply, which is recorded in the directory."""
    settings = [f"threads={threads}", "cache_gb=0", "speculative=off"]
    command = [SCRIPT, "ask", "--raw", "-m", str(model), "-n", str(TOKENS), "--json", "--no-log"]
    for setting in settings:
        command += ["--set", setting]
    timings = json.loads(run([*command, PROMPT], environment=isolated_environment(home)).output)["timings"]
    return Measured(timings["tokens_per_second"], PROMPT_TOKENS / timings["prompt_tokens_per_second"])


def row(model: Path, other: Path, home: Path, replies: list[Measured]) -> str:
    """Line of the table: a model, forecast from the replies of another one."""
    speed = load_speed(home / "data" / "cerebrum")
    found = Capacity(0, (), speed).forecast(read_header(model).sizes)
    assert found
    rate = max(reply.rate for reply in replies)
    first_token_s = min(reply.first_token_s for reply in replies)
    rates = f"{found.tokens_per_second:g} of {rate:.1f} ({found.tokens_per_second / rate - 1:+.0%})"
    waits = f"{found.first_token_s:g} s of {first_token_s:.2f} s ({found.first_token_s / first_token_s - 1:+.0%})"
    return f"| {model.stem} | {other.stem} | {rates} | {waits} |"


if __name__ == "__main__":
    main()
